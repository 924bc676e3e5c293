"""Optional rivals. A peer prepares everything that is not the question and returns a callable that is timed."""

from collections.abc import Callable
from typing import NamedTuple


class Unavailable(RuntimeError):
    """Why a rival can not take part here."""


class Peer(NamedTuple):
    """`run()` computes and returns the result, `note` says in which form, `arrays` are what a check needs."""

    run: Callable
    note: str = ""
    arrays: tuple = ()
