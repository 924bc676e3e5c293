"""The figure and the measured numbers of README.md, one line per method, from bench/results/."""

from . import accuracy, ds_softmax, language, machine, plotting, rows, scaling, texts, words, words_scale

README, PICTURE = machine.HERE.parent / "README.md", machine.HERE / "overview.png"
START, END = "<!-- figures: start -->", "<!-- figures: end -->"
#: A training step is compared at N labels; the accuracy of the row DENSE is the baseline.
N, DENSE, SPARSE = 1_000_000, "default-dense", "default-fixed-fan-in"
FULL, SAMPLED = "wikitext-full", "wikitext-midx-rq-100"
TEXTS, WITH_EMBEDDINGS = "texts", "texts-and-embeddings"
OTHER_TEXTS = {
    "annif-parabel": "Annif with omikuji",
    "annif-bonsai": "Annif with omikuji, trees like Bonsai",
    "omikuji-bonsai": "omikuji, trees like Bonsai, with our features",
}
OURS, THEIRS = "linear", {"omikuji": "omikuji", "omikuji-bonsai": "omikuji with trees like Bonsai", "pecos": "PECOS"}
WHOLE, EXPERTS = "ours: full softmax", "DS-64"


def newest(found, benchmark, **parameters):
    """The newest row of a benchmark with these parameters."""
    rows_of_benchmark = [
        r for r in found if r["benchmark"] == benchmark and parameters.items() <= r["parameters"].items()
    ]
    return max(rows_of_benchmark, key=lambda row: row["environment"]["date_utc"])


def _sources(found):
    """The rows that README.md uses: scaling, language step and DS-Softmax; trained networks by name."""
    step = newest(found, "language_step", device="cpu", words=500_000)
    answers = newest(found, "ds_softmax: wikitext-2", device="cpu")
    layers = rows.finished((DENSE, SPARSE), accuracy.FOLDER)
    models = rows.finished((FULL, SAMPLED), language.FOLDER)
    return newest(found, "scaling", device="cpu"), step, answers, layers, models


def _listed(results):
    """Format P@1 and training times of several data sets: '1.0 / 2.0 % in 3 / 4 s'."""
    scores = " / ".join(f"{100 * r['test']['P@1']:.1f}" for r in results)
    seconds = " / ".join(f"{r['train_seconds']:.0f}" for r in results)
    return f"{scores} % in {seconds} s"


def words_line(of_data, scale):
    """The line about `Classifier` with word features, from {data: {row: result}} and the rows of `words_scale`.

    It includes the data sets for which all rows were measured on one machine.
    """
    complete = {}
    for name, found in of_data.items():
        shown = {row: found[row] for row in (OURS, *THEIRS) if row in found}
        if len(shown) == 1 + len(THEIRS) and not rows.elsewhere(shown):
            complete[name] = shown
    if not complete:
        return []
    competitors = "; ".join(
        f"{name}: {_listed([found[row] for found in complete.values()])}" for row, name in THEIRS.items()
    )
    return [
        f"- **Fixed fan-in for sparse features**, the default of `Classifier`: P@1 on {', '.join(complete)} is "
        f"{_listed([found[OURS] for found in complete.values()])} of training ({competitors}). These are data sets for "
        "tagging texts; omikuji and PECOS are tree-based classifiers."
        + "".join(
            f" With {r['labels']:,} labels, one pass over {r['points']:,} titles takes {r['first_pass_seconds']:.0f} s "
            f"and {r['bytes'] / 2**20:,.0f} MiB."
            for r in scale
        )
    ]


def texts_line(of_data):
    """The line about `Classifier` with raw texts, from {data: {row: result}}."""
    shown = []
    for name, found in of_data.items():
        if TEXTS not in found:
            continue
        others = {row: found[row] for row in OTHER_TEXTS if row in found}
        rivals = "; ".join(
            f"{OTHER_TEXTS[row]}: {_three(r)} in {r['train_seconds']:.0f} s" for row, r in others.items()
        )
        r = found[TEXTS]
        shown.append(
            f"on {name}, P@1, P@3 and P@5 are {_three(r)} after {r['train_seconds']:.0f} s of training"
            + (f" ({rivals})" if rivals else "")
            + f", the expected calibration error is {100 * r['test']['ECE of 20']:.1f} %, and one text takes "
            f"{r['ms_a_query_alone']:.2f} ms"
        )
        if pair := found.get(WITH_EMBEDDINGS):
            shown[-1] += (
                f"; with embeddings beside the texts they are {_three(pair)} after {pair['train_seconds']:.0f} s, "
                "without encoding"
            )
    return [f"- **Raw texts**, with the default settings of `Classifier`: {'; '.join(shown)}."] if shown else []


def _three(result):
    return " / ".join(f"{100 * result['test'][f'P@{k}']:.1f}" for k in (1, 3, 5)) + " %"


def figures(found):
    """Lines of Markdown with the measured numbers, one per method."""
    growth, step, answers, layers, models = _sources(found)
    sizes, experts_of = growth["parameters"], EXPERTS.removeprefix("DS-")
    points = {name: growth["figures"][name][str(N)] for name in ("PyTorch dense", "group-shared", "fixed fan-in")}
    dense, fixed, shared = points["PyTorch dense"], points["fixed fan-in"], points["group-shared"]
    gib = {name: point["bytes"] / 2**30 for name, point in points.items()}
    precise = {name: 100 * layer["test"]["P@1"] for name, layer in layers.items()}
    mib = {name: layer["output_layer_bytes"] / 2**20 for name, layer in layers.items()}
    whole = {name: layer["network_bytes"] / 2**20 for name, layer in layers.items()}
    perplexity = {name: model["test"]["perplexity"] for name, model in models.items()}
    full, experts = answers["figures"][WHOLE], answers["figures"][EXPERTS]
    kept = experts["accuracy"]["10"] / full["accuracy"]["10"]
    return [
        f"- **Fixed fan-in**: every label is connected to {sizes['fan_in']} inputs. At {N:,} labels, a training step "
        f"takes {fixed['seconds']:.2f} s and {gib['fixed fan-in']:.1f} GiB. If groups of {sizes['group_size']} labels "
        f"share their inputs, it takes {shared['seconds']:.2f} s and {gib['group-shared']:.1f} GiB. PyTorch's dense "
        f"layer ({sizes['dense_width']} inputs) takes {dense['seconds']:.2f} s and {gib['PyTorch dense']:.1f} GiB. On "
        f"{layers[DENSE]['data']}, with default settings, P@1 (the share of rows whose best label is correct) is "
        f"{precise[SPARSE]:.1f} % with {mib[SPARSE]:.0f} MiB of output weights ({whole[SPARSE]:.0f} MiB in the whole "
        f"network); a dense layer reaches {precise[DENSE]:.1f} % with {mib[DENSE]:.0f} MiB ({whole[DENSE]:.0f} MiB).",
        *words_line(
            {name: rows.finished(words.ROWS, words.FOLDER / name) for name in words.DATA},
            rows.finished((f"{words_scale.MAIN}-labels-2-threads",), words_scale.FOLDER).values(),
        ),
        *texts_line({name: texts.finished(name) for name in texts.DATA}),
        f"- **MIDX**: a language model compares the target word with {models[SAMPLED]['params']['n_samples']} words "
        f"that are drawn almost from the softmax itself. On WikiText-2 the perplexity is {perplexity[SAMPLED]:.1f}, "
        f"and {perplexity[FULL]:.1f} with the full softmax after the same number of epochs. With "
        f"{step['parameters']['words']:,} words, a step is {step['contestants']['PyTorch']['ratio_to_ours']:.0f} times "
        "faster than PyTorch's with the full softmax (without the index update).",
        f"- **DS-Softmax**: {experts_of} experts hold a few of the classes each, and only one expert is searched per "
        f"query. For one query on WikiText-2, this takes {full['flops'] / experts['flops']:.0f} times fewer "
        f"multiply-adds than our full softmax, is {experts['times full, batch 1']:.1f} times faster, and keeps "
        f"{kept:.1%} of the top-10 accuracy.",
    ]


def picture(found, path):
    """Draw one panel per method."""
    growth, _, answers, _, _ = _sources(found)
    figure, axes = plotting.new_panels(3, 3.7, 4.2)
    scaling.panel(axes[0], growth, "step", "bytes", "Fixed fan-in: training", with_slopes=False)
    language.panel(axes[1], rows.finished(language.STYLES, language.FOLDER), "MIDX: WikiText-2, 100 draws")
    ds_softmax.panel(axes[2], answers, 10, "DS-Softmax: WikiText-2")
    for axis, position in zip(axes, ("lower right", "upper right", "lower right"), strict=True):
        axis.legend(frameon=False, fontsize=8, loc=position)
    plotting.write_picture(figure, path, dpi=170)


def readme(text, found):
    """The text of README.md with the lines inserted."""
    before, _, rest = text.partition(START)
    if END not in rest:
        raise ValueError(f"{README} must contain {START} and, after it, {END}")
    return "\n".join([before + START, "", *figures(found), "", END + rest.partition(END)[2]])


def write(found):
    """Update README.md."""
    README.write_text(readme(README.read_text(), found))
