"""PTX instructions that Numba has no name for: wide loads, and products of small matrices on the tensor cores.

An intrinsic gets values of LLVM and returns one; where LLVM has no instruction of its own, it writes the PTX down. Nothing of
it runs in the simulator: a kernel that uses them has a plain twin.
"""

from llvmlite import ir
from numba import types

from ..core.backend import cuda_intrinsic

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FOUR = types.UniTuple(types.float32, 4)


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


@cuda_intrinsic
def mma(typingctx, a, b, c):
    """``c + a b`` for bfloat16 a (16 x 16), b (16 x 8) and float32 c (16 x 8), spread over the lanes of a warp.

    a: four words of two numbers, b: two; c: four numbers. ``mma.sync.aligned.m16n8k16``, compute capability 8.0.
    """

    def codegen(context, builder, sig, args):
        words = [builder.extract_value(args[0], i) for i in range(4)] + [
            builder.extract_value(args[1], i) for i in range(2)
        ]
        sums = [builder.extract_value(args[2], i) for i in range(4)]
        kind = ir.FunctionType(ir.LiteralStructType([_FLOAT] * 4), [_I32] * 6 + [_FLOAT] * 4)
        code = (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
        found = builder.call(ir.InlineAsm(kind, code, constraints, side_effect=False), words + sums)
        return _tuple_of(builder, _FLOAT, [builder.extract_value(found, i) for i in range(4)])

    word4, word2 = types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2)
    return _FOUR(word4, word2, _FOUR), codegen


@cuda_intrinsic
def to_bfloat16(typingctx, low, high):
    """Two float32 numbers, rounded to the nearest bfloat16, as the halves of a word; compute capability 8.0."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(_I32, [_FLOAT, _FLOAT])
        asm = ir.InlineAsm(kind, "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", side_effect=False)
        return builder.call(asm, args)

    return types.uint32(types.float32, types.float32), codegen


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


@cuda_intrinsic
def low_float(typingctx, word):
    """The bfloat16 in the lower half of a word, as float32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(builder.shl(args[0], _I32(16)), _FLOAT)

    return types.float32(types.uint32), codegen


@cuda_intrinsic
def high_float(typingctx, word):
    """The bfloat16 in the upper half of a word, as float32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(builder.and_(args[0], _I32(0xFFFF0000)), _FLOAT)

    return types.float32(types.uint32), codegen
