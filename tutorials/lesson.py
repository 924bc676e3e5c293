"""Shared by all tutorials: small sizes for tests, a common style of figures, and self-checking exercises."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numba
import threadpoolctl
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

try:
    import matplotlib
except ImportError as error:
    raise ImportError("the tutorials need matplotlib; install it with pip install 'sparsemax-nb[plot]'") from error

IN_NOTEBOOK = "ipykernel" in sys.modules
#: TUTORIAL_SMOKE=1 runs a tutorial in seconds, with sizes that are too small for meaningful results. The tests use it.
SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
#: Folder for the figures of a script; a notebook shows them instead.
FIGURES = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output"))
#: Colours that colour-blind readers can distinguish (Okabe & Ito 2008).
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F",
)  # fmt: skip

if not IN_NOTEBOOK:
    matplotlib.use("Agg")
from matplotlib import pyplot as plt

plt.rcParams.update(
    {
        "figure.dpi": 160,
        "figure.figsize": (7.2, 4.2),
        "figure.constrained_layout.use": True,
        "font.size": 12,
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY]),
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2,
    }
)


def size(full, smoke):
    """Return `full`, or `smoke` if the tutorial runs as a test."""
    return smoke if SMOKE else full


def one_thread():
    """Use one thread in Numba and BLAS from now on: for small arrays, a second one costs more time than it saves."""
    numba.set_num_threads(1)
    threadpoolctl.threadpool_limits(limits=1)


def find_ptxas():
    """Path of NVIDIA's assembler, on PATH or in the wheel nvidia-cuda-nvcc-cu12; None if it is not installed."""
    folders = [Path(folder) / "nvidia" for folder in sys.path]
    wheels = (path for folder in folders for path in folder.glob("*/bin/ptxas"))
    return shutil.which("ptxas") or next(map(str, wheels), None)


def can_compile():
    """Whether a CUDA compiler (which needs no GPU) and pytest are installed; prints how to install them if not."""
    try:
        load_nvidia_dynamic_lib("nvrtc")
        found = find_ptxas() is not None and importlib.util.find_spec("pytest") is not None
    except DynamicLibNotFoundError:
        found = False
    if not found:
        print(
            "skipped: the CUDA compiler or pytest is missing; run pip install -e '.[test]' in a clone of the repository"
        )
    return found


def show(figure, name):
    """Show the figure in a notebook; otherwise save it as tutorial_output/NAME.png and print the path."""
    if IN_NOTEBOOK:
        plt.show()
    else:
        FIGURES.mkdir(parents=True, exist_ok=True)
        path = FIGURES / f"{name}.png"
        figure.savefig(path)
        print(f"figure: {path}")
    plt.close(figure)


def check(exercise, answer, is_right, hint):
    """Print whether an answer is right; raise AssertionError if it is wrong. ``...`` means: no answer yet."""
    if answer is ...:
        print(f"Exercise {exercise}: not answered yet. Hint: {hint}")
    elif not is_right(answer):
        raise AssertionError(f"Exercise {exercise}: this is not right. Hint: {hint}")
    else:
        print(f"Exercise {exercise}: right.")
