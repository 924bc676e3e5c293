"""The fixed fan-in layer. `group_shared` uses the same functions; its shapes have one number more."""

import copy
import functools

import ml_dtypes
import numpy as np

from sparsemax_nb.core import device, rng, sparse
from sparsemax_nb.cuda import fixed_fan_in as cuda
from sparsemax_nb.cuda import launch
from sparsemax_nb.reference import fixed_fan_in, group_shared

from ..helpers import (
    STEP_LOSSES,
    assert_close,
    integers,
    label_matrix,
    layer_arrays,
    normal,
    shared_arrays,
    step_loss,
)
from . import RATES, SEED, Budget, Task, operation, unwritten
from .optimizers import KINDS, make_moments
from .top_k import check_top_k

ROUNDING = rng.Rounding(SEED, np.uint64(7))
#: (B, H, L, K): one of everything; K = H; no size a multiple of a block or tile; no rows.
SMALL_LAYERS = (1, 1, 1, 1), (3, 7, 5, 7), (9, 5, 7, 3), (0, 5, 3, 2)
LARGE_LAYERS = (33, 19, 17, 3), (65, 31, 1100, 9), (140, 11, 9, 4)


def layer_and_reference(shape, bfloat16=False):
    """The layer's arrays and the module of `reference`, for a shape (B, H, L, K) or (B, H, L, K, G).

    With G, groups of G labels share their inputs.
    """
    _, n_inputs, n_labels, fan_in, *group_size = shape
    if not group_size:
        return layer_arrays(n_labels, n_inputs, fan_in), fixed_fan_in
    return shared_arrays(n_labels, n_inputs, fan_in, *group_size, bfloat16=bfloat16), group_shared


def max_uses(indices, group_size=1):
    """The number of labels that use the most used input."""
    return group_size * np.bincount(indices.reshape(-1)).max()


def make_forward(shape, **options):
    n_rows, n_inputs, n_labels, fan_in = shape[:4]
    (layer, reference), h = layer_and_reference(shape, **options), normal(1, n_rows, n_inputs)
    scores = unwritten(n_rows, n_labels)
    return Task((h, layer, scores), lambda: assert_close(scores, reference.forward(h, layer), fan_in + 1))


def launch_simple_forward(h, layer, scores, *, block=(32, 8)):
    """Launches `forward_kernel`, which no function of the backend calls: it is there to be read."""
    grid = launch.labels_by_rows(layer.indices.shape[0], h.shape[0], *block)
    cuda.forward_kernel[grid, block](device.asarray(h.T, "cuda"), layer, scores)


def make_backward(shape, **options):
    n_rows, n_inputs, n_labels, fan_in = shape[:4]
    (layer, reference), h = layer_and_reference(shape, **options), normal(1, n_rows, n_inputs)
    dscores = normal(2, n_rows, n_labels) * integers(3, 0, 2, n_rows, n_labels)  # about half of them zero
    dscores[:, 2::5] *= integers(4, 0, 9, *dscores[:, 2::5].shape) == 0  # for some labels most of them
    dscores[:1, :1] = 1
    outputs = unwritten(n_rows, n_inputs), unwritten(n_labels, fan_in), unwritten(n_labels)

    def check():
        wanted = reference.backward(h, layer, dscores)
        n_terms = max_uses(layer.indices, *shape[4:]), n_rows, n_rows
        for got, want, terms in zip(outputs, wanted, n_terms, strict=True):
            assert_close(got, want, terms)

    return Task((h, layer, dscores, *outputs), check)


def make_step(shape, loss, kind, **options):
    n_rows, n_inputs, n_labels, fan_in = shape[:4]
    (layer, reference), h = layer_and_reference(shape, **options), normal(1, n_rows, n_inputs)
    matrix = label_matrix(n_rows, n_labels)
    loss = step_loss(loss, reference.forward(h, layer), matrix)
    label_rows = sparse.by_label(sparse.as_labels(matrix, n_rows, "cpu", n_labels), n_labels)
    moments = [make_moments(kind, array) for array in (layer.values, layer.bias)]
    dh, label_loss = unwritten(n_rows, n_inputs), unwritten(n_labels)
    before, rounding = copy.deepcopy((layer, *moments)), (ROUNDING,) if shape[4:] else ()

    def check():
        old, *old_moments = before
        want_dh, want_loss, *wanted = reference.step(h, old, label_rows, loss, kind, RATES, *old_moments, *rounding)
        assert_close(dh, want_dh, max_uses(layer.indices, *shape[4:]) * (fan_in + 1))
        assert_close(label_loss, want_loss, n_rows * (fan_in + 1))
        for array, moment, want in zip((layer.values, layer.bias), moments, wanted, strict=True):
            for got, wanted_array in zip((array, *moment), want, strict=True):
                if got.dtype == np.uint16:
                    check_rounded(got, wanted_array)
                else:
                    assert_close(got, wanted_array, 4 * max(n_rows, 1) * (fan_in + 1))

    return Task((h, layer, label_rows, loss, kind, RATES, *moments, *rounding, dh, label_loss), check)


def make_softmax_sums(shape, **options):
    n_rows, n_inputs, n_labels, fan_in = shape[:4]
    (layer, reference), h = layer_and_reference(shape, **options), normal(1, n_rows, n_inputs)
    outputs = unwritten(n_rows), unwritten(n_rows)

    def check():
        for got, want, terms in zip(outputs, reference.softmax_sums(h, layer), (1, n_labels), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6 * np.sqrt(fan_in + 1) * np.sqrt(terms), atol=1e-5)
            assert want.shape == (n_rows,)

    return Task((h, layer, *outputs), check)


def check_rounded(got, want):
    """bfloat16 bits of sums that float32 may add in another order: a few may cross the random rounding boundary."""
    difference = np.abs(got.astype(np.int64) - want.astype(np.int64))
    assert difference.max(initial=0) <= 1
    assert np.count_nonzero(difference) <= max(1, got.size // 200)


def make_layer_top_k(shape, **options):
    n_rows, n_inputs, n_labels, fan_in, k, *group_size = shape
    layer, reference = layer_and_reference((n_rows, n_inputs, n_labels, fan_in, *group_size), **options)
    values, bias = integers(4, -2, 3, n_labels, fan_in), integers(5, -2, 3, n_labels)
    if layer.values.dtype == np.uint16:
        values = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    layer, h = layer._replace(values=values, bias=bias), integers(6, -2, 3, n_rows, n_inputs)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    return Task((h, layer, *outputs), lambda: check_top_k(outputs, reference.top_k(h, layer, k)))


def _operations():
    yield operation(
        "fixed_fan_in.forward (simple)", make_forward, SMALL_LAYERS, LARGE_LAYERS, launch_simple_forward, None
    )
    lists = (
        ((1, 1, 1, 1, 1), (3, 7, 5, 7, 5), (5, 9, 67, 3, 3), (0, 5, 3, 2, 1)),
        ((33, 19, 331, 5, 4), (5, 9, 300, 2, 150), (65, 9, 40, 2, 40)),
    )
    for name, make, (small, large) in (
        ("forward", make_forward, (SMALL_LAYERS, LARGE_LAYERS)),
        ("backward", make_backward, (SMALL_LAYERS, LARGE_LAYERS)),
        ("top_k", make_layer_top_k, lists),
    ):
        narrow, wide = (functools.partial(getattr(cuda, name), wide=choice) for choice in (False, True))
        yield operation(f"fixed_fan_in.{name}", make, small, large)
        yield operation(f"fixed_fan_in.{name} (narrow)", make, (), large[::2], narrow, None)
        yield operation(f"fixed_fan_in.{name} (wide)", make, (), large[:1], wide, None)
    yield operation("fixed_fan_in.softmax_sums", make_softmax_sums, SMALL_LAYERS, LARGE_LAYERS)
    for loss, code in STEP_LOSSES.items():
        for optimizer, kind in KINDS.items():
            yield operation(
                f"fixed_fan_in.step {loss} {optimizer}",
                make_step,
                SMALL_LAYERS[1:3],
                (*LARGE_LAYERS, (12, 70, 9, 66), (0, 70, 5, 66)),  # no rows: only the update
                loss=code,
                kind=kind,
            )
        kind = KINDS["adam" if loss == "bce" else "sgd"]
        for name, wide, shapes in (("narrow", False, LARGE_LAYERS[::2]), ("wide", True, LARGE_LAYERS[:1])):
            step = functools.partial(cuda.step, wide=wide)
            yield operation(
                f"fixed_fan_in.step {loss} ({name})", make_step, (), shapes, step, None, loss=code, kind=kind
            )


OPERATIONS = list(_operations())

BUDGETS = {
    "backward_kernel": Budget(64),
    "backward_wide_kernel": Budget(64, holds=("ld.global.v4.f32",)),
    "forward_kernel": Budget(56),
    "forward_tiled_kernel": Budget(64, shared=4 * 32 * 33),
    "forward_wide_kernel": Budget(64, shared=4 * 32 * 129, holds=("ld.global.v4.f32",)),
    "step_kernel": Budget(80),
    "step_wide_kernel": Budget(80, holds=("ld.global.v4.f32",)),
    "top_k_kernel": Budget(64),
    "top_k_wide_kernel": Budget(80, holds=("ld.global.v4.f32",)),
}
