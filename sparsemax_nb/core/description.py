"""Rules for the description in a model file; they are nested like the description itself.

A rule is a function of a name and a value: it raises a TypeError or ValueError that names the value, or returns None.
"""

import math

from . import check


def integer(low, high=2**63 - 1):
    """An integer between two bounds, both included."""
    return lambda name, value: check.integer(name, value, low, high)


def number(low=-math.inf, high=math.inf):
    """A finite number between two bounds, both included."""
    return lambda name, value: check.number(name, value, low, high)


def text(name, value):
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")


def boolean(name, value):
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {type(value).__name__}")


def text_or_number(name, value):
    """A string, a number, true or false."""
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"{name} must be a string or a number, got {type(value).__name__}")


def any_number(name, value):
    """Any number, NaN and infinity included: it is only shown to the user."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def optional(rule):
    """None, or a value that the rule allows."""
    return lambda name, value: None if value is None else rule(name, value)


def list_of(rule, length=None):
    """A list whose elements follow the rule."""

    def of_list(name, value):
        if not isinstance(value, list):
            raise TypeError(f"{name} must be a list, got {type(value).__name__}")
        if length is not None and len(value) != length:
            raise ValueError(f"{name} must have {length} elements, got {len(value)}")
        for i, element in enumerate(value):
            rule(f"{name}[{i}]", element)

    return of_list


def dict_of(rule):
    """A JSON object whose values follow the rule."""

    def of_dict(name, value):
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be a JSON object, got {type(value).__name__}")
        for key, element in value.items():
            rule(f"{name}.{key}", element)

    return of_dict


def record(**rules):
    """A JSON object with at least these keys; others are ignored."""

    def of_record(name, value):
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be a JSON object, got {type(value).__name__}")
        for key, rule in rules.items():
            if key not in value:
                raise ValueError(f"{name} must have the key {key!r}")
            rule(f"{name}.{key}", value[key])

    return of_record
