"""Figures with matplotlib: panels next to each other, and an atomic save."""

from sparsemax_nb.internals import pyplot


def new_panels(n, width, height, **settings):
    """Create a figure with n axes in one row, each `width` x `height` inches, with a grid and without a frame."""
    figure, axes = pyplot().subplots(1, n, figsize=(n * width, height), layout="constrained", squeeze=False, **settings)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def write_picture(figure, path, dpi=150):
    """Save and close a figure; the file is replaced atomically."""
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=dpi)
    pyplot().close(figure)
    temporary.replace(path)
