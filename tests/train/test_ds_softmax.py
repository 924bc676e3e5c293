"""`DSSoftmax`: a hierarchy found by mitosis, history, kinds of data, figures, checkpoints, threads, CUDA, bad input."""

import signal
import warnings

import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import PackedDSSoftmax, SparseExperts, metrics, train
from sparsemax_nb.core import checkpoint
from sparsemax_nb.core.device import SimArray, device_of, to_numpy
from sparsemax_nb.data.batches import shuffled
from sparsemax_nb.train import ds_softmax
from tests.helpers import label_matrix, normal, threads

N_CLASSES, WIDTH, N_ROWS = 20, 16, 1000
#: Learns the hierarchy below in a second.
HIERARCHY = {
    "n_experts": 4, "epochs": 14, "prune_after": 4, "class_lasso": 0.04, "expert_lasso": 0.04, "batch_size": 25,
    "learning_rate": 0.02, "device": "cpu", "progress": False,
}  # fmt: skip
#: Ends in a fraction of that: two stages of three epochs, the first of which prunes nothing.
SHORT = HIERARCHY | {"epochs": 3, "prune_after": 2, "batch_size": 50, "threshold": 0.15, "noise": 0.1}


class Stop(Exception):
    """What ends a run early in these tests."""


def hierarchy(n_rows=N_ROWS, seed=1):
    """Contexts and targets: 20 classes in four groups of five, class c in group c // 5."""
    random = np.random.default_rng(0)
    centres = np.repeat(3 * random.standard_normal((4, WIDTH)), 5, axis=0) + random.standard_normal((N_CLASSES, WIDTH))
    random = np.random.default_rng(seed)
    targets = random.integers(0, N_CLASSES, n_rows).astype(np.int32)
    contexts = (centres[targets] + 0.2 * random.standard_normal((n_rows, WIDTH))) / 3
    return contexts.astype(np.float16).astype(np.float32), targets  # numbers that float16 knows, too


@pytest.fixture(scope="module")
def points():
    return hierarchy()


@pytest.fixture(scope="module")
def fitted(points):
    """A model of the hierarchy, and what `after_epoch` and `after_stage` were called with."""
    called = []
    model = train.DSSoftmax(**HIERARCHY).fit(
        *points, validation=hierarchy(300, seed=2), after_epoch=lambda record: called.append(record["epoch"]),
        after_stage=lambda n_experts, packed: called.append((n_experts, packed)),
    )  # fmt: skip
    return model, called


def short(points, stop_after=None, changes=None, **arguments):
    """A short run, of which Stop is raised after an epoch."""

    def after(record):
        if record["epoch"] == stop_after:
            raise Stop

    return train.DSSoftmax(**SHORT | (changes or {})).fit(*points, after_epoch=after, **arguments)


def bits(model):
    experts = model.experts_
    return {name: to_numpy(getattr(experts, name)).tobytes() for name in ("gate", "starts", "ids", "weights")}


def without_seconds(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


# ---------------------------------------------------------------- what it learns


def test_mitosis_finds_the_hierarchy(fitted):
    """Four experts, each of which holds the five classes of one group, and no other."""
    model, (contexts, targets) = fitted[0], hierarchy(300, seed=3)
    packed, figures = model.pack(), model.evaluate(contexts, targets)
    assert packed.n_experts == 4 and (packed.experts_per_class == 1).all()
    groups = [set((packed.ids[a:b] // 5).tolist()) for a, b in zip(packed.starts, packed.starts[1:], strict=False)]
    assert sorted(groups, key=min) == [{0}, {1}, {2}, {3}]
    assert figures["top-1"] > 0.98 and figures["held"] == 1
    assert figures["speed-up"] == pytest.approx(N_CLASSES / (4 + 5))
    assert (packed.top_k(contexts, 1)[1][:, 0] == targets).mean() == pytest.approx(figures["top-1"])


def test_history(fitted):
    model, called = fitted
    history, epochs = model.history_, HIERARCHY["epochs"]
    assert [record["epoch"] for record in history] == list(range(2 * epochs))
    assert [record["n_experts"] for record in history] == [2] * epochs + [4] * epochs
    rows = 2 * N_CLASSES
    for record in history:
        rows = rows * (2 if record["epoch"] == epochs else 1) - record["removed"]
        assert record["rows"] == rows and record["seconds"] > 0
        assert 0 < record["smallest_share"] <= 1 / record["n_experts"] <= record["largest_share"] < 0.9
    removed = np.array([record["removed"] for record in history])
    assert not removed[: HIERARCHY["prune_after"]].any() and removed[:epochs].any() and removed[epochs:].any()
    losses = [record["loss"] for record in history]
    assert losses[-1] < losses[epochs - 1] < losses[0] / 4
    last = history[-1]
    assert last["validation"] == model.evaluate(*hierarchy(300, seed=2))
    assert last["speed-up"] == pytest.approx(model.pack().speed_up(hierarchy()[0]))
    stages = [call for call in called if isinstance(call, tuple)]
    assert [call for call in called if call not in stages] == list(range(2 * epochs))
    assert [n for n, _ in stages] == [2, 4] == [packed.n_experts for _, packed in stages]
    assert called.index(stages[0]) == epochs  # the first stage's between its last epoch and the next one
    assert (stages[1][1].weights == model.experts_.weights).all() and type(stages[0][1]) is PackedDSSoftmax


def test_init_is_where_every_expert_starts(points):
    init, seen = normal(5, N_CLASSES, WIDTH), []

    class Spy(Exception):
        pass

    def step(experts, *_, **__):
        seen.append(experts.weights.copy())
        raise Spy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseExperts, "step", step)
        with pytest.raises(Spy):
            short(points, weights=init)
    np.testing.assert_array_equal(seen[0], np.tile(init - init.mean(0), (2, 1)))


def test_what_a_step_is_told(points, monkeypatch):
    """The learning rate falls to a tenth in each stage; batches, lassos, noise and seed are those of the parameters."""
    rates, batches, step = [], [], SparseExperts.step

    def spy(experts, h, targets, optimizer, **options):
        rates.append(optimizer.learning_rate)
        batches.append((h, targets))
        assert options == {name: getattr(model, name) for name in options} and len(options) == 5
        return step(experts, h, targets, optimizer, **options)

    monkeypatch.setattr(SparseExperts, "step", spy)
    model = train.DSSoftmax(**SHORT | {"batch_size": 300, "expert_lasso": 0.01, "seed": 7, "threshold": 0.25})
    model.fit(*points)
    assert [record["removed"] > 0 for record in model.history_[:4]] == [False, False, True, True]
    assert [len(h) for h, _ in batches] == [300, 300, 300, 100] * 6
    for epoch in range(6):
        order = shuffled(N_ROWS, 7, epoch)
        for array, parts in zip(points, zip(*batches[4 * epoch : 4 * epoch + 4], strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), array[order])
    np.testing.assert_allclose(rates, 0.02 * np.tile(1 - 0.9 * np.arange(12) / 12, 2))
    assert model.experts_.steps == 24


def test_seed_and_noise_change_the_run(points):
    few = points[0][:100], points[1][:100]
    runs = [bits(short(few, changes={"epochs": 1} | change)) for change in ({}, {}, {"seed": 1}, {"noise": 0.0})]
    assert runs[0] == runs[1] and runs[2] != runs[0] != runs[3]


def test_a_gate_that_collapses(points):
    """Contexts that are nearly one vector, and nothing that balances the experts."""
    contexts = points[0].copy()
    contexts[:, 0] = 50
    with pytest.warns(
        RuntimeWarning, match=r"gate has collapsed: expert [01] of 2 gets 100% of the rows of h \(util.*balance"
    ):
        short((contexts, points[1]), changes={"n_experts": 2, "epochs": 1, "balance": 0.0, "learning_rate": 1e-4})
    with warnings.catch_warnings():  # one expert can not but get all
        warnings.simplefilter("error")
        one = short(points, changes={"n_experts": 1, "first_experts": 1, "epochs": 1})
    assert one.history_[0]["largest_share"] == 1 and one.history_[0]["rows"] == N_CLASSES


# ---------------------------------------------------------------- kinds of data


def test_float16_and_memory_mapped_contexts(points, tmp_path):
    contexts, targets = points
    np.save(tmp_path / "h.npy", contexts.astype(np.float16))
    mapped = np.load(tmp_path / "h.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    wanted = short(points)
    for other in (contexts.astype(np.float16), mapped):
        got = short((other, targets))
        assert bits(got) == bits(wanted)
        assert got.evaluate(other, targets) == wanted.evaluate(contexts, targets)


def test_one_target_a_row_is_a_matrix_with_one_label_a_row(points):
    matrix = scipy.sparse.csr_matrix((np.ones(N_ROWS), points[1], np.arange(N_ROWS + 1)), (N_ROWS, N_CLASSES))
    one, several = short(points), short((points[0], matrix))
    assert bits(one) == bits(several) and several.n_classes_ == N_CLASSES
    assert several.evaluate(points[0], matrix)["top-1"] == one.evaluate(*points)["top-1"]


def test_penalties_of_several_labels(points, monkeypatch):
    """They grow with the loss, which is a sum over labels; noise and seed do not."""
    called, labels = [], label_matrix(N_ROWS, N_CLASSES, density=0.15)
    monkeypatch.setattr(
        SparseExperts, "step", lambda self, h, targets, optimizer, **options: called.append(options) or 1.0
    )
    short((points[0], labels), changes={"seed": 3})
    mean = labels.nnz / N_ROWS
    wanted = {"class_lasso": 0.04 * mean, "expert_lasso": 0.04 * mean, "balance": 10 * mean, "noise": 0.1, "seed": 3}
    assert mean > 2 and called[0] == pytest.approx(wanted)


def test_figures_of_several_labels(points, monkeypatch):
    """Top-k are P@k of the answers; 'held' is counted by hand. Stored zeros and rows without labels are legal."""
    monkeypatch.setattr(ds_softmax, "ROWS_PER_BATCH", 130)
    labels = label_matrix(N_ROWS, N_CLASSES, density=0.15)
    assert (np.diff(labels.indptr) == 0).any()
    zeros = scipy.sparse.csr_matrix(labels)
    zeros.data[::7] = 0
    labels = zeros.copy()
    labels.eliminate_zeros()
    assert zeros.nnz > labels.nnz
    model = short((points[0], zeros))
    assert bits(model) == bits(short((points[0], labels)))
    packed, figures = model.pack(), model.evaluate(points[0], zeros)
    ids = packed.top_k(points[0], 10)[1]
    assert (ids == -1).any(), "an expert holds fewer than ten classes"
    for k in (1, 5, 10):
        assert figures[f"top-{k}"] == pytest.approx(metrics.precision_at_k(ids, labels, k))
    chosen = packed.choose(points[0])
    held = [c in packed.ids[packed.starts[e] : packed.starts[e + 1]] for e, row in zip(chosen, labels, strict=True)
            for c in row.indices]  # fmt: skip
    assert figures["held"] == pytest.approx(np.mean(held)) and 0 < np.mean(held) < 1
    assert figures["speed-up"] == pytest.approx(packed.speed_up(points[0]))


def test_figures_of_one_target_a_row(points, monkeypatch):
    monkeypatch.setattr(ds_softmax, "ROWS_PER_BATCH", 130)
    contexts, targets = points
    packed = short(points).pack()
    targets = np.roll(targets, 1)  # mostly wrong, often not even held
    figures, ids = ds_softmax.evaluate_experts(packed, contexts, targets), packed.top_k(contexts, 10)[1]
    for k in (1, 5, 10):
        assert figures[f"top-{k}"] == pytest.approx((ids[:, :k] == targets[:, None]).any(1).mean())
    chosen = packed.choose(contexts)
    held = [c in packed.ids[packed.starts[e] : packed.starts[e + 1]] for e, c in zip(chosen, targets, strict=True)]
    assert figures["held"] == pytest.approx(np.mean(held)) and 0 < np.mean(held) < 1


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("epoch", range(1, 6))
def test_resumed_run_ends_in_the_same_bits(points, tmp_path, epoch):
    """In the stage that has pruned nothing, at the seam of the stages, behind it; memory-mapped or not."""
    path, validation = tmp_path / "c", hierarchy(50, seed=2)
    whole = short(points, validation=validation)
    with pytest.raises(Stop):
        short(points, epoch, checkpoint_path=path, validation=validation)
    assert checkpoint.load(path, "ds-softmax checkpoint")[1]["epoch"] == epoch  # not that of the epoch that was stopped
    stages = []
    again = short(
        (points[0].astype(np.float16).astype(np.float32), points[1]), checkpoint_path=path, resume=True,
        validation=validation, after_stage=lambda n_experts, _: stages.append(n_experts),
    )  # fmt: skip
    assert bits(again) == bits(whole) and without_seconds(again.history_) == without_seconds(whole.history_)
    assert again.experts_.steps == whole.experts_.steps and stages == ([2, 4] if epoch < 3 else [4])
    done = short(points, checkpoint_path=path, resume=True, validation=validation)
    assert bits(done) == bits(whole)  # of a run that is over, nothing is left to do


def test_resume_without_a_checkpoint_starts_anew(points, tmp_path):
    assert bits(short(points, checkpoint_path=tmp_path / "c", resume=True)) == bits(short(points))
    with pytest.raises(ValueError, match="already exists; continue from it with resume=True"):
        short(points, checkpoint_path=tmp_path / "c")
    with pytest.raises(ValueError, match="resume needs checkpoint_path"):
        short(points, resume=True)


def test_ctrl_c_leaves_the_last_checkpoint(points, tmp_path, monkeypatch, capsys):
    """SIGINT inside an epoch, inside the first one, and at the end of one; then no step is done that is not counted."""
    path, step, at = tmp_path / "c", SparseExperts.step, [30]

    def interrupted(experts, *arguments, **options):
        if experts.steps == at[0]:
            signal.raise_signal(signal.SIGINT)
        return step(experts, *arguments, **options)

    monkeypatch.setattr(SparseExperts, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="the checkpoint is that of the end of epoch 1$"):
        short(points, checkpoint_path=path)  # 20 steps an epoch
    assert "the step is finished; the checkpoint of the last complete epoch is kept" in capsys.readouterr().err
    assert checkpoint.load(path, "ds-softmax checkpoint")[1]["steps"] == 20
    assert signal.getsignal(signal.SIGINT) is before
    at[0] = 39  # the last step of an epoch: that is finished
    with pytest.raises(KeyboardInterrupt, match="end of epoch 2$"):
        short(points, checkpoint_path=path, resume=True)
    at[0] = 5
    with pytest.raises(KeyboardInterrupt, match="^$"):
        short(points, checkpoint_path=tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    at[0] = 119  # the very last step
    with pytest.raises(KeyboardInterrupt, match="end of epoch 6$"):
        short(points, checkpoint_path=path, resume=True)
    at[0] = None
    assert bits(short(points, checkpoint_path=path, resume=True)) == bits(short(points))


def test_contexts_that_are_not_finite(points, tmp_path):
    """The error names step and row; the last checkpoint is whole, and the run resumes once the data are fixed."""
    contexts, path = points[0].copy(), tmp_path / "c"

    def spoil(record):
        if record["epoch"] == 1:
            contexts[905, 3] = np.nan

    model = train.DSSoftmax(**SHORT)
    with pytest.raises(train.TrainingError, match=r"^step [45]\d: h must be finite, got NaN or inf.* in row 905; fix"):
        model.fit(contexts, points[1], checkpoint_path=path, after_epoch=spoil)
    assert checkpoint.load(path, "ds-softmax checkpoint")[1]["epoch"] == 2
    contexts[905, 3] = points[0][905, 3]
    model.fit(contexts, points[1], checkpoint_path=path, resume=True)
    assert bits(model) == bits(short(points))
    contexts[907] = np.inf
    with pytest.raises(ValueError, match="^h must be finite, got NaN or infinity in row 907"):
        model.evaluate(contexts, points[1])
    with pytest.raises(train.TrainingError, match="^step 19: validation h must be finite.* in row 907"):
        short(points, validation=(contexts, points[1]))


def test_numbers_that_overflow(points, tmp_path):
    """Rows that a step has spoilt are found before they are written over the last checkpoint."""
    with np.errstate(all="ignore"), pytest.raises(train.TrainingError, match=r"^step \d+: .*learning rate"):
        short(points, checkpoint_path=tmp_path / "c", changes={"learning_rate": 1e38})
    assert not list(tmp_path.iterdir())
    step = SparseExperts.step

    def last(experts, *arguments, **options):
        loss = step(experts, *arguments, **options)
        if experts.steps == 40:
            experts.gate[0, 0] = np.nan
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseExperts, "step", last)
        with pytest.raises(train.TrainingError, match="^step 39: gate must be finite"):
            short(points, checkpoint_path=tmp_path / "c")
    assert checkpoint.load(tmp_path / "c", "ds-softmax checkpoint")[1]["epoch"] == 1


def test_checkpoints_of_another_run(points, tmp_path):
    path, (contexts, targets) = tmp_path / "c", points

    def refused(message, data=points, changes=None, **arguments):
        with pytest.raises(train.ModelFileError, match=message):
            short(data, changes=changes, checkpoint_path=path, resume=True, **arguments)

    with pytest.raises(Stop):
        short(points, 1, checkpoint_path=path)
    refused("balance was 10.0, not 5.0; use the old value or start a new run", changes={"balance": 5.0})
    refused("epochs was 3, not 4", changes={"epochs": 4})
    refused("written for different data", (contexts[:-1], targets[:-1]))
    refused("written for different data", (contexts, np.roll(targets, 1)))
    refused("written for different data", (contexts.astype(np.float16), targets))
    refused("written for different data", weights=normal(1, N_CLASSES, WIDTH))
    refused("n_classes was 20, not 21", n_classes=21)
    path.unlink()
    labels = label_matrix(N_ROWS, N_CLASSES, density=0.15)
    with pytest.raises(Stop):
        short((contexts, labels), 1, checkpoint_path=path)
    moved = labels.copy()  # the same ids, one of them a row later
    row = np.flatnonzero((np.diff(labels.indptr)[:-1] > 1) & (np.diff(labels.indptr)[1:] == 0))[0]
    moved.indptr[row + 1] -= 1
    refused("written for different data", (contexts, moved))


def test_damaged_and_foreign_checkpoints(points, tmp_path):
    path, kind = tmp_path / "c", "ds-softmax checkpoint"
    with pytest.raises(Stop):
        short(points, 4, checkpoint_path=path)
    whole = path.read_bytes()
    arrays, description = checkpoint.load(path, kind)
    arrays = dict(arrays)

    def refused(message):
        with pytest.raises(train.ModelFileError, match=message):
            short(points, checkpoint_path=path, resume=True)

    path.write_bytes(whole[:-50])
    refused("truncated or not a safetensors file")
    path.write_text("no model")
    refused("truncated or not a safetensors file")
    short(points).save(path)
    refused("contains a 'ds-softmax' model, not 'ds-softmax checkpoint'")
    for name, array in (("m/weights", arrays["m/weights"][1:]), ("v/gate", arrays["v/gate"].astype(np.float64)),
                        ("gate", arrays["gate"][:2]), ("weights", arrays["weights"] * np.nan),
                        ("ids", arrays["ids"][::-1]),
                        ("starts", arrays["starts"] + 1)):  # fmt: skip
        checkpoint.save(path, kind, arrays | {name: np.ascontiguousarray(array)}, description)
        refused(f"cannot be resumed: {name} must")
    checkpoint.save(path, kind, {name: array for name, array in arrays.items() if name != "v/weights"}, description)
    refused("cannot be resumed: 'v/weights'")
    checkpoint.save(path, kind, arrays, description | {"epoch": 7})
    refused("epoch must be between 1 and 6, got 7")
    checkpoint.save(path, kind, arrays, description | {"steps": 3})
    refused("steps must be between 80 and 80, got 3")
    path.write_bytes(whole)
    assert bits(short(points, checkpoint_path=path, resume=True)) == bits(short(points))


# ---------------------------------------------------------------- threads and devices


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_same_bits_with_one_thread_and_two(points):
    def run(n):
        with threads(n):
            return bits(short(points, validation=hierarchy(50, seed=2)))

    assert run(1) == run(2)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.cuda
def test_a_few_steps_on_cuda(tmp_path, several):
    """As on the CPU; one of them by a checkpoint from which the run goes on; all arrays are on the device."""
    contexts, init = normal(1, 4, 2), normal(2, 3, 2)
    targets = label_matrix(4, 3, density=0.5) if several else np.int32([0, 1, 2, 2])
    params = {"n_experts": 2, "first_experts": 1, "epochs": 1, "batch_size": 2, "prune_after": 0, "threshold": 0.5}

    def run(device, **more):
        model = train.DSSoftmax(**params, learning_rate=0.01, device=device, progress=False)
        return model.fit(contexts, targets, init, **more)

    def stop(record):
        if record["epoch"] == 1:
            raise Stop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of four contexts an expert may get all
        cpu, more = run("cpu", validation=(contexts, targets)), {"validation": (contexts, targets)}
        if several:
            with pytest.raises(Stop):
                run("cuda", checkpoint_path=tmp_path / "c", after_epoch=stop)
            more = {"checkpoint_path": tmp_path / "c", "resume": True}
        cuda = run("cuda", **more)
    assert device_of(cuda.experts_.weights) == "cuda" and cuda.experts_.n_experts == 2
    assert any(record["removed"] for record in cuda.history_), "something was pruned"
    for name in ("starts", "ids"):
        np.testing.assert_array_equal(*(to_numpy(getattr(m.experts_, name)) for m in (cuda, cpu)))
    for name in ("gate", "weights"):
        got, want = (to_numpy(getattr(m.experts_, name)) for m in (cuda, cpu))
        np.testing.assert_allclose(got, want, atol=1e-4)
    for got, want in zip(cuda.history_, cpu.history_, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5) and got["rows"] == want["rows"]
        assert several or got["validation"] == pytest.approx(want["validation"])


# ---------------------------------------------------------------- manners, bad input


def test_parameters_by_name():
    model = train.DSSoftmax(n_experts=8, device="cpu")
    assert repr(model) == "DSSoftmax(n_experts=8, device='cpu')" and repr(train.DSSoftmax()) == "DSSoftmax()"
    params = model.get_params()
    assert params["n_experts"] == 8 and len(params) == 14 and train.DSSoftmax(**params).get_params() == params
    assert model.set_params(noise=0.5) is model and model.noise == 0.5
    with pytest.raises(ValueError, match="parameter must be one of 'n_experts', .*got 'experts'"):
        model.set_params(experts=3)
    for call in (model.pack, lambda: model.evaluate(None, None), lambda: model.save("x")):
        with pytest.raises(ValueError, match="this DSSoftmax is not fitted yet; call fit.h, targets. first"):
            call()


def test_saved_model_answers(fitted, points, tmp_path):
    model = fitted[0]
    model.save(tmp_path / "m.safetensors")
    loaded = PackedDSSoftmax.load(tmp_path / "m.safetensors", device="cpu")
    for one, other in zip(loaded.top_k(points[0][:50], 3), model.pack().top_k(points[0][:50], 3), strict=True):
        np.testing.assert_array_equal(one, other)
    assert checkpoint.kind_of(tmp_path / "m.safetensors") == train.DSSoftmax.kind


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_experts": 6}, ValueError, "n_experts must be first_experts = 2 times a power of two, got 6; use 4 or 8"),
        ({"n_experts": 1}, ValueError, "n_experts must be at least 2, got 1"),
        ({"n_experts": 2**31}, ValueError, "n_experts must be at most 1048576, got 2147483648"),
        ({"n_experts": 4.0}, TypeError, "n_experts must be an integer, got float"),
        ({"first_experts": 0}, ValueError, "first_experts must be at least 1, got 0"),
        ({"n_experts": 4, "first_experts": 3}, ValueError, "first_experts = 3 times a power of two, got 4; use 3 or 6"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"prune_after": -1}, ValueError, "prune_after must be at least 0"),
        ({"threshold": -0.1}, ValueError, "threshold must lie in"),
        ({"class_lasso": np.nan}, ValueError, "class_lasso must lie in"),
        ({"expert_lasso": "1"}, TypeError, "expert_lasso must be a number"),
        ({"balance": np.inf}, ValueError, "balance must lie in"),
        ({"noise": -1}, ValueError, "noise must lie in"),
        ({"learning_rate": 0}, ValueError, "learning_rate must lie in"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"device": "gpu"}, ValueError, "device must be 'auto', 'cpu' or 'cuda', got 'gpu'"),
    ],
)
def test_bad_parameters(points, change, error, message):
    with pytest.raises(error, match=f"^{message}" if "first_experts =" not in message else message):
        short(points, changes=change)


CONTEXTS, TARGETS = normal(1, 6, 4), np.int32([0, 1, 2, 0, 1, 2])
LABELS = label_matrix(6, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": CONTEXTS.astype(np.float64)}, TypeError, "h must be float32 or float16, got float64; use "),
        ({"h": CONTEXTS.tolist()}, TypeError, "h must be a NumPy array .*, got list"),
        ({"h": SimArray((6, 4), np.float32)}, TypeError, "h must be a NumPy array .*, got SimArray"),
        ({"h": CONTEXTS[0]}, ValueError, r"h must have shape \(N, d\), got \(4,\)"),
        ({"h": CONTEXTS[:0], "targets": TARGETS[:0]}, ValueError, "the number of rows of h must be at least 1"),
        ({"h": np.asfortranarray(CONTEXTS)}, ValueError, "h must be C-contiguous"),
        ({"targets": TARGETS.astype(float)}, TypeError, "targets must hold integers, got float64; use targets.astype"),
        ({"targets": TARGETS.tolist()}, TypeError, "targets must be a NumPy array .*, got list"),
        ({"targets": TARGETS[:5]}, ValueError, r"targets must have shape \(6,\), got \(5,\)"),
        ({"targets": TARGETS - 1}, ValueError, r"targets must lie in \[0, 2\), got -1"),
        ({"n_classes": 2}, ValueError, r"targets must lie in \[0, 2\), got 2"),
        ({"n_classes": 0}, ValueError, "n_classes must be at least 1"),
        ({"targets": LABELS[:5]}, ValueError, r"targets must have shape \(6, 5\) like h, got \(5, 5\)"),
        (
            {"targets": LABELS, "n_classes": 6},
            ValueError,
            "agree on the number of classes, got .'targets': 5, 'n_classes': 6",
        ),
        ({"weights": normal(2, 3, 5)}, ValueError, r"weights must have shape \(3, 4\), got \(3, 5\)"),
        ({"weights": normal(2, 3, 4).tolist()}, TypeError, "weights must be a NumPy array .*, got list"),
        ({"weights": np.zeros((3, 4))}, TypeError, "weights must be float32, got float64"),
        ({"weights": np.full((3, 4), np.nan, np.float32)}, ValueError, "weights must be finite"),
        ({"weights": normal(2, 2, 4)}, ValueError, r"targets must lie in \[0, 2\), got 2"),
        ({"weights": normal(2, 3, 4), "n_classes": 4}, ValueError, "must agree on the number of classes"),
        ({"weights": normal(2, 3, 4), "targets": LABELS}, ValueError, "got {'weights': 3, 'targets': 5}"),
        ({"validation": (CONTEXTS[:, :3].copy(), TARGETS)}, ValueError, r"validation h must have shape \(N, 4\)"),
        ({"validation": (CONTEXTS, TARGETS + 1)}, ValueError, r"validation targets must lie in \[0, 3\), got 3"),
        ({"validation": (CONTEXTS, LABELS)}, ValueError, r"validation targets must have shape \(6, 3\)"),
        ({"validation": (CONTEXTS, TARGETS[:5])}, ValueError, r"validation targets must have shape \(6,\)"),
    ],
)
def test_bad_data(change, error, message):
    arguments = {"h": CONTEXTS, "targets": TARGETS} | change
    with pytest.raises(error, match=message):
        train.DSSoftmax(**SHORT).fit(**arguments)


def test_bad_labels():
    broken = LABELS.copy()
    broken.indices[0] = 9
    with pytest.raises(ValueError, match="targets is not a valid CSR matrix"):
        train.DSSoftmax(**SHORT).fit(CONTEXTS, broken)


def test_evaluate_checks_its_data(fitted, points):
    model, (contexts, targets) = fitted[0], points
    with pytest.raises(ValueError, match=r"h must have shape \(N, 16\), got \(1000, 15\)"):
        model.evaluate(contexts[:, :15].copy(), targets)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 20\), got 20"):
        model.evaluate(contexts, targets + 1)
    with pytest.raises(ValueError, match=r"targets must have shape \(1000, 20\)"):
        model.evaluate(contexts, label_matrix(N_ROWS, 21))
