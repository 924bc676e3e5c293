"""Every public function, method, constructor and reader, called with odd and bad arguments, in child processes.

    python -m tests.fuzz.calls                        # 500 calls of each name; minutes
    python -m tests.fuzz.calls --only rewire --at 17  # one call again, with what it was given and its traceback

A call may be refused - by a TypeError, ValueError, FloatingPointError, RuntimeError or OSError that this package raises
and whose message names an argument - with all arguments and the object as they were, byte for byte. Or it is accepted:
then the arguments that it only reads are as they were, and the result is that of dense NumPy, or of the same call with
plain arguments. Everything else is a failure: a crash, a hang, a warning, an error of NumPy, SciPy, Numba or Python
itself.
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import inspect
import io
import linecache
import os
import re
import sys
import tempfile
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np

import sparsemax_nb

from . import children, odd
from .cases import CASES

PACKAGE = str(Path(sparsemax_nb.__file__).parent)
#: What a call may be refused with; of OSError every subclass.
REFUSALS = TypeError, ValueError, FloatingPointError, RuntimeError
#: Nouns beside the arguments' names that messages may name.
NOUNS = re.compile(
    r"n_labels|fan-in|the number of|the width of|arrays|not fitted|the loss|the scores|embeddings|the logits|words|"
    r"experts|"
    r"lines|labels|X and y|step \d|validation|parameter|no word|device=|sampler|tokens|vocabulary|rows|corpus|bundled|"
    r"memory|fewer classes|embedding|network|features|k must|file|folder|directory|path"
)


def public_names():
    """Every name that needs a case: functions, constructors, and the methods that a class has itself or inherits."""
    names = []
    for room in (sparsemax_nb, sparsemax_nb.train, sparsemax_nb.data):
        for name in room.__all__:
            value = getattr(room, name)
            if inspect.ismodule(value) or (inspect.isclass(value) and issubclass(value, BaseException)):
                continue
            names.append(name)
            if inspect.isclass(value) and not issubclass(value, tuple):
                names += [f"{name}.{m}" for m in dir(value) if not m.startswith("_") and callable(getattr(value, m))]
    return list(dict.fromkeys(names))


def generator(name, seed, i):
    return np.random.default_rng([seed, zlib.crc32(name.encode()), i])


def spoiled(random, call):
    """The call with some of its arguments replaced (now and then none)."""
    places = [("args", i) for i in range(len(call.args))] + [("kwargs", name) for name in call.kwargs]
    args, kwargs = list(call.args), dict(call.kwargs)
    if not places:
        return call
    kind = random.random()
    if kind < 0.04:
        return dataclasses.replace(
            call, args=list(map(odd.freeze, args)), kwargs={k: odd.freeze(v) for k, v in kwargs.items()}
        )
    for at in random.permutation(len(places))[: 0 if kind < 0.1 else 1 if kind < 0.75 else 2]:
        where, key = places[at]
        held = args if where == "args" else kwargs
        with contextlib.suppress(ValueError, TypeError):  # what NumPy or SciPy can not make at all stays as it is
            held[key] = odd.odd(random, held[key])
    return dataclasses.replace(call, args=args, kwargs=kwargs)


def _is_refusal(error, names):
    """None where an exception is a clear refusal, else what is wrong with it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    kind, text = type(error), str(error)
    if isinstance(error, MemoryError) and re.search("[Uu]nable to allocate|Allocation failed", text):
        return None
    ours = kind.__module__.startswith("sparsemax_nb") or kind in REFUSALS or isinstance(error, OSError)
    if not ours:
        return f"raw {kind.__name__}"
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return None  # whatever the system says of a path
    line = linecache.getline(frame.filename, frame.lineno).strip()
    if not isinstance(error, OSError) and not (frame.filename.startswith(PACKAGE) and line.startswith("raise")):
        return f"raised outside: {kind.__name__} at {Path(frame.filename).name}:{frame.lineno}"
    named = any(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", text) for n in names) or NOUNS.search(text)
    return None if named or isinstance(error, OSError) else f"names no argument: {kind.__name__}"


def _states(held):
    """The state of the object, of each positional and of each keyword argument."""
    me, args, kwargs = held
    return odd.state(me), [odd.state(a) for a in args], [odd.state(a) for a in kwargs.values()]


def _copied(call):
    """The arguments as they are before the call, for the check of what comes out; None where they can not be copied."""
    try:
        return copy.deepcopy((call.args, call.kwargs))
    except Exception:
        return None


def one(name, seed, i, show=False):
    """The outcome of one call: ``{"outcome": "refused" | "accepted" | "failed", "why", "given"}``."""
    random = generator(name, seed, i)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = spoiled(random, CASES[name](random))
        given = ", ".join([*map(_short, call.args), *(f"{k}={_short(v)}" for k, v in call.kwargs.items())])
        held = call.me, call.args, call.kwargs
        before, copies = _states(held), _copied(call)
        names = [word for n in inspect.signature(call.function).parameters for word in (n, n.removesuffix("s"))]
        names += list(call.kwargs)
        result = error = None
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the gate has collapsed")  # what it warns of is so
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                result = call.function(*call.args, **call.kwargs)
                if inspect.isgenerator(result):
                    result = list(result)
        except Exception as caught:
            error = caught
        warnings.simplefilter("ignore")
        after = _states(held)
        if error is not None:
            if show:
                traceback.print_exception(error)
            why = _is_refusal(error, names)
            if why is None and after != before and not isinstance(error, call.changed_by):
                why = "changed before the error"
            text = f"{type(error).__name__}: {error}"[:300]
            return {"outcome": "refused" if why is None else "failed", "why": why, "error": text, "given": given}
        why = None
        if not call.writes and after != before:
            why = "changed what it reads"
        elif call.writes:
            for key, (was, now) in _read_only_parts(call, before, after).items():
                if was != now:
                    why = f"changed {key}"
        if why is None and call.check is not None and copies is not None:
            try:
                call.check(result, *copies[0], **copies[1])
            except Exception as wrong:
                if show:
                    traceback.print_exception(wrong)
                why = f"result: {type(wrong).__name__}: {wrong}"[:400]
        return {"outcome": "accepted" if why is None else "failed", "why": why, "given": given}


def _read_only_parts(call, before, after):
    """{argument: (state before, state behind)} of what the call may not write to."""
    names = list(inspect.signature(call.function).parameters)
    parts = {} if "self" in call.writes else {"self": (before[0], after[0])}
    parts |= dict(zip(names, zip(before[1], after[1], strict=True), strict=False))
    parts |= dict(zip(call.kwargs, zip(before[2], after[2], strict=True), strict=True))
    return {n: pair for n, pair in parts.items() if n not in call.writes}


def _short(value):
    try:
        if isinstance(value, np.ndarray) and value.ndim:
            return f"{type(value).__name__}{value.shape}{value.dtype}{'' if value.flags.c_contiguous else ' strided'}"
        return re.sub(" at 0x[0-9a-f]+", "", repr(value))[:70].replace("\n", " ")
    except Exception:
        return type(value).__name__


def run(names, n, seed):
    """{name: counts by outcome}, and the failures as lines."""
    table, failures = {name: collections.Counter() for name in names}, []

    def command(first, count, records):
        only = [word for name in names for word in ("--only", name)]
        numbers = ["--first", str(first), "--count", str(count)]
        return ["-m", "tests.fuzz.calls", "--child", records, *only, "--seed", str(seed), "-n", str(n), *numbers]

    for at, outcome in sorted(children.run(command, 0, n * len(names)).items()):
        name, i = names[at // n], at % n
        table[name][outcome.get("outcome", "died")] += 1
        if outcome.get("outcome") not in ("refused", "accepted"):
            why = outcome.get("why") or outcome
            failures.append(f"{name} at {i}: {why} {outcome.get('error', '')} <- {outcome.get('given', '')}")
    return table, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=500, help="calls of each name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", action="append", help="a name, such as rewire or Adam.step; may be given several times"
    )
    parser.add_argument("--at", type=int, help="only this call, with its traceback")
    for option, kind in (("--child", str), ("--first", int), ("--count", int)):  # a child's: its file and its cases
        parser.add_argument(option, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = public_names()
    missing = [name for name in names if name not in CASES]
    if missing:
        parser.error(f"no case in tests/fuzz/cases.py for {', '.join(missing)}")
    if given.child:
        numbers = range(given.first, given.first + given.count)
        children.work(given.child, numbers, lambda i: one(given.only[i // given.n], given.seed, i % given.n))
        os._exit(0)
    if given.at is not None:
        print(one(given.only[0], given.seed, given.at, show=True))
        return 0
    table, failures = run(given.only or names, given.n, given.seed)
    for name, counts in table.items():
        print(f"{name:34s} " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    total = sum(table.values(), collections.Counter())
    print("\n".join(failures))
    print(f"{len(table)} names, " + ", ".join(f"{count} {what}" for what, count in sorted(total.items())))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
