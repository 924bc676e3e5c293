"""PECOS XR-Linear, run in a separate Python environment: it needs NumPy < 2 and SciPy < 1.14."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import scipy.sparse

from . import Unavailable

PROGRAM = Path(__file__).with_name("xr_linear.py")


def _run(python, *arguments, threads=1):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    try:
        return subprocess.run([python, "-I", *arguments], capture_output=True, text=True, env=environment)
    except OSError as problem:
        raise Unavailable(f"{python} does not run: {problem}") from None


def xr_linear(x, y, test_x, *, python, folder, options):
    """Train on x, y and predict test_x (SciPy CSR float32); returns ids (n, 5) and measurements.

    A trained model in `folder` is used again.
    """
    tried = _run(python, "-c", "import pecos.xmc.xlinear")
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["unknown reason"])[-1]
        raise Unavailable(
            f"PECOS is not installed for {python} (pip install libpecos, in a separate environment): {reason}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, matrix in ("train_x", x), ("train_y", y), ("test_x", test_x):
        scipy.sparse.save_npz(folder / f"{name}.npz", matrix, compressed=False)
    done = _run(python, str(PROGRAM), str(folder), json.dumps(options), threads=options["threads"])
    if done.returncode:
        raise RuntimeError(f"PECOS failed:\n{done.stderr}")
    return np.load(folder / "ids.npy"), json.loads(done.stdout.splitlines()[-1])
