"""What is lost when labels come later? ``python -m bench.later_labels [--data DIR-or-NAME]``.

100 labels are new: the earlier points do not have them, and N points of each come later. `partial_fit` gets the later
points alone; training anew gets all. One row per N; writes bench/results/later_labels-cpu.json and later_labels.png.
"""

import argparse
import copy
import sys
import time

import numpy as np
import scipy.sparse

from sparsemax_nb import data, metrics, train

from . import machine, plotting, tables

N_NEW = 100
POINTS_PER_LABEL = 1, 2, 5, 10, 20, 40
#: New labels have at least twice as many training points as come later, and no more than this.
MAX_POINTS = 2000
PICTURE = machine.HERE / "later_labels.png"


def without_columns(labels, is_removed):
    """CSR labels of the same shape without the entries of some columns."""
    kept = labels @ scipy.sparse.diags((~is_removed).astype(np.float32), format="csr")
    kept.eliminate_zeros()
    return kept


def split(labels, n, seed=0):
    """(is_new (L,) bool, ids of the later points): `n` points of each of N_NEW labels come later."""
    rng, counts = np.random.default_rng(seed), np.asarray((labels > 0).sum(0)).ravel()
    candidates = np.flatnonzero((counts >= 2 * max(POINTS_PER_LABEL)) & (counts <= MAX_POINTS))
    new = rng.choice(candidates, min(N_NEW, len(candidates)), replace=False)
    is_new = np.zeros(labels.shape[1], bool)
    is_new[new] = True
    by_label = labels.tocsc()
    later = [rng.permutation(by_label.indices[slice(*by_label.indptr[label : label + 2])])[:n] for label in new]
    return is_new, np.unique(np.concatenate(later))


def figures_of(model, test, is_new):
    """Metrics of the best old labels for old labels, and of the best new labels for new ones, in rows that have any."""
    new, found = np.flatnonzero(is_new), {}
    for name, removed, options in (("old", is_new, {"forbid": new}), ("new", ~is_new, {"allow": new})):
        labels = without_columns(test.labels, removed)
        rows = np.flatnonzero(np.diff(labels.indptr))
        ids = model.top_k(test.features[rows], 5, **options)[1]
        found |= {f"{name} P@{k}": metrics.precision_at_k(ids, labels[rows], k) for k in (1, 3, 5)}
        found[f"{name} nDCG@5"] = metrics.ndcg_at_k(ids, labels[rows], 5)
    return found


def measure(corpus, n, params):
    """{row: figures} of the earlier model, of `partial_fit` and of training anew, with their seconds."""
    part, test = corpus.train, corpus.test
    is_new, later = split(part.labels, n)
    earlier = np.setdiff1d(np.arange(part.features.shape[0]), later)
    x, y = part.features[earlier], without_columns(part.labels[earlier], is_new)
    later_x, later_y = part.features[later], part.labels[later]
    found = {}
    model = train.Classifier(**params, progress=False).fit(x, y)
    found["earlier"] = figures_of(model, test, is_new) | {"later points": 0}
    updated = copy.copy(model)
    start = time.perf_counter()
    updated.partial_fit(later_x, later_y)
    seconds = time.perf_counter() - start
    found["partial_fit"] = figures_of(updated, test, is_new) | {"seconds": seconds, "later points": len(later)}
    start = time.perf_counter()
    anew = train.Classifier(**params, progress=False)
    anew.fit(scipy.sparse.vstack([x, later_x], "csr"), scipy.sparse.vstack([y, later_y], "csr"))
    seconds = time.perf_counter() - start
    found["anew"] = figures_of(anew, test, is_new) | {"seconds": seconds, "later points": len(later)}
    return found


def summary(name, found, environment):
    """One row of results with the table."""
    header = ["points per new label", "training", "later points", "old P@1", "old P@3", "old P@5", "new P@1",
              "new nDCG@5", "seconds"]  # fmt: skip
    table = []
    for n, of_n in found.items():
        for row, r in of_n.items():
            scores = [f"{100 * r[key]:.2f}" for key in ("old P@1", "old P@3", "old P@5", "new P@1", "new nDCG@5")]
            table.append(
                [str(n), row, str(r["later points"]), *scores, f"{r['seconds']:.2f}" if "seconds" in r else ""]
            )
    return {
        "benchmark": f"later_labels: {name}",
        "parameters": {"data": name},
        "seconds": {},
        "figures": {str(n): of_n for n, of_n in found.items()},
        "notes": [
            f"{name}: {N_NEW} labels are new. Metrics in per cent on the test set: old ones of the best old labels, "
            "new ones of the best new labels, each in the rows that have such labels.",
            "earlier: before the later points. anew: trained on all points, with the choice of C, slack and frequency; "
            "the earlier points do not have the new labels, although some would deserve them.",
        ],
        "environment": environment,
        "table": {"header": header, "rows": table},
    }


def draw(found):
    """The learning curves: old and new labels over the points per new label."""
    figure, axes = plotting.new_panels(2, 5, 4)
    styles = {"anew": ("#0072B2", "s"), "partial_fit": ("#D55E00", "o"), "earlier": ("#999999", "^")}
    for axis, metric in zip(axes, ("old P@5", "new nDCG@5"), strict=True):
        for row, (color, marker) in styles.items():
            if row == "earlier" and metric.startswith("new"):
                continue
            values = [100 * of_n[row][metric] for of_n in found.values()]
            axis.plot(list(found), values, color=color, marker=marker, label=row)
        low, high = axis.get_ylim()
        if high - low < 4:  # else noise would fill the panel
            axis.set_ylim((low + high) / 2 - 2, (low + high) / 2 + 2)
        which, name = metric.split()
        axis.set(xscale="log", xlabel="points of each new label", ylabel=f"{name} (%)", title=f"{which} labels")
        axis.set_xticks(list(found), [str(n) for n in found])
        axis.minorticks_off()
        axis.legend(frameon=False)
    plotting.write_picture(figure, PICTURE)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.later_labels", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="tate", metavar="DIR-or-NAME", help="bags of words, see data.load")
    args = parser.parse_args(argv)
    corpus, environment = data.load(args.data), machine.environment("cpu")
    environment["command"] = f"python -m bench.later_labels --data {corpus.name}"
    few = corpus.train.features[:300], corpus.train.labels[:300]
    train.Classifier(progress=False).fit(*few).partial_fit(*few).top_k(few[0])  # compiles
    with machine.other_work() as others:
        found = {n: measure(corpus, n, {}) for n in POINTS_PER_LABEL}
    made = summary(corpus.name, found, environment | others)
    print(tables.table(made))
    tables.write_rows(tables.RESULTS / "later_labels-cpu.json", [made], keep=False)
    draw(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
