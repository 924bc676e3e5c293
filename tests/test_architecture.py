"""Rules of the architecture that a test can check: imports, twins with equal arguments, documented kernels."""

import ast
import graphlib
from pathlib import Path

import pytest

import sparsemax_nb
from sparsemax_nb import internals

from .helpers import assert_none

pytestmark = pytest.mark.quick

PACKAGE = Path(sparsemax_nb.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

#: The layers of the package, and the layers that each may import. Files that are directly in the package belong to the
#: layer 'methods', except those of `TOP`.
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
#: Modules of a backend whose operations need no twin in the other one.
NO_TWIN = {
    "simd",  # vector instructions of the CPU
    "exp",  # the CPU's exp; CUDA uses its math functions
    "panels",  # layout of matrices for the CPU
    "blocks",  # layout of the batch for the CPU
    "group_products",  # called by kernels of the CPU's group_shared
    "lists",  # lists per range of classes, shared by CPU kernels
    "baselines",  # CPU only
    "launch",  # grids and blocks of CUDA
    "reduce",  # sums over warps and blocks of CUDA
    "ptx",  # PTX instructions
    "tensor_cores",  # CUDA only
    "layout",  # transposed inputs of CUDA kernels
    "group_shared_mma",  # launched by cuda/group_shared, which has a twin
    "matmul",  # CUDA also has two kernels to learn from
    "grouping",  # CPU only
    "feature_choice",  # CPU only
    "matching_pursuit",  # CPU only
    "__init__",  # no operations
}
#: Used by several files of one backend, never called from outside it.
BACKEND_ONLY = {"merge", "bits_of", "labels_at_once", "sums_of_layer"}
#: What `reference` needs to know of an output that the backends are handed.
SIZES = {"k", "shape", "n_bins", "n_labels", "n_inputs", "fan_in", "n_samples", "n_rows", "n_experts", "n_features"}


def layer_of(parts):
    """The layer of a module, from its path inside the package."""
    if not parts or parts[0] in TOP:
        return "top"
    return parts[0] if parts[0] in MAY_IMPORT else "methods"


def module_parts(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def imports_of(path, tree, root=PACKAGE):
    """Every module that a file imports, absolute: ``("numba", "cuda")``; names from a module count as part of it."""
    package = (root.name, *path.relative_to(root).parent.parts)
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


def wrong_ways(path, tree):
    """What a file imports that its layer must not."""
    layer = layer_of(module_parts(path))
    for target in imports_of(path, tree) if layer != "top" else ():
        if target[0] == PACKAGE.name and layer_of(target[1:]) not in MAY_IMPORT[layer]:
            yield f"{path.relative_to(PACKAGE)}: {layer} must not import {'.'.join(target)}"


def forbidden(path, tree):
    """A framework; or CUDA, outside `core/device.py`."""
    where, targets = path.relative_to(PACKAGE), list(imports_of(path, tree))
    yield from (f"{where}: {'.'.join(t)} is a framework" for t in targets if t[0] in FRAMEWORKS)
    if where == Path("core", "device.py"):
        return
    cuda = [t for t in targets if t[0] in ("cupy", "cupyx") or t[:2] == ("numba", "cuda")]
    yield from (f"{where}: {'.'.join(t)} belongs into core/device.py" for t in cuda)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "numba.cuda":
            yield f"{where}, line {node.lineno}: numba.cuda belongs into core/device.py"


@pytest.mark.parametrize("rule", [wrong_ways, forbidden], ids=lambda rule: rule.__name__)
def test_imports(rule):
    assert len(FILES) > 100
    assert_none(problem for path in FILES for problem in rule(path, TREES[path]))


def test_imports_that_must_not_be_are_seen():
    source = "import torch\nfrom ..train import loop\nimport cupy\nfrom numba import cuda\nx = numba.cuda.jit"
    path, tree = PACKAGE / "cpu" / "z.py", ast.parse(source)
    assert [len(list(rule(path, tree))) for rule in (wrong_ways, forbidden)] == [1, 4]
    assert not list(wrong_ways(PACKAGE / "cli" / "z.py", tree))
    assert len(list(forbidden(PACKAGE / "core" / "device.py", tree))) == 1


def test_no_file_is_longer_than_600_lines():
    assert_none(f"{p.relative_to(PACKAGE)}: {n} lines" for p in FILES if (n := len(p.read_text().splitlines())) > 600)


def test_the_walk_sees_all_forms_of_import():
    """The tests above are blind where this one fails."""
    source = (
        "import numba.cuda as c\nfrom numba import cuda\nfrom . import a\nfrom .. import b\nfrom ..core.x import y\n"
    )
    found = set(imports_of(PACKAGE / "cpu" / "z.py", ast.parse(source)))
    name = PACKAGE.name
    assert found == {("numba", "cuda"), (name, "cpu", "a"), (name, "b"), (name, "core", "x", "y")}
    assert [layer_of(p) for p in (("cpu", "a"), ("midx",), ("cli",), ("__init__",), (), ("train", "x", "y"))] == [
        "cpu", "methods", "top", "top", "top", "train",
    ]  # fmt: skip


BENCH = PACKAGE.parent / "bench"


def test_benchmarks_have_no_import_cycle_and_use_public_names():
    """Apart from public names, bench may only use what `sparsemax_nb.internals` exports."""
    modules = {path.relative_to(BENCH.parent).with_suffix("").parts: path for path in BENCH.rglob("*.py")}
    modules = {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in modules.items()}
    public = {(PACKAGE.name,)} | {(PACKAGE.name, name) for name in (*sparsemax_nb.__all__, "__version__")}
    public |= {(PACKAGE.name, "internals", name) for name in internals.__all__}
    graph, problems = {}, []
    for module, path in modules.items():
        targets = set(imports_of(path, ast.parse(path.read_text()), BENCH))
        graph[module] = {t if t in modules else t[:-1] for t in targets} & modules.keys() - {module}
        private = {t for t in targets if t[0] == PACKAGE.name} - public
        problems += [f"{'.'.join(module)}: {'.'.join(t)} is not public" for t in private]
    assert len(graph) > 30 and sum(map(len, graph.values())) > 100
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
    assert_none(problems)


# ---------------------------------------------------------------- twins


def is_operation(function):
    """Called from outside its backend: neither private, nor a kernel, nor compiled only to be called by kernels."""
    if function.name.startswith("_") or function.name.endswith("_kernel") or function.name in BACKEND_ONLY:
        return False
    return not any(
        ast.unparse(d).partition("(")[0] in ("njit", "cuda_device", "intrinsic") for d in function.decorator_list
    )


def operations(backend, module):
    """{name: positional arguments} of the operations of a backend."""
    path = PACKAGE / backend / f"{module}.py"
    functions = functions_of(TREES[path]) if path.exists() else []
    return {function.name: positional(function) for function in functions if is_operation(function)}


MODULES = sorted({path.stem for backend in ("cpu", "cuda") for path in (PACKAGE / backend).glob("*.py")})


def unlike_twins(module, cpu, cuda):
    """Operations that one backend lacks, or that take other arguments there."""
    if module not in NO_TWIN:
        if not cpu:
            yield f"{module}: no operation on the CPU"
        yield from (f"{module}.{name}: on one backend alone" for name in cpu.keys() ^ cuda.keys())
    for name in cpu.keys() & cuda.keys():
        if cpu[name] != cuda[name]:
            yield f"{module}.{name}: {cpu[name]} on the CPU, {cuda[name]} on CUDA"


def unlike_reference(module, reference, twin):
    """Inputs first, outputs last: without sizes of outputs, the arguments of `reference` begin those of the twins."""
    for name in reference.keys() & twin.keys():
        inputs = [a for a in reference[name] if a in twin[name] or a not in SIZES]
        if not inputs or inputs != twin[name][: len(inputs)]:
            yield f"{module}.{name}: the reference takes {inputs}, its twin {twin[name]}"


def test_twins_have_the_same_arguments():
    assert len(MODULES) > 30
    assert_none(p for m in MODULES for p in unlike_twins(m, operations("cpu", m), operations("cuda", m)))


def test_reference_takes_the_same_inputs():
    compared = [(m, operations("reference", m), operations(b, m)) for m in MODULES for b in ("cpu", "cuda")]
    assert sum(len(reference.keys() & twin.keys()) for _, reference, twin in compared) > 50
    assert_none(problem for case in compared for problem in unlike_reference(*case))


def test_unlike_twins_are_seen():
    assert len(list(unlike_twins("m", {"f": ["a"], "g": ["a"]}, {"g": ["b"], "h": ["a"]}))) == 3
    assert len(list(unlike_twins("m", {}, {}))) == 1
    assert not list(unlike_twins("m", {"f": ["a"]}, {"f": ["a"]}))
    twin = {"f": ["a", "b", "out"], "g": ["b", "a", "out"], "h": ["out"]}
    reference = {"f": ["a", "b", "k"], "g": ["a", "b"], "h": ["k"]}
    found = list(unlike_reference("m", reference, twin))
    assert sorted(problem[:3] for problem in found) == ["m.g", "m.h"]


# ---------------------------------------------------------------- kernels and docstrings

KERNELS = {
    f"{path.stem}.{function.name}": function
    for path, tree in TREES.items()
    if path.parent.name == "cuda"
    for function in functions_of(tree)
    if function.name.endswith("_kernel") or any("cuda_jit" in ast.unparse(d) for d in function.decorator_list)
}


def flaws_of_kernel(name, function):
    docstring = ast.get_docstring(function) or ""
    if not function.name.endswith("_kernel"):
        yield f"{name}: the name of a kernel ends in _kernel"
    if len(positional(function)) > 10:
        yield f"{name}: {len(positional(function))} arguments"
    if "Grid" not in docstring and "First version" not in docstring:
        yield f"{name}: the docstring says nothing of its Grid"
    if "atomics" not in docstring:
        yield f"{name}: the docstring says nothing of atomics"


def without_docstring(where, tree):
    if not ast.get_docstring(tree):
        yield f"{where}: the file has no docstring"
    for function in functions_of(tree):
        if not ast.get_docstring(function) and not function.name.startswith("_"):
            yield f"{where}: {function.name} has no docstring"


def test_kernels_are_documented_and_short_of_arguments():
    assert len(KERNELS) > 50
    assert_none(flaw for kernel in KERNELS.items() for flaw in flaws_of_kernel(*kernel))


def test_every_operation_has_a_docstring():
    files = [path for path in FILES if path.parent.name in ("cpu", "cuda", "reference")]
    assert len(files) > 60
    assert_none(flaw for path in files for flaw in without_docstring(path.relative_to(PACKAGE), TREES[path]))


def test_public_names_have_a_docstring():
    values = {name: getattr(sparsemax_nb, name) for name in sparsemax_nb.__all__}
    assert_none(name for name, value in values.items() if len(value.__doc__ or "") <= 40)


def test_missing_documentation_is_seen():
    (kernel,) = functions_of(ast.parse(f"def f({', '.join(f'a{i}' for i in range(11))}): pass"))
    assert len(list(flaws_of_kernel("m.f", kernel))) == 4
    assert len(list(without_docstring("m", ast.parse("def f(): pass\ndef _g(): pass")))) == 2


# ---------------------------------------------------------------- a trap of the compiler


def writes_through_named_tuples(where, tree):
    """``moments.m[i] = ...`` in a function with parallel=True is dropped without a word (numba issues 5872, 7135).

    Take the array out first (``m = moments.m``; not ``m, v = moments``), or write in a function that is not parallel.
    """
    for function in functions_of(tree):
        if any("parallel" in ast.unparse(d) for d in function.decorator_list):
            for node in ast.walk(function):
                if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                    if isinstance(node.value, ast.Attribute):
                        yield f"{where}, line {node.lineno}: {function.name} writes through {ast.unparse(node.value)}"


def test_parallel_functions_do_not_write_through_named_tuples():
    files = [path for path in FILES if path.parent.name == "cpu"]
    assert len(files) > 20
    assert_none(problem for path in files for problem in writes_through_named_tuples(path.stem, TREES[path]))
    source = "@njit_parallel\ndef f(moments):\n    moments.m[0] = 1\n    m = moments.m\n    m[0] = 1"
    assert len(list(writes_through_named_tuples("here", ast.parse(source)))) == 1
