"""Docstrings of public names: summary, parameters, results, errors, source and an example that runs."""

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap

import pytest

import sparsemax_nb

from .helpers import assert_none

PACKAGES = sparsemax_nb, sparsemax_nb.train, sparsemax_nb.data, sparsemax_nb.metrics
SECTIONS = "Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "Examples"
ENTRIES = {  # how an entry begins, at the margin of its section
    "Parameters": r"\*{0,2}\w+(, \*{0,2}\w+)*( : \S.*)?",
    "Attributes": r"\w+(, \w+)* : \S.*",
    "Returns": r"(\w+(, \w+)* : )?\S.*",
    "Raises": r"[A-Z]\w+(, [A-Z]\w+)*",
}
#: They hold or refuse things, and compute nothing that somebody published.
WITHOUT_SOURCE = {"Labels", "SGD", "train", "data"}
WITH_SOURCE = {*sparsemax_nb.metrics.__all__, "Tfidf"} - {"popularity_ranks", "ranking_metrics"}


def public():
    """(name, object, class or None) of all that users can call: each function once, where it is defined."""
    seen = set()
    for package in PACKAGES:
        for name in package.__all__:
            thing = getattr(package, name)
            if inspect.ismodule(thing) or id(thing) in seen:
                continue
            seen.add(id(thing))
            yield name, thing, None
            if inspect.isclass(thing):
                yield from ((f"{name}.{m}", f, thing) for m, f in methods(thing) if id(f) not in seen)
                seen |= {id(f) for _, f in methods(thing)}


def methods(cls):
    """(name, function) of the public methods that this package defines, inherited ones included."""
    for name, _ in inspect.getmembers(cls):
        found = inspect.getattr_static(cls, name)
        function = getattr(found, "__func__", found)
        if inspect.isfunction(function) and not name.startswith("_") and function.__module__.startswith("sparsemax_nb"):
            yield name, function


PUBLIC = list(public())


def sections(thing):
    """The summary, and the lines of each section of a docstring."""
    lines = inspect.cleandoc(thing.__doc__ or "").split("\n")
    found, here = {"": []}, ""
    for line, following in zip(lines, lines[1:] + [""], strict=True):
        if following and set(following) == {"-"} and len(following) == len(line):
            here = line
            found[here] = []
        elif not (line and set(line) == {"-"}):
            found[here].append(line)
    return found


def entries(lines):
    return [line for line in lines if line and not line.startswith(" ")]


def named(lines):
    """Names of the parameters, with their types."""
    for line in entries(lines):
        names, _, kind = line.partition(" : ")
        yield from ((name.strip().lstrip("*"), kind) for name in names.split(","))


def arguments(thing):
    function = thing.__init__ if inspect.isclass(thing) else thing
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing)]
    if hasattr(thing, "_fields"):
        return list(thing._fields)
    if not inspect.isfunction(function) or not function.__module__.startswith("sparsemax_nb"):
        return []
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


@functools.cache
def module_tree(name):
    return ast.parse(inspect.getsource(sys.modules[name]))


def functions_of(module):
    return {node.name: node for node in ast.walk(module_tree(module)) if isinstance(node, ast.FunctionDef)}


def own_nodes(tree):
    """The nodes of a function's body, but not of functions inside it."""
    for node in tree.body:
        stack = [node]
        while stack:
            here = stack.pop()
            yield here
            if not isinstance(here, ast.FunctionDef | ast.Lambda):
                stack.extend(ast.iter_child_nodes(here))


def refuses(tree, module, seen=frozenset()):
    """Whether a function raises or checks, itself or through functions of its file."""
    for node in own_nodes(tree):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call):
            f = node.func
            if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and f.value.id == "check":
                return True
            name = f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else None
            called = functions_of(module).get(name)
            if name not in seen and called is not None and refuses(called, module, seen | {name}):
                return True
    return False


def body(thing):
    """The syntax tree of a function, or of what makes an object of a class; None where that is not ours."""
    function = thing.__init__ if inspect.isclass(thing) else thing
    if dataclasses.is_dataclass(thing) or not inspect.isfunction(function):
        return None
    if not function.__module__.startswith("sparsemax_nb"):
        return None
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


def returns(tree):
    return any(
        isinstance(node, ast.Yield | ast.YieldFrom) or isinstance(node, ast.Return) and node.value is not None
        for node in own_nodes(tree)
    )


# ---------------------------------------------------------------- the rules: each yields what breaks it


def summary_is_one_sentence(name, thing, owner):
    summary = "\n".join(sections(thing)[""]).strip().split("\n\n")[0]
    if not summary.endswith("."):
        yield f"no sentence: {summary!r}"
    words = re.sub(r"``.*?``|`.*?`|\(.*?\)|\"[^\"]*\"", "", summary, flags=re.DOTALL)
    if re.search(r"[.?!]\s+[A-Z]", words):
        yield f"several sentences: {summary}"


def sections_are_known_ordered_and_well_formed(name, thing, owner):
    found = sections(thing)
    names = [section for section in found if section]
    if names != [section for section in SECTIONS if section in names]:
        yield f"sections {names}"
    for section, pattern in ENTRIES.items():
        for line in entries(found.get(section, [])):
            if not re.fullmatch(pattern, line):
                yield f"{section}: {line}"


def every_argument_is_named_with_its_type(name, thing, owner):
    found = sections(thing)
    described = dict(named(found.get("Attributes" if dataclasses.is_dataclass(thing) else "Parameters", [])))
    if set(described) != set(arguments(thing)):
        yield f"describes {sorted(described)}, takes {sorted(arguments(thing))}"
    for argument, kind in described.items():
        if not kind:
            yield f"{argument} has no type"
        is_array = re.search(r"\barray\b|float32|int32|float64|CSR", re.sub("'.*?'", "", kind))
        if is_array and "(" not in kind:
            yield f"{argument} : {kind} has no shape"


def what_is_returned_and_refused_is_said(name, thing, owner):
    tree, found = body(thing), sections(thing)
    if tree is None:
        return
    if inspect.isfunction(thing) and returns(tree) != ("Returns" in found or "Yields" in found):
        yield "it returns something" if returns(tree) else "it returns nothing"
    function = thing.__init__ if inspect.isclass(thing) else thing
    if refuses(tree, function.__module__) and not entries(found.get("Raises", [])):
        yield "it raises or checks its arguments"


def method_has_a_source(name, thing, owner):
    if owner is None and name in {*sparsemax_nb.__all__, *WITH_SOURCE} - WITHOUT_SOURCE:
        if not re.search(r"Source: \S", " ".join(sections(thing).get("Notes", []))):
            yield "no source"


def everything_occurs_in_an_example(name, thing, owner):
    """In its own, or for a method in its class's."""
    text = "\n".join(sections(thing).get("Examples", []))
    if owner is not None and ">>>" not in text:
        text = "\n".join(sections(owner).get("Examples", []))
    if ">>> " not in text or not re.search(rf"\b{name.split('.')[-1]}\b", text):
        yield "in no example"


RULES = (
    summary_is_one_sentence,
    sections_are_known_ordered_and_well_formed,
    every_argument_is_named_with_its_type,
    what_is_returned_and_refused_is_said,
    method_has_a_source,
    everything_occurs_in_an_example,
)


@pytest.mark.quick
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_public_name(rule):
    assert len(PUBLIC) > 100
    assert_none(f"{name}: {problem}" for name, thing, owner in PUBLIC for problem in rule(name, thing, owner))


def wrong(x, y):
    """Two sentences. Here they are.

    Parameters
    ----------
    x : array
    Loose text.
    """
    if x:
        raise ValueError
    return y


@pytest.mark.quick
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rules_see_what_they_look_for(rule, monkeypatch):
    monkeypatch.setattr(wrong, "__module__", "sparsemax_nb.wrong")
    monkeypatch.setitem(sys.modules, "sparsemax_nb.wrong", sys.modules[__name__])
    monkeypatch.setattr(sparsemax_nb, "__all__", ["wrong"])
    assert list(rule("wrong", wrong, None))
    tree = ast.parse(textwrap.dedent(inspect.getsource(wrong))).body[0]
    assert returns(tree)
    assert refuses(tree, __name__)
