"""omikuji: trees of linear classifiers, a common tool for subject indexing in libraries."""

import importlib.metadata
import os
import time

import numpy as np

from sparsemax_nb.internals import peak_memory

from . import Unavailable

#: Default parameters (like Parabel), and parameters like Bonsai.
FORMS = {"omikuji": {}, "omikuji-bonsai": {"cluster_k": 100, "cluster_balanced": False, "max_depth": 3}}
BEAM = 10


def _write(path, x, y):
    """Write omikuji's training file: labels, features and weights, one row per line."""
    with open(path, "w") as file:
        file.write(f"{x.shape[0]} {x.shape[1]} {y.shape[1]}\n")
        for row in range(x.shape[0]):
            labels = y.indices[y.indptr[row] : y.indptr[row + 1]]
            of_row = slice(x.indptr[row], x.indptr[row + 1])
            pairs = " ".join(
                f"{i}:{w:.7g}" for i, w in zip(x.indices[of_row].tolist(), x.data[of_row].tolist(), strict=True)
            )
            file.write(f"{','.join(map(str, labels.tolist()))} {pairs}\n")


def _pairs(x):
    """Convert rows to omikuji's input: lists of (feature, weight)."""
    return [
        list(zip(x.indices[a:b].tolist(), x.data[a:b].tolist(), strict=True))
        for a, b in zip(x.indptr, x.indptr[1:], strict=False)
    ]


def train_and_predict(form, x, y, test_x, *, folder, threads, k=5):
    """Train and predict; returns ids (n, k) and measurements. The training time includes reading the file."""
    try:
        import omikuji
    except ImportError:
        raise Unavailable("omikuji is not installed (pip install omikuji)") from None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.txt"
    _write(path, x, y)
    parameters = omikuji.Model.default_hyper_param()
    for name, value in FORMS[form].items():
        setattr(parameters, name, value)
    start = time.perf_counter()
    model = omikuji.Model.train_on_data(str(path), parameters, threads)
    seconds = time.perf_counter() - start
    model.save(str(folder / "model"))
    size = sum(
        os.path.getsize(os.path.join(where, file)) for where, _, files in os.walk(folder / "model") for file in files
    )
    peak = peak_memory()  # before the test rows are converted to lists
    rows, ids = _pairs(test_x), np.full((test_x.shape[0], k), -1, np.int32)
    start = time.perf_counter()
    answers = [model.predict(row, beam_size=BEAM, top_k=k) for row in rows]
    together = time.perf_counter() - start
    for found, answer in zip(ids, answers, strict=True):
        found[: len(answer)] = [label for label, _ in answer]
    measured = {
        "train_seconds": seconds,
        "peak_memory_bytes": peak,
        "model_bytes": size,
        "ms_a_query": 1e3 * together / max(1, len(rows)),
        "ms_a_query_alone": 1e3 * together / max(1, len(rows)),  # omikuji predicts one row per call
        "settings": FORMS[form] | {"beam": BEAM},
        "versions": {"omikuji": importlib.metadata.version("omikuji")},
    }
    return ids, measured
