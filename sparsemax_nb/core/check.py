"""Argument checks. Every message names the argument, the rule, the value that was passed, and the fix."""

import math
import os
import reprlib
from pathlib import Path

import numpy as np

from .device import SimArray, as_native, cuda_available, cuda_problem, device_of, empty, module_of, to_numpy

#: The largest and the smallest normal float32: kernels take scalars as float32.
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
#: Most elements of one result array: the largest int32.
MAX_ELEMENTS = 2**31 - 1
#: Largest k of a top-k search over fewer than k classes: missing results are padding, which costs memory.
MAX_PADDED_K = 65_536


def shown(value):
    """A short representation of `value` for an error message; never raises."""
    try:
        return reprlib.repr(value) if isinstance(value, (int, str, bytes, list, tuple, dict, set)) else repr(value)[:80]
    except Exception:  # an int with too many digits to print, or an object whose repr() fails
        return f"a {type(value).__name__} that cannot be printed"


def _fix(name, value):
    """The end of an error message: how to turn `value` into an array, or an empty string if that is impossible."""
    if hasattr(value, "toarray"):  # a SciPy sparse matrix
        return f"; use {name}.toarray()"
    if type(value).__module__ == "torch":  # a CPU tensor; np.asarray refuses gradients and bfloat16
        return f"; use {name}.detach(){'.float()' if value.is_floating_point() else ''}.numpy()"
    is_array_like = isinstance(value, (list, tuple)) or hasattr(value, "__array__")
    return f"; use np.asarray({name})" if is_array_like else ""


def _device(name, value):
    """The device of an array; TypeError for anything else, masked arrays and `np.matrix` included."""
    for kind, fix in ((np.ma.MaskedArray, f"{name}.filled()"), (np.matrix, f"np.asarray({name})")):
        if isinstance(value, kind):
            raise TypeError(f"{name} must be a plain array, got a {type(value).__name__}; use {fix}")
    device = device_of(value)
    if device is None:
        raise TypeError(f"{name} must be a NumPy or CUDA array, got {type(value).__name__}{_fix(name, value)}")
    return device


def same_device(**arrays):
    """The device that all arrays share; TypeError if they differ or if one is not an array."""
    devices = {name: _device(name, a) for name, a in arrays.items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise TypeError(f"all arrays must live on one device, got {found}; move them with cupy.asarray or cupy.asnumpy")
    device = next(iter(devices.values()))
    if device == "cuda" and not cuda_available():
        raise RuntimeError(f"CUDA arrays were passed, but the CUDA backend cannot run: {cuda_problem()}")
    return device


def _native(name, value):
    """The array as its backend takes it: foreign CUDA arrays as CuPy arrays, ndarray subclasses as ndarrays."""
    _device(name, value)
    is_subclass = isinstance(value, np.ndarray) and type(value) not in (np.ndarray, SimArray)
    return value.view(np.ndarray) if is_subclass else as_native(value)


def _layout(name, value, shape):
    """ValueError if an array has the wrong shape, is not C-contiguous or is not aligned."""
    matches = value.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if not matches:
        wanted = ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {value.shape}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{name} must be C-contiguous (row-major), got strides {value.strides}; use np.ascontiguousarray({name})"
        )
    if isinstance(value, np.ndarray) and not value.flags.aligned:
        raise ValueError(f"{name} must be aligned to {value.itemsize} bytes; pass a copy: {name}.copy()")


def array(name, value, dtype, shape, writeable=False, finite=False):
    """Check dtype, shape and layout of an array and return it (a foreign CUDA array as a CuPy array).

    `shape` contains an int where the size is fixed and a letter where it is free, e.g. ``("B", 128)``.

    With `writeable` and `finite`, also check that it can be written to, and that all its numbers are finite.
    """
    value, dtype = _native(name, value), np.dtype(dtype)
    if value.dtype != dtype:
        part = ".real" if value.dtype.kind == "c" else ""
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}; use {name}{part}.astype(np.{dtype})")
    _layout(name, value, shape)
    if writeable:
        writable(name, value)
    if finite:
        _check_finite(name, value)
    return value


def writable(name, value):
    """ValueError if a NumPy array that will be written to is read-only."""
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        fix = f"use copy.deepcopy({name.partition('.')[0]})" if "." in name else f"pass a copy: {name}.copy()"
        raise ValueError(f"{name} is written to but is read-only; {fix}")


def integers(name, value, shape, n=None, dtype=np.int32):
    """Check an array of integers of any width and byte order and return it as `dtype`; copies only to convert.

    The numbers must be in [0, n) if n is given, else they must fit `dtype`. `shape` as for `array`.
    """
    value, dtype = _native(name, value), np.dtype(dtype)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {value.dtype}; use {name}.astype(np.{dtype})")
    _layout(name, value, shape)
    if n is not None:
        in_range(name, value, n)
    elif value.size and value.dtype != dtype:
        limits = np.iinfo(dtype)
        low, high = int(value.min()), int(value.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"{name} must fit {dtype}, got {low if low < limits.min else high}")
    return value if value.dtype == dtype else value.astype(dtype)


def on_host(name, value):
    """Convert an array on any device, or a sequence, to a NumPy array; TypeError or ValueError for anything else."""
    if isinstance(value, (list, tuple, range)):
        try:
            return np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} must be rectangular, got sequences of different lengths") from error
    _device(name, value)
    return to_numpy(value)


def nonnegative(name, value, n=None):
    """Check finite, non-negative numbers and return them as float64 NumPy array (n,); takes arrays and sequences."""
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


def array_size(limit=MAX_ELEMENTS, **sizes):
    """ValueError if an array with these named sizes would have more than `limit` elements."""
    n = max(math.prod(sizes.values()), max(sizes.values()))
    if n > limit:
        product = " x ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"{product} must be at most {limit} elements, got {n}; reduce one of them")


def output(name, out, dtype, shape, device, **inputs):
    """Check a preallocated output, which must not overlap the `inputs`; without one, return a new array."""
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
    """ValueError if a float array contains NaN or infinity; the message names the first position."""
    finite = module_of(device_of(value)).isfinite(value)
    if not bool(finite.all()):
        position = np.unravel_index(int(np.argmin(to_numpy(finite))), value.shape)
        where = ", ".join(str(int(i)) for i in position)
        raise ValueError(
            f"{name} must be finite, got {float(value[position])} at [{where}]; fix the data or lower the learning rate"
        )


#: `array` has an argument that is called `finite`.
_check_finite = finite


def in_range(name, value, n):
    """ValueError if an integer array contains a number outside [0, n); the message names it."""
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= n:
            raise ValueError(f"{name} must lie in [0, {n}), got {low if low < 0 else high}")


def integer(name, value, low, high=None, hint=""):
    """Check an int in [low, high], or below 2^63 without `high`; TypeError for bools and floats."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {shown(value)}")
    value = int(value)
    if value < low or value > (2**63 - 1 if high is None else high):
        rule = f"between {low} and {high}" if high is not None else f"at least {low}" if value < low else "below 2^63"
        raise ValueError(f"{name} must be {rule}{hint}, got {shown(value)}")
    return value


def padded_k(k, n_classes):
    """Check k of a top-k search that pads missing results: k may exceed the number of classes, up to a bound."""
    high = max(n_classes, MAX_PADDED_K)
    return integer("k", k, 1, high, f" (there are {n_classes} classes; results beyond that are padding)")


def number(name, value, low, high, open_ends=False):
    """Check a finite float in [low, high], or in (low, high) with `open_ends`; it must also fit float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {shown(value)}")
    text = shown(value) if isinstance(value, int) else str(value)
    try:
        value = float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must fit float32, whose largest number is {LARGEST:.3g}, got {text}") from error
    inside = low < value < high if open_ends else low <= value <= high
    if not (inside and math.isfinite(value)):
        ends = "()" if open_ends else "[]"
        raise ValueError(f"{name} must lie in {ends[0]}{low}, {high}{ends[1]}, got {text}")
    if abs(value) > LARGEST:
        raise ValueError(f"{name} must fit float32, whose largest number is {LARGEST:.3g}, got {text}")
    if open_ends and low == 0 and value < SMALLEST:
        raise ValueError(f"{name} must be above 0 in float32, at least {SMALLEST:.3g}, got {text}")
    return value


def sequence(name, value, what):
    """The elements of a list, tuple, range or 1-D array as a list; `what` names them in the TypeError."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        _device(name, value)
        return value.tolist()
    if not isinstance(value, (list, tuple, range)):
        raise TypeError(f"{name} must be a sequence of {what}, got {type(value).__name__} {shown(value)}")
    return list(value)


def pair(name, value, what):
    """Check a tuple or list of two and return a tuple; `what` names its parts in the TypeError."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair {what}, got {type(value).__name__} {shown(value)}")
    return tuple(value)


def path(name, value):
    """Check a path and return a `Path`; it must not be empty or contain a null character."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {type(value).__name__} {shown(value)}")
    if value == "":
        raise ValueError(f"{name} must not be empty")
    if "\0" in os.fspath(value):
        raise ValueError(f"{name} must not contain a null character, got {shown(value)}")
    return Path(value)


def flag(name, value):
    """Check True or False and return a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def choice(name, value, choices):
    """Check that `value` is one of the strings `choices` and return it."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")
    return value
