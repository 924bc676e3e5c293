"""Argument checks. Every message names the argument, the rule, what came, and the mend."""

import numpy as np

from . import backend

#: Results of a query that may be padding where there are fewer classes.
MOST_PADDED = 65_536


def same_device(**arrays):
    """The device that all arrays share; TypeError that names each where they differ or are no arrays."""
    devices = {name: backend.device_of(a) for name, a in arrays.items()}
    for name, device in devices.items():
        if device is None:
            raise TypeError(
                f"{name} must be a NumPy or CUDA array, got {type(arrays[name]).__name__}; use np.asarray({name})"
            )
    if len(set(devices.values())) > 1:
        placed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise TypeError(f"all arrays must live on one device, got {placed}; move them with backend.asarray")
    device = next(iter(devices.values()))
    if device == "cuda" and not backend.cuda_available():
        raise RuntimeError(f"CUDA arrays can not be computed on: {backend.cuda_problem()}")
    return device


def array(name, value, dtype, shape, writeable=False):
    """Check dtype, shape and layout of an array and return it (a foreign CUDA array as CuPy sees it).

    `shape` holds an int where the size is fixed and a letter where it is free, e.g. ``("B", 128)``.
    """
    if backend.device_of(value) is None:
        raise TypeError(f"{name} must be a NumPy or CUDA array, got {type(value).__name__}; use np.asarray({name})")
    value = backend.as_native(value)
    dtype = np.dtype(dtype)
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}; use {name}.astype(np.{dtype})")
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
    if writeable and isinstance(value, np.ndarray) and not value.flags.writeable:
        raise ValueError(f"{name} is written to but is read-only; pass a copy: {name}.copy()")
    return value


def output(name, out, dtype, shape, device):
    """A preallocated output where one was given (checked), else a new array."""
    if out is None:
        return backend.empty(shape, dtype, device)
    out = array(name, out, dtype, shape, writeable=True)
    if backend.device_of(out) != device:
        raise TypeError(f"{name} must live on {device} like the inputs, got {backend.device_of(out)}")
    return out


def finite(name, value):
    """ValueError where a float array holds NaN or infinity; says where the first one is."""
    finite = backend.module_of(backend.device_of(value)).isfinite(value)
    if not bool(finite.all()):
        place = np.unravel_index(int(np.argmin(backend.to_numpy(finite))), value.shape)
        where = ", ".join(str(int(p)) for p in place)
        raise ValueError(
            f"{name} must be finite, got {float(value[place])} at [{where}]; mend the data or lower the learning rate"
        )


def below(name, value, n):
    """ValueError where an integer array holds a number outside [0, n); says which."""
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= n:
            raise ValueError(f"{name} must lie in [0, {n}), got {low if low < 0 else high}")


def integer(name, value, low, high=None, hint=""):
    """An int in [low, high]; bools and floats are a TypeError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r}")
    if value < low or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {rule}{hint}, got {value}")
    return int(value)


def padded_k(k, n_classes):
    """k of a top-k search whose missing results are padded: more than there are classes, but not without bound."""
    high = max(n_classes, MOST_PADDED)
    return integer("k", k, 1, high, f" (there are {n_classes} classes; the rest is padding)")


def number(name, value, low, high, open_ends=False):
    """A finite float in [low, high], or in (low, high) with `open_ends`."""
    if isinstance(value, (bool, str, bytes)) or not np.isscalar(value) or not np.isreal(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    inside = low < value < high if open_ends else low <= value <= high
    if not (inside and np.isfinite(value)):
        raise ValueError(
            f"{name} must lie in {'(' if open_ends else '['}{low}, {high}{')' if open_ends else ']'}, got {value}"
        )
    return float(value)


def choice(name, value, choices):
    """One of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
