"""Argument checks. Every message names the argument, the rule, what came, and the fix."""

import math
import os
import reprlib
from pathlib import Path

import numpy as np

from .device import SimArray, as_native, cuda_available, cuda_problem, device_of, empty, module_of, to_numpy

#: The largest and the smallest normal float32: what kernels can take as a number.
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
#: Numbers that a result of one call may hold.
MOST_ELEMENTS = 2**31 - 1
#: Results of a query that may be padding where there are fewer classes.
MOST_PADDED = 65_536


def shown(value):
    """`value` as an error shows it: short, whatever it is."""
    try:
        return reprlib.repr(value) if isinstance(value, (int, str, bytes, list, tuple, dict, set)) else repr(value)[:80]
    except Exception:  # a number of more digits than Python prints, an object that can not say what it is
        return f"a {type(value).__name__} that can not be shown"


def _fix(name, value):
    """What makes an array of `value`, where something does; as the end of an error message."""
    if hasattr(value, "toarray"):  # a SciPy sparse matrix
        return f"; use {name}.toarray()"
    if type(value).__module__ == "torch":  # on the CPU; np.asarray refuses tensors with gradients, and bfloat16
        return f"; use {name}.detach(){'.float()' if value.is_floating_point() else ''}.numpy()"
    is_array_like = isinstance(value, (list, tuple)) or hasattr(value, "__array__")
    return f"; use np.asarray({name})" if is_array_like else ""


def _device(name, value):
    """The device of an array; TypeError where `value` is none, or one whose entries are not what they seem."""
    for kind, fix in ((np.ma.MaskedArray, f"{name}.filled()"), (np.matrix, f"np.asarray({name})")):
        if isinstance(value, kind):
            raise TypeError(f"{name} must be a plain array, got a {type(value).__name__}; use {fix}")
    device = device_of(value)
    if device is None:
        raise TypeError(f"{name} must be a NumPy or CUDA array, got {type(value).__name__}{_fix(name, value)}")
    return device


def same_device(**arrays):
    """The device that all arrays share; TypeError that names each where they differ or are no arrays."""
    devices = {name: _device(name, a) for name, a in arrays.items()}
    if len(set(devices.values())) > 1:
        placed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise TypeError(
            f"all arrays must live on one device, got {placed}; move them with cupy.asarray or cupy.asnumpy"
        )
    device = next(iter(devices.values()))
    if device == "cuda" and not cuda_available():
        raise RuntimeError(f"CUDA arrays can not be computed on: {cuda_problem()}")
    return device


def _native(name, value):
    """An array as its backend sees it: a foreign CUDA array as CuPy's, a subclass of ndarray (a memmap) as an ndarray."""
    _device(name, value)
    is_subclass = isinstance(value, np.ndarray) and type(value) not in (np.ndarray, SimArray)
    return value.view(np.ndarray) if is_subclass else as_native(value)


def _layout(name, value, shape):
    """ValueError where an array has another shape, or does not lie in memory as kernels read it."""
    fits = value.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {value.shape}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{name} must be C-contiguous (row-major), got strides {value.strides}; use np.ascontiguousarray({name})"
        )
    if isinstance(value, np.ndarray) and not value.flags.aligned:
        raise ValueError(f"{name} must begin at a multiple of {value.itemsize} bytes; pass a copy: {name}.copy()")


def array(name, value, dtype, shape, writeable=False):
    """Check dtype, shape and layout of an array and return it (a foreign CUDA array as CuPy sees it).

    `shape` holds an int where the size is fixed and a letter where it is free, e.g. ``("B", 128)``.
    """
    value, dtype = _native(name, value), np.dtype(dtype)
    if value.dtype != dtype:
        part = ".real" if value.dtype.kind == "c" else ""
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}; use {name}{part}.astype(np.{dtype})")
    _layout(name, value, shape)
    if writeable:
        writable(name, value)
    return value


def writable(name, value):
    """ValueError where a NumPy array that will be written to is read-only."""
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        fix = f"use copy.deepcopy({name.partition('.')[0]})" if "." in name else f"pass a copy: {name}.copy()"
        raise ValueError(f"{name} is written to but is read-only; {fix}")


def integers(name, value, shape, n=None, dtype=np.int32):
    """An array of integers of any width and byte order as `dtype` (int32); one that is so already is not copied.

    Numbers must lie in [0, n) where n is given, else fit `dtype`. `shape` as for `array`.
    """
    value, dtype = _native(name, value), np.dtype(dtype)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {value.dtype}; use {name}.astype(np.{dtype})")
    _layout(name, value, shape)
    if n is not None:
        below(name, value, n)
    elif value.size and value.dtype != dtype:
        limits, low, high = np.iinfo(dtype), int(value.min()), int(value.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"{name} must fit {dtype}, got {low if low < limits.min else high}")
    return value if value.dtype == dtype else value.astype(dtype)


def on_host(name, value):
    """A NumPy array of an array or a sequence; errors for what is neither."""
    if isinstance(value, (list, tuple, range)):
        try:
            return np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} must not be ragged, got sequences of different lengths") from error
    _device(name, value)
    return to_numpy(value)


def amounts(name, value, n=None):
    """Finite numbers that are not negative, (n,) float64 NumPy, of an array or a sequence of integers or floats."""
    value = on_host(name, value)
    if value.ndim != 1 or n not in (None, len(value)):
        raise ValueError(f"{name} must have shape ({'L' if n is None else n},), got {value.shape}")
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold integers or floats, got {value.dtype}; use np.asarray({name}, np.float64)")
    value = value.astype(np.float64)
    finite(name, value)
    if (value < 0).any():
        raise ValueError(f"{name} must not be negative, got {value.min():g}")
    return value


def elements(limit=MOST_ELEMENTS, **sizes):
    """ValueError where an array of these sizes, by name, would hold more than `limit` numbers."""
    n = max(math.prod(sizes.values()), max(sizes.values()))
    if n > limit:
        product = " x ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"{product} must make at most {limit} numbers at once, got {n}; ask for fewer")


def output(name, out, dtype, shape, device, **inputs):
    """A preallocated output where one was given (checked, and apart from the `inputs`), else a new array."""
    if out is None:
        return empty(shape, dtype, device)
    out = array(name, out, dtype, shape, writeable=True)
    if device_of(out) != device:
        raise TypeError(f"{name} must live on {device} like the inputs, got {device_of(out)}")
    for other, value in inputs.items():
        if isinstance(out, np.ndarray) and np.may_share_memory(out, value):
            raise ValueError(f"{name} must not share memory with {other}; pass a new array")
    return out


def finite(name, value):
    """ValueError where a float array holds NaN or infinity; says where the first one is."""
    finite = module_of(device_of(value)).isfinite(value)
    if not bool(finite.all()):
        place = np.unravel_index(int(np.argmin(to_numpy(finite))), value.shape)
        where = ", ".join(str(int(p)) for p in place)
        raise ValueError(
            f"{name} must be finite, got {float(value[place])} at [{where}]; fix the data or lower the learning rate"
        )


def below(name, value, n):
    """ValueError where an integer array holds a number outside [0, n); says which."""
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= n:
            raise ValueError(f"{name} must lie in [0, {n}), got {low if low < 0 else high}")


def integer(name, value, low, high=None, hint=""):
    """An int in [low, high], below 2^63 where no `high` is given; bools and floats are a TypeError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {shown(value)}")
    value = int(value)
    if value < low or value > (2**63 - 1 if high is None else high):
        rule = f"between {low} and {high}" if high is not None else f"at least {low}" if value < low else "below 2^63"
        raise ValueError(f"{name} must be {rule}{hint}, got {shown(value)}")
    return value


def padded_k(k, n_classes):
    """k of a top-k search whose missing results are padded: more than there are classes, but not without bound."""
    high = max(n_classes, MOST_PADDED)
    return integer("k", k, 1, high, f" (there are {n_classes} classes; the rest is padding)")


def number(name, value, low, high, open_ends=False):
    """A finite float in [low, high], or in (low, high) with `open_ends`, that is one in float32, too."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {shown(value)}")
    text = shown(value) if isinstance(value, int) else str(value)
    try:
        value = float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be a float32, at most {LARGEST:.3g}, got {text}") from error
    inside = low < value < high if open_ends else low <= value <= high
    if not (inside and math.isfinite(value)):
        ends = "()" if open_ends else "[]"
        raise ValueError(f"{name} must lie in {ends[0]}{low}, {high}{ends[1]}, got {text}")
    if abs(value) > LARGEST:
        raise ValueError(f"{name} must be a float32, at most {LARGEST:.3g}, got {text}")
    if open_ends and low == 0 and value < SMALLEST:
        raise ValueError(f"{name} must be above 0 in float32, at least {SMALLEST:.3g}, got {text}")
    return value


def sequence(name, value, what):
    """A list of the members of a list, tuple or array of one axis; TypeError for what is none. `what` says of what."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        _device(name, value)
        return value.tolist()
    if not isinstance(value, (list, tuple, range)):
        raise TypeError(f"{name} must be a sequence of {what}, got {type(value).__name__} {shown(value)}")
    return list(value)


def pair(name, value, what):
    """The two members of a tuple or list; TypeError for what is none. `what` says of what."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair {what}, got {type(value).__name__} {shown(value)}")
    return tuple(value)


def path(name, value):
    """A path; TypeError for what is none, ValueError for one that no system knows."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {type(value).__name__} {shown(value)}")
    if value == "":
        raise ValueError(f"{name} must not be empty")
    if "\0" in os.fspath(value):
        raise ValueError(f"{name} must not hold a null character, got {shown(value)}")
    return Path(value)


def flag(name, value):
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def choice(name, value, choices):
    """One of `choices`, which are strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")
    return value
