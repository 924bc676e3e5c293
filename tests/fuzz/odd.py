"""Odd and bad values in place of good ones, and what tells whether anything has changed."""

import copy
import decimal
import fractions
import hashlib
import tempfile
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import scipy.sparse

import sparsemax_nb

HUGE = 10**5000  # more digits than Python prints
INTEGERS = (
    0,
    -1,
    1,
    2,
    7,
    1000,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    2**100,
    HUGE,
    -(2**31),
    -(2**64),
    1.0,
    1.5,
    float("nan"),
    float("inf"),
    1e300,
    True,
    np.True_,
    None,
    "3",
    b"3",
    2j,
    decimal.Decimal(2),
    fractions.Fraction(2),
    np.int64(2),
    np.uint8(2),
    np.int16(1),
    np.float32(2),
    np.float64("nan"),
    np.array(2),
    np.array([2]),
    [2],
    (),
    {},
    object(),
    np.ma.masked,
    range(3),
    ml_dtypes.bfloat16(2),
)
NUMBERS = (
    0,
    0.0,
    -0.0,
    -1,
    1,
    0.5,
    1e-300,
    1e-45,
    1e-38,
    1e30,
    3e38,
    1e39,
    1e300,
    1e308,
    HUGE,
    -1e300,
    2**70,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    None,
    "0.5",
    1j,
    decimal.Decimal("0.5"),
    decimal.Decimal("NaN"),
    fractions.Fraction(1, 2),
    np.float32(0.5),
    np.float64(1e300),
    np.float16(0.5),
    np.longdouble("1e4000"),
    np.int8(1),
    np.array(0.5),
    [0.5],
    object(),
)
WORDS = (
    "",
    "x",
    "CPU",
    "auto",
    "mean ",
    None,
    0,
    True,
    1.5,
    ["cpu"],
    b"cpu",
    np.str_("x"),
    np.array(["cpu", "x"]),
    object(),
    "é" * 99,
)
FLAGS = (True, False, np.True_, np.False_, 1, 0, "yes", None, np.array([True, False]), [], 2.0)
OBJECTS = (
    None,
    0,
    1.5,
    "x",
    [],
    {},
    np.zeros(3, np.float32),
    object(),
    int,
    sparsemax_nb.SGD(0.1),
    sparsemax_nb.UniformSampler(3),
)
PATHS = (
    "",
    "nothing/there",
    b"bytes",
    None,
    3,
    1.5,
    "\0",
    "x" * 5000,
    [],
    object(),
    Path("/"),
    Path("/dev/null"),
    "é\udc80",
)
KINDS = (
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    np.uint32,
    np.int64,
    np.uint64,
    ">i2",
    ">i4",
    ">i8",
    ">u8",
    "<i4",
    np.float16,
    np.float32,
    np.float64,
    ">f4",
    ">f8",
    np.longdouble,
    ml_dtypes.bfloat16,
    np.complex64,
    bool,
    object,
    "U8",
    "M8[s]",
    [("a", "f4")],
)


#: Attributes that are room for the next step, not state.
SCRATCH = {"_scores", "_drows"}


def pick(random, values):
    return values[random.integers(len(values))]


def _cast(random, a):
    kind = np.dtype(pick(random, KINDS))
    with np.errstate(all="ignore"):
        return a.astype(kind) if kind.names is None else np.zeros(a.shape, kind)


def _unaligned(random, a):
    out = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype) if a.size else a
    out = out.reshape(a.shape)
    out[...] = a
    return out


def _entry(random, a):
    """One entry replaced by a number that is no good, or at the edge of what is."""
    a = a.copy()
    if a.size:
        floats = np.nan, np.inf, -np.inf, 1e38, -1e38, 1e19, 1e-40, 0, 1e8
        integers = -1, -2, 0, 1, 7, 1000, 2**31 - 1, -(2**31)
        at = np.unravel_index(random.integers(a.size), a.shape)
        a[at] = pick(
            random,
            floats
            if a.dtype.kind == "f"
            else [i for i in integers if np.can_cast(np.min_scalar_type(i), a.dtype) or a.dtype.kind == "i"],
        )
    return a


def _read_only(random, a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _memmap(random, a):
    if not a.size:
        return a
    with tempfile.NamedTemporaryFile() as file:  # its name goes, the memory stays
        out = np.memmap(file.name, a.dtype, "w+", shape=a.shape)
    out[...] = a
    return out


def _ragged(random, a):
    return [a.tolist(), [1, 2, 3, 4, 5, 6, 7]]


ARRAYS = (
    *[_cast] * 6,
    *[_entry] * 5,
    _unaligned,
    _memmap,
    lambda r, a: np.asfortranarray(a),
    lambda r, a: a[::-1],
    lambda r, a: a[..., ::-1],
    lambda r, a: np.repeat(a, 2, axis=0)[::2],
    lambda r, a: a.T,
    lambda r, a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    lambda r, a: a[:0],
    lambda r, a: a[..., :0],
    lambda r, a: a[1:],
    lambda r, a: a[None],
    lambda r, a: a[..., None],
    lambda r, a: a[:1],
    lambda r, a: np.concatenate([a, a]) if a.ndim else a,
    lambda r, a: a.reshape(-1),
    lambda r, a: a[:, 1:].copy() if a.ndim > 1 else a[1:],
    lambda r, a: np.array(1, a.dtype),
    lambda r, a: a.tolist(),
    _ragged,
    lambda r, a: tuple(a.tolist()),
    lambda r, a: np.ma.masked_array(a, np.ones(a.shape, bool)),
    lambda r, a: np.asmatrix(a) if a.ndim <= 2 else a,
    lambda r, a: scipy.sparse.csr_matrix(np.atleast_2d(a).astype(float)),
    lambda r, a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
    lambda r, a: None,
    lambda r, a: "x",
    lambda r, a: 1.5,
    lambda r, a: memoryview(a),
    lambda r, a: np.zeros_like(a),
    lambda r, a: a.astype(np.float32).max(initial=0),
)


def _stored(random, m, change):
    """A CSR matrix around arrays that `change` has seen to, as they are."""
    m = m.copy()
    change(m)
    return m


def _unsorted(random, m):
    m = m.tocsr().copy()
    for row in range(m.shape[0]):
        s = slice(*m.indptr[row : row + 2])
        m.indices[s], m.data[s] = m.indices[s][::-1].copy(), m.data[s][::-1].copy()
    return scipy.sparse.csr_matrix((m.data, m.indices, m.indptr), m.shape)


def _twice(random, m):
    m = m.tocsr()
    arrays = np.repeat(m.data, 2), np.repeat(m.indices, 2), m.indptr * 2
    return scipy.sparse.csr_matrix(arrays, m.shape)


def _frozen(random, m):
    m = _unsorted(random, m) if random.random() < 0.5 else m.tocsr().copy()
    for a in (m.data, m.indices, m.indptr):
        a.flags.writeable = False
    return m


def _broken(random, m):
    """A matrix whose arrays were written to behind SciPy's back."""
    m = m.tocsr().copy()
    what = random.integers(6)
    if what == 0 and m.nnz:
        m.indices[random.integers(m.nnz)] = pick(random, [-1, 1000, 2**31 - 1, -(2**31)])
    elif what == 1:
        m.indptr[random.integers(len(m.indptr))] = pick(random, [-1, 1000, 2**31 - 1, -(2**31)])
    elif what == 2:
        m.data = m.data[:-1]
    elif what == 3:
        m.indices = m.indices[: m.nnz // 2]
    elif what == 4:
        m.indptr = m.indptr[:-1]
    else:
        m.indices = m.indices.astype(np.int64) + 2**32
    return m


def _with_data(random, m):
    m = m.tocsr().copy()
    if m.nnz:
        m.data[random.integers(m.nnz)] = pick(random, [np.nan, np.inf, 0, -1, 0.5, 1e38, 2])
    return m


def _wide(random, m):
    m = m.tocsr().copy()
    m.indices, m.indptr = m.indices.astype(np.int64), m.indptr.astype(np.int64)
    return m


SPARSE = (
    *[_unsorted] * 2,
    *[_twice] * 2,
    *[_frozen] * 2,
    *[_broken] * 3,
    *[_with_data] * 4,
    _wide,
    *[lambda r, m: m.asformat(pick(r, ["csc", "coo", "lil", "dok", "bsr", "dia"]))] * 2,
    lambda r, m: scipy.sparse.csr_array(m),
    *[
        lambda r, m: m.astype(
            pick(r, [bool, np.int8, np.int64, np.float64, np.complex64, np.uint8, np.longdouble, ">f4"])
        )
    ]
    * 3,
    lambda r, m: m[:0],
    lambda r, m: m[:, :0],
    lambda r, m: m[1:],
    lambda r, m: m[:, 1:],
    lambda r, m: m.T.tocsr(),
    lambda r, m: m.toarray(),
    lambda r, m: m.toarray().tolist(),
    lambda r, m: None,
    lambda r, m: "x",
    lambda r, m: m.data,
    lambda r, m: scipy.sparse.csr_matrix(m.shape, dtype=m.dtype),
    lambda r, m: m.toarray().astype(object),
    lambda r, m: scipy.sparse.coo_array(np.ones(3)) if hasattr(scipy.sparse, "coo_array") else m,
)


def _list(random, value):
    value = list(value)
    choices = [
        value[:-1],
        value + value,
        [*value, None],
        [*value, -1],
        tuple(value),
        None,
        "abc",
        3,
        [],
        [value],
        iter(value),
        np.array(value, object),
        [*value, "x"],
        [*value, float("nan")],
        [*value, 2**70],
        dict(enumerate(value)),
        {1, 2},
        value[::-1],
    ]
    return pick(random, choices)


def odd(random, value):
    """Something odd or bad in place of `value`, or (now and then) something good of another kind."""
    if random.random() < 0.04:
        return pick(random, OBJECTS)
    if isinstance(value, sparsemax_nb.Labels):
        fields = list(value)
        at = random.integers(2)
        fields[at] = odd(random, fields[at])
        return pick(
            random,
            [sparsemax_nb.Labels(*fields), tuple(fields), fields, (*fields, 1)][: 1 + 3 * (random.random() < 0.3)],
        )
    if scipy.sparse.issparse(value):
        return pick(random, SPARSE)(random, value)
    if isinstance(value, np.ndarray):
        with np.errstate(all="ignore"):
            return pick(random, ARRAYS)(random, value)
    if isinstance(value, (bool, np.bool_)):
        return pick(random, FLAGS)
    if isinstance(value, (int, np.integer)):
        return pick(random, INTEGERS)
    if isinstance(value, float):
        return pick(random, NUMBERS)
    if isinstance(value, str):
        return pick(random, WORDS)
    if isinstance(value, Path):
        return pick(random, PATHS)
    if isinstance(value, (list, tuple)):
        value = list(value)
        if value and not isinstance(value[0], (str, int, float)) and random.random() < 0.6:
            at = random.integers(len(value))
            value[at] = odd(random, value[at])
            return value
        return _list(random, value)
    return pick(random, OBJECTS)


def freeze(value):
    """`value` with every NumPy array read-only, as joblib hands them to its workers."""
    if isinstance(value, np.ndarray):
        return _read_only(None, value)
    if scipy.sparse.issparse(value) and value.format == "csr":
        value = value.copy()
        for a in (value.data, value.indices, value.indptr):
            a.flags.writeable = False
        return value
    if isinstance(value, sparsemax_nb.Labels):
        return sparsemax_nb.Labels(*map(freeze, value))
    if isinstance(value, sparsemax_nb.FixedFanIn):
        value = copy.deepcopy(value)
        for a in value.arrays:
            if isinstance(a, np.ndarray):
                a.flags.writeable = False
        return value
    return value


def state(value, seen=None):
    """What `value` holds, so that two states are equal where nothing has changed: arrays by their bytes."""
    seen = {} if seen is None else seen
    if isinstance(value, np.ndarray):
        plain = np.asarray(value)
        held = plain.size if plain.dtype.hasobject else hashlib.blake2b(plain.tobytes(), digest_size=8).hexdigest()
        return type(value).__name__, str(value.dtype), value.shape, value.strides, value.flags.writeable, held
    is_plain = isinstance(value, (str, bytes, int, float, bool, complex, type(None)))
    if not is_plain:
        if id(value) in seen:
            return "again"
        seen[id(value)] = value
    if scipy.sparse.issparse(value):
        return type(value).__name__, {name: state(part, seen) for name, part in vars(value).items()}
    if isinstance(value, dict):
        return [(repr(key) if isinstance(key, str) else "", state(part, seen)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [state(part, seen) for part in value]
    if type(value).__module__.startswith("sparsemax_nb") and not isinstance(value, (type, types.FunctionType)):
        return type(value).__name__, [
            (name, state(part, seen)) for name, part in sorted(vars(value).items()) if name not in SCRATCH
        ]
    return (
        repr(value)[:200]
        if isinstance(value, (str, float, bool))
        else (hex(value) if isinstance(value, int) else type(value).__name__)
    )
