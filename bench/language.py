"""How good is a language model with each sampler? ``python -m bench.language ROW`` trains one row of the tables.

There are three tables: WikiText-2 (bundled), next-item recommendation on the Video Games reviews, and the Latin
Library; the last two need --data DIR. Each row is one command, which can be interrupted and repeated: it resumes from
its checkpoint. A finished row is written to bench/results/language/ROW.json. ``python -m bench.language --table`` makes
the tables and the figure from the finished rows; ``--list`` lists the rows.
"""

import sys

from sparsemax_nb import train

from . import machine, plotting, rows, tables

WIKITEXT = {
    "batch-size": 64, "unroll": 35, "epochs": 6, "seed": 0, "dropout": 0.3, "learning-rate": 5e-3,
    "validation-tokens": 50_000, "n-codewords": 256,
}  # fmt: skip
SAMPLED = {
    **{
        f"wikitext-{name}-100": {"sampler": name, "n-samples": 100}
        for name in ("uniform", "log-uniform", "unigram", "midx-pq", "midx-rq")
    },
    **{
        f"wikitext-{name}-20": {"sampler": name, "n-samples": 20}
        for name in ("uniform", "unigram", "midx-pq", "midx-rq")
    },
}
#: These samplers compute a score for every word in every step, as the full softmax does: one epoch shows their cost.
ONE_EPOCH = {
    f"wikitext-{name}-one-epoch": {"sampler": sampler, "n-samples": 100, "epochs": 1}
    for name, sampler in (("full", "none"), ("midx-rq-100", "midx-rq"), ("sphere-100", "sphere"), ("rff-100", "rff"))
}
VIDEO = {
    "task": "next-item", "batch-size": 128, "unroll": 50, "n-layers": 1, "width": 128, "epochs": 15, "seed": 0,
    "dropout": 0.5, "learning-rate": 5e-3, "n-codewords": 128,
}  # fmt: skip
VIDEO_ROWS = {
    "video-full": {"sampler": "none"},
    **{f"video-{name}-100": {"sampler": name, "n-samples": 100} for name in ("uniform", "unigram", "midx-rq")},
}
LATIN = {
    "raw": True, "batch-size": 64, "unroll": 35, "epochs": 1, "seed": 0, "dropout": 0.0, "learning-rate": 5e-3,
    "validation-tokens": 20_000, "sampler": "midx-rq", "n-samples": 100, "n-codewords": 256,
}  # fmt: skip
PROMPTS = "Gallia est omnis", "In principio", "Arma virumque cano"
#: {benchmark: (options of all rows, {row: its own options})}.
TABLES = {
    "language: WikiText-2": (WIKITEXT, {"wikitext-full": {"sampler": "none"}} | SAMPLED | ONE_EPOCH),
    "language: next item": (VIDEO, VIDEO_ROWS),
    "language: Latin Library": (LATIN, {"latin-midx-rq-100": {}}),
}
OPTIONS = {name: common | own for common, of_table in TABLES.values() for name, own in of_table.items()}
FOLDER = tables.RESULTS / "language"
PICTURE = machine.HERE / "perplexity.png"


def _continuations(result, model):
    """For the Latin text: the model's continuations of three prompts."""
    if "--raw" not in result["command"]:
        return {}
    fitted = train.LanguageModel.load(model, device="cpu")
    return {"continuations": {p: fitted.generate(p, 40, temperature=0.8, top_k=50).split("\n")[0] for p in PROMPTS}}


def _cells(name, r):
    """Cells of a table row: metrics on the test set, and costs."""
    test, env = r["test"], r["environment"]
    if "Recall@10" in r["baseline"]:
        scores = [f"{100 * test['Recall@10']:.2f}", f"{100 * test['NDCG@10']:.2f}"]
    else:
        scores = [f"{test['perplexity']:.1f}", f"{100 * test['top-1']:.2f}", f"{100 * test['top-5']:.2f}"]
    rate = "-" if "Recall@10" in r["baseline"] else f"{r['tokens'] * len(r['epochs']) / r['train_seconds']:,.0f}"
    return [
        name, *scores, f"{rows.seconds_per_epoch(r):,.0f}", f"{r['output_share']:.0%}",
        rate, f"{r['peak_memory_bytes'] / 2**30:.1f}", str(len(r["epochs"])),
        str(env["threads"]), (env["commit"] or "")[:10],
    ]  # fmt: skip


def summary(benchmark, found):
    """One row of results with the table of a benchmark, from the finished rows."""
    common, all_rows = TABLES[benchmark]
    example = next(iter(found.values()))
    is_text, baseline = "perplexity" in example["baseline"], example["baseline"]
    header = ["row", *(["perplexity", "top-1", "top-5"] if is_text else ["Recall@10", "NDCG@10"])]
    header += ["s per epoch", "output", "tokens/s", "GiB", "epochs", "threads", "commit"]
    table = [_cells(name, r) for name, r in found.items()]
    known = [f"{baseline['perplexity']:.1f}", "", ""] if is_text else [f"{100 * v:.2f}" for v in baseline.values()]
    table.append(["unigram model" if is_text else "most popular items", *known, *[""] * (len(header) - len(known) - 1)])
    options = " ".join(f"--{key}" if value is True else f"--{key} {value}" for key, value in common.items())
    notes = [
        f"{example['about']}.",
        "Measured on the test set with the full softmax; in per cent, except perplexity. output: share of the "
        "training time "
        "spent in the output layer, including its update and the update of the index. GiB: peak memory of the process.",
        "Seconds per epoch are wall times on a machine that also did other work: compare them with caution.",
        f"Options of every row: {options}; defaults otherwise.",
    ]
    for name, r in found.items():
        own = [f"--{key} {value}" for key, value in all_rows[name].items()]
        notes += [f"{name}: {' '.join(own)}."] if own else []
        notes += [f"“{prompt}” {text}" for prompt, text in r.get("continuations", {}).items()]
    missing = [f"`python -m bench.language {name}`" for name in all_rows if name not in found]
    notes += [f"Not trained: {', '.join(missing)}."] if missing else []
    return {
        "benchmark": benchmark,
        "parameters": {"data": example["data"], "device": example["device"]},
        "table": {"header": header, "rows": table},
        "notes": notes,
        "environment": machine.environment(example["device"]),
    }


#: Curves of the figure: {row: (colour, marker, label)}.
STYLES = {
    "wikitext-full": ("#000000", "o", "full softmax"), "wikitext-uniform-100": ("#999999", "s", "uniform"),
    "wikitext-log-uniform-100": ("#CC79A7", "v", "log-uniform"), "wikitext-unigram-100": ("#E69F00", "^", "unigram"),
    "wikitext-midx-pq-100": ("#56B4E9", "P", "MIDX, pq"), "wikitext-midx-rq-100": ("#0072B2", "D", "MIDX, rq"),
}  # fmt: skip


def panel(axis, found, title):
    """Plot validation perplexity over minutes of training: the rows with 100 draws, and the full softmax."""
    for name, (colour, marker, label) in STYLES.items():
        if name in found:
            minutes = [epoch["seconds"] / 60 for epoch in found[name]["epochs"]]
            values = [epoch["validation"]["perplexity"] for epoch in found[name]["epochs"]]
            axis.plot(minutes, values, color=colour, marker=marker, label=label)
    axis.set(xscale="log", xlabel="minutes of training", ylabel="perplexity on the validation set", title=title)
    axis.xaxis.set_major_formatter("{x:g}")


def picture(found, path):
    """Draw `panel` as a separate figure."""
    figure, (axis,) = plotting.new_panels(1, 8, 5)
    panel(axis, found, "WikiText-2, 100 draws per word")
    axis.legend(frameon=False)
    plotting.write_picture(figure, path)


def draw(found):
    """Draw the figure if there are rows for it."""
    if found["language: WikiText-2"]:
        picture(found["language: WikiText-2"], PICTURE)


def main(argv=None):
    return rows.main(
        argv, script="language", command="language-model", description=__doc__.partition("\n")[0], benchmarks=TABLES,
        options=OPTIONS, folder=FOLDER, summary=summary, draw=draw, more=_continuations, data="wikitext-2",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
