"""fastText: averaged word vectors with a hierarchical softmax."""

import importlib.metadata
import os
import time

import numpy as np

from sparsemax_nb.internals import peak_memory

from . import Unavailable

SETTINGS = {"loss": "hs", "epoch": 25, "lr": 0.5, "dim": 256, "minCount": 1}


def train_and_predict(x, y, test_x, *, folder, threads, k=5):
    """Train and predict; returns ids (n, k) and measurements. x and test_x are word counts."""
    try:
        import fasttext
    except ImportError:
        raise Unavailable("fastText is not installed (pip install fasttext-wheel)") from None

    def text(matrix, row):
        row = slice(matrix.indptr[row], matrix.indptr[row + 1])
        return " ".join(np.repeat([f"w{i}" for i in matrix.indices[row]], matrix.data[row].astype(int)).tolist())

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.txt"
    with open(path, "w") as file:
        for row in range(x.shape[0]):
            labels = y.indices[y.indptr[row] : y.indptr[row + 1]]
            file.write(" ".join(f"__label__{label}" for label in labels) + " " + text(x, row) + "\n")
    start = time.perf_counter()
    model = fasttext.train_supervised(input=str(path), thread=threads, verbose=0, **SETTINGS)
    seconds = time.perf_counter() - start
    model.save_model(str(folder / "model.bin"))
    peak = peak_memory()  # before the test rows are converted to text
    lines, ids = [text(test_x, row) for row in range(test_x.shape[0])], np.full((test_x.shape[0], k), -1, np.int32)
    start = time.perf_counter()
    answers = [model.f.predict(line + "\n", k, 0.0, "strict") for line in lines]
    together = time.perf_counter() - start
    for found, answer in zip(ids, answers, strict=True):
        labels = [int(label.removeprefix("__label__")) for _, label in answer]
        found[: len(labels)] = labels
    measured = {
        "train_seconds": seconds, "peak_memory_bytes": peak, "model_bytes": os.path.getsize(folder / "model.bin"),
        "ms_a_query": 1e3 * together / max(1, len(lines)), "ms_a_query_alone": 1e3 * together / max(1, len(lines)),
        "settings": SETTINGS, "versions": {"fasttext-wheel": importlib.metadata.version("fasttext-wheel")},
    }  # fmt: skip
    return ids, measured
