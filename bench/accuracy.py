"""How accurate is each output layer on real data? ``python -m bench.accuracy ROW --data DIR`` trains one row of the table.

There are two tables: output layers under the squared hinge, and samplers of negatives for the softmax loss. A row is
one command that can be killed and given again: it goes on from its checkpoint, and writes
bench/results/accuracy/ROW.json when it is done. ``python -m bench.accuracy --table`` makes the table and the pictures
from the rows that there are; ``--list`` names the rows.
"""

import sys

from sparsemax_nb import FixedFanIn, train
from sparsemax_nb.internals import Network

from . import machine, plotting, rows, tables

COMMON = {
    "architecture": "network", "batch-size": 128, "embedding": 512, "dropout": 0.05, "epochs": 15, "seed": 0, "learning-rate": 2.5e-4,
    "embedding-lr-multiplier": 16, "min-learning-rate": 2e-5,
}  # fmt: skip
SPARSE = {"output": "fixed-fan-in", "intermediate": 16384, "fan-in": 32, "intermediate-lr-multiplier": 0.1}
GROUPS = {"output": "group-shared", "group-size": 16, "grouping": "similar"}
ROWS = {
    # sixteen times the weights a label: a smaller rate and more dropout serve it better; the embedding's rate stays
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
#: Samplers under the softmax loss: same network, same rates, same epochs; exact Adam without, lazy Adam with negatives.
SOFTMAX = {
    "architecture": "network", "batch-size": 128, "embedding": 512, "dropout": 0.5, "epochs": 10, "seed": 0, "learning-rate": 1e-3, "embedding-lr-multiplier": 10,
    "output": "dense", "loss": "softmax", "n-samples": 100, "n-codewords": 256,
}  # fmt: skip
SAMPLERS = {
    "softmax-full": {"sampler": "none"},
    "softmax-full-less-dropout": {"sampler": "none", "dropout": 0.3},  # which serves it better
    "softmax-full-narrow": {"sampler": "none", "dropout": 0.3, "embedding": 64},  # does width tell in bench.closeness?
    **{f"softmax-{name}-100": {"sampler": name} for name in ("uniform", "unigram", "midx-pq", "midx-rq")},
}
#: The row that bench.pecos makes.
PECOS = "pecos-xr-linear"
#: {benchmark: rows of its table that other commands make}.
RIVALS = {"accuracy": (PECOS,)}
#: Benchmark: (options of all rows, {row: its own options}).
TABLES = {"accuracy": (COMMON, ROWS), "accuracy: softmax": (SOFTMAX, SAMPLERS)}
OPTIONS = {name: common | own for common, of_table in TABLES.values() for name, own in of_table.items()}
REWIRED, NOT_REWIRED = "fixed-fan-in-32-intermediate", "fixed-fan-in-32-intermediate-no-rewiring"
FOLDER = tables.RESULTS / "accuracy"
PICTURE = machine.HERE / "rewiring.png"


def _of_the_layer(result, model):
    """What the command line does not report: training points, and how many connections are others than at the start."""
    fitted = train.Classifier.load(model, device="cpu")
    more = {"points": fitted.n_points_}
    if result["rewirings"] and result["params"]["output"] == "fixed-fan-in":
        layer = fitted.network_.output.layer
        first = FixedFanIn.random(layer.n_labels, layer.n_inputs, layer.fan_in, fitted.seed)
        more["connections_changed"] = float((first.indices != layer.indices).mean())
    return more


def _cells(name, r):
    scores = [f"{100 * r['test'][key]:.2f}" for key in ("P@1", "P@3", "P@5", "PSP@5")]
    if name == PECOS:  # one model, made in one go
        sizes, epochs = ["-", r["network_bytes"], r["peak_memory_bytes"]], ["-", "-"]
    else:
        sizes = [r["output_layer_bytes"], r["network_bytes"], r["memory_plan_bytes"]]
        epochs = [f"{rows.seconds_per_epoch(r):.0f}", f"{len(r['epochs'])} ({r['best_epoch'] + 1})"]
    sizes = [n if n == "-" else f"{n / 2**20:,.0f}" for n in sizes]
    env = r["environment"]
    return [name, *scores, *sizes, *epochs, str(env["threads"]), (env["commit"] or "")[:10]]


def summary(benchmark, found):
    """One row of results, with the table of a benchmark, from the rows that have been trained."""
    common, all_rows = TABLES[benchmark]
    header = [
        "layer", "P@1", "P@3", "P@5", "PSP@5", "output MiB", "network MiB", "training MiB", "s an epoch", "epochs (best)",
        "threads", "commit",
    ]  # fmt: skip
    table = [_cells(name, r) for name, r in found.items()]
    if "dense-512" in found:
        dense, width = found["dense-512"], SPARSE["intermediate"]
        labels, features = dense["n_labels"], dense["n_features"]
        plan = Network.memory(
            n_features=features, n_labels=labels, embedding=COMMON["embedding"], intermediate=width, output="dense", fan_in=1,
            device="cpu", batch_size=COMMON["batch-size"], keep_best=True,
        )  # fmt: skip
        output = next(a.nbytes for a in plan.arrays if a.name == "output.weights")
        projected = rows.seconds_per_epoch(dense) * width / COMMON["embedding"]
        table.append(
            ["dense with intermediate (projected)", *["-"] * 4, f"{output / 2**20:,.0f}", "-", f"{plan.nbytes / 2**20:,.0f}",
             f"{projected:,.0f}", "-", str(dense["environment"]["threads"]), "-"]
        )  # fmt: skip
    missing = [f"`python -m bench.accuracy {name} --data DIR`" for name in all_rows if name not in found]
    if PECOS in RIVALS.get(benchmark, ()) and PECOS not in found:
        missing.append("`python -m bench.pecos --data DIR`")
    some = next(iter(found.values()))
    notes = [
        "P@k on the test part, in per cent, of the weights that were best on the dev part; PSP@5 weighs rare labels up.",
        "MiB: parameters of the output layer, of the whole network, and all that training was predicted to take.",
        "Seconds an epoch as the run took them, on a machine that did other work beside: compare them with care.",
        f"Options of every row: {' '.join(f'--{key} {value}' for key, value in common.items())}, others by default.",
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
                f"{name}: {len(updates)} updates of the index in {seconds:.0f} s, counted in the seconds an epoch."
            )
    if PECOS in found:
        r = found[PECOS]
        settings = ", ".join(f"{key} {value}" for key, value in r["settings"].items())
        notes.append(
            f"{PECOS}: PECOS {r['environment']['versions']['libpecos']} on the same TF-IDF features; {settings}. Trained in "
            f"{r['train_seconds']:.0f} s, the process took {r['peak_memory_bytes'] / 2**20:,.0f} MiB at most; a query "
            f"{r['ms_a_query']:.2f} ms where all are asked at once, {r['ms_a_query_alone']:.2f} ms alone."
        )
    notes += [f"Not trained: {', '.join(missing)}."] if missing else []
    return {
        "benchmark": benchmark, "parameters": {"data": some["data"], "points": some["points"], "device": some["device"]},
        "table": {"header": header, "rows": table}, "notes": notes, "environment": machine.environment(some["device"]),
    }  # fmt: skip


def picture(found, path):
    """Connections replaced, and P@1 on the dev part with and without rewiring, over the epochs."""
    figure, (left, right) = plotting.new_panels(2, 5.5, 4.4)
    rewired = found[REWIRED]
    per_epoch = rewired["epochs"][0]["steps"]
    at = [r["step"] / per_epoch for r in rewired["rewirings"]]
    shares = [100 * r["share"] for r in rewired["rewirings"]]
    left.bar(at, shares, width=0.25, color="#E69F00", label="in this rewiring")
    total = [sum(shares[: i + 1]) for i in range(len(shares))]
    left.plot(at, total, marker="o", color="#0072B2", label="in all rewirings so far")
    changed = 100 * rewired["connections_changed"]
    left.axhline(changed, color="#666666", linestyle=":", label=f"other than at the start, at the end: {changed:.0f} %")
    left.set(xlabel="epoch", ylabel="share of all connections (%)", title="Connections replaced", ylim=(0, None))
    left.legend(frameon=False, loc="upper left")
    for name, colour, marker, label in (
        (REWIRED, "#0072B2", "o", "with rewiring"),
        (NOT_REWIRED, "#D55E00", "s", "without"),
    ):
        epochs = [record["epoch"] + 1 for record in found[name]["epochs"]]
        scores = [100 * record["validation"]["P@1"] for record in found[name]["epochs"]]
        right.plot(epochs, scores, marker=marker, color=colour, label=label)
    right.set(xlabel="epoch", ylabel="P@1 on the dev part (%)", title="Accuracy")
    right.legend(frameon=False, loc="lower right")
    plotting.write_picture(figure, path)


def draw(found):
    """The pictures, of the rows that there are."""
    if {REWIRED, NOT_REWIRED} <= found["accuracy"].keys():
        picture(found["accuracy"], PICTURE)


def main(argv=None):
    return rows.main(
        argv, script="accuracy", command="classifier", description=__doc__.partition("\n")[0], tables=TABLES,
        options=OPTIONS, folder=FOLDER, summary=summary, draw=draw, more=_of_the_layer, rivals=RIVALS,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
