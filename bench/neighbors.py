"""How fast is the exact search for nearest neighbors? ``python -m bench.neighbors`` (see bench/README.md)."""

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from sparsemax_nb import nearest_neighbors
from sparsemax_nb.internals import asarray, to_numpy

from . import harness, machine, tables, timing
from .peers import Peer, Unavailable, faiss, scikit

#: Points and width: the texts of gutenberg, and embeddings of a small encoder.
SIZES = {"points": (70_651, 2000), "width": (384, 16), "rows": (4096, 64), "k": (100, 10)}
POINTS_PER_CLUSTER = 100
#: Rows that are checked against float64.
CHECKED = 64
#: Products that NumPy stores at a time: 64 MiB, as ours.
PRODUCTS_PER_BLOCK = 1 << 24


def clustered(n_points, n_rows, width):
    """Points and rows of length 1 around common centers, float32: like embeddings, most points are far from a row."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((max(1, n_points // POINTS_PER_CLUSTER), width), np.float32)

    def some(n):
        x = centers[random.integers(len(centers), size=n)] + random.standard_normal((n, width), np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    return some(n_points), some(n_rows)


def checker(h, points, k):
    """A check of ids (B, k): all different, best first, and some rows have the k largest products, in float64."""
    rows = np.unique(np.linspace(0, len(h) - 1, CHECKED).astype(int))
    products = h[rows].astype(np.float64) @ points.T.astype(np.float64)
    best, tolerance = -np.sort(-products, axis=1)[:, :k], 4 * np.finfo(np.float32).eps * h.shape[1] ** 0.5

    def check(ids):
        timing.require(ids.shape == (len(h), k), f"ids have shape {ids.shape}")
        timing.require((np.diff(np.sort(ids, axis=1), axis=1) > 0).all(), "a point is found twice")
        found = np.take_along_axis(products, ids[rows], 1)
        error = np.abs(found - best).max()
        timing.require(error <= tolerance, f"the products of the points found are off by {error:.3g}")

    return check


def numpy_blocks(points, h, k):
    """A product with all points, then argpartition and a sort, in blocks of rows."""
    n_rows = max(1, PRODUCTS_PER_BLOCK // len(points))

    def best(rows):
        products = rows @ points.T
        ids = np.argpartition(products, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(products, ids, 1), axis=1)
        return np.take_along_axis(ids, order, 1)

    return Peer(
        lambda: np.concatenate([best(h[first : first + n_rows]) for first in range(0, len(h), n_rows)]),
        "product, argpartition, sort, in blocks of 64 MiB",
    )


def faiss_flat(points, h, k):
    """FAISS's exhaustive search."""
    answer = faiss.flat(points)
    return Peer(lambda: answer(h, k), "IndexFlatIP")


PEERS = {"NumPy": numpy_blocks, "scikit-learn": scikit.brute_neighbors, "FAISS flat": faiss_flat}


def row_of(args, points, h):
    """Compare the search for the neighbors of the rows h."""
    check, device_h, device_points = checker(h, points, args.k), asarray(h, args.device), asarray(points, args.device)

    def ours():
        return nearest_neighbors(device_h, device_points, args.k)

    def check_ours(result):
        similarities, ids = map(to_numpy, result)
        check(ids)
        of_found = np.einsum("bd,bkd->bk", h[:1], points[ids[:1]])
        timing.require_close("the similarities", similarities[:1], of_found, 1e-5)

    contestants = {"ours": timing.Contestant(ours, check_ours, "in blocks of 64 MiB; checks of all arguments included")}
    for name, prepare in PEERS.items():
        if args.device == "cuda":
            contestants[name] = Unavailable("it runs on the CPU")
        else:
            contestants[name] = harness.offer(check, prepare, points, h, args.k)
    with threadpool_limits(numba.get_num_threads()):  # of BLAS and OpenMP
        timings = harness.race(contestants, args)
    with machine.memory_growth(args.device) as growth:
        ours()
    work = {
        "memory: points read": (points.nbytes, "dram_copy"),
        "multiply-adds": (2 * len(h) * points.size, "flops"),
    }
    return tables.make_row(
        "neighbors", args.parameters | {"rows": len(h)}, contestants, timings, floor=harness.floor(args, work),
        memory={"ours": {"held": h.nbytes + points.nbytes, "growth": growth["bytes"]}}, device=args.device,
    )  # fmt: skip


def main(argv=None):
    args = harness.arguments("neighbors", __doc__, SIZES, argv)
    points, h = clustered(args.points, args.rows, args.width)
    return [harness.publish(args, row_of(args, points, h[:n])) for n in (args.rows, 1)]


if __name__ == "__main__":
    main()
