"""FullSoftmax, SVDSoftmax, DSoftmax: their top-k against the reference, where they must agree, bad input."""

import numba
import numpy as np
import pytest

from sparsemax_nb import DSoftmax, FullSoftmax, SVDSoftmax
from sparsemax_nb.core.low_rank import low_rank
from sparsemax_nb.cpu import baselines as cpu
from sparsemax_nb.cpu import lists
from sparsemax_nb.cuda import full_softmax as cuda
from sparsemax_nb.reference import baselines, full_softmax

from .helpers import ForeignArray, assert_close, integers, normal, on_other_device, threads

SHAPES = [(1, 1, 1, 1), (1, 33, 65, 3), (3, 3, 33, 33), (65, 16, 3, 5), (33, 65, 700, 4), (0, 3, 5, 2)]  # (B, d, L, k)
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


def problem(shape, of=normal):
    """h, w, bias; numbers of the order of 1 in every score."""
    n_rows, width, n_classes, _ = shape
    h, w, bias = of(1, n_rows, width), of(2, n_classes, width), of(3, n_classes)
    return h, w / np.float32(np.sqrt(width)), bias


def counts_of(n_classes):
    return np.random.default_rng(4).integers(0, 9, n_classes)


def bins_of(w, bias, counts, shares, widths):
    """The bins of a D-softmax as `reference` takes them."""
    order = np.argsort(-counts, kind="stable")
    for classes, width in zip(
        np.split(order, np.rint(np.cumsum(shares)[:-1] * len(w)).astype(int)), widths, strict=True
    ):
        yield classes, *low_rank(w[classes], width), bias[classes]


def assert_probable(got, wanted, width):
    """Equal ids, but for those whose probabilities float32 can not tell apart."""
    (p, ids), (want_p, want_ids) = got, wanted
    assert ids.dtype == np.int32
    assert_close(p, want_p, 100 * width, 1)
    gaps = (np.abs(np.diff(want_p, axis=1)) > 1e-5 * want_p[:, :1]) | (want_ids[:, 1:] < 0)
    apart = np.pad(gaps, ((0, 0), (1, 0)), constant_values=True) & np.pad(gaps, ((0, 0), (0, 1)))
    np.testing.assert_array_equal(ids[apart], want_ids[apart])
    assert apart.sum() >= 0.8 * apart[:, :-1].size
    np.testing.assert_array_equal(ids < 0, want_ids < 0)


@EACH_SHAPE
@pytest.mark.parametrize("with_bias", [False, True])
def test_full_equals_reference(backend, shape, with_bias):
    h, w, bias = problem(shape)
    layer = FullSoftmax(backend.array(w), backend.array(bias) if with_bias else None)
    got = map(backend.numpy, layer.top_k(backend.array(h), shape[3]))
    assert_probable(got, full_softmax.top_k(h, w, bias if with_bias else 0, shape[3]), shape[1])


@pytest.mark.parametrize("n_rows", [1, 70])
def test_full_joins_many_ranges_and_blocks(n_rows):
    shape = n_rows, 5, 5000, 20
    h, w, bias = problem(shape)
    got = FullSoftmax(w, bias).top_k(h, 20)
    assert lists.n_ranges(lists.n_blocks(n_rows), 313, 20) >= 8
    assert_probable(got, full_softmax.top_k(h, w, bias, 20), 5)


def test_full_takes_slabs_of_rows(backend, monkeypatch):
    monkeypatch.setattr(cuda, "MAX_ELEMENTS", 100)
    h, w, bias = problem((7, 5, 33, 4))
    got = FullSoftmax(*map(backend.array, (w, bias))).top_k(backend.array(h), 4)
    assert_probable(map(backend.numpy, got), full_softmax.top_k(h, w, bias, 4), 5)


def test_full_probabilities_are_all_of_them(backend):
    """Every class comes out once; with 300 times the weights, all but one nearly vanish, and nothing overflows."""
    h, w, bias = problem((3, 5, 33, 33))
    layer, steep = (FullSoftmax(*map(backend.array, (factor * w, bias))) for factor in (1, 300))
    for each in (layer, steep):
        p, ids = map(backend.numpy, each.top_k(backend.array(h), 40))
        np.testing.assert_allclose(p.sum(1, dtype=np.float64), 1, rtol=1e-5)
        np.testing.assert_array_equal(np.sort(ids[:, :33]), np.tile(np.arange(33), (3, 1)))
        assert (ids[:, 33:] == -1).all() and not p[:, 33:].any()
        assert (np.diff(p) <= 0).all()
    assert 0.999 < p[0, 0] <= 1 and p[0, 32] < 1e-30


@pytest.mark.parametrize("kind", ["full", "D"])
def test_ties_go_to_the_lower_class(backend, kind):
    """Three rows that are the same for very many classes; those of D-softmax lie in all bins."""
    if kind == "D" and backend.device == "cuda":
        pytest.skip("on the CPU alone")
    h, w, _ = problem((5, 4, 200, 9), of=lambda seed, *shape: integers(seed, -2, 3, *shape))
    w = np.tile(w[:3], (67, 1))[:200].copy()
    layer = FullSoftmax(backend.array(w)) if kind == "full" else DSoftmax(w, counts_of(200), widths=(4, 4, 4))
    p, ids = map(backend.numpy, layer.top_k(backend.array(h), 9))
    _, want = full_softmax.top_k(h, w, 0, 9)
    np.testing.assert_array_equal(ids, want)
    assert (np.diff(p) == 0).sum() > 20


@EACH_SHAPE
def test_svd_equals_reference(shape):
    h, w, bias = problem(shape)
    n_rows, width, n_classes, k = shape
    preview, n = -(-width // 4), -(-n_classes // 5)
    layer = SVDSoftmax(w, bias, width=preview, n_candidates=n)
    plain = *low_rank(w, width), bias, preview
    assert_probable(layer.top_k(h, k), baselines.svd_top_k(h, plain, n, k), width)


def test_svd_takes_slabs_of_rows(monkeypatch):
    monkeypatch.setattr(cpu, "MAX_ELEMENTS", 1000)
    h, w, bias = problem((7, 9, 300, 4))
    got = SVDSoftmax(w, bias, width=3, share=0.1).top_k(h, 4)
    assert_probable(got, baselines.svd_top_k(h, (*low_rank(w, 9), bias, 3), 30, 4), 9)


@EACH_SHAPE
def test_svd_with_all_dimensions_or_all_candidates_is_the_full_softmax(shape):
    h, w, bias = problem(shape)
    want = full_softmax.top_k(h, w, bias, shape[3])
    assert_probable(SVDSoftmax(w, bias, width=shape[1], n_candidates=1).top_k(h, shape[3]), want, shape[1])
    assert_probable(SVDSoftmax(w, bias, width=1, n_candidates=shape[2]).top_k(h, shape[3]), want, shape[1])


def test_svd_finds_what_a_preview_alone_would_not():
    h, w, bias = problem((33, 65, 700, 1))
    want = full_softmax.top_k(h, w, bias, 1)[1]
    found = [(SVDSoftmax(w, bias, width=16, n_candidates=n).top_k(h, 1)[1] == want).mean() for n in (1, 10, 100)]
    assert found[0] < 0.6 < found[1] <= found[2] == 1


@pytest.mark.parametrize("n", [1, 16, 100, 999, 1000, 1008])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "last", "tiny"])
def test_candidates_are_the_best(n, kind):
    """Also where every 16th score tells nothing about the others, and among denormal numbers of both signs."""
    scores = {
        "normal": normal(1, 1008),
        "ties": integers(1, -2, 3, 1008),
        "equal": np.zeros(1008, np.float32),
        "last": np.where(np.arange(1008) % 16 == np.arange(1008) // 16 % 16, 9, 0).astype(np.float32)
        + normal(1, 1008) / 9,
        "tiny": normal(1, 1008) * np.float32(1e-42),
    }[kind]
    chosen = np.full((1, n + 1), -9, np.int32)
    filled = np.pad(scores, (0, 16), constant_values=-np.inf)  # as a panel is
    cpu._candidates(filled[None], n, chosen)
    np.testing.assert_array_equal(chosen[0, :n], np.sort(np.argsort(-scores, kind="stable")[:n]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_candidates_of_scores_that_overflowed_are_classes(bad):
    scores = np.pad(np.full((1, 1008), bad, np.float32), ((0, 0), (0, 16)), constant_values=-np.inf)
    scores[0, :1008:3] = 1
    chosen = np.full((1, 901), 10**9, np.int32)
    cpu._candidates(scores, 900, chosen)
    assert 0 <= chosen[0, :900].min() <= chosen[0, :900].max() < 1008


@EACH_SHAPE
def test_d_equals_reference(shape):
    h, w, bias = problem(shape)
    _, width, n_classes, k = shape
    counts, shares, widths = counts_of(n_classes), (0.2, 0.3, 0.5), (width, -(-width // 2), -(-width // 5))
    layer = DSoftmax(w, counts, bias, shares=shares, widths=widths)
    plain = list(bins_of(w, bias, counts, shares, widths))
    assert_probable(layer.top_k(h, k), baselines.d_top_k(h, plain, k), width)


@EACH_SHAPE
def test_d_with_all_dimensions_is_the_full_softmax(shape):
    h, w, bias = problem(shape)
    layer = DSoftmax(w, counts_of(shape[2]), bias, widths=(shape[1],) * 3)
    assert_probable(layer.top_k(h, shape[3]), full_softmax.top_k(h, w, bias, shape[3]), shape[1])


def test_low_rank_is_the_singular_value_decomposition():
    w = normal(1, 40, 9)
    u, s, vt = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    for rank in (1, 4, 9):
        coordinates, axes = low_rank(w, rank)
        assert_close(coordinates @ axes.T, (u[:, :rank] * s[:rank]) @ vt[:rank], 9)
        assert_close(axes.T @ axes, np.eye(rank), 9)


LAYERS = {
    "full": FullSoftmax,
    "SVD": lambda w, bias=None: SVDSoftmax(w, bias, width=min(3, w.shape[1])),
    "D": lambda w, bias=None: DSoftmax(w, counts_of(len(w)), bias),
}
EACH_LAYER = pytest.mark.parametrize("kind", LAYERS)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@EACH_LAYER
@pytest.mark.parametrize("n_rows", [1, 70])
def test_same_bits_with_one_thread_and_two(kind, n_rows):
    h, w, bias = problem((n_rows, 33, 3000, 9))
    layer, results = LAYERS[kind](w, bias), []
    for n in (1, 2):
        with threads(n):
            results.append([a.tobytes() for a in layer.top_k(h, 9)])
    assert results[0] == results[1]


def test_multiply_adds_and_bytes():
    w, counts = normal(1, 1000, 40), np.arange(1000)[::-1].copy()
    full, svd, d = FullSoftmax(w), SVDSoftmax(w, width=8), DSoftmax(w, counts)
    assert full.flops_per_query == 40_000
    assert svd.flops_per_query == 40 * 40 + 1000 * 8 + 50 * 40
    assert d.flops_per_query == 250 * 40 + 250 * 20 + 500 * 10 + 40 * 20 + 40 * 10
    assert d.widths == (40, 20, 10)
    assert 160_000 <= full.nbytes < 180_000
    assert 160_000 + 32_000 <= svd.nbytes < 240_000
    assert 80_000 <= d.nbytes < 100_000
    assert repr(full) == "FullSoftmax(n_classes=1000, d=40, device='cpu')"


@EACH_LAYER
@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        ("h", lambda a: np.full_like(a, np.nan), ValueError, "h must be finite, got nan"),
        ("h", lambda a: a.astype(np.float64), TypeError, "h must be float32, got float64; use h.astype"),
        ("h", lambda a: a[:, 1:].copy(), ValueError, r"h must have shape \(B, 5\), got \(3, 4\)"),
        ("h", lambda a: a[::2], ValueError, "h must be C-contiguous"),
        ("h", lambda a: a.tolist(), TypeError, "h must be a NumPy or CUDA array, got list"),
        ("w", lambda a: np.full_like(a, np.inf), ValueError, "weights must be finite, got inf"),
        ("w", lambda a: a.astype(np.float16), TypeError, "weights must be float32, got float16"),
        ("w", lambda a: a[:0].copy(), ValueError, "n_classes .the length of weights. must be between 1 and .*, got 0"),
        ("w", lambda a: a[:, :0].copy(), ValueError, "d .the width of weights. must be at least 1, got 0"),
        ("bias", lambda a: np.full_like(a, -np.inf), ValueError, "bias must be finite, got -inf"),
        ("bias", lambda a: a[1:].copy(), ValueError, "bias must have shape"),
        ("k", lambda k: 0, ValueError, "k must be between 1 and 65536 .*, got 0"),
        ("k", lambda k: 2.0, TypeError, "k must be an integer"),
    ],
)
def test_bad_arguments(kind, place, change, error, message):
    good = dict(zip(("h", "w", "bias"), problem((3, 5, 33, 4)), strict=True), k=4)
    good[place] = change(good[place])
    with pytest.raises(error, match=message):
        LAYERS[kind](good["w"], good["bias"]).top_k(good["h"], good["k"])


@EACH_LAYER
def test_scores_that_overflow_are_no_result(kind):
    h, w = np.full((1, 4), 1e30, np.float32), np.full((3, 4), 1e30, np.float32)
    with pytest.raises(FloatingPointError, match="overflowed; use smaller"):
        LAYERS[kind](w).top_k(h, 2)


def test_arrays_on_several_devices(backend):
    h, w, bias = problem((3, 5, 33, 4))
    layer = FullSoftmax(backend.array(w))
    with (
        pytest.raises(TypeError, match="h must live on|one device")
        if backend.device == "cuda"
        else pytest.raises((TypeError, RuntimeError))
    ):
        layer.top_k(on_other_device(backend, h), 4)
    with pytest.raises(TypeError, match="one device"):
        FullSoftmax(backend.array(w), on_other_device(backend, bias))


@pytest.mark.parametrize("kind", ["SVD", "D"])
def test_baselines_compute_on_the_cpu_alone(monkeypatch, kind):
    monkeypatch.setattr("sparsemax_nb.core.device.cuda_available", lambda: True)
    w = ForeignArray(normal(1, 33, 5))
    with pytest.raises(TypeError, match=f"{kind}Softmax is a baseline for the CPU only"):
        SVDSoftmax(w) if kind == "SVD" else DSoftmax(w, counts_of(33))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 6}, ValueError, r"width must be between 1 and 5 \(the width of weights\), got 6"),
        ({"width": 0}, ValueError, "width must be between 1 and 5"),
        ({"n_candidates": 34}, ValueError, r"n_candidates must be between 1 and 33 \(the number of classes\), got 34"),
        ({"n_candidates": 0}, ValueError, "n_candidates must be between 1"),
        ({"share": 0}, ValueError, "share must be above 0, got 0"),
        ({"share": 1.5}, ValueError, r"share must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_options_of_svd(options, error, message):
    with pytest.raises(error, match=message):
        SVDSoftmax(normal(1, 33, 5), **{"width": 2, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shares": (0.5, 0.6)}, ValueError, "shares must sum to 1, got 1.1; divide them by their sum"),
        ({"shares": (1.0, 0.0)}, ValueError, "shares must be above 0"),
        ({"shares": (1.0,), "widths": (2, 3)}, ValueError, "widths must have one entry per share, 1, got 2"),
        (
            {"shares": (1.0,), "widths": (6,)},
            ValueError,
            r"widths must be between 1 and 5 \(the width of weights\), got 6",
        ),
        ({"counts": np.ones(32)}, ValueError, r"counts must have shape \(33,\), got \(32,\)"),
        ({"counts": np.full(33, -1)}, ValueError, "counts must not be negative, got -1"),
        ({"counts": np.full(33, np.nan)}, ValueError, "counts must be finite"),
        ({"counts": np.full(33, "a")}, TypeError, "counts must be integers or floats"),
        ({"counts": [1] * 33}, TypeError, "counts must be a NumPy or CUDA array, got list"),
    ],
)
def test_bad_options_of_d(options, error, message):
    with pytest.raises(error, match=message):
        DSoftmax(normal(1, 33, 5), **{"counts": counts_of(33), **options})
