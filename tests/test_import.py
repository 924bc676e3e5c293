"""``import sparsemax_nb`` stays quick: large optional packages are imported by what needs them, when it needs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: CuPy is imported where it is installed; what it imports itself does not count.
CODE = """
import contextlib, json, sys
with contextlib.suppress(ImportError):
    import cupy
before = set(sys.modules)
import sparsemax_nb
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def imported():
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return {module.partition(".")[0] for module in json.loads(run.stdout)}


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "torch", "cupyx", "pandas"])
def test_import_leaves_large_packages_alone(package, imported):
    assert package not in imported


def test_the_walk_sees_what_is_imported(imported):
    """The test above is blind where this one fails."""
    assert {"sparsemax_nb", "numpy", "numba", "scipy"} <= imported
