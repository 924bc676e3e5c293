"""What every tutorial needs: sizes for a quick look, figures that look alike, exercises that check themselves."""

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
#: TUTORIAL_SMOKE=1 runs a tutorial in seconds, on sizes at which its figures say little: that is what the tests do.
SMOKE = bool(os.environ.get("TUTORIAL_SMOKE"))
#: Where a script leaves its figures; a notebook shows them.
FIGURES = Path(os.environ.get("TUTORIAL_OUTPUT", "tutorial_output"))
#: Colours that stay apart for colour-blind eyes (Okabe & Ito 2008).
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F",
)  # fmt: skip

if not IN_NOTEBOOK:
    matplotlib.use("Agg")
from matplotlib import pyplot as plt

plt.rcParams.update(
    {
        "figure.dpi": 160, "figure.figsize": (7.2, 4.2), "figure.constrained_layout.use": True, "font.size": 12,
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY]),
        "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2,
    }
)  # fmt: skip


def size(full, smoke):
    """`full`, or `smoke` where the tutorial runs as a test."""
    return smoke if SMOKE else full


def one_thread():
    """From here on Numba and BLAS use one thread: with small arrays a second one costs more than it brings."""
    numba.set_num_threads(1)
    threadpoolctl.threadpool_limits(limits=1)


def find_ptxas():
    """NVIDIA's assembler, from the path or from the wheel nvidia-cuda-nvcc-cu12; None where there is none."""
    folders = [Path(folder) / "nvidia" for folder in sys.path]
    wheels = (path for folder in folders for path in folder.glob("*/bin/ptxas"))
    return shutil.which("ptxas") or next(map(str, wheels), None)


def can_compile():
    """Are there a compiler for CUDA, which needs no GPU, and pytest? Says how to install what is missing."""
    try:
        load_nvidia_dynamic_lib("nvrtc")
        found = find_ptxas() is not None and importlib.util.find_spec("pytest") is not None
    except DynamicLibNotFoundError:
        found = False
    if not found:
        print("skipped: there is no compiler for CUDA; pip install -e '.[test]' in a clone of the repository brings it")
    return found


def show(figure, name):
    """Show the figure in a notebook; else write it to tutorial_output/NAME.png and say so."""
    if IN_NOTEBOOK:
        plt.show()
    else:
        FIGURES.mkdir(parents=True, exist_ok=True)
        path = FIGURES / f"{name}.png"
        figure.savefig(path)
        print(f"figure: {path}")
    plt.close(figure)


def check(exercise, answer, is_right, hint):
    """Say whether an answer is right. ``...`` is not answered yet; AssertionError, with the hint, for a wrong one."""
    if answer is ...:
        print(f"Exercise {exercise}: yours to answer. {hint}")
    elif not is_right(answer):
        raise AssertionError(f"Exercise {exercise}: not yet. {hint}")
    else:
        print(f"Exercise {exercise}: right.")
