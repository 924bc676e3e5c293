"""Checkpoints: a resumed run ends in the same bits; what can be wrong with a checkpoint is said."""

import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsemax_nb import data, train
from sparsemax_nb.cli import main
from sparsemax_nb.core import checkpoint
from sparsemax_nb.core.device import SIMULATOR, to_numpy
from tests.train.kill_and_resume import kill_and_resume

SMALL = {
    "architecture": "network",
    "embedding": 16,
    "intermediate": 32,
    "fan_in": 4,
    "batch_size": 32,
    "epochs": 6,
    "dropout": 0.2,
    "rewire_every": 7,
    "rewire_until": 1.0,
    "learning_rate": 0.01,
    "warm_up": 5,
    "stop_after": 9,
    "seed": 3,
    "device": "cpu",
    "progress": False,
}
ROOT = Path(__file__).parents[2]


class Stop(Exception):
    """What ends a run early in these tests."""


@pytest.fixture(scope="module")
def corpus():
    return data.bag_of_words(n_rows=300, n_features=60, words_per_row=5, n_labels=40, labels_per_row=2, seed=1)


def fit(corpus, path=None, stop_after_epoch=None, resume=False, validated=True, **changes):
    def after(epoch, _):
        if epoch == stop_after_epoch:
            raise Stop

    x, y = corpus.features, corpus.labels
    validation = (x[240:], y[240:]) if validated else None
    return train.Classifier(**SMALL | changes).fit(
        x[:240],
        y[:240],
        validation=validation,
        checkpoint_path=path,
        checkpoint_seconds=0,
        resume=resume,
        after_epoch=after,
    )


def bits(model):
    return {name: to_numpy(a).tobytes() for name, a in model.network_.parameters.items()}


def test_killed_runs_end_in_the_same_bits(tmp_path):
    whole, killed, hits, in_writes = kill_and_resume(8, tmp_path, epochs=9)
    assert hits >= 4
    assert in_writes >= 2
    for name, array in whole.items():
        assert array.tobytes() == killed[name].tobytes(), name
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.safetensors" for n in ("whole", "killed", "checkpoint")}


@pytest.mark.parametrize("output", ["fixed-fan-in", "unstructured", "dense", "group-shared"])
@pytest.mark.parametrize("validated", [True, False])
def test_resumed_run_ends_in_the_same_bits(corpus, tmp_path, output, validated):
    more = {"output": output, "validated": validated}
    more |= {"group_size": 8, "weight_dtype": "bfloat16"} if output == "group-shared" else {}
    whole, path = fit(corpus, **more), tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(corpus, path, 2, **more)
    again = fit(corpus, path, resume=True, **more)
    assert bits(again) == bits(whole)
    assert again.history_.losses == whole.history_.losses and again.history_.rewirings == whole.history_.rewirings
    assert again.history_.best_epoch == whole.history_.best_epoch and again.history_.steps == whole.history_.steps
    assert (output == "dense") == (not whole.history_.rewirings)


@pytest.mark.parametrize(
    ("output", "sampler"),
    [
        *(("dense", name) for name in ("none", "unigram", "lsh", "sphere", "rff", "midx-pq", "midx-rq")),
        *(("fixed-fan-in", name) for name in ("none", "sphere", "midx-rq")),
        *(("group-shared", name) for name in ("unigram", "midx-pq")),
    ],
)
def test_resumed_sampler_draws_on(corpus, tmp_path, output, sampler):
    """An index update falls due inside an epoch: the resumed run starts with an index that is a few steps old."""
    params = {
        "output": output,
        "loss": "softmax",
        "sampler": sampler,
        "n_samples": 5,
        "n_codewords": 4,
        "index_every": 5,
    }
    whole, path = fit(corpus, **params), tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(corpus, path, 2, **params)
    again = fit(corpus, path, resume=True, **params)
    assert bits(again) == bits(whole) and again.history_.losses == whole.history_.losses
    assert [u["share"] for u in again.history_.index_updates] == [u["share"] for u in whole.history_.index_updates]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sampler/codes", lambda a: a + 4, r"sampler/codes must lie in \[0, 4\)"),
        ("sampler/codes", lambda a: a[:3], "sampler/codes must have shape"),
        ("sampler/codebook_0", lambda a: a[:, :3], "codebook_0 must have shape"),
        ("sampler/codebook_1", None, "codebook_1"),
    ],
)
def test_checkpoints_with_a_damaged_index(corpus, tmp_path, name, change, message):
    params = {"output": "dense", "loss": "softmax", "sampler": "midx-rq", "n_samples": 5, "n_codewords": 4}
    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(corpus, path, 1, **params)
    arrays, description = checkpoint.load(path, "classifier checkpoint")
    arrays = dict(arrays)
    stored = arrays.pop(name)
    if change is not None:
        arrays[name] = np.ascontiguousarray(change(stored))
    checkpoint.save(path, "classifier checkpoint", arrays, description)
    with pytest.raises(train.ModelFileError, match=message):
        fit(corpus, path, resume=True, **params)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.cuda
def test_resume_on_cuda(corpus, tmp_path, softmax):
    few = data.XCData(corpus.features[:12], corpus.labels[:12, :9])

    def run(**more):
        small = {"device": "cuda", "embedding": 4, "intermediate": 9, "fan_in": 3, "batch_size": 4, "rewire_every": 2}
        if softmax:
            small |= {"output": "dense", "loss": "softmax", "sampler": "midx-rq", "n_samples": 3, "n_codewords": 2}
        return train.Classifier(**SMALL | small | {"epochs": 2}).fit(few.features, few.labels, **more)

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        run(checkpoint_path=tmp_path / "c", after_epoch=stop, checkpoint_seconds=0)
    again = run(checkpoint_path=tmp_path / "c", resume=True)
    assert again.history_.steps == 6
    if SIMULATOR:  # on a device atomics may add in another order
        assert bits(again) == bits(run())


def test_more_epochs_may_follow(corpus, tmp_path):
    """With decay='plateau'; with 'linear', the number of epochs decides how the learning rate decays."""
    plateau = {"rewire_fraction": 0.0, "decay": "plateau"}
    fit(corpus, tmp_path / "c", epochs=2, **plateau)
    more = fit(corpus, tmp_path / "c", epochs=4, resume=True, **plateau)
    assert more.history_.steps == 32
    assert bits(more) == bits(fit(corpus, epochs=4, **plateau))
    fit(corpus, tmp_path / "d", epochs=2, rewire_fraction=0.0)
    with pytest.raises(ValueError, match="epochs was 2, not 4"):
        fit(corpus, tmp_path / "d", epochs=4, rewire_fraction=0.0, resume=True)


def test_resume_without_a_checkpoint_starts_anew(corpus, tmp_path):
    assert bits(fit(corpus, tmp_path / "c", resume=True, epochs=1)) == bits(fit(corpus, epochs=1))
    with pytest.raises(ValueError, match="resume needs checkpoint_path"):
        fit(corpus, resume=True)
    with pytest.raises(ValueError, match="already exists; continue from it with resume=True"):
        fit(corpus, tmp_path / "c", epochs=1)
    with pytest.raises(ValueError, match=r"checkpoint_seconds must lie in \[0, inf\], got nan"):
        train.Classifier(**SMALL).fit(corpus.features, corpus.labels, checkpoint_seconds=np.nan)


def test_a_run_that_gets_more_time_ends_in_the_same_bits(corpus, tmp_path, ticking):
    short = fit(corpus, tmp_path / "c", budget_seconds=0.5)
    assert short.history_.stopped == "budget" and short.history_.steps == 2
    again = fit(corpus, tmp_path / "c", resume=True)
    assert again.history_.steps == 6 * 8 and bits(again) == bits(fit(corpus))


def test_epochs_decide_until_when_a_layer_is_rewired(corpus, tmp_path):
    fit(corpus, tmp_path / "c", epochs=2)
    with pytest.raises(train.ModelFileError, match="epochs was 2, not 4"):
        fit(corpus, tmp_path / "c", epochs=4, resume=True)


def test_checkpoints_of_another_run(corpus, tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(corpus, path, 1)
    with pytest.raises(train.ModelFileError, match="dropout was 0.2, not 0.5; use the old value or start a new run"):
        fit(corpus, path, resume=True, dropout=0.5)
    other = data.XCData(corpus.features, corpus.labels.copy())
    other.labels.indices[0] = (other.labels.indices[1] + 1) % 40  # one label of one point
    other.labels.sort_indices()
    other.labels.sum_duplicates()
    with pytest.raises(train.ModelFileError, match="written for different data"):
        fit(other, path, resume=True)
    with pytest.raises(train.ModelFileError, match="written for different data"):
        fit(corpus, path, resume=True, validated=False)
    model = fit(corpus, epochs=1)
    model.save(path)
    with pytest.raises(train.ModelFileError, match="contains a 'classifier' model, not 'classifier checkpoint'"):
        fit(corpus, path, resume=True)


def test_damaged_checkpoints(corpus, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(corpus, path, 1)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(train.ModelFileError, match="truncated or not a safetensors"):
            fit(corpus, path, resume=True)
    path.write_bytes(whole)
    arrays, description = checkpoint.load(path, "classifier checkpoint")
    arrays = dict(arrays)
    for broken in ("parameters/output.values", "m/embedding.table"):
        checkpoint.save(path, "classifier checkpoint", {n: a for n, a in arrays.items() if n != broken}, description)
        with pytest.raises(train.ModelFileError, match="cannot be resumed"):
            fit(corpus, path, resume=True)
    wild = arrays["parameters/output.indices"].copy()
    wild[0, 0] = 99
    checkpoint.save(path, "classifier checkpoint", arrays | {"parameters/output.indices": wild}, description)
    with pytest.raises(train.ModelFileError, match=r"indices must lie in \[0, 32\)"):
        fit(corpus, path, resume=True)
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.save(path, "classifier checkpoint", arrays, description)
    monkeypatch.undo()
    with pytest.raises(train.ModelFileError, match="version 99, this package reads version"):
        fit(corpus, path, resume=True)


def test_full_disk_leaves_the_old_checkpoint(corpus, tmp_path):
    """A real full disk is a size limit here: the process may write no file as large as the checkpoint."""
    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(corpus, path, 1)
    old = path.read_bytes()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.train import test_resume as t\n"
        "c = t.data.bag_of_words(n_rows=300, n_features=60, words_per_row=5, n_labels=40, labels_per_row=2, seed=1)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(old) // 2},) * 2)\n"
        "try:\n"
        f"    t.fit(c, {str(path)!r}, resume=True)\n"
        "except OSError as error:\n"
        "    print('refused', error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "refused" in run.stdout, run.stderr[-2000:]
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def _command(folder, model, *more):
    options = "--device cpu --quiet --architecture network --embedding 8 --intermediate 16 --fan-in 4 --batch-size 4"
    train = [sys.executable, "-m", "sparsemax_nb", "train", "classifier", "--data", str(folder), *options.split()]
    return [*train, "--rewire-every", "9", "--save", str(model), *more]


def test_ctrl_c_leaves_a_checkpoint_from_which_the_command_goes_on(tmp_path, capsys):
    points = data.bag_of_words(n_rows=200, n_features=30, words_per_row=4, n_labels=12, labels_per_row=2, seed=1)
    for part, rows in ("train_bow", slice(0, 160)), ("dev_bow", slice(160, 180)), ("test_bow", slice(180, 200)):
        data.write_xc(tmp_path / f"{part}.txt", points.features[rows], points.labels[rows])
    model, whole = tmp_path / "model.safetensors", tmp_path / "whole.safetensors"
    epochs = "--epochs", "60", "--stop-after", "60"
    command, pipe = _command(tmp_path, model, *epochs), subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, bufsize=0) as process:
        fcntl.fcntl(
            process.stdout, fcntl.F_SETPIPE_SZ, 4096
        )  # full before the last epoch: until it is read, the run waits
        while b"epoch   1" not in (line := process.stdout.readline()):  # the kernels are compiled, it runs
            assert line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1].decode()
    assert process.returncode == 130, errors
    assert "interrupted: a checkpoint was written; continue with --resume" in errors
    assert (tmp_path / "model.checkpoint.safetensors").exists() and not model.exists()
    figures, plot = tmp_path / "figures.json", tmp_path / "curves.png"
    again = [*command, "--resume", "--json", str(figures), "--plot", str(plot)]
    assert main.main(again[3:]) == 0
    assert "resuming from" in capsys.readouterr().out
    assert main.main(_command(tmp_path, whole, *epochs)[3:]) == 0
    (arrays, description), wanted = (checkpoint.load(path, "classifier") for path in (model, whole))
    assert description == wanted[1]
    assert {n: a.tobytes() for n, a in arrays.items()} == {n: a.tobytes() for n, a in wanted[0].items()}
    assert not list(tmp_path.glob("*.checkpoint.*"))
    result = json.loads(figures.read_text())
    capsys.readouterr()
    assert main.main(again[3:]) == 2
    assert "is complete and has no checkpoint to resume from" in capsys.readouterr().err
    assert len(result["epochs"]) == 60 and result["best_epoch"] is not None and result["rewirings"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert np.isfinite(result["test"]["PSP@1"])
