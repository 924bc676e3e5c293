"""What a description that was read from a file has to look like, in rules that are put together like the description itself.

A rule is a function of a name and a value: it raises TypeError or ValueError, which name the value, or returns nothing.
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


def figure(name, value):
    """A number that is only shown: it may be NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def optional(rule):
    """None, or what the rule allows."""
    return lambda name, value: None if value is None else rule(name, value)


def list_of(rule, length=None):
    """A list, of which every element follows the rule."""

    def of_list(name, value):
        if not isinstance(value, list):
            raise TypeError(f"{name} must be a list, got {type(value).__name__}")
        if length is not None and len(value) != length:
            raise ValueError(f"{name} must have {length} elements, got {len(value)}")
        for number, element in enumerate(value):
            rule(f"{name}[{number}]", element)

    return of_list


def dict_of(rule):
    """An object, of which every value follows the rule."""

    def of_dict(name, value):
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be an object, got {type(value).__name__}")
        for key, element in value.items():
            rule(f"{name}.{key}", element)

    return of_dict


def record(**rules):
    """An object that has these values; others are not looked at."""

    def of_record(name, value):
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be an object, got {type(value).__name__}")
        for key, rule in rules.items():
            if key not in value:
                raise ValueError(f"{name} must have {key!r}")
            rule(f"{name}.{key}", value[key])

    return of_record
