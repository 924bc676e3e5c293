"""DS-Softmax: gradients of the whole loss, a step on both devices, pruning, mitosis, answers, files, and bad input."""

import copy
import os

import numba
import numpy as np
import pytest

from sparsemax_nb import SGD, Adam, Labels, PackedDSSoftmax, SparseExperts, ds_softmax, sparse_experts
from sparsemax_nb.core import checkpoint, formulas
from sparsemax_nb.core.device import SIMULATOR
from sparsemax_nb.core.experts import Experts, by_class, group
from sparsemax_nb.core.sparse import as_targets
from sparsemax_nb.reference import ds_softmax as reference
from sparsemax_nb.reference import sparse_experts as training

from .catalogue.ds_softmax import make_experts
from .helpers import assert_close, integers, label_matrix, normal, on_other_device, threads

N_CLASSES, WIDTH = 23, 7
PENALTIES = {"class_lasso": 0.02, "expert_lasso": 0.03, "balance": 0.5}


def problem(n_experts=3, n_rows=9, several=False):
    """Gate, experts (the second holds nothing), contexts, and targets, some of which no expert holds."""
    experts = make_experts(n_experts, N_CLASSES, WIDTH)
    experts = experts._replace(weights=experts.weights / 2)
    targets = integers(5, 0, N_CLASSES, n_rows).astype(np.int32)
    if several:
        matrix = label_matrix(n_rows, N_CLASSES)
        targets = Labels(matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32))
    gate = normal(6, n_experts, WIDTH)
    return gate, experts, normal(7, n_rows, WIDTH), targets


def on(backend, value):
    return type(value)(*map(backend.array, value)) if isinstance(value, tuple) else backend.array(value)


def made(backend, gate, experts, kind=SparseExperts):
    return kind(on(backend, gate), *on(backend, experts), N_CLASSES)


def objective(gate, rows, experts, h, targets, chosen, class_lasso, expert_lasso, balance):
    """What `step` makes small, in float64, for a choice of experts that is given."""
    labels = as_targets(targets, len(h), "cpu", N_CLASSES)
    experts, n_experts = experts._replace(weights=rows), len(gate)
    probabilities, _, _ = reference.gate(h @ gate.T)
    values, groups = probabilities[np.arange(len(h)), chosen], group(chosen, experts.starts)
    scores = reference.scores(h[groups.order], groups, experts)
    loss, _, _ = training.cross_entropy(scores, values, labels, groups, experts, N_CLASSES, 1 / len(h))
    load, _ = training.balance(values, groups)
    squares = (rows**2).sum(1)
    of_classes = training.class_sums(squares, by_class(experts.ids, N_CLASSES))
    total = loss.mean() + balance * (n_experts * (load**2).sum() / load.sum() ** 2 - 1)
    total += class_lasso * np.sqrt(squares / WIDTH + sparse_experts.EPSILON).sum()
    return total + expert_lasso * np.sqrt(of_classes / (n_experts * WIDTH) + sparse_experts.EPSILON).sum()


def gradients(gate, experts, h, targets, class_lasso, expert_lasso, balance):
    """The gradients of `objective` with respect to gate and weights as the backends combine them; the loss."""
    labels, n_experts = as_targets(targets, len(h), "cpu", N_CLASSES), len(gate)
    probabilities, chosen, values = reference.gate(h @ gate.T)
    groups = group(chosen, experts.starts)
    scores = reference.scores(h[groups.order], groups, experts)
    loss, dvalues, dscores = training.cross_entropy(scores, values, labels, groups, experts, N_CLASSES, 1 / len(h))
    drows = training.gradient_of_rows(dscores, h[groups.order], groups, experts)
    _, dload = training.balance(values, groups)
    dlogits = training.gate_backward(probabilities, chosen, dvalues, balance * dload)
    squares = (experts.weights.astype(np.float64) ** 2).sum(1)
    of_classes = training.class_sums(squares, by_class(experts.ids, N_CLASSES))
    still = formulas.Rates(0.0, 0.0, 0.0, 1.0)  # m becomes the gradient
    moments = formulas.Moments(np.zeros(experts.weights.shape), np.zeros(experts.weights.shape))
    penalties = class_lasso, expert_lasso, n_experts, sparse_experts.EPSILON
    _, m, _, _ = training.update(drows, experts.ids, of_classes, penalties, still, moments, experts.weights, squares)
    return dlogits.T @ h, m, loss.mean()


@pytest.mark.quick
@pytest.mark.parametrize("several", [False, True])
def test_gradients_are_those_of_the_objective(several):
    """Against central differences in float64, by every number of the gate and of the rows."""
    gate, experts, h, targets = problem(several=several)
    gate, h, experts = (
        gate.astype(np.float64),
        h.astype(np.float64),
        experts._replace(weights=experts.weights.astype(np.float64)),
    )
    _, chosen, _ = reference.gate(h @ gate.T)
    assert len(set(chosen.tolist())) > 1
    dgate, drows, _ = gradients(gate, experts, h, targets, **PENALTIES)
    for array, gradient in ((gate, dgate), (experts.weights, drows)):
        found = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            before, values = array[place], []
            for step in (1e-5, -1e-5):
                array[place] = before + step
                values.append(objective(gate, experts.weights, experts, h, targets, chosen, **PENALTIES))
            array[place] = before
            found[place] = (values[0] - values[1]) / 2e-5
        assert np.abs(found - gradient).max() < 1e-6 * max(1, np.abs(gradient).max())


@pytest.mark.twins
@pytest.mark.parametrize("several", [False, True])
def test_step(backend, several):
    """Loss, gate and rows after two steps of Adam are those of the reference."""
    gate, experts, h, targets = problem(several=several)
    mixture, adam = made(backend, gate, experts), Adam(0.01)
    wanted_gate, wanted_rows = gate.astype(np.float64), experts.weights.astype(np.float64)
    moments = {name: [np.zeros(a.shape)] * 2 for name, a in (("gate", gate), ("rows", wanted_rows))}
    for step in range(2):
        loss = mixture.step(on(backend, h), on(backend, targets), adam, **PENALTIES)
        now = experts._replace(weights=wanted_rows)
        dgate, drows, wanted = gradients(wanted_gate, now, h.astype(np.float64), targets, **PENALTIES)
        assert abs(loss - wanted) < 1e-5 * wanted
        rates = Adam(0.01)._rates(0.01, step + 1)
        new = []
        for name, array, gradient in (("gate", wanted_gate, dgate), ("rows", wanted_rows, drows)):
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            moments[name] = m, v
            new.append(array - rates.step_size * m / (np.sqrt(v) + rates.epsilon))
        wanted_gate, wanted_rows = new
    # Adam divides by the gradient's size: where that is tiny, so is what float32 knows of it
    for got, want in ((mixture.gate, wanted_gate), (mixture.weights, wanted_rows)):
        difference = np.abs(backend.numpy(got) - want)
        assert difference.max() < 1e-3 and np.median(difference) < 1e-6
    assert mixture.steps == 2 and adam.state_of(mixture.weights).count == 2


@pytest.mark.twins
def test_noise_moves_the_choice(backend):
    gate, experts, h, targets = problem(n_experts=2, n_rows=12)

    def losses(**options):
        return made(backend, gate, experts).step(on(backend, h), on(backend, targets), Adam(), **options)

    assert losses(noise=2.0, seed=1) == losses(noise=2.0, seed=1)
    assert len({losses(), losses(noise=2.0, seed=1), losses(noise=2.0, seed=2)}) == 3


def test_a_pruned_row_counts_like_a_row_of_zeros():
    """So pruning what is almost zero hardly changes the loss."""
    gate, _, h, targets = problem()
    rows = normal(1, N_CLASSES, WIDTH)
    rows[3:15] = 0
    full = SparseExperts.dense(rows - rows.mean(0), 1)
    full.weights[...] = rows
    kept = np.r_[:3, 15:N_CLASSES].astype(np.int32)
    starts = np.array([0, len(kept)], np.int32)
    pruned = SparseExperts(full.gate.copy(), starts, kept, rows[kept], N_CLASSES)
    assert abs(full.step(h, targets, Adam()) - pruned.step(h, targets, Adam())) < 1e-6


@pytest.mark.twins
def test_prune(backend):
    """Small rows go, but the largest of a class; what is left keeps rows and moments."""
    starts, ids = np.array([0, 3, 3, 6], np.int32), np.array([0, 1, 2, 0, 1, 3], np.int32)
    rows = np.repeat(np.array([[0.5], [0.01], [0.02], [0.4], [0.005], [0.001]], np.float32), WIDTH, 1)
    mixture, adam = made(backend, normal(1, 3, WIDTH), Experts(starts, ids, rows)), Adam()
    m, v = adam.state_of(mixture.weights).moments
    m[...], v[...] = on(backend, rows + 1), on(backend, rows + 2)
    adam.state_of(mixture.weights).count = 5
    assert mixture.prune(0.03, adam) == 1
    kept = [0, 1, 2, 3, 5]  # of class 1 the larger row stays, though it is small
    assert backend.numpy(mixture.ids).tolist() == ids[kept].tolist()
    assert backend.numpy(mixture.starts).tolist() == [0, 3, 3, 5]
    np.testing.assert_array_equal(backend.numpy(mixture.weights), rows[kept])
    state = adam.state_of(mixture.weights)
    assert state.count == 5
    np.testing.assert_array_equal(backend.numpy(state.moments.m), rows[kept] + 1)
    np.testing.assert_array_equal(backend.numpy(state.moments.v), rows[kept] + 2)
    assert mixture.prune(0.03, adam) == 0
    assert mixture.prune(9) == 1 and (mixture.experts_per_class[:4] == 1).all()  # every class survives


@pytest.mark.twins
def test_split(backend):
    """Two of each expert, alike but for the gate, which answers like before where it was sure."""
    gate, experts, h, _ = problem(n_experts=3)
    mixture, adam = made(backend, gate, experts), Adam()
    adam.state_of(mixture.weights).moments.m[...] = on(backend, 2 * experts.weights)
    adam.state_of(mixture.gate).moments.v[...] = on(backend, gate**2)
    mixture.split(adam, seed=3)
    assert mixture.n_experts == 6
    new_gate, starts = backend.numpy(mixture.gate), backend.numpy(mixture.starts)
    np.testing.assert_allclose((new_gate[0::2] + new_gate[1::2]) / 2, gate, atol=1e-6)
    apart = np.sqrt(((new_gate[0::2] - new_gate[1::2]) ** 2).mean()) / np.sqrt((gate**2).mean())
    assert 0.1 < apart < 0.3
    for k in range(6):
        old, new = slice(*experts.starts[k // 2 : k // 2 + 2]), slice(*starts[k : k + 2])
        np.testing.assert_array_equal(backend.numpy(mixture.ids)[new], experts.ids[old])
        np.testing.assert_array_equal(backend.numpy(mixture.weights)[new], experts.weights[old])
        np.testing.assert_array_equal(
            backend.numpy(adam.state_of(mixture.weights).moments.m)[new], 2 * experts.weights[old]
        )
    np.testing.assert_array_equal(backend.numpy(adam.state_of(mixture.gate).moments.v), np.repeat(gate**2, 2, 0))
    again = made(backend, gate, experts)
    again.split(seed=3)
    np.testing.assert_array_equal(backend.numpy(again.gate), new_gate)
    mixture.step(on(backend, h), on(backend, np.zeros(len(h), np.int32)), adam)  # and training goes on


@pytest.mark.twins
def test_an_expert_without_rows_of_the_batch_only_shrinks(backend):
    gate, experts, h, targets = problem(n_experts=2)
    gate[0], h[:, 0] = 0, 1
    gate[0, 0] = 50  # everything goes to the first
    mixture = made(backend, gate, experts)
    assert mixture.utilisation(on(backend, h)).tolist() == [1, 0]
    mixture.step(on(backend, h), on(backend, targets), Adam(0.001), class_lasso=1.0)
    other = slice(*experts.starts[1:3])
    moved = backend.numpy(mixture.weights)[other] - experts.weights[other]
    np.testing.assert_allclose(moved, -0.001 * np.sign(experts.weights[other]), atol=1e-5)


# ---------------------------------------------------------------- answers


@pytest.mark.twins
@pytest.mark.parametrize("n_rows", [0, 1, 5, 14])
def test_top_k(backend, n_rows):
    """A few queries and many: the same answers as the reference, with k above what an expert holds."""
    gate, experts, _, _ = problem()
    h, k = normal(9, n_rows, WIDTH), 16
    packed = made(backend, gate, experts, PackedDSSoftmax)
    probabilities, ids = (backend.numpy(a) for a in packed.top_k(on(backend, h), k))
    wanted = reference.answer(h, gate, experts, k)
    np.testing.assert_array_equal(ids, wanted[1])
    assert_close(probabilities, wanted[0], 64 * N_CLASSES, 1)
    if n_rows == 14:
        empty = backend.numpy(packed.choose(on(backend, h))) == 1
        assert empty.any() and (ids[empty] == -1).all() and (probabilities[empty] == 0).all()
        assert (ids == -1).any(1).all() and abs(probabilities[~empty].sum(1) - 1).max() < 1e-5


def test_many_queries_in_parts(monkeypatch):
    gate, experts, _, _ = problem()
    h, packed = normal(9, 50, WIDTH), PackedDSSoftmax(gate, *experts, N_CLASSES)
    whole = packed.top_k(h, 4)
    monkeypatch.setattr(ds_softmax, "MAX_ELEMENTS", 20 * N_CLASSES)
    packed = PackedDSSoftmax(gate, *experts, N_CLASSES)
    for part, one in zip(packed.top_k(h, 4), whole, strict=True):
        np.testing.assert_allclose(part, one, atol=1e-6)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("n_rows", [1, 5, 70])
def test_same_bits_with_one_thread_and_two(n_rows):
    gate, experts, _, _ = problem()
    packed, h = PackedDSSoftmax(gate, *experts, N_CLASSES), normal(9, n_rows, WIDTH)

    def bits(n):
        with threads(n):
            return [a.tobytes() for a in packed.top_k(h, 5)]

    assert bits(1) == bits(2)


def test_what_it_costs():
    gate, experts, _, _ = problem()
    packed, h = PackedDSSoftmax(gate, *experts, N_CLASSES), normal(9, 200, WIDTH)
    used, sizes = packed.utilisation(h), np.diff(experts.starts)
    np.testing.assert_allclose(used, np.bincount((h @ gate.T).argmax(1), minlength=3) / 200)
    assert packed.sizes.tolist() == sizes.tolist()
    assert packed.speed_up(h) == pytest.approx(N_CLASSES / (3 + (used * sizes).sum()))
    assert packed.experts_per_class.tolist() == [(experts.ids == c).sum() for c in range(N_CLASSES)]
    assert packed.nbytes == gate.nbytes + sum(a.nbytes for a in experts)


def test_pack_is_a_copy():
    gate, experts, h, targets = problem()
    mixture = SparseExperts(gate, *copy.deepcopy(experts), N_CLASSES)
    packed = mixture.pack()
    before = packed.top_k(h, 3)
    mixture.step(h, targets, Adam(0.1))
    for now, then in zip(packed.top_k(h, 3), before, strict=True):
        np.testing.assert_array_equal(now, then)


# ---------------------------------------------------------------- files


@pytest.mark.twins
@pytest.mark.parametrize("mapped", [False, True])
def test_save_and_load(backend, tmp_path, mapped):
    """Read, or memory-mapped on the CPU: the same answers."""
    gate, experts, _, _ = problem()
    packed, h = made(backend, gate, experts, PackedDSSoftmax), on(backend, normal(9, 20, WIDTH))
    packed.save(tmp_path / "ds.safetensors")
    loaded = PackedDSSoftmax.load(tmp_path / "ds.safetensors", device=backend.device, mapped=mapped)
    assert (loaded.n_classes, loaded.device) == (N_CLASSES, backend.device)
    for a, b in zip(packed.top_k(h, 5), loaded.top_k(h, 5), strict=True):
        np.testing.assert_array_equal(backend.numpy(a), backend.numpy(b))
    if backend.device == "cpu":
        base = loaded.weights
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) == mapped
        before = (tmp_path / "ds.safetensors").read_bytes()
        loaded.weights[0] = 1  # a copy of the page
        assert (tmp_path / "ds.safetensors").read_bytes() == before


def test_files_that_can_not_be_loaded(tmp_path, monkeypatch):
    gate, experts, _, _ = problem()
    packed, path = PackedDSSoftmax(gate, *experts, N_CLASSES), tmp_path / "ds.safetensors"
    with pytest.raises(FileNotFoundError, match="no model file"):
        PackedDSSoftmax.load(path)
    packed.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(checkpoint.ModelFileError, match="truncated or not a safetensors"):
        PackedDSSoftmax.load(path)
    arrays = {"gate": gate} | experts._asdict()
    checkpoint.save(path, "classifier", arrays, {})
    with pytest.raises(checkpoint.ModelFileError, match="contains a 'classifier' model, not 'ds-softmax'"):
        PackedDSSoftmax.load(path)
    checkpoint.save(path, "ds-softmax", arrays | {"gate": gate.astype(np.float64)}, {"n_classes": N_CLASSES})
    with pytest.raises(checkpoint.ModelFileError, match="does not contain a complete DS-Softmax .*float64"):
        PackedDSSoftmax.load(path, device="cpu")
    checkpoint.save(path, "ds-softmax", arrays | {"ids": experts.ids[::-1]}, {"n_classes": N_CLASSES})
    with pytest.raises(checkpoint.ModelFileError, match="does not contain a complete DS-Softmax .*ascend"):
        PackedDSSoftmax.load(path, device="cpu")
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    packed.save(path)
    monkeypatch.undo()
    with pytest.raises(checkpoint.ModelFileError, match="format version 99, this package reads version 8"):
        PackedDSSoftmax.load(path)


@pytest.mark.parametrize("mapped", [False, True])
def test_files_that_are_overwritten_in_place(tmp_path, mapped):
    """Another model of the same shape, or garbage: starts and ids stay as checked; unmapped weights, too."""
    gate, experts, _, _ = problem()
    packed, path, h = PackedDSSoftmax(gate, *experts, N_CLASSES), tmp_path / "ds.safetensors", normal(9, 20, WIDTH)
    packed.save(path)
    loaded, want = PackedDSSoftmax.load(path, device="cpu", mapped=mapped), packed.top_k(h, 5)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with open(path, "r+b") as file:  # every number of the file becomes 1, or 2^30 where it was an integer
        file.seek(header)
        file.write(np.full(path.stat().st_size - header, 0x3F, np.uint8))
    assert np.array_equal(loaded.ids, experts.ids) and np.array_equal(loaded.starts, experts.starts)
    probabilities, ids = loaded.top_k(h, 5)
    assert ((ids >= -1) & (ids < N_CLASSES)).all()
    if not mapped:
        os.truncate(path, 100)  # under a reader that has mapped it: SIGBUS, as the docstring says
        assert np.array_equal(loaded.top_k(h, 5)[0], want[0]) and np.array_equal(ids, want[1])


def test_rows_that_are_not_finite_and_too_many_classes(tmp_path):
    gate, experts, _, _ = problem()
    path = tmp_path / "ds.safetensors"
    wild = experts.weights.copy()
    wild[3, 2] = np.inf
    arrays = {"gate": gate} | experts._asdict()
    for changed, n_classes, message in (
        ({"weights": wild}, N_CLASSES, r"weights must be finite, got inf at \[3, 2\]"),
        ({"gate": gate * np.float32(np.nan)}, N_CLASSES, "gate must be finite"),
        ({}, 2**62, "n_classes must be between 1 and"),
        ({}, "5", "n_classes must be an integer"),
    ):
        checkpoint.save(path, "ds-softmax", arrays | changed, {"n_classes": n_classes})
        with pytest.raises(checkpoint.ModelFileError, match=f"does not contain a complete DS-Softmax .*{message}"):
            PackedDSSoftmax.load(path, device="cpu")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": np.zeros((3, WIDTH))}, "gate must be float32, got float64"),
        ({"gate": np.zeros((0, WIDTH), np.float32)}, "n_experts .* must be at least 1"),
        ({"starts": np.zeros(3, np.int32)}, r"starts must have shape \(4,\)"),
        ({"starts": np.array([0, 9, 3, 20], np.int32)}, "starts must rise from 0 to"),
        ({"weights": np.zeros((2, WIDTH), np.float32)}, "weights must have shape"),
        ({"n_classes": 5}, r"ids must lie in \[0, 5\)"),
        ({"n_classes": 0}, "n_classes must be between 1 and 2147483647, got 0"),
    ],
)
def test_wrong_experts(change, message):
    gate, experts, _, _ = problem()
    arguments = {"gate": gate} | experts._asdict() | {"n_classes": N_CLASSES} | change
    with pytest.raises((TypeError, ValueError), match=message):
        PackedDSSoftmax(**arguments)


@pytest.mark.twins
def test_bad_queries(backend):
    gate, experts, h, _ = problem(n_rows=14)
    packed = made(backend, gate, experts, PackedDSSoftmax)
    with pytest.raises(ValueError, match="k must be between 1 and 65536 .*, got 0"):
        packed.top_k(on(backend, h), 0)
    with pytest.raises(TypeError, match="h must be float32"):
        packed.top_k(on(backend, h.astype(np.float64)), 3)
    with pytest.raises(ValueError, match=r"h must have shape \(B, 7\)"):
        packed.top_k(on(backend, h[:, :5]), 3)
    with pytest.raises(TypeError, match="one device"):
        packed.top_k(on_other_device(backend, h), 3)
    h[7, 2] = np.nan
    for rows in (slice(None), slice(7, 8)):
        with pytest.raises(ValueError, match="h must be finite, got nan at"):
            packed.top_k(on(backend, h[rows]), 3)
    with pytest.raises(ValueError, match="h must be finite"):
        packed.utilisation(on(backend, h))


@pytest.mark.twins
def test_rows_that_are_not_finite(backend):
    gate, experts, h, targets = problem(n_rows=14)
    mixture = made(backend, gate, experts)
    mixture.weights[...] = np.nan
    for rows in (slice(None), slice(0, 3)):
        with pytest.raises(ValueError, match="weights must be finite, got nan"):
            mixture.top_k(on(backend, h[rows]), 3)
    with pytest.raises(ValueError, match="weights must be finite, got nan"):
        mixture.step(on(backend, h), on(backend, targets), Adam())


@pytest.mark.twins
def test_scores_that_overflow(backend):
    if backend.device == "cuda" and SIMULATOR:
        pytest.skip("NumPy warns of the overflow in the simulator's threads")
    gate, experts, h, targets = problem(n_rows=40)
    mixture = made(backend, gate, experts._replace(weights=experts.weights * np.float32(1e18)))
    for call in (lambda x: mixture.top_k(x, 3), lambda x: mixture.step(x, on(backend, targets), Adam())):
        with pytest.raises(FloatingPointError, match="scores of the experts overflowed"):
            call(on(backend, h * np.float32(1e21)))


@pytest.mark.twins
def test_bad_targets(backend):
    gate, experts, h, targets = problem()
    mixture, before = made(backend, gate, experts), experts.weights.copy()
    for wrong in (-1, N_CLASSES):
        targets[3] = wrong
        with pytest.raises(ValueError, match=rf"targets must lie in \[0, {N_CLASSES}\), got {wrong}"):
            mixture.step(on(backend, h), on(backend, targets), Adam())
    h[2, 1] = np.nan
    with pytest.raises(ValueError, match="h must be finite"):
        mixture.step(on(backend, h), on(backend, np.zeros(len(h), np.int32)), Adam())
    np.testing.assert_array_equal(backend.numpy(mixture.weights), before)
    assert mixture.step(on(backend, h[:0]), on(backend, targets[:0]), Adam()) == 0


@pytest.mark.twins
def test_bad_options_of_a_step(backend):
    """Before anything moves; plain gradient descent has no moments."""
    gate, experts, h, targets = problem()
    mixture, wrong = made(backend, gate, experts), (np.nan, np.inf, -1.0)
    with pytest.raises(TypeError, match="optimizer must be Adam, got SGD"):
        mixture.step(on(backend, h), on(backend, targets), SGD(0.1))
    for name in ("class_lasso", "expert_lasso", "balance", "noise"):
        for value in wrong:
            with pytest.raises(ValueError, match=f"{name} must lie in"):
                mixture.step(on(backend, h), on(backend, targets), Adam(), **{name: value})
    with pytest.raises(ValueError, match="seed must be between 0 and"):
        mixture.step(on(backend, h), on(backend, targets), Adam(), seed=-1)
    np.testing.assert_array_equal(backend.numpy(mixture.gate), gate)


def test_rows_that_can_not_be_written_to():
    gate, experts, _, _ = problem()
    experts.weights.flags.writeable = False
    PackedDSSoftmax(gate, *experts, N_CLASSES)  # to answer is all right
    with pytest.raises(ValueError, match="weights is written to but is read-only"):
        SparseExperts(gate, *experts, N_CLASSES)


def test_scores_of_minus_infinity():
    """They belong to no class twice, and leave no trace in the gate."""
    rows, starts, ids = np.float32([[-3e38], [0.1], [0.2]]), np.array([0, 3], np.int32), np.arange(3, dtype=np.int32)
    mixture, h = (
        SparseExperts(np.ones((1, 1), np.float32), starts, ids, rows / 1e20, 3),
        np.full((1, 1), 1e30, np.float32),
    )
    for call in (lambda: mixture.top_k(h, 3), lambda: mixture.step(h, np.array([1], np.int32), Adam())):
        with pytest.raises(FloatingPointError, match="scores of the experts overflowed"):
            call()
    assert np.isfinite(mixture.gate).all()


@pytest.mark.twins
@pytest.mark.parametrize("n_rows", [1, 9])
def test_queries_that_are_not_finite_meet_an_empty_expert(backend, n_rows):
    experts = Experts(np.array([0, 0, 2], np.int32), np.array([0, 1], np.int32), normal(1, 2, 2))
    packed = PackedDSSoftmax(on(backend, np.eye(2, dtype=np.float32)), *on(backend, experts), 2)
    with pytest.raises(ValueError, match="h must be finite, got nan"):
        packed.top_k(on(backend, np.full((n_rows, 2), np.nan, np.float32)), 1)


def test_dense_checks_its_classes():
    with pytest.raises(ValueError, match="weights must be finite"):
        SparseExperts.dense(np.full((3, 2), np.nan, np.float32), 2)
    with pytest.raises(ValueError, match="n_experts must be at least 1"):
        SparseExperts.dense(np.zeros((3, 2), np.float32), 0)
    with pytest.raises(ValueError, match="threshold must lie in"):
        SparseExperts.dense(normal(1, 3, 2), 2).prune(-1)


def test_more_rows_than_int32_counts(monkeypatch):
    monkeypatch.setattr("sparsemax_nb.ds_softmax.MAX_ROWS", 11)
    mixture = SparseExperts.dense(normal(1, 3, 2), 2)
    with pytest.raises(ValueError, match="the experts would have 12 rows together, more than 11"):
        mixture.split()
    with pytest.raises(ValueError, match="the experts would have 12 rows together, more than 11"):
        SparseExperts.dense(normal(1, 3, 2), 4)
