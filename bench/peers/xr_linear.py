"""PECOS XR-Linear: the program that a Python with PECOS runs for bench.pecos, ``python -I xr_linear.py FOLDER OPTIONS``.

FOLDER holds train_x, train_y and test_x (.npz, SciPy CSR float32). It gets `model`, and ids.npy: the five best labels
of the test points, -1 where there are fewer. The figures are printed as JSON. A model of the same options that is there
is not trained again.
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
#: Points that are asked one after the other.
ALONE = 1000


def train(folder, threads, tree, solver):
    """Train and save; seconds and bytes. Labels are clustered by the mean features of their points (PIFA), by k-means."""
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
    """(n, K) ids of the largest scores of each row."""
    ids = np.full((scores.shape[0], K), -1, np.int32)
    for i, row in enumerate(ids):
        first, last = scores.indptr[i : i + 2]
        order = np.argsort(-scores.data[first:last], kind="stable")[:K]
        row[: len(order)] = scores.indices[first:last][order]
    return ids


def answer(folder, threads, beam):
    """Write ids.npy; milliseconds a query, of all in one call, and of some in a call each."""
    x, model = (
        scipy.sparse.load_npz(folder / "test_x.npz"),
        XLinearModel.load(str(folder / "model"), is_predict_only=True),
    )

    def ask(points):
        return model.predict(points, only_topk=K, beam_size=beam, threads=threads)

    alone = [x[i] for i in range(min(ALONE, x.shape[0]))]
    ask(alone[0])
    times = [time.perf_counter()]
    scores = ask(x)
    times.append(time.perf_counter())
    for point in alone:
        ask(point)
    times.append(time.perf_counter())
    np.save(folder / "ids.npy", best(scores))
    together, one = np.diff(times) * 1e3
    return {"ms_a_query": together / x.shape[0], "ms_a_query_alone": one / len(alone)}


def main(folder, options):
    file = folder / "trained.json"
    trained = json.loads(file.read_text()) if file.exists() else {}
    if trained.get("options") != options:
        figures = train(folder, options["threads"], options["tree"], options["solver"])
        trained = {"options": options, "figures": figures}
        file.write_text(json.dumps(trained))
    figures = trained["figures"] | answer(folder, options["threads"], options["beam"])
    figures["versions"] = {name: importlib.metadata.version(name) for name in ("libpecos", "numpy", "scipy")}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
