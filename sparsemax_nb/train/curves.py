"""Plot of a training run: loss, validation, learning rate, gradients and rewiring over the epochs."""

import os

from ..core import files

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"

#: Suffixes of the files that can be written.
FORMATS = ".png", ".svg", ".pdf"
#: Validation metrics to plot, of a classifier and of a language model.
SHARES = ("P@1", "P@3", "P@5"), ("top-1", "top-5", "Recall@10")


def pyplot():
    """matplotlib's pyplot, set to draw into files; ImportError with the installation command if it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with pip install 'sparsemax-nb[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot(history, path):
    """Plot a `History` to the file `path` (PNG, SVG or PDF by its suffix), which is replaced once it is complete."""
    plt = pyplot()
    epochs = [record["epoch"] + 1 for record in history.epochs]
    steps_per_epoch = history.epochs[0]["steps"] if history.epochs else 1
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True)
    loss, quality, gradients, schedule = axes.ravel()
    mean, spread = ([record[key] for record in history.epochs] for key in ("loss", "loss_std"))
    loss.errorbar(epochs, mean, spread, color=BLUE, marker="o", capsize=3)
    loss.set(ylabel="loss per row", title="Training loss (bars: standard deviation between batches)")
    validated = [record["validation"] for record in history.epochs if "validation" in record]
    shares = SHARES[bool(validated) and "top-1" in validated[0]]
    for name, colour in zip(shares, (BLUE, ORANGE, GREEN), strict=True):
        if validated and name in validated[0]:
            quality.plot(epochs, [100 * values[name] for values in validated], color=colour, marker="o", label=name)
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
        label = f"of {layer}" if layer == "all parameters" else f"at the output of {layer}"
        gradients.plot(epochs, norms, color=colour, marker=marker, label=label)
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
        at_epoch = [rewiring["step"] / steps_per_epoch for rewiring in history.rewirings]
        other.vlines(at_epoch, 0, [100 * rewiring["share"] for rewiring in history.rewirings], color=GREY)
        other.set_ylabel("connections replaced (%)", color=GREY)
        other.set_ylim(0)
        other.spines["top"].set_visible(False)
    for panel in axes.ravel():
        panel.grid(alpha=0.3)
        panel.spines["top"].set_visible(False)
    write_figure(figure, path)
    plt.close(figure)


def write_figure(figure, path):
    """Write a matplotlib figure in the format of the path's suffix; the file appears only when it is complete."""
    with files.writing(path) as file:
        figure.savefig(file, format=os.path.splitext(path)[1][1:], dpi=150)
