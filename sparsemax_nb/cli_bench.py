"""The command `bench`: the benchmarks of the source tree, by name."""

import ast
import importlib
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1]
#: What else lies in their folder.
NOT_SCRIPTS = {"harness", "machine", "overview", "profiling", "rows"}


def scripts(folder):
    """{name: what it asks} of the benchmarks in a folder; FileNotFoundError where there are none."""
    if not (folder / "harness.py").is_file():
        raise FileNotFoundError(
            "the benchmarks are part of the source tree, not of the installed package: run this from a clone of it, "
            "installed with pip install -e ."
        )
    paths = sorted(path for path in folder.glob("*.py") if path.stem not in NOT_SCRIPTS and path.stem[0] != "_")
    return {path.stem: ast.get_docstring(ast.parse(path.read_text())).partition("``")[0].strip(" :") for path in paths}


def bench(options):
    """Run a benchmark with its own options, or say which there are."""
    found = scripts(SOURCE / "bench")
    if options.name is None:
        width = max(map(len, found))
        print(*(f"{name:{width}}  {question}" for name, question in found.items()), sep="\n")
        print(
            "\nsparsemax-nb bench NAME --help says what each can be told; on CUDA, --profile KERNEL is for nsys and ncu."
        )
        return found
    if options.name not in found:
        raise ValueError(f"there is no benchmark {options.name!r}; there are {', '.join(found)}")
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    return importlib.import_module(f"bench.{options.name}").main(options.arguments)


def bench_options(commands):
    """The command's options: a name, and what the benchmark takes."""
    text = "Run a benchmark of the source tree, or (without a name) list them."
    sub = commands.add_parser("bench", help=text, description=text)
    sub.add_argument("name", nargs="?", help="which")
    sub.add_argument("arguments", nargs="...", help="its own options")
    sub.set_defaults(run=bench, json=None)
