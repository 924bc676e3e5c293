"""PTX instructions that Numba has no name for: wide loads, and products of small matrices on the tensor cores.

An intrinsic gets values of LLVM and returns one; where LLVM has no instruction of its own, it writes the PTX down.
Nothing of it runs in the simulator: a kernel that uses them has a plain twin.
"""

from llvmlite import ir
from numba import types

from ..core.device import cuda_intrinsic

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FOUR = types.UniTuple(types.float32, 4)
_WORDS = {n: types.UniTuple(types.uint32, n) for n in (2, 4)}


def _tuple_of(builder, element, values):
    """Values of LLVM as a tuple of Numba's."""
    result = ir.Constant(ir.ArrayType(element, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        result = builder.insert_value(result, value, i)
    return result


@cuda_intrinsic
def load4(typingctx, matrix, row, column):
    """``matrix[row, column:column + 4]`` in one load of 16 bytes; the first must lie at a multiple of 16 bytes.

    No index may be negative; rows and the bytes of one, below 2^32: their product is then a single instruction.
    """

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        row, column = (builder.trunc(value, _I32) if value.type.width > 32 else value for value in args[1:])
        pitch = builder.mul(builder.trunc(builder.extract_value(array.shape, 1), _I32), _I32(4))
        first = builder.ptrtoint(builder.gep(array.data, [builder.zext(column, _I64)]), _I64)
        asm = ir.InlineAsm(
            ir.FunctionType(_I64, [_I32, _I32, _I64]), "mad.wide.u32 $0, $1, $2, $3;", "=l,r,r,l", side_effect=False
        )
        place = builder.inttoptr(builder.call(asm, [row, pitch, first]), ir.VectorType(_FLOAT, 4).as_pointer(1))
        vector = builder.load(place)
        vector.align = 16
        return _tuple_of(builder, _FLOAT, [builder.extract_element(vector, _I32(i)) for i in range(4)])

    return _FOUR(matrix, row, column), codegen


def _vector_at(context, builder, array_type, array, place):
    """(The pointer to four numbers of a one-dimensional array from `place` on, their type)."""
    data = context.make_array(array_type)(context, builder, array).data
    number = data.type.pointee
    where = builder.gep(data, [builder.sext(place, _I64) if place.type.width < 64 else place])
    return builder.bitcast(where, ir.VectorType(number, 4).as_pointer(where.type.addrspace)), number


@cuda_intrinsic
def load_vector(typingctx, array, place):
    """``array[place:place + 4]`` of words or float32 in one load; the first must lie at a multiple of 16 bytes."""

    def codegen(context, builder, sig, args):
        pointer, number = _vector_at(context, builder, sig.args[0], *args)
        vector = builder.load(pointer)
        vector.align = 16
        return _tuple_of(builder, number, [builder.extract_element(vector, _I32(i)) for i in range(4)])

    return types.UniTuple(array.dtype, 4)(array, place), codegen


@cuda_intrinsic
def store_vector(typingctx, array, place, values):
    """``array[place:place + 4] = values``, a tuple, in one store; the first must lie at a multiple of 16 bytes."""

    def codegen(context, builder, sig, args):
        pointer, number = _vector_at(context, builder, sig.args[0], *args[:2])
        vector = ir.Constant(ir.VectorType(number, 4), ir.Undefined)
        for i in range(4):
            vector = builder.insert_element(vector, builder.extract_value(args[2], i), _I32(i))
        builder.store(vector, pointer).align = 16

    return types.void(array, place, types.UniTuple(array.dtype, 4)), codegen


def _parts(builder, value, n):
    return [builder.extract_value(value, i) for i in range(n)]


def _multiply(builder, a, b, c):
    """``c + a b`` from four, two words and four numbers of LLVM: four numbers."""
    kind = ir.FunctionType(ir.LiteralStructType([_FLOAT] * 4), [_I32] * 6 + [_FLOAT] * 4)
    code = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
    return _parts(builder, builder.call(ir.InlineAsm(kind, code, constraints, side_effect=False), a + b + c), 4)


@cuda_intrinsic
def mma(typingctx, a, b, c):
    """``c + a b`` for bfloat16 a (16 x 16), b (16 x 8) and float32 c (16 x 8), spread over the lanes of a warp.

    a: four words of two numbers, b: two; c: four numbers. ``mma.sync.aligned.m16n8k16``, compute capability 8.0.
    """

    def codegen(context, builder, sig, args):
        a, b, c = (_parts(builder, value, n) for value, n in zip(args, (4, 2, 4), strict=True))
        return _tuple_of(builder, _FLOAT, _multiply(builder, a, b, c))

    return _FOUR(_WORDS[4], _WORDS[2], _FOUR), codegen


def _six_products(builder, a, b, sums):
    """The same for float32 a and b, three parts each: of their nine products the six that float32 can tell."""
    a, b = ([_parts(builder, part, n) for part in _parts(builder, value, 3)] for value, n in ((a, 4), (b, 2)))
    for i, j in ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0)):
        sums = _multiply(builder, a[i], b[j], sums)
    return sums


_EXACT = _FOUR(types.UniTuple(_WORDS[4], 3), types.UniTuple(_WORDS[2], 3), _FOUR)


@cuda_intrinsic
def mma_exact(typingctx, a, b, c):
    """``c + a b`` for float32 a and b, each three parts from `split`; for sums of few terms: see `add_product`."""

    def codegen(context, builder, sig, args):
        return _tuple_of(builder, _FLOAT, _six_products(builder, args[0], args[1], _parts(builder, args[2], 4)))

    return _EXACT, codegen


@cuda_intrinsic
def add_product(typingctx, a, b, c):
    """`mma_exact` for long sums: added up from zero, then to c as float32 rounds; it takes more registers.

    What the tensor core adds to a sum it cuts off, which would drift.
    """

    def codegen(context, builder, sig, args):
        sums = _six_products(builder, args[0], args[1], [ir.Constant(_FLOAT, 0.0)] * 4)
        return _tuple_of(builder, _FLOAT, list(map(builder.fadd, _parts(builder, args[2], 4), sums)))

    return _EXACT, codegen


def _round(builder, low, high):
    """Two numbers of LLVM as the halves of a word."""
    asm = ir.InlineAsm(ir.FunctionType(_I32, [_FLOAT, _FLOAT]), "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f")
    return builder.call(asm, [low, high])


@cuda_intrinsic
def to_bfloat16(typingctx, low, high):
    """Two float32 numbers, rounded to the nearest bfloat16, as the halves of a word; compute capability 8.0."""

    def codegen(context, builder, sig, args):
        return _round(builder, *args)

    return types.uint32(types.float32, types.float32), codegen


@cuda_intrinsic
def split(typingctx, numbers):
    """Four float32 numbers as three pairs of words of bfloat16 each, whose sum they are to the last bit."""

    def codegen(context, builder, sig, args):
        left, pairs = _parts(builder, args[0], 4), []
        for _ in range(3):
            words = [_round(builder, *left[:2]), _round(builder, *left[2:])]
            pairs.append(_tuple_of(builder, _I32, words))
            halves = [half for word in words for half in (_low(builder, word), _high(builder, word))]
            left = list(map(builder.fsub, left, halves))
        return _tuple_of(builder, ir.ArrayType(_I32, 2), pairs)

    return types.UniTuple(_WORDS[2], 3)(_FOUR), codegen


def _low(builder, word):
    return builder.bitcast(builder.shl(word, _I32(16)), _FLOAT)


def _high(builder, word):
    return builder.bitcast(builder.and_(word, _I32(0xFFFF0000)), _FLOAT)


@cuda_intrinsic
def as_bits(typingctx, number):
    """The bits of a float32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), codegen


@cuda_intrinsic
def as_float(typingctx, word):
    """The float32 of these bits."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.uint32), codegen
