"""Vectors of 16 float32 inside ``numba.njit`` code: one AVX-512 register, or several narrower ones.

Numba has no vector type, and LLVM does not vectorize these loops by itself: a score is a sum over connections of a
scalar weight times 16 adjacent rows of the batch, at an address that is itself loaded. These intrinsics emit the
vector instructions directly. They do not handle negative indices and check no bounds; the callers check their
arguments instead. Arrays are one-dimensional and C-contiguous; `i` counts elements.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from ..core.device import LINE, aligned, njit  # noqa: F401  kernels import `aligned` from here

LANES = 16
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_I32 = ir.IntType(32)
ZERO, ONE = np.float32(0), np.float32(1)


class _VectorType(types.Type):
    def __init__(self):
        super().__init__(name="float32x16")


vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


def _address(context, builder, array_type, array, i, pointee=None):
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [i])
    return pointer if pointee is None else builder.bitcast(pointer, pointee.as_pointer())


def _select(*lanes):
    return ir.Constant(ir.VectorType(_I32, LANES), list(lanes))


def _splat(builder, scalar):
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(one, one, _select(*[0] * LANES))


def _load_line(context, builder, array_type, array, i):
    line = builder.load(_address(context, builder, array_type, array, i, _VECTOR))
    line.align = 4
    return line


def _store_transposed(context, builder, array_type, array, i, stride, lines):
    """``array[i + stride row + column] = lines[column][row]``: 16 vectors, transposed in registers."""
    step = 1
    while step < LANES:  # swap the off-diagonal step x step squares of every 2 step x 2 step square
        lower = _select(*[e if not e & step else (e ^ step) + LANES for e in range(LANES)])
        upper = _select(*[e | step if not e & step else e + LANES for e in range(LANES)])
        for k in range(LANES):
            if not k & step:
                x, y = lines[k], lines[k | step]
                lines[k] = builder.shuffle_vector(x, y, lower)
                lines[k | step] = builder.shuffle_vector(x, y, upper)
        step *= 2
    for k, line in enumerate(lines):
        position = builder.add(i, builder.mul(stride, ir.IntType(64)(k)))
        builder.store(line, _address(context, builder, array_type, array, position, _VECTOR)).align = 4


@intrinsic
def item(typingctx, array, i):
    """``array[i]``, i >= 0, for any element type."""

    def codegen(context, builder, sig, args):
        return builder.load(_address(context, builder, sig.args[0], args[0], args[1]))

    return array.dtype(array, types.intp), codegen


@intrinsic
def set_item(typingctx, array, i, value):
    """``array[i] = value``, i >= 0, for a value of the element type."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.none(array, types.intp, array.dtype), codegen


@intrinsic
def load(typingctx, array, i):
    """``array[i:i + 16]``."""

    def codegen(context, builder, sig, args):
        return _load_line(context, builder, sig.args[0], args[0], args[1])

    return vector(array, types.intp), codegen


@intrinsic
def store(typingctx, array, i, v):
    """``array[i:i + 16] = v``."""

    def codegen(context, builder, sig, args):
        instruction = builder.store(args[2], _address(context, builder, sig.args[0], args[0], args[1], _VECTOR))
        instruction.align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), codegen


@intrinsic
def stores(typingctx, array, i, vectors):
    """Store a tuple of vectors, concatenated, from ``array[i]`` on."""

    def codegen(context, builder, sig, args):
        for j in range(sig.args[2].count):
            position = builder.add(args[1], ir.IntType(64)(j * LANES))
            line = builder.extract_value(args[2], j)
            builder.store(line, _address(context, builder, sig.args[0], args[0], position, _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, vectors), codegen


@intrinsic
def stream(typingctx, array, i, v):
    """`store` past the caches, for data not read soon; ``array[i]`` must be aligned to 64 bytes."""

    def codegen(context, builder, sig, args):
        instruction = builder.store(args[2], _address(context, builder, sig.args[0], args[0], args[1], _VECTOR))
        instruction.align = LINE
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), codegen


@intrinsic
def prefetch(typingctx, array, i):
    """Start loading the cache line of ``array[i]``."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(_address(context, builder, sig.args[0], args[0], args[1]), kind.args[0])
        builder.call(function, [address, _I32(0), _I32(3), _I32(1)])  # read, keep in all caches, data
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


@intrinsic
def splat(typingctx, scalar):
    """A vector with `scalar` (float32) in every lane."""

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0])

    return vector(types.float32), codegen


@intrinsic
def power_of_two(typingctx, n):
    """``2.0**n`` as float32, for an int32 -126 <= n <= 127."""

    def codegen(context, builder, sig, args):
        bits = builder.shl(builder.add(args[0], _I32(127)), _I32(23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def add(typingctx, a, b):
    """``a + b``."""

    def codegen(context, builder, sig, args):
        return builder.fadd(*args)

    return vector(vector, vector), codegen


@intrinsic
def mul(typingctx, a, b):
    """``a * b``."""

    def codegen(context, builder, sig, args):
        return builder.fmul(*args)

    return vector(vector, vector), codegen


@intrinsic
def maximum(typingctx, a, b):
    """The larger of a and b in each lane; b where a is NaN."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vector(vector, vector), codegen


@intrinsic
def fma(typingctx, scalar, v, total):
    """``scalar * v + total``, rounded once."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32")
        return builder.call(function, [_splat(builder, args[0]), args[1], args[2]])

    return vector(types.float32, vector, vector), codegen


@intrinsic
def fmas(typingctx, scalars, i, stride, v, totals):
    """``tuple(scalars[i + j * stride] * v + total for j, total in enumerate(totals))``, each rounded once."""

    def codegen(context, builder, sig, args):
        array, position, stride, v, totals = args
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32")
        result = totals
        for j in range(sig.return_type.count):
            scalar = builder.load(_address(context, builder, sig.args[0], array, position))
            total = builder.call(function, [_splat(builder, scalar), v, builder.extract_value(totals, j)])
            result, position = builder.insert_value(result, total, j), builder.add(position, stride)
        return result

    return totals(scalars, types.intp, types.intp, vector, totals), codegen


@intrinsic
def dot(typingctx, a, b):
    """``sum(a * b)``, added pairwise (16 -> 8 -> 4 -> 2 -> 1), in the same order on every machine."""

    def codegen(context, builder, sig, args):
        total, width = builder.fmul(*args), LANES
        while width > 1:
            width //= 2
            half = ir.VectorType(_I32, width)
            low = builder.shuffle_vector(total, total, ir.Constant(half, list(range(width))))
            high = builder.shuffle_vector(total, total, ir.Constant(half, list(range(width, 2 * width))))
            total = builder.fadd(low, high)
        return builder.extract_element(total, _I32(0))

    return types.float32(vector, vector), codegen


@intrinsic
def dots(typingctx, a, array, indices, k):
    """``[sum(a * array[16 i : 16 i + 16]) for i in indices[k : k + 16]]``, each added in the order of `dot`."""

    def codegen(context, builder, sig, args):
        i64, a, sums = ir.IntType(64), args[0], []
        for j in range(LANES):
            index = builder.load(_address(context, builder, sig.args[2], args[2], builder.add(args[3], i64(j))))
            position = builder.mul(builder.sext(index, i64), i64(LANES))
            sums.append(builder.fmul(a, _load_line(context, builder, sig.args[1], args[1], position)))
        width = LANES
        while width > 1:  # join two vectors of runs of `width` lanes: twice as many runs, each half as long
            half = width // 2
            low = [run + lane for run in range(0, 2 * LANES, width) for lane in range(half)]
            sums = [
                builder.fadd(*(builder.shuffle_vector(x, y, _select(*[i + d for i in low])) for d in (0, half)))
                for x, y in zip(sums[::2], sums[1::2], strict=True)
            ]
            width = half
        return sums[0]

    return vector(vector, array, indices, types.intp), codegen


@intrinsic
def transposed(typingctx, a, indices, i, out, j):
    """``out[j + 16 row + column] = a[16 indices[i + column] + row]``: 16 gathered lines, transposed in registers."""

    def codegen(context, builder, sig, args):
        i64, lines = ir.IntType(64), []
        for k in range(LANES):
            index = builder.load(_address(context, builder, sig.args[1], args[1], builder.add(args[2], i64(k))))
            position = builder.mul(builder.sext(index, i64), i64(LANES))
            lines.append(_load_line(context, builder, sig.args[0], args[0], position))
        _store_transposed(context, builder, sig.args[3], args[3], args[4], i64(LANES), lines)
        return context.get_dummy_value()

    return types.none(a, indices, types.intp, out, types.intp), codegen


def _mask(builder, lanes):
    return builder.bitcast(lanes, ir.IntType(LANES))


@intrinsic
def any_above(typingctx, a, b):
    """Whether ``a > b`` in any lane, or a or b is NaN there."""

    def codegen(context, builder, sig, args):
        bits = _mask(builder, builder.fcmp_unordered(">", *args))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(vector, vector), codegen


@intrinsic
def nonzero_lanes(typingctx, v):
    """An int64 below 2^16 whose bit q is set if lane q is nonzero (NaN is)."""

    def codegen(context, builder, sig, args):
        bits = _mask(builder, builder.fcmp_unordered("!=", args[0], ir.Constant(_VECTOR, [0.0] * LANES)))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(vector), codegen


@intrinsic
def count_bits(typingctx, mask):
    """The number of set bits of an int64."""

    def codegen(context, builder, sig, args):
        return builder.ctpop(args[0])

    return types.int64(types.int64), codegen


@intrinsic
def lowest_bit(typingctx, mask):
    """The index of the lowest set bit of a nonzero int64."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.int64), codegen


@njit
def any_nonzero(v):
    """Whether any lane is nonzero (NaN is)."""
    return nonzero_lanes(v) != 0


@intrinsic
def transpose(typingctx, a, i, stride, b, j, b_stride):
    """``b[j + b_stride row + column] = a[i + stride column + row]`` for 16 x 16 numbers, transposed in registers."""

    def codegen(context, builder, sig, args):
        positions = [builder.add(args[1], builder.mul(args[2], ir.IntType(64)(k))) for k in range(LANES)]
        lines = [_load_line(context, builder, sig.args[0], args[0], position) for position in positions]
        _store_transposed(context, builder, sig.args[3], args[3], args[4], args[5], lines)
        return context.get_dummy_value()

    return types.none(a, types.intp, types.intp, b, types.intp, types.intp), codegen


@njit
def prefetch_range(array, start, n):
    """Start loading the cache lines of ``array[start : start + n]``, of 4-byte elements."""
    for i in range(start, start + n, LANES):
        prefetch(array, i)


@njit
def inner(a, i, b, j, n):
    """``sum(a[i:i + n] * b[j:j + n])``, always added in the same order."""
    whole = n - n % (2 * LANES)
    even, odd = splat(ZERO), splat(ZERO)
    for d in range(0, whole, 2 * LANES):
        even = add(even, mul(load(a, i + d), load(b, j + d)))
        odd = add(odd, mul(load(a, i + d + LANES), load(b, j + d + LANES)))
    total = dot(add(even, odd), splat(ONE))
    for d in range(whole, n):
        total += item(a, i + d) * item(b, j + d)
    return total
