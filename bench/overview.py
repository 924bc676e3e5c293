"""What README.md shows: one picture, and one line of figures a method, from what lies in bench/results/."""

from . import accuracy, ds_softmax, language, machine, plotting, rows, scaling, words, words_scale

README, PICTURE = machine.HERE.parent / "README.md", machine.HERE / "overview.png"
START, END = "<!-- figures: start -->", "<!-- figures: end -->"
#: The number of labels at which a step is compared, and the dense layer's accuracy is the baseline.
N, DENSE, SPARSE = 1_000_000, "dense-512", "fixed-fan-in-32-intermediate"
FULL, SAMPLED = "wikitext-full", "wikitext-midx-rq-100"
OURS, THEIRS = "linear", {"omikuji": "omikuji", "omikuji-bonsai": "its Bonsai-like form", "pecos": "PECOS"}
WHOLE, EXPERTS = "ours: full softmax", "DS-64"


def newest(found, benchmark, **parameters):
    """The latest row of a benchmark with these parameters."""
    some = [r for r in found if r["benchmark"] == benchmark and parameters.items() <= r["parameters"].items()]
    return max(some, key=lambda row: row["environment"]["date_utc"])


def _sources(found):
    """The rows that the README draws from: scaling, language step, DS-Softmax; trained networks by name."""
    step = newest(found, "language_step", device="cpu", words=500_000)
    answers = newest(found, "ds_softmax: wikitext-2", device="cpu")
    layers = rows.finished((DENSE, SPARSE), accuracy.FOLDER)
    models = rows.finished((FULL, SAMPLED), language.FOLDER)
    return newest(found, "scaling", device="cpu"), step, answers, layers, models


def _listed(results):
    """'P@1 1.0 / 2.0 % in 3 / 4 s' of rows of several data sets."""
    scores = " / ".join(f"{100 * r['test']['P@1']:.1f}" for r in results)
    seconds = " / ".join(f"{r['train_seconds']:.0f}" for r in results)
    return f"{scores} % in {seconds} s"


def words_line(of_data, scale):
    """The line about `Classifier` over words, of {data: {row: result}}, and of rows of `words_scale`.

    It names the data sets that have all rows, from one machine.
    """
    whole = {}
    for name, found in of_data.items():
        shown = {row: found[row] for row in (OURS, *THEIRS) if row in found}
        if len(shown) == 1 + len(THEIRS) and not rows.elsewhere(shown):
            whole[name] = shown
    if not whole:
        return []
    rivals = "; ".join(f"{name} {_listed([found[row] for found in whole.values()])}" for row, name in THEIRS.items())
    return [
        f"- **Fixed fan-in over words**, what `Classifier` does with sparse features: P@1 on {', '.join(whole)} "
        f"{_listed([found[OURS] for found in whole.values()])} of training; {rivals}."
        + "".join(
            f" With {r['labels']:,} labels a pass over {r['points']:,} titles takes {r['first_pass_seconds']:.0f} s and "
            f"{r['bytes'] / 2**30:.2f} GiB." for r in scale
        )
    ]  # fmt: skip


def figures(found):
    """Lines of Markdown, one a method."""
    growth, step, answers, layers, models = _sources(found)
    sizes, experts_of = growth["parameters"], EXPERTS.removeprefix("DS-")
    at = {name: growth["figures"][name][str(N)] for name in ("PyTorch dense", "group-shared", "fixed fan-in")}
    dense, fixed, shared = at["PyTorch dense"], at["fixed fan-in"], at["group-shared"]
    gib = {name: point["bytes"] / 2**30 for name, point in at.items()}
    precise = {name: 100 * layer["test"]["P@1"] for name, layer in layers.items()}
    mib = {name: layer["output_layer_bytes"] / 2**20 for name, layer in layers.items()}
    perplexity = {name: model["test"]["perplexity"] for name, model in models.items()}
    full, experts = answers["figures"][WHOLE], answers["figures"][EXPERTS]
    kept = experts["accuracy"]["10"] / full["accuracy"]["10"]
    return [
        f"- **Fixed fan-in**: every label is connected to {sizes['fan_in']} inputs. At {N:,} labels a training step takes "
        f"{fixed['seconds']:.2f} s and {gib['fixed fan-in']:.1f} GiB, with inputs shared by groups of {sizes['group_size']} labels "
        f"{shared['seconds']:.2f} s and {gib['group-shared']:.1f} GiB; PyTorch's dense layer ({sizes['dense_width']} inputs) "
        f"{dense['seconds']:.2f} s and {gib['PyTorch dense']:.1f} GiB. On {layers[DENSE]['data']} P@1 is "
        f"{precise[SPARSE]:.1f} % with {mib[SPARSE]:.0f} MiB of output weights, dense {precise[DENSE]:.1f} % with "
        f"{mib[DENSE]:.0f} MiB.",
        *words_line(
            {name: rows.finished(words.ROWS, words.FOLDER / name) for name in words.DATA},
            rows.finished((f"{words_scale.MAIN}-labels-2-threads",), words_scale.FOLDER).values(),
        ),
        f"- **MIDX**: a language model compares the right word with {models[SAMPLED]['params']['n_samples']} that are drawn nearly from the softmax itself. "
        f"WikiText-2: perplexity {perplexity[SAMPLED]:.1f}, with the full softmax {perplexity[FULL]:.1f} after as many "
        f"epochs; with {step['parameters']['words']:,} words a step is {step['contestants']['PyTorch']['ratio_to_ours']:.0f} times faster than "
        "PyTorch's with the full softmax.",
        f"- **DS-Softmax**: of {experts_of} experts, each with a few of the classes, one is searched. WikiText-2, one query: "
        f"{full['flops'] / experts['flops']:.0f} times fewer multiply-adds and {experts['times full, batch 1']:.1f} times "
        f"faster than our full softmax, {kept:.1%} of its top-10 accuracy.",
    ]  # fmt: skip


def picture(found, path):
    """A panel a method."""
    growth, _, answers, _, _ = _sources(found)
    figure, axes = plotting.new_panels(3, 3.7, 4.2)
    scaling.panel(axes[0], growth, "step", "bytes", "Fixed fan-in: training", with_slopes=False)
    language.panel(axes[1], rows.finished(language.STYLES, language.FOLDER), "MIDX: WikiText-2, 100 draws")
    ds_softmax.panel(axes[2], answers, 10, "DS-Softmax: WikiText-2")
    for axis, place in zip(axes, ("lower right", "upper right", "lower right"), strict=True):
        axis.legend(frameon=False, fontsize=8, loc=place)
    plotting.write_picture(figure, path, dpi=170)


def readme(text, found):
    """README.md with the lines in their place."""
    before, _, rest = text.partition(START)
    if END not in rest:
        raise ValueError(f"{README} must hold {START} and, behind it, {END}")
    return "\n".join([before + START, "", *figures(found), "", END + rest.partition(END)[2]])


def write(found):
    """README.md, anew."""
    README.write_text(readme(README.read_text(), found))
