"""Fixed fan-in layer: what the public functions say to bad input, and that nothing has changed by then."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import (
    SGD,
    Adam,
    FixedFanIn,
    Labels,
    fixed_fan_in_backward,
    fixed_fan_in_forward,
    fixed_fan_in_step,
    fixed_fan_in_top_k,
)

from .helpers import copy_layer, label_matrix, make_layer, normal, on_other_device, place_labels

B, H, L, K = 3, 7, 5, 3
CALLS = {
    "forward": lambda a: fixed_fan_in_forward(a.h, a.layer, out=a.out),
    "backward": lambda a: fixed_fan_in_backward(a.h, a.layer, a.dscores),
    "top_k": lambda a: fixed_fan_in_top_k(a.h, a.layer, a.k),
    "step": lambda a: fixed_fan_in_step(a.h, a.layer, a.labels, a.loss, a.optimizer),
}


@pytest.fixture
def good(backend):
    """Arguments that all functions accept, on the device of `backend`; an optimizer that has taken a step."""
    layer, adam = make_layer(backend, L, H, K), Adam()
    h, labels = backend.array(normal(1, B, H)), place_labels(backend, label_matrix(B, L))
    dscores = backend.array(normal(2, B, L))
    fixed_fan_in_step(h, layer, labels, "bce", adam)
    return SimpleNamespace(
        backend=backend, layer=layer, h=h, dscores=dscores, labels=labels, k=2, loss="bce", optimizer=adam, out=None
    )


def state(arguments):
    """Everything that a step may change."""
    layer, optimizer = arguments.layer, arguments.optimizer
    if not isinstance(layer, FixedFanIn):
        return None
    parts = [a.tobytes() for a in copy_layer(layer)]
    if isinstance(optimizer, Adam):
        for s in map(optimizer.state_of, (layer.values, layer.bias)):
            parts += [s.count, *(arguments.backend.numpy(m).tobytes() for m in s.moments)]
    return parts


def refuses(arguments, call, error, message):
    before = state(arguments)
    with pytest.raises(error, match=message):
        CALLS[call](arguments)
    assert state(arguments) == before


def with_entry(array, place, value):
    array = array.copy()
    array[place] = value
    return array


# ---------------------------------------------------------------- arrays: x, dscores, out

#: What is wrong: (a good array, its backend) -> a bad one, error, message. {0} is the name, {1} the shape it must have.
BAD_ARRAYS = {
    "float64": (
        lambda a, b: a.astype(np.float64), TypeError,
        r"^{0} must be float32, got float64; use {0}.astype\(np.float32\)$",
    ),
    "int": (lambda a, b: a.astype(np.int32), TypeError, "^{0} must be float32, got int32"),
    "one axis": (lambda a, b: a[0], ValueError, r"^{0} must have shape \({1}\), got \(\d,\)"),
    "three axes": (lambda a, b: a[None], ValueError, r"^{0} must have shape \({1}\), got \(1, 3, \d\)"),
    "too narrow": (
        lambda a, b: b.array(b.numpy(a)[:, 1:]), ValueError, r"^{0} must have shape \({1}\), got \(3, \d\)"
    ),
    "Fortran order": (
        lambda a, b: b.array(b.numpy(a).T).T, ValueError,
        r"^{0} must be C-contiguous \(row-major\), got strides \(4, 12\); use np.ascontiguousarray\({0}\)",
    ),
    "every other": (
        lambda a, b: b.array(np.repeat(b.numpy(a), 2, axis=1))[:, ::2], ValueError, r"^{0} must be C-contiguous"
    ),
    "other device": (
        lambda a, b: on_other_device(b, b.numpy(a)), TypeError,
        r"^(all arrays must live on one device|{0} must live on)",
    ),
}  # fmt: skip
NOT_ARRAYS = {
    "list": (
        lambda a, b: b.numpy(a).tolist(),
        TypeError,
        r"^{0} must be a NumPy or CUDA array, got list; use np.asarray",
    ),
    "sparse": (lambda a, b: scipy.sparse.csr_matrix(b.numpy(a)), TypeError, r"^{0} must be a NumPy or CUDA array"),
    "None": (lambda a, b: None, TypeError, r"^{0} must be a NumPy or CUDA array, got NoneType"),
}
BAD_NUMBERS = {
    "NaN": (
        lambda a, b: with_entry(a, (1, 2), np.nan),
        ValueError,
        r"^{0} must be finite, got nan at \[1, 2\]; fix the data",
    ),
    "inf": (lambda a, b: with_entry(a, (2, 0), -np.inf), ValueError, r"^{0} must be finite, got -inf at \[2, 0\]"),
}
SHAPES = {"h": f"B, {H}", "dscores": f"{B}, {L}", "out": f"{B}, {L}"}


def each(*tables):
    table = {key: value for t in tables for key, value in t.items()}
    return pytest.mark.parametrize("wrong", table.values(), ids=table)


def check_array(good, call, name, wrong):
    spoil, error, message = wrong
    array = getattr(good, name)
    setattr(good, name, spoil(good.dscores if array is None else array, good.backend))
    refuses(good, call, error, message.format(name, SHAPES[name]))


@pytest.mark.parametrize("call", CALLS)
@each(BAD_ARRAYS, NOT_ARRAYS, BAD_NUMBERS)
def test_x(good, call, wrong):
    check_array(good, call, "h", wrong)


@each(BAD_ARRAYS, NOT_ARRAYS, BAD_NUMBERS)
def test_dscores(good, wrong):
    check_array(good, "backward", "dscores", wrong)


@each(BAD_ARRAYS, {key: NOT_ARRAYS[key] for key in ("list", "sparse")})
def test_out(good, wrong):
    check_array(good, "forward", "out", wrong)


def test_mixed_devices_names_each_array(good):
    here, there = good.backend.device, {"cpu": "cuda", "cuda": "cpu"}[good.backend.device]
    good.h = on_other_device(good.backend, good.backend.numpy(good.h))
    refuses(good, "forward", TypeError, f"got h on {there}, layer on {here}; move them with cupy.asarray")


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def test_read_only_arrays(good):
    """Read-only inputs are welcome, read-only outputs are not."""
    if not isinstance(good.h, np.ndarray):
        pytest.skip("arrays on a device have no such flag")
    good.h = read_only(good.h)
    good.out = read_only(CALLS["forward"](good))
    refuses(good, "forward", ValueError, r"^out is written to but is read-only; pass a copy: out.copy\(\)$")


# ---------------------------------------------------------------- other arguments


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layer", [None, np.zeros((L, K), np.float32), "layer"], ids=["None", "array", "text"])
def test_layer_of_wrong_type(good, call, layer):
    good.layer = layer
    refuses(good, call, TypeError, f"^layer must be a FixedFanIn, got {type(layer).__name__}$")


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, r"^k must be between 1 and 5 \(n_labels = 5\), got 0"),
        (-1, ValueError, "^k must be between 1 and 5"),
        (6, ValueError, "^k must be between 1 and 5"),
        (2.0, TypeError, "^k must be an integer, got float 2.0"),
        (True, TypeError, "^k must be an integer, got bool True"),
        ("2", TypeError, "^k must be an integer, got str '2'"),
        (None, TypeError, "^k must be an integer, got NoneType"),
    ],
)
def test_k(good, k, error, message):
    good.k = k
    refuses(good, "top_k", error, message)


@pytest.mark.parametrize("loss", ["hinge", "", None, 0, ["bce"]])
def test_unknown_loss(good, loss):
    good.loss = loss
    refuses(
        good,
        "step",
        ValueError,
        f"^loss must be one of 'squared-hinge', 'bce', 'softmax', got {re.escape(repr(loss))}$",
    )


@pytest.mark.parametrize("optimizer", [None, "adam", Adam, 0.1], ids=["None", "text", "class", "number"])
def test_optimizer_of_wrong_type(good, optimizer):
    good.optimizer = optimizer
    refuses(good, "step", TypeError, f"^optimizer must be Adam or SGD, got {type(optimizer).__name__}$")


# ---------------------------------------------------------------- labels

RANGE = r"^labels must hold ids in \[0, 5\), got "
RISE = r"^labels.indptr must rise from 0 to len\(labels.indices\) = 4$"
BAD_LABELS = {  # indptr, indices, error, message
    "too large": ([0, 1, 2, 4], [0, 1, 2, 5], ValueError, RANGE + "5"),
    "negative": ([0, 1, 2, 4], [0, 1, -2, 4], ValueError, RANGE + "-2"),
    "repeated": ([0, 1, 2, 4], [0, 0, 3, 3], ValueError, "^labels must not repeat a label inside one row; use "),
    "repeated apart": ([0, 3, 3, 4], [1, 0, 1, 2], ValueError, "^labels must not repeat a label inside one row"),
    "indptr starts late": ([1, 2, 3, 4], [0, 1, 2, 3], ValueError, RISE),
    "indptr ends early": ([0, 1, 2, 3], [0, 1, 2, 3], ValueError, RISE),
    "indptr falls": ([0, 3, 2, 4], [0, 1, 2, 3], ValueError, RISE),
    "too few rows": ([0, 2, 4], [0, 1, 2, 3], ValueError, r"^labels.indptr must have shape \(4,\), got \(3,\)"),
    "no indptr": ([], [0, 1], ValueError, r"^labels.indptr must have shape \(4,\), got \(0,\)"),
    "two axes": ([0, 1, 2, 4], [[0, 1, 2, 3]], ValueError, r"^labels.indices must have shape \(n,\), got \(1, 4\)"),
}


@pytest.mark.parametrize(("indptr", "indices", "error", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels(good, indptr, indices, error, message):
    good.labels = Labels(good.backend.array(indptr, np.int32), good.backend.array(indices, np.int32))
    refuses(good, "step", error, message)


@pytest.mark.parametrize("name", Labels._fields)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, bool])
def test_labels_of_wrong_dtype(good, name, dtype):
    labels = Labels(good.backend.array([0, 1, 2, 4], np.int32), good.backend.array([0, 1, 2, 4], np.int32))
    good.labels = labels._replace(**{name: getattr(labels, name).astype(dtype)})
    message = f"^labels.{name} must hold integers, got {np.dtype(dtype)}; use labels.{name}.astype"
    refuses(good, "step", TypeError, message)


@pytest.mark.parametrize(
    "labels", [None, [[0], [1], [2]], np.zeros((B, L)), (1, 2, 3)], ids=["None", "list", "array", "3"]
)
def test_labels_of_wrong_type(good, labels):
    good.labels = labels
    refuses(good, "step", TypeError, r"^labels must be a SciPy CSR matrix or Labels\(indptr, indices\), got ")


def test_labels_on_other_device(good):
    arrays = np.array([0, 1, 2, 4], np.int32), np.array([0, 1, 2, 4], np.int32)
    good.labels = Labels(*(on_other_device(good.backend, a) for a in arrays))
    refuses(good, "step", TypeError, f"labels.*{good.backend.device}")
    if good.backend.device == "cuda":
        good.labels = label_matrix(B, L)
        refuses(good, "step", TypeError, "^labels is a SciPy matrix on cpu.*; pass Labels")


@pytest.mark.parametrize("shape", [(B + 1, L), (B, L + 1), (L, B)])
def test_label_matrix_of_wrong_shape(good, shape):
    good.labels = label_matrix(*shape)
    message = rf"^labels must have shape \({B}, {L}\), got \({shape[0]}, {shape[1]}\)$"
    refuses(good, "step", ValueError, message)


@pytest.mark.parametrize("form", ["csc", "coo", "lil"])
def test_label_matrices_of_any_form_are_legal(form):
    losses = set()
    for matrix in (label_matrix(B, L), label_matrix(B, L).asformat(form), scipy.sparse.csr_array(label_matrix(B, L))):
        layer = FixedFanIn.random(L, H, K, seed=0)
        losses.add(fixed_fan_in_step(normal(1, B, H), layer, matrix, "bce", SGD(0.1))[0])
    assert len(losses) == 1


# ---------------------------------------------------------------- legal extremes


@pytest.mark.parametrize("call", CALLS)
def test_no_rows_are_legal(good, call):
    good.h, good.dscores = good.h[:0], good.dscores[:0]
    good.labels = place_labels(good.backend, scipy.sparse.csr_matrix((0, L), dtype=np.float32))
    result = CALLS[call](good)
    shapes = {"forward": [(0, L)], "backward": [(0, H), (L, K), (L,)], "top_k": [(0, 2)] * 2, "step": [(), (0, H)]}
    assert [np.shape(a) for a in (result if isinstance(result, tuple) else (result,))] == shapes[call]
    if call == "backward":
        assert not any(good.backend.numpy(a).any() for a in result)


# ---------------------------------------------------------------- layers gone wrong


@pytest.mark.parametrize("where", ["values", "bias"])
@pytest.mark.parametrize("loss", ["squared-hinge", "bce"])
def test_step_notices_nan_in_the_layer(good, loss, where):
    good.loss = loss
    getattr(good.layer, where)[2] = np.nan
    with pytest.raises(FloatingPointError, match=r"^the loss is nan: the layer's values or bias are not finite; lower"):
        CALLS["step"](good)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the simulator computes in NumPy
@pytest.mark.parametrize("loss", ["squared-hinge", "bce"])
def test_step_notices_overflow(good, loss):
    good.loss, good.layer.bias[:] = loss, np.inf
    with pytest.raises(FloatingPointError, match="^the loss is (inf|nan)"):
        CALLS["step"](good)


@pytest.mark.parametrize("where", ["values", "bias"])
@pytest.mark.parametrize("labels", [slice(None), 2], ids=["all labels", "one label"])
@pytest.mark.parametrize("k", [1, L])
def test_top_k_notices_nan_in_the_layer(good, where, labels, k):
    """Also where enough other labels have good scores: a label that is NaN must not vanish from all results."""
    getattr(good.layer, where)[labels] = np.nan
    good.k = k
    refuses(good, "top_k", ValueError, "^the scores are not finite: values or bias contain NaN")


@pytest.mark.parametrize("bad", [0, 20, 33, 34, 66])
@pytest.mark.parametrize("order", ["rising", "falling", "halves"])
def test_top_k_loses_no_nan_when_lists_are_merged(backend, bad, order):
    """67 labels are ranked in several lists: the one label that is NaN must survive its own list and the merging."""
    bias = {"rising": np.arange(67), "falling": -np.arange(67), "halves": (np.arange(67) + 34) % 67}[order]
    layer = make_layer(backend, 67, H, K)
    layer.values[:], layer.bias[:] = 0, backend.array(bias, np.float32)
    layer.bias[bad] = np.nan
    with pytest.raises(ValueError, match=r"^the scores are not finite"):
        fixed_fan_in_top_k(backend.array(normal(1, B, H)), layer, 3)


# ---------------------------------------------------------------- making a layer


def arrays(backend, **changes):
    indices = np.array([[0, 2], [5, 1], [3, 6]])
    made = {
        "indices": backend.array(indices, np.int32),
        "values": backend.array(np.ones((3, 2)), np.float32),
        "bias": backend.array(np.zeros(3), np.float32),
    }
    for name, change in changes.items():
        made[name] = change(made[name]) if callable(change) else backend.array(change)
    return made


FAN_IN = r"^fan-in \(the width of indices\) must be between 1 and {} \(n_inputs = {}\), got {}"
BAD_LAYERS = {  # n_inputs, changes, error, message
    "index too large": (6, {}, ValueError, r"^indices must lie in \[0, 6\), got 6"),
    "negative index": (
        7, {"indices": lambda a: with_entry(a, (1, 1), -1)}, ValueError, r"^indices must lie in \[0, 7\), got -1"
    ),
    "repeated index": (
        7, {"indices": lambda a: with_entry(a, (1, 1), 5)}, ValueError,
        "^indices must not repeat an input within one label"
    ),
    "fan-in above inputs": (1, {}, ValueError, FAN_IN.format(1, 1, 2)),
    "no connections": (
        7, {"indices": lambda a: a[:, :0].copy(), "values": lambda a: a[:, :0].copy()}, ValueError,
        FAN_IN.format(7, 7, 0),
    ),
    "no labels": (
        7, {name: lambda a: a[:0].copy() for name in ("indices", "values", "bias")}, ValueError,
        "^n_labels .*must be between 1 and 2147483647, got 0",
    ),
    "float indices": (7, {"indices": lambda a: a.astype(float)}, TypeError, "^indices must hold integers, got float64"),
    "float64 values": (7, {"values": lambda a: a.astype(np.float64)}, TypeError, "^values must be float32, got "),
    "values of other shape": (
        7, {"values": np.ones((3, 3), np.float32)}, ValueError, r"^values must have shape \(3, 2\), got \(3, 3\)"
    ),
    "bias of other shape": (
        7, {"bias": np.ones(2, np.float32)}, ValueError, r"^bias must have shape \(3,\), got \(2,\)"
    ),
    "flat indices": (7, {"indices": lambda a: a[0]}, ValueError, r"^indices must have shape \(L, K\), got \(2,\)"),
    "turned values": (
        7, {"values": lambda a: a[:, ::-1]}, ValueError, "^values must be C-contiguous"
    ),
    "list": (7, {"bias": lambda a: [0, 0, 0]}, TypeError, "^bias must be a NumPy or CUDA array, got list"),
    "inputs 0": (0, {}, ValueError, "^n_inputs must be between 1 and 2147483647, got 0"),
    "inputs float": (7.0, {}, TypeError, "^n_inputs must be an integer, got float 7.0"),
}  # fmt: skip


@pytest.mark.parametrize(("n_inputs", "changes", "error", "message"), BAD_LAYERS.values(), ids=BAD_LAYERS)
def test_making_a_layer(backend, n_inputs, changes, error, message):
    with pytest.raises(error, match=message):
        FixedFanIn(n_inputs, **arrays(backend, **changes))


@pytest.mark.parametrize("name", ["indices", "values", "bias"])
def test_layer_on_two_devices(backend, name):
    elsewhere = arrays(backend, **{name: lambda a: on_other_device(backend, backend.numpy(a))})
    with pytest.raises(
        TypeError, match=r"all arrays must live on one device, got indices on c.*, values on c.*, bias on"
    ):
        FixedFanIn(7, **elsewhere)


@pytest.mark.parametrize("name", ["values", "bias"])
def test_layer_that_can_not_be_trained(name):
    made = {k: np.asarray(v) for k, v in arrays(SimpleNamespace(array=np.array)).items()}
    made[name].flags.writeable = False
    with pytest.raises(ValueError, match=f"^{name} is written to but is read-only; pass a copy"):
        FixedFanIn(7, **made)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_labels": 0}, ValueError, "^n_labels must be between 1 and 2147483647, got 0"),
        ({"n_labels": 2**31}, ValueError, "^n_labels must be between 1 and"),
        (
            {"n_labels": 2**31 - 1, "n_inputs": 2**20, "fan_in": 2**20},
            ValueError,
            "^n_labels = 2147483647 x fan_in = 1048576 must be at most 1099511627776 elements, got ",
        ),
        ({"n_labels": 1.5}, TypeError, "^n_labels must be an integer, got float 1.5"),
        ({"n_inputs": 0}, ValueError, "^n_inputs must be between 1 and"),
        ({"n_inputs": 2**31}, ValueError, "^n_inputs must be between 1 and"),
        ({"fan_in": 8}, ValueError, r"^fan_in must be between 1 and 7 \(n_inputs = 7\), got 8"),
        ({"fan_in": 0}, ValueError, "^fan_in must be between 1 and 7"),
        ({"fan_in": True}, TypeError, "^fan_in must be an integer, got bool True"),
        ({"seed": -1}, ValueError, "^seed must be between 0 and 18446744073709551615, got -1"),
        ({"seed": 2**64}, ValueError, "^seed must be between 0 and"),
        ({"seed": 1.0}, TypeError, "^seed must be an integer, got float 1.0"),
        ({"seed": True}, TypeError, "^seed must be an integer, got bool True"),
        ({"seed": None}, TypeError, "^seed must be an integer, got NoneType"),
        ({"device": "gpu"}, ValueError, "^device must be one of 'cpu', 'cuda', got 'gpu'"),
        ({"device": None}, ValueError, "^device must be one of"),
    ],
)
def test_random_layers(changes, error, message):
    with pytest.raises(error, match=message):
        FixedFanIn.random(**{"n_labels": 5, "n_inputs": 7, "fan_in": 3, "seed": 0, **changes})
