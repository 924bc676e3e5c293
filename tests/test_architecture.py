"""The house rules that can be read off the source: who imports whom, twins with equal arguments, documented kernels."""

import ast
from pathlib import Path

import pytest

import sparsemax_nb

PACKAGE = Path(sparsemax_nb.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))

#: Whom each room may import. Files beside the package's `__init__` are the methods, but for the top.
MAY_IMPORT = {
    "core": {"core"},
    "reference": {"reference", "core"},
    "cpu": {"cpu", "core"},
    "cuda": {"cuda", "core"},
    "data": {"data", "core"},
    "methods": {"methods", "reference", "cpu", "cuda", "core"},
    "train": {"train", "data", "methods", "reference", "cpu", "cuda", "core"},
}
TOP = {"__init__", "__main__", "cli", "internals"}
FRAMEWORKS = {"torch", "jax", "tensorflow", "triton"}
NO_TWIN = {
    "simd",
    "exp",
    "panels",
    "blocks",
    "lists",
    "baselines",
    "launch",
    "reduce",
    "ptx",
    "tensor_cores",
    "layout",
    "group_shared_mma",
    "matmul",
    "grouping",
    "feature_choice",
    "__init__",
}  # grouping, feature_choice, baselines: on the CPU alone; group_shared_mma: launched by group_shared
#: Used by several files of one wing, never called from outside it.
BACKEND_ONLY = {"merge", "bits_of"}
#: What `reference` needs to know of an output that the wings are handed.
SIZES = {"k", "shape", "n_bins", "n_labels", "n_inputs", "fan_in", "n_samples", "n_rows", "n_experts", "n_features"}


def room_of(parts):
    """The room of a module, from its path inside the package."""
    if not parts or parts[0] in TOP:
        return "top"
    return parts[0] if parts[0] in MAY_IMPORT else "methods"


def module_parts(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def imports_of(path, tree):
    """Every module that a file imports, absolute: ``("numba", "cuda")``; names from a module count as part of it."""
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, *module, alias.name) for alias in node.names)


def functions_of(tree):
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def positional(function):
    return [argument.arg for argument in function.args.posonlyargs + function.args.args]


# ---------------------------------------------------------------- imports


@EACH_FILE
def test_imports_go_one_way(path):
    room = room_of(module_parts(path))
    if room == "top":
        return
    for target in imports_of(path, TREES[path]):
        if target[0] == PACKAGE.name:
            found = room_of(target[1:])
            assert found in MAY_IMPORT[room], f"{room} must not import {found}: {'.'.join(target)}"


@EACH_FILE
def test_only_the_backend_imports_cuda_and_nobody_a_framework(path):
    targets = list(imports_of(path, TREES[path]))
    assert not FRAMEWORKS & {target[0] for target in targets}
    if path != PACKAGE / "core" / "device.py":
        assert not [t for t in targets if t[0] in ("cupy", "cupyx") or t[:2] == ("numba", "cuda")]
        reached = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute) and node.attr == "cuda"]
        assert not [node for node in reached if isinstance(node.value, ast.Name) and node.value.id == "numba"]


def test_the_walk_sees_all_forms_of_import():
    """The two tests above are blind where this one fails."""
    source = (
        "import numba.cuda as c\nfrom numba import cuda\nfrom . import a\nfrom .. import b\nfrom ..core.x import y\n"
    )
    found = set(imports_of(PACKAGE / "cpu" / "z.py", ast.parse(source)))
    name = PACKAGE.name
    assert found == {("numba", "cuda"), (name, "cpu", "a"), (name, "b"), (name, "core", "x", "y")}
    assert [room_of(p) for p in (("cpu", "a"), ("midx",), ("cli",), ("__init__",), (), ("train", "x", "y"))] == [
        "cpu", "methods", "top", "top", "top", "train",
    ]  # fmt: skip


# ---------------------------------------------------------------- twins


def is_operation(function):
    """Called from outside its wing: neither private, nor a kernel, nor compiled only to be called by kernels."""
    if function.name.startswith("_") or function.name.endswith("_kernel") or function.name in BACKEND_ONLY:
        return False
    return not any(
        ast.unparse(d).partition("(")[0] in ("njit", "cuda_device", "intrinsic")
        for d in function.decorator_list
    )


def operations(wing, module):
    """{name: positional arguments} of the operations of a wing."""
    path = PACKAGE / wing / f"{module}.py"
    functions = functions_of(TREES[path]) if path.exists() else []
    return {function.name: positional(function) for function in functions if is_operation(function)}


MODULES = sorted({path.stem for wing in ("cpu", "cuda") for path in (PACKAGE / wing).glob("*.py")})


@pytest.mark.parametrize("module", MODULES)
def test_twins_have_the_same_arguments(module):
    cpu, cuda = operations("cpu", module), operations("cuda", module)
    if module not in NO_TWIN:
        assert cpu.keys() == cuda.keys() != set()
    for name in cpu.keys() & cuda.keys():
        assert cpu[name] == cuda[name], name


@pytest.mark.parametrize("module", MODULES)
def test_reference_takes_the_same_inputs(module):
    """Inputs first, outputs last: without sizes of outputs, the arguments of `reference` begin those of the twins."""
    reference = operations("reference", module)
    for wing in ("cpu", "cuda"):
        for name, arguments in operations(wing, module).items():
            if name in reference:
                inputs = [a for a in reference[name] if a in arguments or a not in SIZES]
                assert inputs == arguments[: len(inputs)], f"{wing}.{module}.{name}"
                assert inputs, f"{wing}.{module}.{name}"


# ---------------------------------------------------------------- kernels and docstrings

KERNELS = {
    f"{path.stem}.{function.name}": function
    for path, tree in TREES.items()
    if path.parent.name == "cuda"
    for function in functions_of(tree)
    if function.name.endswith("_kernel") or any("cuda_jit" in ast.unparse(d) for d in function.decorator_list)
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_documented_and_short_of_arguments(name):
    function = KERNELS[name]
    assert function.name.endswith("_kernel")
    assert len(positional(function)) <= 10
    docstring = ast.get_docstring(function)
    assert docstring
    assert "Grid" in docstring or "First version" in docstring
    assert "atomics" in docstring


@pytest.mark.parametrize("wing", ["cpu", "cuda", "reference"])
def test_every_operation_has_a_docstring(wing):
    for path in (PACKAGE / wing).glob("*.py"):
        assert ast.get_docstring(TREES[path]), path.name
        for function in functions_of(TREES[path]):
            assert ast.get_docstring(function) or function.name.startswith("_"), f"{path.name}: {function.name}"


@pytest.mark.parametrize("name", sparsemax_nb.__all__)
def test_public_names_have_a_docstring(name):
    value = getattr(sparsemax_nb, name)
    assert value.__doc__
    assert len(value.__doc__) > 40


# ---------------------------------------------------------------- a trap of the compiler


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "cpu"], ids=lambda path: path.stem)
def test_parallel_functions_do_not_write_through_named_tuples(path):
    """``moments.m[i] = ...`` in a function with parallel=True is dropped without a word (numba issues 5872, 7135).

    Take the array out first (``m = moments.m``; not ``m, v = moments``), or write in a function that is not parallel.
    """
    for function in functions_of(TREES[path]):
        if not any("parallel" in ast.unparse(d) for d in function.decorator_list):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                assert not isinstance(node.value, ast.Attribute), f"{function.name}, line {node.lineno}"
