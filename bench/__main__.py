"""List the benchmarks: ``python -m bench``. For the options of one, use ``python -m bench.NAME --help``."""

import ast

from .machine import HERE


def summaries():
    """``{name: first sentence of the docstring}`` of all modules that can be run as scripts."""
    sources = {path.stem: path.read_text() for path in sorted(HERE.glob("[a-z]*.py"))}
    scripts = {name: source for name, source in sources.items() if '\nif __name__ == "__main__":' in source}
    docstrings = {name: ast.get_docstring(ast.parse(source)) for name, source in scripts.items()}
    return {name: docstring.partition("``")[0].strip(" :") for name, docstring in docstrings.items()}


if __name__ == "__main__":
    found = summaries()
    width = max(map(len, found))
    print(*(f"{name:{width}}  {summary}" for name, summary in found.items()), sep="\n")
    print(
        "\nOptions of a benchmark: python -m bench.NAME --help. To profile a CUDA kernel with nsys or ncu: --profile "
        "KERNEL."
    )
