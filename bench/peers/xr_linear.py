"""PECOS XR-Linear: bench.pecos runs this program in a Python with PECOS: ``python -I xr_linear.py FOLDER OPTIONS``.

Reads train_x, train_y and test_x from FOLDER (.npz, SciPy CSR float32). Writes `model`, and ids.npy: the five best
labels of the test points, padded with -1. Prints the measurements as JSON. A model with the same options is not trained
again.
"""

import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse
from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xlinear import XLinearModel

K = 5
#: Number of test points that are predicted with one call each.
N_SINGLE = 1000


def train(folder, threads, tree, solver):
    """Train and save; returns seconds and bytes. Labels are clustered by their mean features (PIFA, k-means)."""
    x, y = (scipy.sparse.load_npz(folder / f"train_{name}.npz") for name in "xy")
    start = time.perf_counter()
    means = LabelEmbeddingFactory.create(y, x, method="pifa", threads=threads)
    chain = Indexer.gen(means, indexer_type="hierarchicalkmeans", threads=threads, **tree)
    model = XLinearModel.train(x, y.tocsc(), C=chain, threads=threads, **solver)
    seconds = time.perf_counter() - start
    model.save(str(folder / "model"))
    matrices = [matrix for layer in model.model.model_chain for matrix in (layer.W, layer.C)]
    return {
        "train_seconds": seconds,
        "network_bytes": sum(a.nbytes for m in matrices for a in (m.data, m.indices, m.indptr)),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux
    }


def best(scores):
    """Ids (n, K) of the largest scores per row."""
    ids = np.full((scores.shape[0], K), -1, np.int32)
    for i, row in enumerate(ids):
        first, last = scores.indptr[i : i + 2]
        order = np.argsort(-scores.data[first:last], kind="stable")[:K]
        row[: len(order)] = scores.indices[first:last][order]
    return ids


def answer(folder, threads, beam):
    """Write ids.npy; returns milliseconds per query, for all points in one call and for single points."""
    x, model = (
        scipy.sparse.load_npz(folder / "test_x.npz"),
        XLinearModel.load(str(folder / "model"), is_predict_only=True),
    )

    def predict(points):
        return model.predict(points, only_topk=K, beam_size=beam, threads=threads)

    single = [x[i] for i in range(min(N_SINGLE, x.shape[0]))]
    predict(single[0])
    times = [time.perf_counter()]
    scores = predict(x)
    times.append(time.perf_counter())
    for point in single:
        predict(point)
    times.append(time.perf_counter())
    np.save(folder / "ids.npy", best(scores))
    together, separately = np.diff(times) * 1e3
    return {"ms_a_query": together / x.shape[0], "ms_a_query_alone": separately / len(single)}


def main(folder, options):
    file = folder / "trained.json"
    trained = json.loads(file.read_text()) if file.exists() else {}
    if trained.get("options") != options:
        measured = train(folder, options["threads"], options["tree"], options["solver"])
        trained = {"options": options, "figures": measured}
        file.write_text(json.dumps(trained))
    measured = trained["figures"] | answer(folder, options["threads"], options["beam"])
    measured["versions"] = {name: importlib.metadata.version(name) for name in ("libpecos", "numpy", "scipy")}
    print(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
