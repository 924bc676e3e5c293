"""How accurate is each output layer on real data? ``python -m bench.accuracy ROW --data DIR`` trains one row.

There are three tables: output layers with the squared hinge loss, samplers of negatives for the softmax loss, and
output layers with the default settings, which start from the labels. Each row is one command, which can be interrupted
and repeated: it resumes from its checkpoint. A finished row is written to bench/results/accuracy/ROW.json. ``python -m
bench.accuracy --table`` makes the tables and figures from the finished rows; ``--list`` lists the rows.
"""

import sys

from sparsemax_nb import FixedFanIn, train
from sparsemax_nb.internals import Network

from . import machine, plotting, rows, tables

COMMON = {
    "architecture": "network",
    "batch-size": 128,
    "embedding": 512,
    "dropout": 0.05,
    "epochs": 15,
    "seed": 0,
    "learning-rate": 2.5e-4,
    "embedding-lr-multiplier": 16,
    "min-learning-rate": 2e-5,
    "decay": "plateau",
    "initial": "random",
}
SPARSE = {"output": "fixed-fan-in", "intermediate": 16384, "fan-in": 32, "intermediate-lr-multiplier": 0.1}
GROUPS = {"output": "group-shared", "group-size": 16, "grouping": "similar"}
ROWS = {
    # 16 times the weights per label: a lower learning rate and more dropout give better accuracy; the learning rate of
    # the embedding is the same (its multiplier is larger)
    "dense-512": {"output": "dense", "dropout": 0.1, "learning-rate": 1e-4, "embedding-lr-multiplier": 40},
    "bottleneck-64": {"output": "bottleneck", "bottleneck": 64},
    "fixed-fan-in-32": SPARSE | {"intermediate": 0},
    "fixed-fan-in-64": SPARSE | {"intermediate": 0, "fan-in": 64},
    "fixed-fan-in-32-intermediate": SPARSE,
    "fixed-fan-in-64-intermediate": SPARSE | {"fan-in": 64},
    "unstructured-32-intermediate": SPARSE | {"output": "unstructured"},
    "fixed-fan-in-32-intermediate-bce": SPARSE | {"loss": "bce"},
    "fixed-fan-in-32-intermediate-no-rewiring": SPARSE | {"rewire-fraction": 0},
    "group-shared-32-intermediate": SPARSE | GROUPS,
    "group-shared-32-intermediate-random": SPARSE | GROUPS | {"grouping": "random"},
    "group-shared-32-intermediate-random-8": SPARSE
    | GROUPS
    | {"grouping": "random", "group-size": 8, "intermediate-lr-multiplier": 0.3},
    "group-shared-32-intermediate-frequency": SPARSE | GROUPS | {"grouping": "frequency"},
    "group-shared-32-intermediate-bfloat16": SPARSE | GROUPS | {"weight-dtype": "bfloat16"},
}
#: Samplers with the softmax loss: same network, learning rates and epochs. Adam is exact for the full softmax, and lazy
#: (it updates the rows that occur) with negatives.
SOFTMAX = {
    "architecture": "network",
    "batch-size": 128,
    "embedding": 512,
    "dropout": 0.5,
    "epochs": 10,
    "seed": 0,
    "learning-rate": 1e-3,
    "embedding-lr-multiplier": 10,
    "output": "dense",
    "loss": "softmax",
    "n-samples": 100,
    "n-codewords": 256,
    "min-learning-rate": 1e-4,
    "decay": "plateau",
    "initial": "random",
}
SAMPLERS = {
    "softmax-full": {"sampler": "none"},
    "softmax-full-less-dropout": {"sampler": "none", "dropout": 0.3},  # better accuracy
    "softmax-full-narrow": {
        "sampler": "none",
        "dropout": 0.3,
        "embedding": 64,
    },  # for bench.closeness: does the width matter?
    **{f"softmax-{name}-100": {"sampler": name} for name in ("uniform", "unigram", "midx-pq", "midx-rq")},
}
#: Default settings but for the output layer.
DEFAULTS = {"architecture": "network"}
OUTPUTS = {
    "default-dense": {"output": "dense"},
    "default-fixed-fan-in": {"output": "fixed-fan-in"},
    "default-fixed-fan-in-32": {"output": "fixed-fan-in", "fan-in": 32},
    "default-group-shared": {"output": "group-shared"},
}
#: The row that bench.pecos writes.
PECOS = "pecos-xr-linear"
#: {benchmark: rows of its table that other commands write}.
OTHER_ROWS = {"accuracy": (PECOS,)}
#: {benchmark: (options of all rows, {row: its own options})}.
TABLES = {
    "accuracy": (COMMON, ROWS),
    "accuracy: softmax": (SOFTMAX, SAMPLERS),
    "accuracy: defaults": (DEFAULTS, OUTPUTS),
}
OPTIONS = {name: common | own for common, of_table in TABLES.values() for name, own in of_table.items()}
REWIRED, NOT_REWIRED = "fixed-fan-in-32-intermediate", "fixed-fan-in-32-intermediate-no-rewiring"
FOLDER = tables.RESULTS / "accuracy"
PICTURE = machine.HERE / "rewiring.png"


def _additional_results(result, model):
    """Number of training points, and share of connections that rewiring changed: the command does not report them."""
    fitted = train.Classifier.load(model, device="cpu")
    more = {"points": fitted.n_points_}
    if result["rewirings"] and fitted.output == "fixed-fan-in" and fitted.initial == "random":
        layer = fitted.network_.output.layer
        first = FixedFanIn.random(layer.n_labels, layer.n_inputs, layer.fan_in, fitted.seed)
        more["connections_changed"] = float((first.indices != layer.indices).mean())
    return more


def _cells(name, r):
    scores = [f"{100 * r['test'][key]:.2f}" for key in ("P@1", "P@3", "P@5", "PSP@5")]
    if name == PECOS:  # it has no epochs
        sizes, epochs = ["-", r["network_bytes"], r["peak_memory_bytes"]], ["-", "-"]
    else:
        sizes = [r["output_layer_bytes"], r["network_bytes"], r["memory_plan_bytes"]]
        epochs = [f"{rows.seconds_per_epoch(r):.0f}", f"{len(r['epochs'])} ({r['best_epoch'] + 1})"]
    sizes = [n if n == "-" else f"{n / 2**20:,.0f}" for n in sizes]
    env = r["environment"]
    return [name, *scores, *sizes, *epochs, str(env["threads"]), (env["commit"] or "")[:10]]


def summary(benchmark, found):
    """One row of results with the table of a benchmark, from the finished rows."""
    common, all_rows = TABLES[benchmark]
    header = [
        "layer",
        "P@1",
        "P@3",
        "P@5",
        "PSP@5",
        "output MiB",
        "network MiB",
        "training MiB",
        "s per epoch",
        "epochs (best)",
        "threads",
        "commit",
    ]
    table = [_cells(name, r) for name, r in found.items()]
    if "dense-512" in found:
        dense, width = found["dense-512"], SPARSE["intermediate"]
        labels, features = dense["n_labels"], dense["n_features"]
        plan = Network.memory(
            n_features=features,
            n_labels=labels,
            embedding=COMMON["embedding"],
            intermediate=width,
            output="dense",
            fan_in=1,
            device="cpu",
            batch_size=COMMON["batch-size"],
            keep_best=True,
        )
        output = next(a.nbytes for a in plan.arrays if a.name == "output.weights")
        projected = rows.seconds_per_epoch(dense) * width / COMMON["embedding"]
        table.append(
            [
                "dense with intermediate (projected)",
                *["-"] * 4,
                f"{output / 2**20:,.0f}",
                "-",
                f"{plan.nbytes / 2**20:,.0f}",
                f"{projected:,.0f}",
                "-",
                str(dense["environment"]["threads"]),
                "-",
            ]
        )
    missing = [f"`python -m bench.accuracy {name} --data DIR`" for name in all_rows if name not in found]
    if PECOS in OTHER_ROWS.get(benchmark, ()) and PECOS not in found:
        missing.append("`python -m bench.pecos --data DIR`")
    example = next(iter(found.values()))
    notes = [
        "P@k in per cent on the test set, for the weights that were best on the dev set. PSP@5 gives rare labels more "
        "weight.",
        "MiB: parameters of the output layer, parameters of the network, and predicted memory of training.",
        "Seconds per epoch are wall times on a machine that also did other work: compare them with caution.",
        f"Options of every row: {' '.join(f'--{key} {value}' for key, value in common.items())}; defaults otherwise.",
    ]
    for name in [name for name in found if name != PECOS]:
        own = [
            f"--{key} {value:g}"
            for key, value in all_rows[name].items()
            if key in common or key == "intermediate-lr-multiplier"
        ]
        notes += [f"{name}: {' '.join(own)}."] if own else []
        if updates := found[name].get("index_updates"):
            seconds = sum(update["seconds"] for update in updates)
            notes.append(
                f"{name}: {len(updates)} updates of the index in {seconds:.0f} s, included in the seconds per epoch."
            )
    if PECOS in found:
        r = found[PECOS]
        settings = ", ".join(f"{key} {value}" for key, value in r["settings"].items())
        notes.append(
            f"{PECOS}: PECOS {r['environment']['versions']['libpecos']} on the same TF-IDF features; {settings}. "
            f"Trained in {r['train_seconds']:.0f} s with a peak memory of {r['peak_memory_bytes'] / 2**20:,.0f} MiB. "
            f"Per query: {r['ms_a_query']:.2f} ms with all queries in one call, {r['ms_a_query_alone']:.2f} ms with "
            "one query per call."
        )
    notes += [f"Not trained: {', '.join(missing)}."] if missing else []
    return {
        "benchmark": benchmark,
        "parameters": {"data": example["data"], "points": example["points"], "device": example["device"]},
        "table": {"header": header, "rows": table},
        "notes": notes,
        "environment": machine.environment(example["device"]),
    }


def picture(found, path):
    """Plot over epochs: share of connections replaced; P@1 on the dev set with and without rewiring."""
    figure, (left, right) = plotting.new_panels(2, 5.5, 4.4)
    rewired = found[REWIRED]
    per_epoch = rewired["epochs"][0]["steps"]
    epoch_of_rewiring = [r["step"] / per_epoch for r in rewired["rewirings"]]
    shares = [100 * r["share"] for r in rewired["rewirings"]]
    left.bar(epoch_of_rewiring, shares, width=0.25, color="#E69F00", label="in this rewiring")
    total = [sum(shares[: i + 1]) for i in range(len(shares))]
    left.plot(epoch_of_rewiring, total, marker="o", color="#0072B2", label="in all rewirings so far")
    changed = 100 * rewired["connections_changed"]
    left.axhline(changed, color="#666666", linestyle=":", label=f"changed between start and end: {changed:.0f} %")
    left.set(xlabel="epoch", ylabel="share of all connections (%)", title="Connections replaced", ylim=(0, None))
    left.legend(frameon=False, loc="upper left")
    for name, colour, marker, label in (
        (REWIRED, "#0072B2", "o", "with rewiring"),
        (NOT_REWIRED, "#D55E00", "s", "without"),
    ):
        epochs = [record["epoch"] + 1 for record in found[name]["epochs"]]
        scores = [100 * record["validation"]["P@1"] for record in found[name]["epochs"]]
        right.plot(epochs, scores, marker=marker, color=colour, label=label)
    right.set(xlabel="epoch", ylabel="P@1 on the dev set (%)", title="Accuracy")
    right.legend(frameon=False, loc="lower right")
    plotting.write_picture(figure, path)


def draw(found):
    """Draw the figures for which all rows are finished."""
    if {REWIRED, NOT_REWIRED} <= found["accuracy"].keys():
        picture(found["accuracy"], PICTURE)


def main(argv=None):
    return rows.main(
        argv, script="accuracy", command="classifier", description=__doc__.partition("\n")[0], benchmarks=TABLES,
        options=OPTIONS, folder=FOLDER, summary=summary, draw=draw, more=_additional_results, other_rows=OTHER_ROWS,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
