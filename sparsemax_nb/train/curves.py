"""A picture of a run: loss, validation, learning rate, gradients and rewiring over the epochs."""

import os

from ..core import files

# Okabe and Ito's colours: told apart by colour-blind readers
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"

#: What is drawn of the validation of a classifier, and of a language model.
SHARES = ("P@1", "P@3", "P@5"), ("top-1", "top-5", "Recall@10")


def pyplot():
    """matplotlib's pyplot, set to draw into files; ImportError that says how to install it where it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with pip install 'sparsemax-nb[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot(history, path):
    """Draw a `History` into the file `path` (PNG, SVG or PDF by its ending), which is replaced once it is complete."""
    plt = pyplot()
    epochs = [record["epoch"] + 1 for record in history.epochs]
    steps_per_epoch = history.epochs[0]["steps"] if history.epochs else 1
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True)
    loss, quality, gradients, schedule = axes.ravel()
    mean, spread = ([record[key] for record in history.epochs] for key in ("loss", "loss_std"))
    loss.errorbar(epochs, mean, spread, color=BLUE, marker="o", capsize=3)
    loss.set(ylabel="loss a row", title="Training loss (bars: standard deviation between batches)")
    validated = [record["validation"] for record in history.epochs if "validation" in record]
    shares = SHARES[bool(validated) and "top-1" in validated[0]]
    for name, colour in zip(shares, (BLUE, ORANGE, GREEN), strict=True):
        if validated and name in validated[0]:
            quality.plot(epochs, [100 * figures[name] for figures in validated], color=colour, marker="o", label=name)
    if validated:
        if history.best_epoch is not None:
            quality.axvline(history.best_epoch + 1, color=GREY, linestyle=":", label="weights kept")
        quality.legend(frameon=False, loc="center right")
    else:
        quality.text(0.5, 0.5, "no validation set", transform=quality.transAxes, ha="center")
    quality.set(ylabel="per cent", title="Validation")
    layers = list(dict.fromkeys(layer for record in history.epochs for layer in record["gradient_norms"]))
    for layer, colour, marker in zip(layers, (BLUE, ORANGE, GREEN, PINK, GREY), "os^vD", strict=False):
        norms = [record["gradient_norms"].get(layer) for record in history.epochs]
        by = f"by {layer}" if layer == "all parameters" else f"by the output of {layer}"
        gradients.plot(epochs, norms, color=colour, marker=marker, label=by)
    gradients.set(ylabel="norm", ylim=(0, None), title="Gradient of the loss", xlabel="epoch")
    if layers:
        gradients.legend(frameon=False)
    rates = [record["learning_rate"] for record in history.epochs if "learning_rate" in record]
    if rates:
        schedule.plot(epochs, rates, color=PINK, marker="o")
    else:
        schedule.text(0.5, 0.5, "no learning rate", transform=schedule.transAxes, ha="center")
    schedule.set(ylabel="learning rate", ylim=(0, None), title="Learning rate and rewiring", xlabel="epoch")
    schedule.yaxis.label.set_color(PINK)
    if history.rewirings:
        other = schedule.twinx()
        at = [rewiring["step"] / steps_per_epoch for rewiring in history.rewirings]
        other.vlines(at, 0, [100 * rewiring["share"] for rewiring in history.rewirings], color=GREY)
        other.set_ylabel("connections replaced (%)", color=GREY)
        other.set_ylim(0)
        other.spines["top"].set_visible(False)
    for one in axes.ravel():
        one.grid(alpha=0.3)
        one.spines["top"].set_visible(False)
    write_figure(figure, path)
    plt.close(figure)


def write_figure(figure, path):
    """Write a figure of matplotlib in the format of the path's ending; a file appears, or is replaced, once it is complete."""
    with files.writing(path) as file:
        figure.savefig(file, format=os.path.splitext(path)[1][1:], dpi=150)
