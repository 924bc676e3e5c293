"""Kill a training run again and again (SIGKILL, at random moments), resume it, compare with a run that was left alone.

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


def run(path, checkpoint):
    """Train to the end, from `checkpoint` if it is there (a checkpoint after every step), and save the model at `path`."""
    training, validation = points()
    print("starts", flush=True)
    fitted = model().fit(
        *training,
        validation=validation,
        checkpoint_path=checkpoint,
        checkpoint_seconds=0,
        resume=checkpoint is not None,
    )
    assert fitted.history_.stopped == "epochs"
    assert fitted.history_.rewirings
    fitted.save(path)


def _start(path, checkpoint):
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name, "--run", path, checkpoint]
    environment = os.environ | {
        "NUMBA_NUM_THREADS": "1"
    }  # bits do not depend on it; and the test not on a busy machine
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def kill_and_resume(kills, folder, seed=0, most_seconds=0.3):
    """Returns (weights of a whole run, weights of the run that was killed `kills` times, kills that hit a running run)."""
    whole, killed, checkpoint = (Path(folder) / f"{name}.safetensors" for name in ("whole", "killed", "checkpoint"))
    run(whole, None)
    random_seconds, hits = random.Random(seed), 0
    for _ in range(kills):
        with _start(killed, checkpoint) as process:
            process.stdout.readline()  # it has imported everything and begins
            time.sleep(random_seconds.uniform(0, most_seconds))
            process.send_signal(signal.SIGKILL)
        hits += process.returncode == -signal.SIGKILL
    with _start(killed, checkpoint) as last:
        last.communicate()
    assert last.returncode == 0
    return *(train.Classifier.load(path, device="cpu").network_.parameters for path in (whole, killed)), hits


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.train.kill_and_resume", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--run", nargs=2, metavar=("MODEL", "CHECKPOINT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return run(*options.run)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, hits = kill_and_resume(options.kills, folder)
    for name, array in whole.items():
        same = np.array_equal(array.view(np.uint32), killed[name].view(np.uint32))
        print(f"{name:24s} {array.shape!s:14s} {'same bits' if same else 'DIFFERENT'}")
        assert same
    print(f"{hits} of {options.kills} kills hit the running process")


if __name__ == "__main__":
    main()
