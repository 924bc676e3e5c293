"""``python -m bench``: list the benchmarks; ``python -m bench.NAME --help`` describes the options of one."""

import ast

from .machine import HERE


def questions():
    """The question that each benchmark answers, by name: the first sentence of every script that has a `main`."""
    trees = {path.stem: ast.parse(path.read_text()) for path in sorted(HERE.glob("[a-z]*.py"))}
    runnable = {name: tree for name, tree in trees.items() if any(getattr(n, "name", "") == "main" for n in tree.body)}
    return {name: ast.get_docstring(tree).partition("``")[0].strip(" :") for name, tree in runnable.items()}


if __name__ == "__main__":
    found = questions()
    width = max(map(len, found))
    print(*(f"{name:{width}}  {question}" for name, question in found.items()), sep="\n")
    print("\npython -m bench.NAME --help lists the options of one; --profile KERNEL is for nsys and ncu.")
