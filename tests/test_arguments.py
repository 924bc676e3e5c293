"""Odd arguments of every public function are refused with a clear error, and callers' arrays are not changed."""

import copy
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse

import sparsemax_nb as s
from sparsemax_nb import data, metrics, train
from sparsemax_nb.core import check, sparse

from .helpers import normal

B, D, L = 3, 4, 9
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64, ">i2", ">i4", ">i8", ">u8"]
H, W = normal(1, B, D), normal(2, L, D)
TARGETS, IDS = np.array([0, 8, 3], np.int32), np.array([[1, 2], [3, 3], [0, 8]], np.int32)
LABELS = s.Labels(np.array([0, 2, 2, 3], np.int32), np.array([1, 4, 8], np.int32))
LOG_Q = np.log(np.full((B, 2), 0.1, np.float32))


def layer():
    return s.FixedFanIn.random(L, D, 2, seed=0)


def step(labels):
    made = layer()
    loss, dx = s.fixed_fan_in_step(H, made, labels, "bce", s.SGD(0.1))
    return loss, dx, made.values


def rows(row_ids):
    table = W.copy()
    s.SGD(0.1).step_rows(table, row_ids, normal(3, len(row_ids), D))
    return table


def codes(codes):
    index = s.InvertedMultiIndex([W[:3].copy(), W[3:6].copy()], codes, "rq", "uniform", None, None, None)
    return index.log_prob(H, IDS)


def kernel_step(rows, neighbors, labels=LABELS):
    duals = np.zeros(B, np.int32), np.zeros((B, 4), np.int32), np.zeros((B, 4), np.float32)
    loss = s.neighbor_kernel_step(rows, neighbors, np.ones((B, 2), np.float32), duals, labels, L)
    layer = s.NeighborKernel(np.eye(B, D, dtype=np.float32), duals, np.zeros(L, np.float32))
    return loss, layer.duals.toarray()


def neighbor_kernel(duals):
    layer = s.NeighborKernel(np.eye(B, D, dtype=np.float32), duals, power=1)
    return s.neighbor_kernel_forward(np.eye(B, D, dtype=np.float32), layer)


NEIGHBORS = np.array([[0, 1], [1, 2], [2, 1]], np.int32)
CODES = np.array([[0, 1], [2, 2], [1, 0], *[[0, 0]] * 6], np.int32)
PACKED = np.array([0, 2, 5], np.int32), np.array([0, 1, 1, 2, 3], np.int32)
#: name: (a call with integer arrays, these arrays)
TAKES_INTEGERS = {
    "softmax_cross_entropy": (lambda t: s.softmax_cross_entropy(H, W, t), TARGETS),
    "softmax_cross_entropy, Labels": (lambda *a: s.softmax_cross_entropy(H, W, s.Labels(*a)), *LABELS),
    "target_ranks": (lambda t: s.target_ranks(H, W, t), TARGETS),
    "sampled_softmax": (lambda t, i: s.sampled_softmax(H, W, t, i, LOG_Q, LOG_Q[:, 0].copy())[:2], TARGETS, IDS),
    "fixed_fan_in_step": (lambda *a: step(s.Labels(*a)), *LABELS),
    "FixedFanIn": (lambda i: s.FixedFanIn(D, i, W[:, :2].copy(), W[:, 0].copy()).to_dense(), IDS[[0]].repeat(L, 0)),
    "GroupSharedFanIn": (lambda i: s.GroupSharedFanIn(D, i, W[:, :2].copy(), W[:, 0].copy(), 9).to_dense(), IDS[:1]),
    "InvertedMultiIndex": (codes, CODES),
    "neighbor_kernel_step": (kernel_step, np.array([2, 0, 1], np.int32), NEIGHBORS),
    "log_prob": (lambda i: s.UnigramSampler(np.arange(1, L + 1)).log_prob(H, i), IDS),
    "LSHSampler.log_prob": (lambda i: s.LSHSampler(W).log_prob(H, i), IDS),
    "LogUniformSampler": (
        lambda r: s.LogUniformSampler(L, ranks=r).log_prob(H, IDS),
        np.arange(L, dtype=np.int32)[::-1].copy(),
    ),
    "PackedDSSoftmax": (lambda *a: s.PackedDSSoftmax(H[:2], *a, W[:5], 9).top_k(H, 2), *PACKED),
    "step_rows": (rows, np.array([2, 0], np.int32)),
    "precision_at_k": (lambda i: metrics.precision_at_k(i, scipy.sparse.csr_matrix(np.eye(B, L)), 2), IDS),
    "ranking_metrics": (lambda r: list(metrics.ranking_metrics(r, 5).values()), TARGETS),
    "popularity_ranks": (lambda t: metrics.popularity_ranks(np.arange(L), t), TARGETS),
    "unigram_perplexity": (lambda t: metrics.unigram_perplexity(np.arange(L), t), TARGETS),
    "decode": (lambda i: data.Vocabulary(list("abcdefghi")).decode(i), TARGETS),
}


@pytest.mark.parametrize("name", TAKES_INTEGERS)
def test_integers_of_any_width_and_byte_order(name):
    call, *arrays = TAKES_INTEGERS[name]
    want = call(*arrays)
    for kind in INTEGERS:
        converted = [a.astype(kind) for a in arrays]
        before = [a.tobytes() for a in converted]
        got = call(*converted)
        for a, b in (
            zip(*map(np.atleast_1d, (got, want)), strict=True)
            if not isinstance(want, tuple)
            else zip(got, want, strict=True)
        ):
            np.testing.assert_array_equal(a, b, err_msg=str(kind))
        assert [a.tobytes() for a in converted] == before
    for kind in (np.float32, bool, np.complex64, object):
        with pytest.raises((TypeError, ValueError), match="must (hold )?(be )?integers"):
            call(*[a.astype(kind) for a in arrays])


def test_numbers_too_large_for_int32_are_named():
    for big in (2**32, 2**31, -(2**31) - 1, 2**63 - 1):
        with pytest.raises(ValueError, match=f"targets must (fit int32|lie in .*), got {big}"):
            s.softmax_cross_entropy(H, W, np.array([0, big, 1]))
    with pytest.raises(ValueError, match="targets must lie in"):
        s.target_ranks(H, W, np.array([0, 2**64 - 1, 1], np.uint64))
    assert s.softmax_cross_entropy(H, W, np.array([0, -1, 1]))[0] > 0  # ignored


# ---------------------------------------------------------------- callers' sparse matrices


def frozen(m):
    for a in (m.data, m.indices, m.indptr):
        a.flags.writeable = False
    return m


def unsorted(m):
    m = m.copy()
    for row in range(m.shape[0]):
        some = slice(*m.indptr[row : row + 2])
        m.indices[some], m.data[some] = m.indices[some][::-1].copy(), m.data[some][::-1].copy()
    return scipy.sparse.csr_matrix((m.data, m.indices, m.indptr), m.shape)


def twice(m):
    return scipy.sparse.csr_matrix((np.repeat(m.data, 2) / 2, np.repeat(m.indices, 2), m.indptr * 2), m.shape)


def with_zeros(m):
    """One entry more in each row, which is zero."""
    full = scipy.sparse.csr_matrix(np.ones(m.shape)) + m
    full.data[:] = np.asarray(m[full.nonzero()]).ravel()
    return full


def wide(m):
    m = m.copy()
    m.indices, m.indptr = m.indices.astype(np.int64), m.indptr.astype(np.int64)
    return m


VARIANTS = {
    "plain": lambda m: m, "unsorted": unsorted, "twice": twice, "zeros": with_zeros, "int64 indices": wide,
    "unsorted, twice": lambda m: unsorted(twice(m)),
}  # fmt: skip
PLAIN = scipy.sparse.csr_matrix(
    np.array([[0, 1, 0, 0, 1, 0, 1, 0, 0], [0] * 9, [1, 0, 0, 1, 0, 0, 0, 0, 1]], np.float32)
)
N_TARGETS = PLAIN.nnz


def experts(labels):
    made = s.SparseExperts.dense(W, 2, seed=1)
    return made.step(H, labels, s.Adam(0.1))


MATRICES = {
    "fixed_fan_in_step": step,
    "softmax_cross_entropy": lambda m: s.softmax_cross_entropy(H, W, m),
    "sampled_softmax": lambda m: s.sampled_softmax(H, W, m, IDS, LOG_Q, np.zeros(N_TARGETS, np.float32))[0],
    "SparseExperts.step": experts,
    "neighbor_kernel_step": lambda m: kernel_step(np.arange(B), NEIGHBORS, m),
    "NeighborKernel": neighbor_kernel,
    "group_labels": lambda m: s.group_labels(H, m, 2),
    "group_labels, features": lambda m: s.group_labels(m, PLAIN, 2),
    "precision_at_k": lambda m: metrics.precision_at_k(IDS, m, 2),
    "ndcg_at_k": lambda m: metrics.ndcg_at_k(IDS, m, 2),
    "recall_at_k": lambda m: metrics.recall_at_k(IDS, m, 2),
    "psp_at_k": lambda m: metrics.psp_at_k(IDS, m, np.full(L, 0.5), 2),
    "excluded": lambda m: metrics.precision_at_k(IDS, scipy.sparse.csr_matrix(np.ones((B, L))), 2, excluded=m),
    "sample_f1": lambda m: metrics.sample_f1(m, PLAIN),
    "Tfidf": lambda m: data.Tfidf(sublinear=False).fit_transform(m).toarray(),
    "DSSoftmax.fit": lambda m: (
        train.DSSoftmax(n_experts=2, epochs=1, device="cpu", progress=False).fit(H, m).experts_.weights
    ),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_callers_matrix_is_taken_as_it_is_and_stays_as_it_is(name):
    call, want = MATRICES[name], None
    for kind, change in VARIANTS.items():
        for freeze in (lambda m: m, frozen):
            m = freeze(change(PLAIN))
            before = [a.tobytes() for a in (m.data, m.indices, m.indptr)], dict(vars(m)).keys()
            got = call(m)
            got = got if isinstance(got, tuple) else (got,)
            assert ([a.tobytes() for a in (m.data, m.indices, m.indptr)], dict(vars(m)).keys()) == before, kind
            want = got if want is None else want
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=kind)


def test_a_classifiers_data_stays_as_it_is():
    x = scipy.sparse.csr_matrix(np.random.default_rng(0).integers(0, 3, (12, 6)).astype(np.float32))
    y = scipy.sparse.csr_matrix(np.eye(12, 5, dtype=np.float32) + np.eye(12, 5, k=-6, dtype=np.float32))
    x, y = frozen(unsorted(x)), frozen(unsorted(twice(y)))
    before = [a.tobytes() for m in (x, y) for a in (m.data, m.indices, m.indptr)]
    model = train.Classifier(
        architecture="network",
        embedding=4,
        intermediate=8,
        fan_in=2,
        epochs=1,
        batch_size=4,
        device="cpu",
        progress=False,
    )
    model.fit(x, y)
    model.predict(x, k=2), model.evaluate(x, y), model.score(x, y)
    assert [a.tobytes() for m in (x, y) for a in (m.data, m.indices, m.indptr)] == before


@pytest.mark.parametrize("name", [name for name in MATRICES if name not in ("group_labels, features", "Tfidf")])
def test_labels_that_are_no_labels(name):
    for spoil, error, message in (
        (lambda m: m * np.nan, ValueError, "must be finite, got NaN or infinity in row 0"),
        (lambda m: m.astype(np.complex64), TypeError, r"must hold real numbers, got complex64; use \w+.real.astype"),
    ):
        with pytest.raises(error, match=message):
            MATRICES[name](spoil(PLAIN))
    broken = PLAIN.copy()
    broken.indices[1] = 1000
    with pytest.raises(ValueError, match="is not a valid CSR matrix"):
        MATRICES[name](broken)


def test_a_file_is_written_from_unsorted_read_only_matrices(tmp_path):
    features, labels = frozen(unsorted(2 * PLAIN)), frozen(unsorted(PLAIN))
    data.write_xc(tmp_path / "one.txt", features, labels)
    data.write_xc(tmp_path / "two.txt", 2 * PLAIN, PLAIN)
    assert (tmp_path / "one.txt").read_text() == (tmp_path / "two.txt").read_text()
    assert not features.indices.flags.writeable and list(features.indices[:3]) == [6, 4, 1]


# ---------------------------------------------------------------- constructors that steer memory

BOOKS = [np.ones((4, 8), np.float32)] * 2
BAD_INDICES = {  # arguments of InvertedMultiIndex, error, message
    "code": ({"codes": np.full((10, 2), 4, np.int32)}, ValueError, r"codes must lie in \[0, 4\), got 4"),
    "far code": (
        {"codes": np.full((10, 2), -(2**30), np.int32)},
        ValueError,
        r"codes must lie in \[0, 4\), got -1073741824",
    ),
    "shape": ({"codes": np.zeros((10, 3), np.int32)}, ValueError, r"codes must have shape \(L, 2\)"),
    "no codes": ({"codes": np.zeros((0, 2), np.int32)}, ValueError, "the number of classes"),
    "kind": ({"kind": "xx"}, ValueError, "kind must be one of 'rq', 'pq', got 'xx'"),
    "residual": ({"residual": "yy"}, ValueError, "residual must be one of"),
    "one book": ({"codebooks": BOOKS[:1]}, TypeError, "codebooks must be two arrays"),
    "books differ": ({"codebooks": [BOOKS[0], BOOKS[0][:3]]}, ValueError, r"codebooks\[1\] must have shape \(4, 8\)"),
    "NaN": ({"codebooks": [BOOKS[0], BOOKS[0] * np.nan]}, ValueError, r"codebooks\[1\] must be finite"),
    "float64": ({"codebooks": [BOOKS[0].astype(float)] * 2}, TypeError, r"codebooks\[0\] must be float32"),
    "no classes": ({"residual": "exact"}, ValueError, "residual='exact' needs weights"),
    "weights": ({"residual": "exact", "weights": np.ones((10, 7), np.float32)}, ValueError, "weights must have shape"),
    "popularity": ({"residual": "popularity", "popularity": np.ones(9)}, ValueError, "popularity must have shape"),
    "class weights": ({"class_weights": -np.ones(10)}, ValueError, "class_weights must not be negative"),
    "metric": ({"metric": "x"}, TypeError, "metric must be two pairs of matrices or None"),
    "metric shape": ({"metric": [(W, W)] * 2}, ValueError, r"metric\[0\]\[0\] must have shape \(8, 8\)"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INDICES.values(), ids=BAD_INDICES)
def test_an_index_made_by_hand_is_checked(changes, error, message):
    good = {"codebooks": BOOKS, "codes": np.zeros((10, 2), np.int32), "kind": "rq", "residual": "uniform"}
    s.InvertedMultiIndex(**good, popularity=None, class_weights=None, weights=None)
    with pytest.raises(error, match=message):
        s.InvertedMultiIndex(**{**good, "popularity": None, "class_weights": None, "weights": None, **changes})


# ---------------------------------------------------------------- sizes, numbers, words

NOT_INTEGERS = [2.0, np.float32(2), True, None, "2", Decimal(2), Fraction(2), 2j, np.array(2), np.array([2]), [2]]
SIZES = {  # a call with a size, the name of the argument
    "top_k": (lambda k: s.FullSoftmax(W).top_k(H, k), "k"),
    "SVDSoftmax": (lambda k: s.SVDSoftmax(W, width=2).top_k(H, k), "k"),
    "PackedDSSoftmax.top_k": (lambda k: s.PackedDSSoftmax(H[:2], *PACKED, W[:5], 9).top_k(H, k), "k"),
    "fixed_fan_in_top_k": (lambda k: s.fixed_fan_in_top_k(H, layer(), k), "k"),
    "n_samples": (lambda n: s.UniformSampler(9).sample(H, n, 0), "n_samples"),
    "MIDX": (lambda n: s.InvertedMultiIndex.build(W, 2).sample(H, n, 0), "n_samples"),
    "LSH": (lambda n: s.LSHSampler(W).sample(H, n, 0), "n_samples"),
    "n_tables": (lambda n: s.LSHSampler(W, n_tables=n), "n_tables"),
    "n_features": (lambda n: s.RFFSampler(W, n_features=n), "n_features"),
    "n_labels": (lambda n: s.FixedFanIn.random(n, 4, 2, 0), "n_labels"),
    "n_experts": (lambda n: s.SparseExperts.dense(W, n), "n_experts"),
    "n_rows": (lambda n: data.power_law_labels(n, 9, 2, 1.0, 0), "n_rows"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_bounded_before_anything_is_allocated(name):
    call, argument = SIZES[name]
    call(2)
    for size in (2**31, 2**62, 2**63, 2**64, 2**100, 10**5000, 0 if argument != "n_rows" else -1):
        with pytest.raises(ValueError, match=rf"\b({argument}|experts)\b"):
            call(size)
    for value in NOT_INTEGERS:
        with pytest.raises((TypeError, ValueError), match=rf"^{argument} must be an integer"):
            call(value)


def test_a_result_of_many_rows_is_bounded():
    h = np.zeros((40_000, D), np.float32)
    message = "rows = 40000 x {} = {} must be at most 2147483647 elements, got {}; reduce one of them"
    with pytest.raises(ValueError, match=message.format("k", 60000, 2400000000)):
        s.FullSoftmax(W).top_k(h, 60_000)
    with pytest.raises(ValueError, match=message.format("n_samples", 10**9, 40000 * 10**9)):
        s.UniformSampler(9).sample(h, 10**9, 0)
    with pytest.raises(ValueError, match="rows = 3 x n_samples = 1000000000 must be at most"):
        s.InvertedMultiIndex.build(W, 2).sample(H, 10**9, 0)


NUMBERS = {
    "learning_rate": lambda x: s.SGD(x),
    "beta1": lambda x: s.Adam(beta1=x),
    "alpha": lambda x: s.SphereSampler(W, x),
    "power": lambda x: s.UnigramSampler(np.ones(3), x),
    "fraction": lambda x: s.rewire(layer(), x, 0),
    "threshold": lambda x: s.SparseExperts.dense(W, 2).prune(x),
    "exponent": lambda x: data.power_law_labels(2, 9, 2, x, 0),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    NUMBERS[name](np.float32(0.5)), NUMBERS[name](np.float64(0.5))
    for value in (Decimal("0.5"), Decimal("NaN"), Fraction(1, 2), 0.5j, "0.5", None, True, np.array(0.5), [0.5]):
        with pytest.raises(TypeError, match=f"^{name} must be a number, got {type(value).__name__}"):
            NUMBERS[name](value)
    for value in (np.nan, np.inf, -np.inf, 1e300, 10**5000, -1, np.longdouble("1e4000")):
        with pytest.raises(ValueError, match=f"^{name} must"):
            NUMBERS[name](value)


def test_a_threshold_above_all_rows_leaves_one_row_a_class():
    made = s.SparseExperts.dense(W, 2, seed=0)
    assert made.prune(3e38, s.Adam(0.1)) == L and made.ids.shape == (L,)


@pytest.mark.parametrize("value", [None, 0, "", ["mean"], np.array(["mean", "x"]), b"mean", object()])
def test_words(value):
    with pytest.raises(ValueError, match="^reduction must be one of 'mean', 'sum', got "):
        s.sampled_softmax(H, W, TARGETS, IDS, LOG_Q, LOG_Q[:, 0].copy(), reduction=value)
    with pytest.raises((TypeError, ValueError), match="^device must be one of"):
        s.FixedFanIn.random(L, D, 2, 0, device=value)


@pytest.mark.parametrize("value", [None, 1, "no", np.array([True, False]), []])
def test_flags(value):
    with pytest.raises(TypeError, match="^mask_hits must be True or False, got "):
        s.sampled_softmax(H, W, TARGETS, IDS, LOG_Q, LOG_Q[:, 0].copy(), mask_hits=value)


def as_matrix(a):
    with pytest.warns(PendingDeprecationWarning):
        return np.asmatrix(a)


ODD_ARRAYS = {
    "masked": (
        lambda a: np.ma.masked_array(a, np.ones(a.shape, bool)),
        TypeError,
        "h must be a plain array, got a MaskedArray; use h.filled",
    ),
    "matrix": (as_matrix, TypeError, r"h must be a plain array, got a matrix; use np.asarray\(h\)"),
    "complex": (
        lambda a: a.astype(np.complex64),
        TypeError,
        r"h must be float32(?: or bfloat16)?, got complex64; use h.real.astype",
    ),
    "object": (lambda a: a.astype(object), TypeError, "h must be float32(?: or bfloat16)?, got object"),
    "big-endian": (lambda a: a.astype(">f4"), TypeError, "h must be float32(?: or bfloat16)?, got >f4"),
    "unaligned": (
        lambda a: np.frombuffer(b"x" + a.tobytes(), np.float32, offset=1).reshape(a.shape),
        ValueError,
        "h must be aligned",
    ),
    "backwards": (lambda a: a[::-1], ValueError, "h must be C-contiguous"),
    "list": (lambda a: a.tolist(), TypeError, r"h must be a NumPy or CUDA array, got list; use np.asarray\(h\)"),
    "sparse": (
        scipy.sparse.csr_matrix,
        TypeError,
        r"h must be a NumPy or CUDA array, got csr_matrix; use h.toarray\(\)",
    ),
    "number": (lambda a: 1.5, TypeError, "h must be a NumPy or CUDA array, got float$"),
}


@pytest.mark.parametrize("call", ["top_k", "cross entropy"])
@pytest.mark.parametrize(("change", "error", "message"), ODD_ARRAYS.values(), ids=ODD_ARRAYS)
def test_arrays(call, change, error, message):
    with pytest.raises(error, match="^" + message):
        s.FullSoftmax(W).top_k(change(H), 2) if call == "top_k" else s.softmax_cross_entropy(change(H), W, TARGETS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_what_a_message_says_of_a_torch_tensor_works(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.ones((B, D), dtype=getattr(torch, dtype)).requires_grad_(dtype != "int64")
    with pytest.raises(TypeError, match="must be a NumPy or CUDA array, got Tensor; use ") as error:
        s.softmax_cross_entropy(H, W, tensor) if dtype == "int64" else s.softmax_cross_entropy(tensor, W, TARGETS)
    fix = re.search("; use (.*)$", str(error.value))[1]
    array = eval(fix, {"h": tensor, "targets": tensor})
    assert array.dtype == (np.int64 if dtype == "int64" else np.float32)


def test_a_memory_mapped_array_is_an_array(tmp_path):
    np.save(tmp_path / "h.npy", H)
    mapped = np.load(tmp_path / "h.npy", mmap_mode="r+")
    np.testing.assert_array_equal(s.FullSoftmax(W).top_k(mapped, 2)[1], s.FullSoftmax(W).top_k(H, 2)[1])


def test_out_must_not_be_an_input():
    made, x = s.FixedFanIn.random(D, D, 2, 0), H.copy()
    before = x.tobytes()
    with pytest.raises(ValueError, match="^out must not share memory with h; pass a new array$"):
        s.fixed_fan_in_forward(x, made, out=x)
    assert x.tobytes() == before


# ---------------------------------------------------------------- read-only layers and moments


def parts(made, adam):
    states = [state for array in (made.values, made.bias) for state in [adam._states.get(id(array))] if state]
    arrays = *made.arrays, *(m for state in states for m in state.moments)
    return [np.asarray(a).tobytes() for a in arrays if isinstance(a, np.ndarray)], [state.count for state in states]


@pytest.mark.parametrize("frozen_part", ["values", "bias", "m", "v"])
@pytest.mark.parametrize("has_stepped", [False, True])
def test_a_read_only_layer_is_refused_before_anything_changes(frozen_part, has_stepped):
    made, adam = layer(), s.Adam(0.1)
    if has_stepped or frozen_part in "mv":
        s.fixed_fan_in_step(H, made, PLAIN, "bce", adam)
    target = made if frozen_part in ("values", "bias") else adam.state_of(made.values).moments
    getattr(target, frozen_part).flags.writeable = False
    before = parts(made, adam)
    with pytest.raises(ValueError, match="is written to but is read-only; use copy.deepcopy"):
        s.fixed_fan_in_step(H, made, PLAIN, "bce", adam)
    assert parts(made, adam) == before
    if frozen_part != "bias":
        with pytest.raises(ValueError, match="is written to but is read-only"):
            s.rewire(made, 0.2, 0, adam)
        assert parts(made, adam) == before
    if frozen_part in ("values", "bias"):
        thawed = copy.deepcopy(made)
        assert s.fixed_fan_in_step(H, thawed, PLAIN, "bce", s.Adam(0.1))[0] > 0


@pytest.mark.parametrize("name", ["gate", "weights"])
def test_read_only_experts_are_refused_before_anything_changes(name):
    made, adam = s.SparseExperts.dense(W, 2, seed=0), s.Adam(0.1)
    made.step(H, TARGETS, adam)
    getattr(made, name).flags.writeable = False
    before = made.gate.tobytes(), made.weights.tobytes(), made.steps, adam.state_of(made.gate).count
    with pytest.raises(ValueError, match=f"^experts.{name} is written to but is read-only; use copy.deepcopy"):
        made.step(H, TARGETS, adam)
    assert (made.gate.tobytes(), made.weights.tobytes(), made.steps, adam.state_of(made.gate).count) == before


@pytest.mark.parametrize("optimizer", [None, "adam", s.SGD(0.1), s.Adam])
def test_an_optimizer_of_the_wrong_type(optimizer):
    made = s.SparseExperts.dense(W, 2, seed=0)
    calls = [lambda: made.step(H, TARGETS, optimizer)]
    calls += [] if optimizer is None else [lambda: made.prune(0.1, optimizer), lambda: made.split(optimizer)]
    for call in calls:
        with pytest.raises(TypeError, match="^optimizer must be Adam, got "):
            call()
    assert made.n_experts == 2 and made.ids.shape == (2 * L,)


# ---------------------------------------------------------------- metrics

METRICS = ["precision_at_k", "ndcg_at_k", "recall_at_k", "f1_at_k", "map_at_k", "coverage_at_k", "macro_f1_at_k"]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_name_what_is_wrong(name):
    metric, ids, truth = getattr(metrics, name), np.zeros((2, 1), np.int32), scipy.sparse.csr_matrix(np.eye(2, 10))
    assert metric(ids - 1, truth, 1) == 0
    for args, error, message in (
        (
            (ids, truth.toarray(), 1),
            TypeError,
            r"labels must be a SciPy sparse matrix, got ndarray; use scipy.sparse.csr_matrix\(labels\)",
        ),
        (([[0], [1]], truth, 1), TypeError, r"ids must be a NumPy or CUDA array, got list; use np.asarray\(ids\)"),
        ((ids + 99, truth, 1), ValueError, r"ids must lie in \[0, 10\), the columns of labels, or be -1, got 99 to 99"),
        ((ids - 2, truth, 1), ValueError, "ids must lie in"),
        ((ids, None, 1), TypeError, "labels must be a SciPy sparse matrix, got NoneType$"),
    ):
        with pytest.raises(error, match="^" + message):
            metric(*args)


def test_counts_and_ranks_of_the_wrong_kind():
    with pytest.raises(TypeError, match="^ranks must hold integers, got float64; use ranks.astype"):
        s.LogUniformSampler(3, ranks=np.array([0.0, 1, 2]))
    with pytest.raises(ValueError, match=r"^targets must lie in \[0, 3\), got 3"):
        metrics.popularity_ranks(np.ones(3), np.array([3]))
    with pytest.raises(ValueError, match=r"^tokens must lie in \[0, 3\), got -1"):
        metrics.unigram_perplexity(np.ones(3), np.array([-1]))
    with pytest.raises(ValueError, match="^a and b must give propensities above 0"):
        metrics.propensities(np.array([1, 2]), 10, a=1e30)


# ---------------------------------------------------------------- the helpers themselves


def test_int32_is_not_copied():
    assert check.integers("a", TARGETS, ("n",), 9) is TARGETS
    assert check.integers("a", TARGETS.astype(np.int64), ("n",), 9).dtype == np.int32


def test_labels_keep_the_order_in_which_ids_are_stored_and_a_matrix_of_ones_sorts_them():
    m = unsorted(PLAIN)
    np.testing.assert_array_equal(sparse.as_labels(m, m.shape[0], "cpu", m.shape[1]).indices, m.indices)
    np.testing.assert_array_equal(sparse.as_ones("m", m).indices, PLAIN.indices)
