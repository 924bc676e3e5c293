"""Single instructions against exact references, through hand-written PTX."""

from fractions import Fraction

import numpy as np
import pytest

import ptxsim
from ptxsim import ops

RNG = np.random.default_rng(11)
M32, M64 = (1 << 32) - 1, (1 << 64) - 1
PTX_TYPE = {"u4": ("b32", "%r"), "u8": ("b64", "%rd"), "f4": ("f32", "%f"), "f8": ("f64", "%fd"), "u2": ("b16", "%h")}


def execute(code, out, *inputs):
    """Run `code` with inputs in %x0, %x1, ... and return %y, one element per thread."""
    inputs = [np.ascontiguousarray(a) for a in inputs]
    n = len(inputs[0])
    result = np.zeros(n, out)
    arrays = [*inputs, result]
    params = ", ".join(f".param .u64 p{i}" for i in range(7 * len(arrays)))
    body = [
        ".reg .pred %p<8>; .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<20>; .reg .f64 %fd<20>; .reg .b16 %h<20>;"
    ]
    body.append("mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r0, %r1, %r2, %r0;")
    for i, a in enumerate(arrays):
        kind = a.dtype.str[1:].replace("i", "u")
        ty = PTX_TYPE[kind][0]
        name = f"%x{i}" if i < len(inputs) else "%y"
        body.append(f".reg .{ty} {name}; ld.param.u64 %rd{i}, [p{7 * i + 4}];")
        body.append(f"mad.wide.u32 %rd{i}, %r0, {a.itemsize}, %rd{i};")
        if i < len(inputs):
            body.append(f"ld.global.{ty} {name}, [%rd{i}];")
    ty = PTX_TYPE[np.dtype(out).str[1:].replace("i", "u")][0]
    body += [code, f"st.global.{ty} [%rd{len(inputs)}], %y;", "ret;"]
    text = (
        f".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k({params})\n{{\n" + "\n".join(body) + "\n}\n"
    )
    ptxsim.run_ptx(text, n // 32, 32, arrays).raise_on_error()
    return result


def u32(n=1024):
    edge = np.array([0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)
    return np.concatenate([RNG.permutation(edge), RNG.integers(0, 1 << 32, n - 8, np.uint32)])


def u64(n=1024):
    edge = np.array([0, 1, 63, 1 << 31, 1 << 32, 1 << 63, M64, M64 >> 1], np.uint64)
    return np.concatenate([RNG.permutation(edge), RNG.integers(0, 1 << 64, n - 8, np.uint64)])


def floats(n=1024, spread=20):
    edge = np.array([0, -0.0, 1, -1, np.inf, -np.inf, 1e-40, 65504], np.float32)
    body = RNG.standard_normal(n - 8) * 2.0 ** RNG.integers(-spread, spread, n - 8)
    return np.concatenate([RNG.permutation(edge), body]).astype(np.float32)


def signed(x, bits):
    return x - (1 << bits) if x >> bits - 1 else x


INT32 = {
    "mul.hi.u32 %y, %x0, %x1;": lambda a, b, c: a * b >> 32,
    "mul.hi.s32 %y, %x0, %x1;": lambda a, b, c: signed(a, 32) * signed(b, 32) >> 32,
    "mad.lo.s32 %y, %x0, %x1, %x2;": lambda a, b, c: a * b + c,
    "mad.hi.u32 %y, %x0, %x1, %x2;": lambda a, b, c: (a * b >> 32) + c,
    "shl.b32 %y, %x0, %x1;": lambda a, b, c: a << b if b < 32 else 0,
    "shr.s32 %y, %x0, %x1;": lambda a, b, c: signed(a, 32) >> min(b, 32),
    "shr.u32 %y, %x0, 5;": lambda a, b, c: a >> 5,
    "shf.l.wrap.b32 %y, %x0, %x1, %x2;": lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32,
    "shf.r.clamp.b32 %y, %x0, %x1, %x2;": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "bfe.u32 %y, %x0, 4, 9;": lambda a, b, c: a >> 4 & 511,
    "bfe.s32 %y, %x0, 4, 9;": lambda a, b, c: signed(a >> 4 & 511, 9),
    "bfe.s32 %y, %x0, 28, 9;": lambda a, b, c: signed(a, 32) >> 28,
    "bfi.b32 %y, %x0, %x1, 8, 5;": lambda a, b, c: b & ~(31 << 8) | (a & 31) << 8,
    "prmt.b32 %y, %x0, %x1, 0x5410;": lambda a, b, c: a & 0xFFFF | (b & 0xFFFF) << 16,
    "prmt.b32 %y, %x0, %x1, 0x7bba;": lambda a, b, c: int.from_bytes(
        [255 * (a >> 23 & 1), 255 * (a >> 31), 255 * (a >> 31), b >> 24], "little"),
    "lop3.b32 %y, %x0, %x1, %x2, 0x96;": lambda a, b, c: a ^ b ^ c,
    "lop3.b32 %y, %x0, %x1, %x2, 0xca;": lambda a, b, c: a & b | ~a & c,
    "popc.b32 %y, %x0;": lambda a, b, c: a.bit_count(),
    "clz.b32 %y, %x0;": lambda a, b, c: 32 - a.bit_length(),
    "brev.b32 %y, %x0;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "bfind.u32 %y, %x0;": lambda a, b, c: a.bit_length() - 1,
    "max.s32 %y, %x0, %x1;": lambda a, b, c: max(signed(a, 32), signed(b, 32)),
    "min.u32 %y, %x0, %x1;": lambda a, b, c: min(a, b),
    "abs.s32 %y, %x0;": lambda a, b, c: abs(signed(a, 32)),
    "div.u32 %y, %x0, %x1;": lambda a, b, c: a // b if b else M32,
    "rem.s32 %y, %x0, 7;": lambda a, b, c: int(np.fmod(signed(a, 32), 7)),
    "div.s32 %y, %x0, -7;": lambda a, b, c: int(Fraction(signed(a, 32), -7)),
    "add.cc.u32 %r5, %x0, %x1; addc.u32 %y, %x2, 0;": lambda a, b, c: c + (a + b >> 32),
    "sub.cc.u32 %r5, %x0, %x1; subc.u32 %y, %x2, 0;": lambda a, b, c: c - (a < b),
    "mad.lo.cc.u32 %r5, %x0, %x1, %x2; madc.hi.u32 %y, %x0, %x1, 0;": lambda a, b, c: (a * b + c) >> 32,
    "add.sat.s32 %y, %x0, %x1;": lambda a, b, c: max(-(1 << 31), min((1 << 31) - 1, signed(a, 32) + signed(b, 32))),
    "setp.lt.s32 %p1|%p2, %x0, %x1; selp.u32 %y, 1, 0, %p2;": lambda a, b, c: signed(a, 32) >= signed(b, 32),
    "setp.ne.b32 %p1, %x2, 0; setp.hi.and.u32 %p2, %x0, %x1, !%p1; selp.b32 %y, %x0, %x1, %p2;":
        lambda a, b, c: a if a > b and c == 0 else b,
    "mov.u32 %y, 7; setp.gt.u32 %p1, %x0, %x1; @!%p1 add.u32 %y, %x0, 1;": lambda a, b, c: 7 if a > b else a + 1,
    "mov.u32 %y, 7; setp.gt.u32 %p1, %x0, %x1; @%p1 bra L; mov.u32 %y, %x2;\nL:": lambda a, b, c: 7 if a > b else c,
    "cvt.u16.u32 %h1, %x0; cvt.u32.u16 %y, %h1;": lambda a, b, c: a & 0xFFFF,
    "cvt.s32.s8 %y, %x0;": lambda a, b, c: signed(a & 255, 8),
    "cvt.sat.u8.s32 %y, %x0;": lambda a, b, c: max(0, min(255, signed(a, 32))),
    "mov.b32 {%h1, %h2}, %x0; mov.b32 %y, {%h2, %h1};": lambda a, b, c: (a << 16 | a >> 16) & M32,
    "slct.u32.s32 %y, %x0, %x1, %x2;": lambda a, b, c: a if signed(c, 32) >= 0 else b,
    "not.b32 %r5, %x0; xor.b32 %y, %r5, %x1;": lambda a, b, c: ~a ^ b,
    "sad.s32 %y, %x0, %x1, %x2;": lambda a, b, c: c + abs(signed(a, 32) - signed(b, 32)),
    "{.reg.b16 i,r; mov.b32 {i,r}, %x0; mov.b32 %y, {r,i}; }": lambda a, b, c: (a << 16 | a >> 16) & M32,
    "{ .reg .u32 t; add.u32 t, %x0, 1; { .reg .u32 t; mov.u32 t, 3; } mov.u32 %y, t; }": lambda a, b, c: a + 1,
}  # fmt: skip


@pytest.mark.parametrize("code", INT32)
def test_int32(code):
    a, b, c = u32(), u32(), u32()
    b[::2] %= 40
    c[::3] = 0
    want = [INT32[code](*map(int, t)) & M32 for t in zip(a, b, c, strict=True)]
    assert execute(code, np.uint32, a, b, c).tolist() == want


INT64 = {
    "mul.hi.u64 %y, %x0, %x1;": lambda a, b: a * b >> 64,
    "mul.hi.s64 %y, %x0, %x1;": lambda a, b: signed(a, 64) * signed(b, 64) >> 64,
    "mul.lo.s64 %y, %x0, %x1;": lambda a, b: a * b,
    "rem.u64 %y, %x0, %x1;": lambda a, b: a % b if b else a,
    "shl.b64 %y, %x0, 33;": lambda a, b: a << 33,
    "bfe.u64 %y, %x0, 30, 20;": lambda a, b: a >> 30 & (1 << 20) - 1,
    "bfi.b64 %y, %x0, %x1, 32, 32;": lambda a, b: a << 32 | b & M32,
    "mov.b64 {%r4, %r5}, %x0; mul.wide.u32 %y, %r4, %r5;": lambda a, b: (a & M32) * (a >> 32),
    "mov.b64 {%r4, %r5}, %x0; mul.wide.s32 %y, %r4, %r5;": lambda a, b: signed(a & M32, 32) * signed(a >> 32, 32),
    "clz.b64 %r4, %x0; cvt.u64.u32 %y, %r4;": lambda a, b: 64 - a.bit_length(),
    "popc.b64 %r4, %x0; cvt.u64.u32 %y, %r4;": lambda a, b: a.bit_count(),
    "brev.b64 %y, %x0;": lambda a, b: int(f"{a:064b}"[::-1], 2),
    "cvt.s64.s32 %y, %x0;": lambda a, b: signed(a & M32, 32),
}  # fmt: skip


@pytest.mark.parametrize("code", INT64)
def test_int64(code):
    a, b = u64(), u64()
    want = [INT64[code](*map(int, t)) & M64 for t in zip(a, b, strict=True)]
    assert execute(code, np.uint64, a, b).tolist() == want


def exact_round(value, dtype, mode="rn"):
    """Correctly rounded Fraction -> float via neighbours."""
    guess = dtype(float(value))
    near = sorted({np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))})
    near = [x for x in near if np.isfinite(x)]
    if mode == "rn":
        u = np.uint32 if dtype is np.float32 else np.uint64
        return min(near, key=lambda x: (abs(Fraction(float(x)) - value), int(np.array(x).view(u)) & 1))
    pick = {"rm": "down", "rp": "up", "rz": "down" if value > 0 else "up"}[mode]
    if pick == "down":
        return max(x for x in near if Fraction(float(x)) <= value)
    return min(x for x in near if Fraction(float(x)) >= value)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_fma_f32_single_rounding(mode):
    a, b = (RNG.integers(1, 1 << 24, 2048).astype(np.float32) for _ in range(2))
    p = a.astype(float) * b
    c = np.where(
        RNG.random(2048) < 0.5, -p.astype(np.float32), RNG.choice([1, -1], 2048) * 2.0 ** RNG.integers(-30, 70, 2048)
    )
    c = c.astype(np.float32)
    a[64:512], b[64:512] = (2 * RNG.integers(2049, 2890, (2, 448)) + 1).astype(np.float32)
    c[64:512] = RNG.choice([1, -1], 448) * 2.0**-40  # the float64 sum lands on a float32 tie
    a[:64], c[:64] = a[:64] * np.float32(2.0**-150), np.float32(0)  # subnormal results
    got = execute(f"fma.{mode}.f32 %y, %x0, %x1, %x2;", np.float32, a, b, c)
    for i in range(2048):
        value = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert got[i] == (exact_round(value, np.float32, mode) if value else 0), i


def test_fma_f64_single_rounding():
    a, b = (RNG.standard_normal(1024) for _ in range(2))
    c = np.where(RNG.random(1024) < 0.5, -a * b, RNG.standard_normal(1024) * 2.0 ** RNG.integers(-60, 60, 1024))
    got = execute("fma.rn.f64 %y, %x0, %x1, %x2;", np.float64, a, b, c)
    for i in range(1024):
        assert got[i] == float(Fraction(a[i]) * Fraction(b[i]) + Fraction(c[i]))


def test_fma_f64_keeps_the_sign_of_zero():
    a, b, c = np.array([[-0.0, 0.0, -0.0, 2.0], [1.0, 1.0, 1.0, 3.0], [-0.0, -0.0, 0.0, -6.0]]).repeat(8, axis=1)
    got = execute("fma.rn.f64 %y, %x0, %x1, %x2;", np.float64, a, b, c)
    assert not got.any() and np.signbit(got).tolist() == [True] * 8 + [False] * 24


def test_directed_add_mul_and_conversions():
    a, b = np.abs(floats(1024, 8)) + 1, floats(1024, 8)
    b[~np.isfinite(b)] = 1
    a[~np.isfinite(a)] = 1
    for mode in ("rz", "rm", "rp"):
        added = execute(f"add.{mode}.f32 %y, %x0, %x1;", np.float32, a, b)
        product = execute(f"mul.{mode}.f32 %y, %x0, %x1;", np.float32, a, b)
        for i in range(1024):
            x, y = Fraction(float(a[i])), Fraction(float(b[i]))
            assert x + y == 0 or added[i] == exact_round(x + y, np.float32, mode)
            assert y == 0 or product[i] == exact_round(x * y, np.float32, mode)
        wide = RNG.integers(-(1 << 63), 1 << 63, 512)
        got = execute(f"cvt.{mode}.f32.s64 %y, %x0;", np.float32, wide)
        assert all(got[i] == exact_round(Fraction(int(wide[i])), np.float32, mode) for i in range(512))


def test_float_to_int():
    x = np.concatenate([floats(1000, 40), np.array([np.nan, 2.5, 3.5, -2.5] + [2.0**31] * 20, np.float32)])
    for mode, fn in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        got = execute(f"cvt.{mode}.s32.f32 %y, %x0;", np.int32, x)
        want = [0 if np.isnan(v) else int(min(max(fn(float(v)), -(2.0**31)), 2.0**31 - 1)) for v in x]
        assert got.tolist() == want
        got = execute(f"cvt.{mode}.u64.f32 %y, %x0;", np.uint64, x)
        want = [1 << 63 if np.isnan(v) else M64 if v >= 2.0**64 else int(max(fn(float(v)), 0)) for v in x]
        assert got.tolist() == want
        got = execute(f"cvt.{mode}.f32.f32 %y, %x0;", np.float32, x)
        assert np.array_equal(got, fn(x), equal_nan=True)


def test_half_and_bfloat_conversions():
    x = floats(2048, 14)
    x = np.where(np.abs(x) > 60000, np.float32(1), x)
    got = execute("cvt.rn.f16.f32 %y, %x0;", np.uint16, x)
    assert np.array_equal(got, x.astype(np.float16).view(np.uint16))
    got = execute("cvt.rn.bf16.f32 %y, %x0;", np.uint16, x)
    nearest = [np.float32(v) for v in ops.from_bf16(got)]
    step = np.abs(ops.from_bf16(got + np.uint16(1)) - nearest) / 2
    finite = np.isfinite(x) & np.isfinite(step)
    assert (np.abs(nearest - x)[finite] <= step[finite] * (1 + 1e-6)).all()
    pair = execute("cvt.rn.bf16x2.f32 %y, %x0, %x1;", np.uint32, x, x[::-1])
    assert np.array_equal(pair >> 16, got) and np.array_equal(pair & 0xFFFF, got[::-1])
    back = execute("cvt.f32.bf16 %y, %x0;", np.float32, got)
    assert np.array_equal(back.view(np.uint32), got.astype(np.uint32) << 16)
    tf32 = execute("cvt.rna.tf32.f32 %y, %x0;", np.uint32, x)
    assert not (tf32[np.isfinite(x)] & 0x1FFF).any()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_rounding_modes(kind):
    """Against a search in the sorted table of all finite values."""
    load = ops.HALF[kind][0]
    table = load(np.arange(1 << 16).astype(np.uint16))
    table = np.unique(table[np.isfinite(table)].astype(float))
    x = floats(2048, 14)
    x = np.where(np.abs(x) < 60000, x, np.float32(0.1))
    up, down = table[np.searchsorted(table, x)], table[np.searchsorted(table, x, "right") - 1]
    for mode, want in (("rp", up), ("rm", down), ("rz", np.where(x > 0, down, up))):
        assert np.array_equal(load(execute(f"cvt.{mode}.{kind}.f32 %y, %x0;", np.uint16, x)), want)
    if kind == "bf16":  # integers next to ties that float64 cannot hold
        wide = (1 << 62) + (1 << 54) + np.arange(-16, 16)
        got = load(execute("cvt.rn.bf16.s64 %y, %x0;", np.uint16, wide)).astype(float)
        assert np.array_equal(got, np.where(np.arange(-16, 16) > 0, 2.0**62 + 2.0**55, 2.0**62))


def test_bfloat_fma_rounds_once():
    tie, tiny = np.float32(1 + 2.0**-4), np.float32(2.0**-100)
    x, c = (np.full(32, ops.to_bf16(np.array([v]))[0]) for v in (tie, tiny))
    got = ops.from_bf16(execute("fma.rn.bf16 %y, %x0, %x0, %x1;", np.uint16, x, c))
    assert (got == 1 + 2.0**-3 + 2.0**-7).all()  # the product is a tie and c breaks it


def test_half_comparisons_to_registers():
    x, y = (ops.to_bf16(np.round(floats(512, 1))) for _ in range(2))
    x[::9] = 0x7FC0
    less, a, b = ops.from_bf16(x) < ops.from_bf16(y), x.view(np.uint32), y.view(np.uint32)
    assert np.array_equal(execute("set.lt.bf16.bf16 %y, %x0, %x1;", np.uint16, x, y), less * np.uint16(0x3F80))
    got = execute("set.lt.bf16x2.bf16x2 %y, %x0, %x1;", np.uint32, a, b).view(np.uint16)
    assert np.array_equal(got, less * np.uint16(0x3F80))
    got = execute("set.lt.u32.bf16x2 %y, %x0, %x1;", np.uint32, a, b).view(np.uint16)
    assert np.array_equal(got, less * np.uint16(0xFFFF))
    got = execute("setp.lt.bf16x2 %p1|%p2, %x0, %x1; selp.u32 %y, 1, 0, %p2;", np.uint32, a, b)
    assert np.array_equal(got, less[1::2])
    nan = execute("set.nan.f16.f16 %y, %x0, %x0;", np.uint16, x)
    assert np.array_equal(nan, np.isnan(x.view(np.float16)) * np.uint16(0x3C00))


def test_packed_half_arithmetic():
    a, b, c = (RNG.standard_normal(512).astype(np.float16) for _ in range(3))
    got = execute("fma.rn.f16x2 %y, %x0, %x1, %x2;", np.uint32, *(v.view(np.uint32) for v in (a, b, c)))
    exact = a.astype(float) * b + c
    assert np.array_equal(got.view(np.float16), exact.astype(np.float16))
    x, y = (ops.to_bf16(floats(512, 4)) for _ in range(2))
    got = execute("add.bf16x2 %y, %x0, %x1;", np.uint32, x.view(np.uint32), y.view(np.uint32)).view(np.uint16)
    with np.errstate(invalid="ignore"):
        want = ops.to_bf16(ops.from_bf16(x) + ops.from_bf16(y))
    assert np.array_equal(got, want)
    got = execute("max.bf16 %y, %x0, %x1;", np.uint16, x, y)
    assert np.array_equal(ops.from_bf16(got), np.fmax(ops.from_bf16(x), ops.from_bf16(y)))


@pytest.mark.parametrize(
    "op", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
)
def test_float_comparisons(op):
    x, y = floats(), floats()
    x[::5], y[::3], x[1::7] = np.nan, np.nan, y[1::7]
    got = execute(f"setp.{op}.f32 %p1, %x0, %x1; selp.u32 %y, 1, 0, %p1;", np.uint32, x, y)
    unordered = np.isnan(x) | np.isnan(y)
    base = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}
    if op in ("num", "nan"):
        want = unordered if op == "nan" else ~unordered
    else:
        want = base[op[:2]] | unordered if op.endswith("u") else base[op] & ~unordered
    assert np.array_equal(got, want)


def test_special_functions_and_flushing():
    x = np.abs(floats(1024, 6)) + np.float32(0.01)
    x = x[np.isfinite(x)][:992]
    for op, fn in (("ex2.approx", np.exp2), ("lg2.approx", np.log2), ("sin.approx", np.sin), ("cos.approx", np.cos),
                   ("rsqrt.approx", lambda v: 1 / np.sqrt(v)), ("sqrt.rn", np.sqrt), ("rcp.rn", lambda v: 1 / v),
                   ("tanh.approx", np.tanh)):  # fmt: skip
        with np.errstate(over="ignore"):
            want = fn(x.astype(float)).astype(np.float32)
            assert np.array_equal(execute(f"{op}.f32 %y, %x0;", np.float32, x), want)
    tiny = np.full(32, 1e-39, np.float32)
    assert not execute("add.ftz.f32 %y, %x0, %x0;", np.float32, tiny).any()
    assert execute("add.f32 %y, %x0, %x0;", np.float32, tiny).all()
    got = execute("min.f32 %y, %x0, 0f7FC00000;", np.float32, x[:32])
    assert np.array_equal(got, x[:32])
    assert np.array_equal(
        execute("add.sat.f32 %y, %x0, 0fBF000000;", np.float32, x), np.clip(x - np.float32(0.5), 0, 1)
    )


def test_packed_and_vector_atomics():
    ones = np.full(64, 0x3C003C00, np.uint32)  # two float16 ones
    code = "red.global.add.noftz.f16x2 [%rd1], %x0; bar.sync 0; ld.global.b32 %y, [%rd1];"
    assert (execute(code, np.uint32, ones) == np.tile(ones, 1)).all()  # one lane per address
    code = "mov.u32 %r5, 0; cvt.u64.u32 %rd5, %r5; ld.param.u64 %rd5, [p4]; bar.sync 0;"
    code += "atom.global.add.noftz.f16x2 %y, [%rd5], 0x3C003C00;"
    x = np.zeros(32, np.uint32)
    got = execute(code, np.uint32, x).view(np.float16).reshape(-1, 2)
    assert np.array_equal(np.sort(got[:, 0]), np.arange(32)) and (x[:1].view(np.float16) == 32).all()
    y = np.arange(64, dtype=np.float32)
    code = "and.b32 %r5, %r0, 0; ld.param.u64 %rd5, [p4]; mov.f32 %y, %x0; setp.ne.u32 %p1, %r0, 1;"
    code += "@%p1 red.global.add.v2.f32 [%rd5+8], {0f3F800000, 0f40000000};"
    execute(code, np.float32, y)
    assert y[2] == 2 + 63 and y[3] == 3 + 126 and y[4] == 4
    total = execute("redux.sync.add.s32 %y, %x0, 0xffffffff;", np.int32, np.arange(64, dtype=np.int32))
    assert np.array_equal(total, np.repeat(np.arange(64).reshape(2, 32).sum(1), 32))


def test_vector_access_generic_addresses_and_cp_async():
    code = """
    .shared .align 16 .b8 buf[512];
    mov.u32 %r4, buf; mov.u32 %r5, %tid.x; mad.lo.u32 %r6, %r5, 16, %r4;
    cvt.u64.u32 %rd4, %r6; cvta.shared.u64 %rd5, %rd4;
    add.u32 %r7, %x0, 1;
    st.v4.u32 [%rd5], {%x0, %r7, %x0, %r7};
    bar.sync 0;
    xor.b32 %r8, %r5, 1; mad.lo.u32 %r9, %r8, 16, %r4;
    ld.volatile.shared.v2.u32 {%r10, %r11}, [%r9+8];
    bar.warp.sync 0xffffffff;
    cp.async.ca.shared.global [%r6], [%rd0], 4; cp.async.commit_group; cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.u32 %r12, [%r9];
    add.u32 %y, %r10, %r11; mad.lo.u32 %y, %r12, 1000, %y;
    """
    x = RNG.integers(0, 1000, 64).astype(np.uint32)
    other = x.reshape(-1, 2)[:, ::-1].reshape(-1)
    assert np.array_equal(execute(code, np.uint32, x), 2 * other + 1 + 1000 * other)


def test_mma_shapes_and_ldmatrix():
    a, b = RNG.integers(-8, 8, (16, 8)).astype(np.float32), RNG.integers(-8, 8, (8, 8)).astype(np.float32)
    lane = np.arange(32)
    g, q = lane >> 2, lane & 3
    regs = [a[g, q], a[g + 8, q], a[g, q + 4], a[g + 8, q + 4], b[q, g], b[q + 4, g]]
    names = [f"%x{i}" for i in range(6)]
    code = (
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {{%f1,%f2,%f3,%f4}}, {{{}}}, {{{}}}, {{%f5,%f5,%f5,%f5}};"
    )
    code = "mov.f32 %f5, 0f3F800000;" + code.format(",".join(names[:4]), ",".join(names[4:]))
    want = a @ b + 1
    for i, at in enumerate([(g, 2 * q), (g, 2 * q + 1), (g + 8, 2 * q), (g + 8, 2 * q + 1)]):
        got = execute(f"{code} mov.f32 %y, %f{i + 1};", np.float32, *(r.view(np.uint32) for r in regs))
        assert np.array_equal(got, want[at])
    code = """
    .shared .align 16 .b8 m[512]; mov.u32 %r4, m; mov.u32 %r5, %tid.x; mad.lo.u32 %r6, %r5, 16, %r4;
    st.shared.v4.b32 [%r6], {%x0, %x1, %x2, %x3}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4%T.shared.b16 {%r10, %r11, %r12, %r13}, [%r6]; mov.b32 %y, %rI;
    """
    rows = RNG.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    words = rows.view(np.uint32)
    for j in range(4):
        plain = code.replace("%T", "").replace("%rI", f"%r1{j}")
        turned = code.replace("%T", ".trans").replace("%rI", f"%r1{j}")
        tile = rows[8 * j : 8 * j + 8]
        for text, m in ((plain, tile), (turned, tile.T)):
            got = execute(text, np.uint32, *(np.ascontiguousarray(words[:, k]) for k in range(4)))
            assert np.array_equal(got, np.ascontiguousarray(m).view(np.uint32)[g, q])
