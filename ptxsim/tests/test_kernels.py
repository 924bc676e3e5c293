"""Compiled numba.cuda kernels against NumPy references."""

import enum
import math

import numpy as np
import pytest
from llvmlite import ir
from numba import cuda, float32, int32, int64, types, uint32, uint64
from numba.cuda.extending import intrinsic

import ptxsim

RNG = np.random.default_rng(7)
M32 = (1 << 32) - 1
FULL = 0xFFFFFFFF


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(kernel, grid, block, *args, **options):
    result = ptxsim.launch(kernel, grid, block, args, **options)
    result.raise_on_error()
    return result


def test_vector_add_partial_block():
    @cuda.jit
    def add(x, y, z):
        i = cuda.grid(1)
        if i < z.size:
            z[i] = x[i] + y[i]

    x, y, z = f32(1000), f32(1000), np.zeros(1000, np.float32)
    run(add, 8, 128, x, y, z)
    assert np.array_equal(z, x + y)


def test_tiled_matmul():
    @cuda.jit
    def matmul(a, b, c):
        ta = cuda.shared.array((16, 16), float32)
        tb = cuda.shared.array((16, 16), float32)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        col, row = cuda.grid(2)
        acc = float32(0)
        for t in range(a.shape[1] // 16):
            ta[ty, tx] = a[row, t * 16 + tx]
            tb[ty, tx] = b[t * 16 + ty, col]
            cuda.syncthreads()
            for k in range(16):
                acc += ta[ty, k] * tb[k, tx]
            cuda.syncthreads()
        c[row, col] = acc

    a, b, c = f32(64, 48), f32(48, 32), np.zeros((64, 32), np.float32)
    r = run(matmul, (2, 4), (16, 16), a, b, c)
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-5)
    assert r.counters.flops["fp32"] == 2 * 64 * 48 * 32
    assert r.counters.shared_load.extra_wavefronts == 0


def test_block_reduction():
    @cuda.jit
    def reduce(x, out):
        s = cuda.shared.array(256, float32)
        t = cuda.threadIdx.x
        s[t] = x[cuda.grid(1)]
        cuda.syncthreads()
        step = 128
        while step > 0:
            if t < step:
                s[t] += s[t + step]
            cuda.syncthreads()
            step //= 2
        if t == 0:
            out[cuda.blockIdx.x] = s[0]

    x, out = f32(256 * 5), np.zeros(5, np.float32)
    run(reduce, 5, 256, x, out)
    np.testing.assert_allclose(out, x.reshape(5, 256).sum(1), rtol=1e-4, atol=1e-4)


def test_warp_shuffle_reduction():
    @cuda.jit
    def reduce(x, out):
        i = cuda.grid(1)
        v = x[i]
        for d in (16, 8, 4, 2, 1):
            v += cuda.shfl_down_sync(FULL, v, d)
        w = cuda.shfl_sync(FULL, v, 0)
        u = cuda.shfl_xor_sync(FULL, x[i], 1)
        out[i] = w + u - cuda.shfl_up_sync(FULL, x[i], 2)

    x, out = f32(256), np.zeros(256, np.float32)
    run(reduce, 2, 128, x, out)
    rows = x.reshape(-1, 32)
    up = np.concatenate([rows[:, :2], rows[:, :-2]], 1)
    want = rows.sum(1, keepdims=True) + rows.reshape(-1, 16, 2)[:, :, ::-1].reshape(-1, 32) - up
    np.testing.assert_allclose(out.reshape(-1, 32), want, rtol=1e-4, atol=1e-4)


def test_shuffle_in_loop_with_uneven_lanes():
    @cuda.jit
    def scan(x, out):
        i = cuda.grid(1)
        lane = i & 31
        v = x[i]
        d = 1
        while d < 32:
            u = cuda.shfl_up_sync(FULL, v, d)
            if lane >= d:
                v += u
            d *= 2
        out[i] = v

    x, out = RNG.integers(0, 99, 96).astype(np.int32), np.zeros(96, np.int32)
    run(scan, 1, 96, x, out)
    assert np.array_equal(out.reshape(3, 32), np.cumsum(x.reshape(3, 32), 1))


def test_histogram_atomics_shared_and_global():
    @cuda.jit
    def histogram(x, h):
        s = cuda.shared.array(16, int32)
        t = cuda.threadIdx.x
        if t < 16:
            s[t] = 0
        cuda.syncthreads()
        cuda.atomic.add(s, x[cuda.grid(1)], 1)
        cuda.syncthreads()
        if t < 16:
            cuda.atomic.add(h, t, s[t])

    x, h = RNG.integers(0, 16, 1024).astype(np.int32), np.zeros(16, np.int32)
    r = run(histogram, 8, 128, x, h)
    assert np.array_equal(h, np.bincount(x, minlength=16))
    rows = x.reshape(-1, 32)
    assert r.counters.atomics["atom.add.u32"]["conflicts"] >= sum(32 - len(set(row)) for row in rows.tolist())


def test_other_atomics():
    @cuda.jit
    def atomics(x, out, fout, old):
        i = cuda.grid(1)
        cuda.atomic.max(out, 0, x[i])
        cuda.atomic.min(out, 1, x[i])
        cuda.atomic.or_(out, 2, x[i])
        cuda.atomic.xor(out, 3, x[i])
        old[i] = cuda.atomic.add(out, 4, 1)
        cuda.atomic.inc(out, 5, 99)
        cuda.atomic.add(fout, 0, float32(x[i]))
        cuda.atomic.max(fout, 1, float32(x[i]))
        if cuda.atomic.cas(out, 6, 0, x[i] + 1) == 0:
            out[7] = x[i] + 1

    x = RNG.integers(1, 1000, 256).astype(np.uint32)
    out, fout, old = np.zeros(8, np.uint32), np.zeros(2, np.float32), np.zeros(256, np.uint32)
    out[1] = 10**6
    run(atomics, 2, 128, x, out, fout, old)
    assert out[0] == x.max() and out[1] == x.min() and out[2] == np.bitwise_or.reduce(x)
    assert out[3] == np.bitwise_xor.reduce(x) and out[4] == 256 and out[5] == 256 % 100
    assert sorted(old.tolist()) == list(range(256)) and fout[0] == x.sum() and fout[1] == x.max()
    assert out[6] == out[7] == x[0] + 1


def test_gather_spmm_fixed_fan_in():
    @cuda.jit
    def spmm(w, idx, x, y):
        b, row = cuda.grid(2)
        if b < y.shape[0] and row < y.shape[1]:
            acc = float32(0)
            for k in range(w.shape[1]):
                acc += w[row, k] * x[idx[row, k], b]
            y[b, row] = acc

    w, idx = f32(40, 8), RNG.integers(0, 100, (40, 8)).astype(np.int32)
    x, y = f32(100, 33), np.zeros((33, 40), np.float32)
    run(spmm, (2, 10), (32, 4), w, idx, x, y)
    np.testing.assert_allclose(y, np.einsum("lk,lkb->bl", w, x[idx]), rtol=1e-4, atol=1e-5)


def test_scatter_add():
    @cuda.jit
    def scatter(x, idx, out):
        i = cuda.grid(1)
        if i < x.size:
            cuda.atomic.add(out, idx[i], x[i])

    x, idx, out = f32(5000), RNG.integers(0, 50, 5000), np.zeros(50, np.float32)
    run(scatter, 40, 128, x, idx, out)
    want = np.zeros(50)
    np.add.at(want, idx, x.astype(float))
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-3)


def test_softmax_rows():
    @cuda.jit
    def softmax(x, y):
        s = cuda.shared.array(128, float32)
        t, row = cuda.threadIdx.x, cuda.blockIdx.x
        m = float32(-math.inf)
        for j in range(t, x.shape[1], 128):
            m = max(m, x[row, j])
        s[t] = m
        cuda.syncthreads()
        for step in (64, 32, 16, 8, 4, 2, 1):
            if t < step:
                s[t] = max(s[t], s[t + step])
            cuda.syncthreads()
        m = s[0]
        cuda.syncthreads()
        total = float32(0)
        for j in range(t, x.shape[1], 128):
            total += math.exp(x[row, j] - m)
        s[t] = total
        cuda.syncthreads()
        for step in (64, 32, 16, 8, 4, 2, 1):
            if t < step:
                s[t] += s[t + step]
            cuda.syncthreads()
        lse = math.log(s[0])
        for j in range(t, x.shape[1], 128):
            y[row, j] = math.exp(x[row, j] - m - lse)

    x, y = 5 * f32(6, 300), np.zeros((6, 300), np.float32)
    run(softmax, 6, 128, x, y)
    e = np.exp(x.astype(float) - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-5, atol=1e-9)


def test_binary_search_in_cdf():
    @cuda.jit
    def search(cdf, u, out):
        i = cuda.grid(1)
        if i >= u.size:
            return
        low, high = 0, cdf.size
        while low < high:
            mid = (low + high) // 2
            if cdf[mid] < u[i]:
                low = mid + 1
            else:
                high = mid
        out[i] = low

    cdf = np.cumsum(RNG.random(37)).astype(np.float32)
    u = (RNG.random(500) * cdf[-1]).astype(np.float32)
    out = np.zeros(500, np.int64)
    r = run(search, 4, 128, cdf, u, out)
    assert np.array_equal(out, np.searchsorted(cdf, u))
    assert r.counters.average_active_lanes < 32


def test_xorshift_and_philox_counters():
    @cuda.jit
    def rng(out32, out64):
        i = cuda.grid(1)
        s = uint64(i + 1) * uint64(0x9E3779B97F4A7C15)
        s ^= s >> uint64(12)
        s ^= s << uint64(25)
        s ^= s >> uint64(27)
        out64[i] = s * uint64(2685821657736338717)
        c0, c1, key = uint32(i), uint32(7), uint32(0x1234)
        for _ in range(10):
            product = uint64(c0) * uint64(0xD256D193)
            c0 = uint32(uint32(product >> uint64(32)) ^ key ^ c1)
            c1 = uint32(product)
            key = uint32(key + uint32(0x9E3779B9))
        out32[i] = c0

    out32, out64 = np.zeros(256, np.uint32), np.zeros(256, np.uint64)
    run(rng, 2, 128, out32, out64)
    m64, m32 = (1 << 64) - 1, (1 << 32) - 1
    for i in (0, 1, 100, 255):
        s = (i + 1) * 0x9E3779B97F4A7C15 & m64
        s ^= s >> 12
        s = (s ^ s << 25) & m64
        s ^= s >> 27
        assert int(out64[i]) == s * 2685821657736338717 & m64
        c0, c1, key = i, 7, 0x1234
        for _ in range(10):
            p = c0 * 0xD256D193
            c0, c1, key = (p >> 32) ^ key ^ c1, p & m32, (key + 0x9E3779B9) & m32
        assert int(out32[i]) == c0


def test_accidental_float64_is_visible():
    @cuda.jit
    def promoted(x):
        i = cuda.grid(1)
        x[i] = x[i] * 0.1 + 1.0

    @cuda.jit
    def clean(x):
        i = cuda.grid(1)
        x[i] = x[i] * float32(0.1) + float32(1.0)

    x = f32(128)
    y, z = x.copy(), x.copy()
    r = run(promoted, 1, 128, y)
    assert r.counters.instructions["fp64"] and r.counters.flops["fp64"] == 2 * 128
    assert np.array_equal(y, (x.astype(float) * 0.1 + 1.0).astype(np.float32))
    r = run(clean, 1, 128, z)
    assert "fp64" not in r.counters.instructions and r.counters.flops["fp32"] == 2 * 128


@intrinsic
def mma_bf16(typingctx, a, b, c):
    def codegen(context, builder, signature, args):
        f, u = ir.FloatType(), ir.IntType(32)
        ret = ir.LiteralStructType([f] * 4)
        text = (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        )
        asm = ir.InlineAsm(ir.FunctionType(ret, [u] * 6 + [f] * 4), text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", True)
        flat = [builder.extract_value(v, i) for v, n in zip(args, (4, 2, 4), strict=True) for i in range(n)]
        out = builder.call(asm, flat)
        return context.make_tuple(builder, signature.return_type, [builder.extract_value(out, i) for i in range(4)])

    return types.UniTuple(types.float32, 4)(a, b, c), codegen


def to_bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def test_mma_sync_intrinsic():
    @cuda.jit
    def tile(a, b, c):  # a: 16x16 and b: 8x16 (transposed) bf16 pairs as uint32
        lane = cuda.threadIdx.x
        g, q = lane >> 2, lane & 3
        fa = (a[g, q], a[g + 8, q], a[g, q + 4], a[g + 8, q + 4])
        fb = (b[g, q], b[g, q + 4])
        zero = float32(0)
        d = mma_bf16(fa, fb, (zero, zero, zero, zero))
        c[g, 2 * q] = d[0]
        c[g, 2 * q + 1] = d[1]
        c[g + 8, 2 * q] = d[2]
        c[g + 8, 2 * q + 1] = d[3]

    a, b, c = to_bf16(f32(16, 16)), to_bf16(f32(8, 16)), np.zeros((16, 8), np.float32)
    r = run(tile, 1, 32, a.view(np.uint32), b.view(np.uint32), c)
    np.testing.assert_allclose(c, from_bf16(a) @ from_bf16(b).T, rtol=1e-5, atol=1e-5)
    assert r.counters.instructions["mma"] == 1 and r.counters.flops["mma"] == 2 * 16 * 8 * 16


def test_local_array_dynamic_index():
    @cuda.jit
    def local(x, y):
        buf = cuda.local.array(8, float32)
        i = cuda.grid(1)
        for j in range(8):
            buf[j] = x[i] * j
        y[i] = buf[int32(x[i]) & 7]

    x, y = np.abs(f32(64) * 10), np.zeros(64, np.float32)
    r = run(local, 1, 64, x, y)
    np.testing.assert_allclose(y, x * (x.astype(np.int32) & 7), rtol=1e-6)
    assert r.counters.local_store_bytes == 64 * 32


@cuda.jit(device=True)
def collatz(n):
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def test_device_function_and_data_dependent_loop():
    @cuda.jit
    def kernel(out):
        i = cuda.grid(1)
        out[i] = collatz(int64(i + 1))

    out = np.zeros(128, np.int64)
    r = run(kernel, 2, 64, out)
    assert np.array_equal(out, [collatz.py_func(i + 1) for i in range(128)])
    assert r.counters.average_active_lanes < 20


CALL_PTX = """
.version 8.0
.target sm_90
.address_size 64
.func (.param .b32 ret) scale(.param .b32 a, .param .b32 b)
{
    .reg .f32 %f<4>;
    .reg .pred %p<2>;
    ld.param.f32 %f1, [a];
    ld.param.f32 %f2, [b];
    setp.lt.f32 %p1, %f1, 0f00000000;
    @%p1 bra NEG;
    mul.f32 %f3, %f1, %f2;
    st.param.f32 [ret+0], %f3;
    ret;
NEG:
    neg.f32 %f3, %f1;
    st.param.f32 [ret+0], %f3;
    ret;
}
.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3, .param .u64 p4,
    .param .u64 p5, .param .u64 p6)
{
    .reg .f32 %f<4>; .reg .b64 %rd<4>; .reg .b32 %r<3>;
    ld.param.u64 %rd1, [p4];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.f32 %f1, [%rd3];
    { // callseq
    .param .b32 param0; st.param.f32 [param0+0], %f1;
    .param .b32 param1; st.param.f32 [param1+0], 0f40400000;
    .param .b32 retval0;
    call.uni (retval0), scale, (param0, param1);
    ld.param.f32 %f2, [retval0+0];
    }
    st.global.f32 [%rd3], %f2;
    ret;
}
"""


def test_call_with_param_space():
    x = f32(64)
    y = x.copy()
    ptxsim.run_ptx(CALL_PTX, 1, 64, (y,)).raise_on_error()
    np.testing.assert_array_equal(y, np.where(x < 0, -x, x * np.float32(3)))


def test_call_of_void_function_and_of_missing_function():
    void = CALL_PTX.replace("(.param .b32 ret) ", "").replace("st.param.f32 [ret+0], %f3;", "")
    x = f32(64)
    ptxsim.run_ptx(void, 1, 64, (x,)).raise_on_error()  # declared with a result, defined without
    assert not x.any()
    with pytest.raises(NotImplementedError, match="external function other"):
        ptxsim.run_ptx(CALL_PTX.replace("call.uni (retval0), scale", "call.uni (retval0), other"), 1, 64, (x,))


def test_three_dimensional_grid():
    @cuda.jit
    def index(out):
        x, y, z = cuda.grid(3)
        if x < out.shape[0] and y < out.shape[1] and z < out.shape[2]:
            out[x, y, z] = x * 10000 + y * 100 + z

    out = np.zeros((5, 7, 9), np.int32)
    run(index, (2, 3, 3), (4, 3, 3), out)
    assert np.array_equal(out, np.fromfunction(lambda x, y, z: x * 10000 + y * 100 + z, out.shape))


def test_strided_and_overlapping_arrays():
    @cuda.jit
    def copy(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = x[i] + 1

    base = np.arange(64, dtype=np.float64)
    out = np.zeros(10)
    run(copy, 1, 32, base[3:43:4], out)
    assert np.array_equal(out, base[3:43:4] + 1)
    run(copy, 1, 32, base[0:32], base[32:64])
    assert np.array_equal(base[32:], np.arange(32) + 1)


def test_scalars_tuples_constants_and_trig():
    table = np.arange(8, dtype=np.float32)

    @cuda.jit
    def kernel(x, y, scale, flag, pair, u8):
        const = cuda.const.array_like(table)
        i = cuda.grid(1)
        v = math.sin(x[i]) + math.cos(x[i]) * scale + const[i & 7]
        if flag:
            v += pair[0] + pair[1]
        y[i] = v + u8

    x, y = f32(64) * 1e5, np.zeros(64)
    run(kernel, 1, 64, x, y, 2.5, True, (np.float32(1.5), 2), np.uint8(200))
    xd = x.astype(float)
    want = np.sin(xd) + np.cos(xd) * 2.5 + table[np.arange(64) & 7] + 3.5 + 200
    np.testing.assert_allclose(y, want, atol=1e-5)


class Mode(enum.IntEnum):
    plain, doubled = 3, 4


def test_record_enum_and_date_arguments():
    @cuda.jit
    def kernel(rec, mode, when, then, out):
        rec.b += 1
        out[0] = rec.a * (2 if mode == Mode.doubled else 1)
        out[1] = when < then

    table = np.zeros(3, [("a", np.float64), ("b", np.int32)])
    table["a"] = 5, 6, 7
    out = np.zeros(2)
    run(kernel, 1, 1, table[1], Mode.doubled, np.datetime64("2020-01-02"), np.datetime64("2020-01-03"), out)
    assert out.tolist() == [12, 1] and table["b"].tolist() == [0, 1, 0]


def test_masks_that_differ_within_a_warp():
    @cuda.jit
    def aggregate(keys, total, out):
        i, lane = cuda.grid(1), cuda.laneid
        mask = cuda.match_any_sync(cuda.activemask(), keys[i])
        leader = cuda.ffs(mask) - 1
        old = 0
        if lane == leader:
            old = cuda.atomic.add(total, keys[i], cuda.popc(mask))
        out[0, i] = cuda.shfl_sync(mask, old, leader) + cuda.popc(mask & cuda.lanemask_lt())
        out[1, i] = cuda.ballot_sync(mask, i % 2 == 0)
        out[2, i] = cuda.any_sync(mask, lane == 0)

    keys = RNG.integers(0, 5, 128)
    total, out = np.zeros(5, np.int32), np.zeros((3, 128), np.int64)
    run(aggregate, 2, 64, keys, total, out)
    assert np.array_equal(total, np.bincount(keys, minlength=5))
    for k in range(5):
        assert sorted(out[0, keys == k]) == list(range(total[k]))
    for i in range(128):
        group = [j for j in range(32) if keys[i // 32 * 32 + j] == keys[i]]
        assert out[1, i] & M32 == sum(1 << j for j in group if j % 2 == 0) and out[2, i] == (group[0] == 0)


def test_warp_votes():
    @cuda.jit
    def votes(x, out):
        i = cuda.grid(1)
        p = x[i] > 0
        out[0, i] = cuda.ballot_sync(FULL, p)
        out[1, i] = cuda.all_sync(FULL, p)
        out[2, i] = cuda.any_sync(FULL, p)
        out[3, i] = cuda.match_any_sync(FULL, int32(x[i]))
        out[4, i] = cuda.popc(uint32(i)) + cuda.clz(int32(i)) + cuda.ffs(int32(i))
        out[5, i] = cuda.syncthreads_count(int32(p))
        if i % 3 == 0:
            out[6, i] = cuda.activemask()

    x = (f32(64) * 2).round()
    out = np.zeros((7, 64), np.uint32)
    run(votes, 1, 64, x, out)
    rows = x.reshape(2, 32)
    bits = ((rows > 0) * (1 << np.arange(32))).sum(1)
    assert np.array_equal(out[0].reshape(2, 32), np.repeat(bits[:, None], 32, 1))
    assert not out[1].any() and out[2].all() and (out[5] == (x > 0).sum()).all()
    for i in range(64):
        row = x[i // 32 * 32 :][:32].astype(np.int32)
        assert out[3, i] == sum(1 << j for j in range(32) if row[j] == row[i % 32])
        low = (i & -i).bit_length()
        assert out[4, i] == i.bit_count() + 32 - i.bit_length() + low
    assert out[6, 0] == sum(1 << j for j in range(0, 32, 3)) and out[6, 1] == 0


def test_blocks_that_wait_at_different_barriers():
    @cuda.jit
    def kernel(out):
        shared = cuda.shared.array(64, int32)
        b, t = cuda.blockIdx.x, cuda.threadIdx.x
        for i in range(b % 3):
            shared[t] = i
            cuda.syncthreads()
            out[b, t] += shared[63 - t] + i
            cuda.syncthreads()
        out[b, t] += 100 * cuda.syncthreads_count(int32(t < b + 5))

    out = np.zeros((7, 64), np.int32)
    run(kernel, 7, 64, out)
    want = [100 * (b + 5) + (2 if b % 3 == 2 else 0) for b in range(7)]
    assert np.array_equal(out, np.repeat(want, 64).reshape(7, 64))


def test_group_that_waits_for_lanes_elsewhere():
    @cuda.jit
    def kernel(out):
        t = cuda.threadIdx.x
        mask = uint32(0xFF if t < 8 else 0xFFFFFF00)
        if 4 <= t < 8:  # the lower group arrives in two parts
            for i in range(t):
                out[t] += i
        out[32 + t] = cuda.ballot_sync(mask, out[t] >= 0)

    out = np.zeros(64, np.int64)
    run(kernel, 1, 32, out)
    assert np.array_equal(out[32:] & M32, [0xFF] * 8 + [0xFFFFFF00] * 24)


def test_spin_lock():
    @cuda.jit
    def locked(lock, total):
        done = False
        while not done:
            if cuda.atomic.cas(lock, 0, 0, 1) == 0:
                total[0] += 1
                cuda.threadfence()
                cuda.atomic.exch(lock, 0, 0)
                done = True

    lock, total = np.zeros(1, np.int32), np.zeros(1, np.int64)
    ptxsim.launch(locked, 2, 8, (lock, total))
    assert total[0] == 16


def test_dynamic_shared_memory():
    @cuda.jit
    def reverse(x):
        s = cuda.shared.array(0, float32)
        t = cuda.threadIdx.x
        s[t] = x[t]
        cuda.syncthreads()
        x[t] = s[cuda.blockDim.x - 1 - t]

    x = f32(100)
    y = x.copy()
    run(reverse, 1, 100, y, dynamic_shared=400)
    assert np.array_equal(y, x[::-1])


def test_numba_bfloat16_and_float16_types():
    bf16 = pytest.importorskip("numba.cuda").bfloat16

    @cuda.jit
    def half(x, h, y):
        i = cuda.grid(1)
        b = bf16(x[i])
        y[i] = float32(b * b)
        h[i] = types.float16(x[i]) * h[i]

    x, h, y = f32(64), RNG.standard_normal(64).astype(np.float16), np.zeros(64, np.float32)
    want = x.astype(np.float16) * h
    run(half, 1, 64, x, h, y)
    b = from_bf16(to_bf16(x))
    assert np.array_equal(y, from_bf16(to_bf16(b * b))) and np.array_equal(h, want)


def test_bfloat16_array_by_signature():
    bf16 = pytest.importorskip("numba.cuda").bfloat16

    @cuda.jit
    def double(h, y):
        i = cuda.grid(1)
        y[i] = float32(h[i])
        h[i] = h[i] + h[i]

    h = to_bf16(f32(64))
    want, y = from_bf16(h), np.zeros(64, np.float32)
    ptxsim.launch(double, 1, 64, (h, y), signature=(types.Array(bf16, 1, "C"), types.float32[::1])).raise_on_error()
    assert np.array_equal(y, want) and np.array_equal(from_bf16(h), 2 * want)


def test_fastmath_and_integer_division():
    @cuda.jit(fastmath=True)
    def kernel(x, a, b, q, r, y):
        i = cuda.grid(1)
        y[i] = math.log(x[i]) / math.sqrt(x[i])
        q[i] = a[i] // b[i]
        r[i] = a[i] % b[i]

    x, y = np.abs(f32(64)) + 1, np.zeros(64, np.float32)
    a, b = RNG.integers(-99, 99, 64), RNG.integers(1, 9, 64) * RNG.choice([-1, 1], 64)
    q, r = np.zeros(64, np.int64), np.zeros(64, np.int64)
    run(kernel, 1, 64, x, a, b, q, r, y)
    np.testing.assert_allclose(y, np.log(x) / np.sqrt(x), rtol=1e-5, atol=1e-6)
    assert np.array_equal(q, a // b) and np.array_equal(r, a % b)


def test_batches_give_the_same_counters():
    @cuda.jit
    def walk(x, out):
        i = cuda.grid(1)
        n = x[i]
        while n > 0:
            out[i] += n
            n -= 3

    x = RNG.integers(0, 40, 1024)
    results = []
    for lanes in (64, 500, 16384):
        out = np.zeros(1024, np.int64)
        r = run(walk, 16, 64, x, out, batch_lanes=lanes)
        results.append((r.counters.instructions, r.counters.global_load, out.tolist()))
    assert results[0] == results[1] == results[2]
