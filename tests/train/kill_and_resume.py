"""Kill a training run again and again (SIGKILL), resume it, compare with a run that was left alone.

Every other kill comes after a random number of checkpoints, the others while a checkpoint or the model is being
written: the process is stopped, and killed if a temporary file is there, else it goes on.

``python -m tests.train.kill_and_resume --kills 20``; the test suite does a few of them.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
from pathlib import Path

import numba
import numpy as np

from sparsemax_nb import data, train


def model(epochs=30):
    """All that a resumed run has to restore: dropout, rewiring, warm-up, a falling learning rate, best weights."""
    return train.Classifier(
        architecture="network",
        embedding=16,
        intermediate=32,
        fan_in=4,
        batch_size=16,
        epochs=epochs,
        dropout=0.2,
        learning_rate=0.01,
        warm_up=50,
        rewire_every=70,
        stop_after=epochs,
        seed=3,
        device="cpu",
        progress=False,
    )


def points():
    d = data.bag_of_words(n_rows=500, n_features=60, words_per_row=5, n_labels=40, labels_per_row=2, seed=1)
    return (d.features[:400], d.labels[:400]), (d.features[400:], d.labels[400:])


def run(path, checkpoint, epochs, begun=None):
    """Train to the end, from `checkpoint` if it exists (with a checkpoint after every step), and save to `path`."""
    training, validation = points()
    if begun is not None:
        numba.set_num_threads(1)  # bits do not depend on it; and the test not on a busy machine
        begun.send(True)
    fitted = model(epochs).fit(
        *training,
        validation=validation,
        checkpoint_path=checkpoint,
        checkpoint_seconds=0,
        resume=checkpoint is not None,
    )
    assert fitted.history_.stopped == "epochs"
    assert fitted.history_.rewirings
    fitted.save(path)


def _start(context, *arguments):
    """A process that runs, and has begun."""
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(*arguments, writer))
    process.start()
    writer.close()
    reader.recv()
    return process


def _temporary_files(folder, process):
    """What the process is writing, or was writing when it was killed."""
    return {name for name in os.listdir(folder) if f".{process.pid}-" in name}


def _state(process):
    """A letter that says what the process is doing: T where it has been stopped, Z where it has ended."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _kill_after(process, checkpoint, n_checkpoints):
    """Kill the process once it has replaced the checkpoint so many times, or wait until it has ended."""
    seen = set()
    while len(seen) <= n_checkpoints and process.is_alive():
        with contextlib.suppress(FileNotFoundError):
            seen.add(checkpoint.stat().st_mtime_ns)
    process.kill()


def _kill_in_a_write(process, folder, n_writes):
    """Kill the process during a write, at the earliest after `n_writes` files, or wait until it has ended."""
    seen = set()
    while process.is_alive():
        seen |= _temporary_files(folder, process)
        if len(seen) >= n_writes:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, signal.SIGSTOP)
                while _state(process) not in "TZ":
                    pass
                os.kill(process.pid, signal.SIGKILL if _temporary_files(folder, process) else signal.SIGCONT)


def kill_and_resume(kills, folder, seed=0, epochs=30):
    """Weights of a whole run and of one killed `kills` times; the kills of a running process, and of a writing one."""
    context, folder = multiprocessing.get_context("forkserver"), Path(folder)
    context.set_forkserver_preload([train.__name__])  # it imports everything once
    whole, killed, checkpoint = (folder / f"{name}.safetensors" for name in ("whole", "killed", "checkpoint"))
    run(whole, None, epochs)
    rng, hits, in_writes, arguments = random.Random(seed), 0, 0, (killed, checkpoint, epochs)
    for number in range(kills):
        process = _start(context, *arguments)
        if number % 2:
            _kill_in_a_write(
                process, folder, rng.randrange(3, 11)
            )  # two are tries whether the checkpoint can be written
        else:
            _kill_after(process, checkpoint, rng.randrange(20))
        process.join()
        hits += process.exitcode == -signal.SIGKILL
        in_writes += process.exitcode == -signal.SIGKILL and bool(_temporary_files(folder, process))
    last = _start(context, *arguments)
    last.join()
    assert last.exitcode == 0
    return *(train.Classifier.load(path, device="cpu").network_.parameters for path in (whole, killed)), hits, in_writes


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.train.kill_and_resume", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, hits, in_writes = kill_and_resume(options.kills, folder, epochs=max(30, options.kills))
        left = sorted(path.name for path in Path(folder).iterdir())
    for name, array in whole.items():
        same = np.array_equal(array.view(np.uint32), killed[name].view(np.uint32))
        print(f"{name:24s} {array.shape!s:14s} {'same bits' if same else 'DIFFERENT'}")
        assert same
    print(
        f"{hits} of {options.kills} kills hit the running process, {in_writes} of them a write; left: {', '.join(left)}"
    )
    assert left == ["checkpoint.safetensors", "killed.safetensors", "whole.safetensors"]


if __name__ == "__main__":
    main()
