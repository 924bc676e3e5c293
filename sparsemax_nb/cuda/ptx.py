"""PTX instructions that Numba does not offer: 16-byte loads and stores, and tensor-core products (mma).

An intrinsic receives LLVM values and returns one. Where LLVM has no matching instruction, it emits inline PTX. None of
this runs in the simulator: every kernel that uses it has a plain version without.
"""

from llvmlite import ir
from numba import types

from ..core.device import cuda_intrinsic

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
#: Numba types: four float32 numbers, and n 32-bit words (two bfloat16 each).
_FOUR = types.UniTuple(types.float32, 4)
_WORDS = {n: types.UniTuple(types.uint32, n) for n in (2, 4)}


def _tuple_of(builder, element, values):
    """LLVM values as one Numba tuple."""
    result = ir.Constant(ir.ArrayType(element, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        result = builder.insert_value(result, value, i)
    return result


@cuda_intrinsic
def load4(typingctx, matrix, row, column):
    """``matrix[row, column:column + 4]`` in one 16-byte load; the address must be a multiple of 16 bytes.

    No index may be negative. Row and bytes per row must be below 2^32: the address is then a single ``mad.wide.u32``
    instead of 64-bit multiplications.
    """

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        row, column = (builder.trunc(value, _I32) if value.type.width > 32 else value for value in args[1:])
        pitch = builder.mul(builder.trunc(builder.extract_value(array.shape, 1), _I32), _I32(4))
        first = builder.ptrtoint(builder.gep(array.data, [builder.zext(column, _I64)]), _I64)
        asm = ir.InlineAsm(
            ir.FunctionType(_I64, [_I32, _I32, _I64]), "mad.wide.u32 $0, $1, $2, $3;", "=l,r,r,l", side_effect=False
        )
        pointer = builder.inttoptr(builder.call(asm, [row, pitch, first]), ir.VectorType(_FLOAT, 4).as_pointer(1))
        vector = builder.load(pointer)
        vector.align = 16
        return _tuple_of(builder, _FLOAT, [builder.extract_element(vector, _I32(i)) for i in range(4)])

    return _FOUR(matrix, row, column), codegen


def _vector_at(context, builder, array_type, array, position):
    """Pointer to ``array[position:position + 4]`` (one-dimensional) as a vector, and its element type."""
    data = context.make_array(array_type)(context, builder, array).data
    number = data.type.pointee
    pointer = builder.gep(data, [builder.sext(position, _I64) if position.type.width < 64 else position])
    return builder.bitcast(pointer, ir.VectorType(number, 4).as_pointer(pointer.type.addrspace)), number


@cuda_intrinsic
def load_vector(typingctx, array, position):
    """``array[position:position + 4]`` (float32 or words) in one 16-byte load from an aligned address."""

    def codegen(context, builder, sig, args):
        pointer, number = _vector_at(context, builder, sig.args[0], *args)
        vector = builder.load(pointer)
        vector.align = 16
        return _tuple_of(builder, number, [builder.extract_element(vector, _I32(i)) for i in range(4)])

    return types.UniTuple(array.dtype, 4)(array, position), codegen


@cuda_intrinsic
def store_vector(typingctx, array, position, values):
    """``array[position:position + 4] = values`` (a tuple) in one 16-byte store to an aligned address."""

    def codegen(context, builder, sig, args):
        pointer, number = _vector_at(context, builder, sig.args[0], *args[:2])
        vector = ir.Constant(ir.VectorType(number, 4), ir.Undefined)
        for i in range(4):
            vector = builder.insert_element(vector, builder.extract_value(args[2], i), _I32(i))
        builder.store(vector, pointer).align = 16

    return types.void(array, position, types.UniTuple(array.dtype, 4)), codegen


def _parts(builder, value, n):
    """The n elements of an LLVM aggregate."""
    return [builder.extract_value(value, i) for i in range(n)]


def _multiply(builder, a, b, c):
    """Emits one mma, ``c + a b``: a is four words, b two, c and the result four floats."""
    kind = ir.FunctionType(ir.LiteralStructType([_FLOAT] * 4), [_I32] * 6 + [_FLOAT] * 4)
    code = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
    return _parts(builder, builder.call(ir.InlineAsm(kind, code, constraints, side_effect=False), a + b + c), 4)


@cuda_intrinsic
def mma(typingctx, a, b, c):
    """``c + a b`` for bfloat16 a (16, 16) and b (16, 8) and float32 c (16, 8), spread over the lanes of a warp.

    Per lane: a is four words of two numbers each, b two words, c four floats. ``mma.sync.aligned.m16n8k16``; needs
    compute capability 8.0.
    """

    def codegen(context, builder, sig, args):
        a, b, c = (_parts(builder, value, n) for value, n in zip(args, (4, 2, 4), strict=True))
        return _tuple_of(builder, _FLOAT, _multiply(builder, a, b, c))

    return _FOUR(_WORDS[4], _WORDS[2], _FOUR), codegen


def _six_products(builder, a, b, sums):
    """``sums + a b`` for float32 a and b, each split into three bfloat16 parts.

    Of the nine products of parts, the three smallest are below float32's precision and left out. Smallest first: the
    small products are added before the large ones would swallow them.
    """
    a, b = ([_parts(builder, part, n) for part in _parts(builder, value, 3)] for value, n in ((a, 4), (b, 2)))
    for i, j in ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0)):
        sums = _multiply(builder, a[i], b[j], sums)
    return sums


_EXACT = _FOUR(types.UniTuple(_WORDS[4], 3), types.UniTuple(_WORDS[2], 3), _FOUR)


@cuda_intrinsic
def mma_exact(typingctx, a, b, c):
    """``c + a b`` for float32 a and b, each split into three parts by `split`.

    Only for sums of few terms; see `add_product`.
    """

    def codegen(context, builder, sig, args):
        return _tuple_of(builder, _FLOAT, _six_products(builder, args[0], args[1], _parts(builder, args[2], 4)))

    return _EXACT, codegen


@cuda_intrinsic
def add_product(typingctx, a, b, c):
    """`mma_exact` for long sums, at the price of more registers.

    The tensor core truncates what it adds to a sum instead of rounding it: a long sum would drift. So each product is
    summed from zero on the tensor core and added to c by an ordinary float32 addition, which rounds.
    """

    def codegen(context, builder, sig, args):
        sums = _six_products(builder, args[0], args[1], [ir.Constant(_FLOAT, 0.0)] * 4)
        return _tuple_of(builder, _FLOAT, list(map(builder.fadd, _parts(builder, args[2], 4), sums)))

    return _EXACT, codegen


def _round(builder, low, high):
    """Two floats rounded to bfloat16, as the halves of one word."""
    asm = ir.InlineAsm(ir.FunctionType(_I32, [_FLOAT, _FLOAT]), "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f")
    return builder.call(asm, [low, high])


@cuda_intrinsic
def to_bfloat16(typingctx, low, high):
    """Two float32 numbers, rounded to the nearest bfloat16, as the halves of one word.

    Needs compute capability 8.0.
    """

    def codegen(context, builder, sig, args):
        return _round(builder, *args)

    return types.uint32(types.float32, types.float32), codegen


@cuda_intrinsic
def split(typingctx, numbers):
    """Four float32 numbers as three pairs of bfloat16 words; the three parts add up to the numbers exactly.

    Each part is what the parts before it leave over, rounded to bfloat16.
    """

    def codegen(context, builder, sig, args):
        rest, pairs = _parts(builder, args[0], 4), []
        for _ in range(3):
            words = [_round(builder, *rest[:2]), _round(builder, *rest[2:])]
            pairs.append(_tuple_of(builder, _I32, words))
            halves = [half for word in words for half in (_low(builder, word), _high(builder, word))]
            rest = list(map(builder.fsub, rest, halves))
        return _tuple_of(builder, ir.ArrayType(_I32, 2), pairs)

    return types.UniTuple(_WORDS[2], 3)(_FOUR), codegen


def _low(builder, word):
    """The lower half of a word as a float."""
    return builder.bitcast(builder.shl(word, _I32(16)), _FLOAT)


def _high(builder, word):
    """The upper half of a word as a float."""
    return builder.bitcast(builder.and_(word, _I32(0xFFFF0000)), _FLOAT)


@cuda_intrinsic
def as_bits(typingctx, number):
    """The bit pattern of a float32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), codegen


@cuda_intrinsic
def as_float(typingctx, word):
    """The float32 with this bit pattern."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.uint32), codegen
