"""Figures of matplotlib: panels side by side, written in one move."""

from sparsemax_nb.internals import pyplot


def new_panels(n, width, height, **settings):
    """A figure, and n axes of `width` x `height` inches side by side, with a grid and without a frame."""
    figure, axes = pyplot().subplots(1, n, figsize=(n * width, height), layout="constrained", squeeze=False, **settings)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def write_picture(figure, path, dpi=150):
    """Save and close a figure of matplotlib; the file is replaced in one move."""
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=dpi)
    pyplot().close(figure)
    temporary.replace(path)
