"""Kill a training run again and again (SIGKILL), resume it, compare with a run that was left alone.

Every other kill comes at a random moment, the others while a checkpoint or the model is being written: the process is stopped,
and killed if a temporary file is there, else it goes on.

``python -m tests.train.kill_and_resume --kills 20``; the test suite does the same.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sparsemax_nb import data, train

ROOT = Path(__file__).parents[2]


def model(epochs=30):
    """Everything that a resume has to get right: dropout, rewiring, warm-up, a learning rate that falls, best weights."""
    return train.Classifier(
        embedding=16, intermediate=32, fan_in=4, batch_size=16, epochs=epochs, dropout=0.2, learning_rate=0.01, warm_up=50,
        rewire_every=70, stop_after=epochs, seed=3, device="cpu", progress=False,
    )  # fmt: skip


def points():
    d = data.bag_of_words(n_rows=500, n_features=60, words_per_row=5, n_labels=40, labels_per_row=2, seed=1)
    return (d.features[:400], d.labels[:400]), (d.features[400:], d.labels[400:])


def run(path, checkpoint, epochs):
    """Train to the end, from `checkpoint` if it is there (a checkpoint after every step), and save the model at `path`."""
    training, validation = points()
    print("starts", flush=True)
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


def _start(*arguments):
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name, "--run", *arguments]
    environment = os.environ | {
        "NUMBA_NUM_THREADS": "1"
    }  # bits do not depend on it; and the test not on a busy machine
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def _temporary_files(folder, process):
    """What the process is writing, or was writing when it was killed."""
    return set(folder.glob(f".*.{process.pid}-*.part"))


def _kill_in_a_write(process, folder, n_writes):
    """Kill the process while it writes, at the earliest when it has written `n_writes` files; or wait until it has ended."""
    seen = set()
    while process.poll() is None:
        seen |= _temporary_files(folder, process)
        if len(seen) >= n_writes:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            process.send_signal(signal.SIGKILL if _temporary_files(folder, process) else signal.SIGCONT)


def kill_and_resume(kills, folder, seed=0, most_seconds=0.3, epochs=30):
    """Weights of a whole run; of the run that was killed `kills` times; kills of a running process; those of them in a write."""
    folder = Path(folder)
    whole, killed, checkpoint = (folder / f"{name}.safetensors" for name in ("whole", "killed", "checkpoint"))
    run(whole, None, epochs)
    rng, hits, in_writes, arguments = random.Random(seed), 0, 0, (killed, checkpoint, epochs)
    for number in range(kills):
        with _start(*arguments) as process:
            process.stdout.readline()  # it has imported everything and begins
            if number % 2:
                _kill_in_a_write(process, folder, rng.randrange(1, 9))
            else:
                time.sleep(rng.uniform(0, most_seconds))
                process.send_signal(signal.SIGKILL)
        hits += process.returncode == -signal.SIGKILL
        in_writes += process.returncode == -signal.SIGKILL and bool(_temporary_files(folder, process))
    with _start(*arguments) as last:
        last.communicate()
    assert last.returncode == 0
    return *(train.Classifier.load(path, device="cpu").network_.parameters for path in (whole, killed)), hits, in_writes


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.train.kill_and_resume", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--run", nargs=3, metavar=("MODEL", "CHECKPOINT", "EPOCHS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return run(*options.run[:2], int(options.run[2]))
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, hits, in_writes = kill_and_resume(options.kills, folder, epochs=max(30, 2 * options.kills))
        left = sorted(path.name for path in Path(folder).iterdir())
    for name, array in whole.items():
        same = np.array_equal(array.view(np.uint32), killed[name].view(np.uint32))
        print(f"{name:24s} {array.shape!s:14s} {'same bits' if same else 'DIFFERENT'}")
        assert same
    print(
        f"{hits} of {options.kills} kills hit the running process, {in_writes} of them while it wrote; left: {', '.join(left)}"
    )
    assert left == ["checkpoint.safetensors", "killed.safetensors", "whole.safetensors"]


if __name__ == "__main__":
    main()
