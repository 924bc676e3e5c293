"""Broken kernels must be reported; correct ones must not."""

import numpy as np
import pytest
from numba import cuda, float32, int32

import ptxsim

FULL = 0xFFFFFFFF


def kinds(kernel, grid, block, *args, **options):
    result = ptxsim.launch(kernel, grid, block, args, **options)
    return {e.kind for e in result.errors}, result


def test_out_of_bounds_read_and_write():
    @cuda.jit
    def off_by_one(x, y):
        i = cuda.grid(1)
        y[i] = x[i + 1]

    x, y = np.ones(64, np.float32), np.zeros(63, np.float32)
    found, r = kinds(off_by_one, 1, 64, x, y)
    assert found == {"out-of-bounds"} and len(r.errors) == 2
    read, write = r.errors
    assert "global read" in read.message and "byte offset 256 of 'arg0'" in read.message
    assert "global write" in write.message and read.thread == (63, 0, 0) and read.count == 1
    assert read.ptx_line and "test_checks.py" in read.source[0]
    with pytest.raises(ptxsim.KernelError, match="out-of-bounds"):
        r.raise_on_error()
    assert y[:62].all()
    with pytest.raises(IndexError):
        ptxsim.launch(off_by_one, 1, 64, (x, y), check=False)


def test_shared_out_of_bounds():
    @cuda.jit
    def overflow(x):
        s = cuda.shared.array(32, float32)
        s[cuda.threadIdx.x] = 1
        cuda.syncthreads()
        x[cuda.threadIdx.x] = s[31 - cuda.threadIdx.x % 32]

    found, r = kinds(overflow, 1, 64, np.zeros(64, np.float32))
    assert found == {"out-of-bounds"} and "shared write" in r.errors[0].message


def test_misaligned_and_read_only():
    @cuda.jit
    def store(x, y):
        y[0] = x[0]

    raw = np.zeros(65, np.uint8)
    frozen = np.zeros(4, np.float32)
    found, _ = kinds(store, 1, 1, np.zeros(4, np.float32), raw[1:].view(np.float32))
    assert not found  # a copied array starts aligned on the device
    frozen.flags.writeable = False
    args = (np.ones(4, np.float32), frozen)
    r = ptxsim.launch(store, 1, 1, args, signature=(float32[::1], float32[::1]))
    assert [e.kind for e in r.errors] == ["read-only"] and frozen[0] == 0


def test_missing_barrier():
    @cuda.jit
    def reverse(x, y):
        s = cuda.shared.array(128, float32)
        t = cuda.threadIdx.x
        s[t] = x[t]
        y[t] = s[127 - t]

    x, y = np.ones(128, np.float32), np.zeros(128, np.float32)
    found, r = kinds(reverse, 2, 128, x, y)
    assert found == {"shared-race"} and "read-after-write" in r.errors[0].message


def test_missing_second_barrier():
    @cuda.jit
    def rotate(x):
        s = cuda.shared.array(128, float32)
        t = cuda.threadIdx.x
        for _ in range(3):
            s[t] = x[t]
            cuda.syncthreads()
            x[t] = s[(t + 32) % 128]

    found, r = kinds(rotate, 1, 128, np.ones(128, np.float32))
    assert found == {"shared-race"} and "write-after-read" in r.errors[0].message


@pytest.mark.parametrize("threads", [32, 64])
def test_write_after_reads_by_several_threads(threads):
    def make(barrier):
        @cuda.jit
        def kernel(x, writer):
            s = cuda.shared.array(1, float32)
            t = cuda.threadIdx.x
            if t == 0:
                s[0] = 1
            cuda.syncthreads()
            x[t] = s[0]
            if barrier == 1:
                cuda.syncwarp()
            if barrier == 2:
                cuda.syncthreads()
            if t == writer:
                s[0] = 2

        return kernel

    x = np.zeros(threads, np.float32)
    none, warp, block = map(make, range(3))
    for writer in (0, threads - 2, threads - 1):  # including the last reader on record
        assert kinds(none, 1, threads, x, writer)[0] == {"shared-race"}
        assert kinds(warp, 1, threads, x, writer)[0] == ({"shared-race"} if threads > 32 else set())
        assert kinds(block, 1, threads, x, writer)[0] == set()


def test_warp_synchronous_code_is_ordered_by_syncwarp():
    def make(sync):
        @cuda.jit
        def tail(x, y):
            s = cuda.shared.array(64, float32)
            t = cuda.threadIdx.x
            s[t] = x[t]
            cuda.syncwarp()
            for step in (16, 8, 4, 2, 1):
                v = s[t]
                if t % 32 < step:
                    v += s[t + step]
                if sync:
                    cuda.syncwarp()
                s[t] = v
                if sync:
                    cuda.syncwarp()
            y[t] = s[t]

        return tail

    x = np.ones(64, np.float32)
    y = np.zeros(64, np.float32)
    assert kinds(make(True), 1, 64, x, y)[0] == set() and y[0] == y[32] == 32
    assert kinds(make(False), 1, 64, x, y)[0] == {"shared-race"}


def test_shared_write_write_race_and_benign_warning():
    @cuda.jit
    def differ(y):
        s = cuda.shared.array(1, int32)
        s[0] = cuda.threadIdx.x
        cuda.syncthreads()
        y[0] = s[0]

    @cuda.jit
    def same(y):
        s = cuda.shared.array(1, int32)
        s[0] = 5
        cuda.syncthreads()
        y[0] = s[0]

    found, _ = kinds(differ, 1, 64, np.zeros(1, np.int32))
    assert found == {"shared-race"}
    found, r = kinds(same, 1, 64, np.zeros(1, np.int32))
    assert not found and [w.kind for w in r.warnings] == ["shared-race"]


def test_racy_global_store():
    @cuda.jit
    def racy(x, out):
        out[cuda.grid(1) % 7] = x[cuda.grid(1)]

    @cuda.jit
    def ordered(out):
        t = cuda.threadIdx.x
        out[t] = t
        cuda.syncthreads()
        out[63 - t] = t

    x = np.arange(256, dtype=np.float32)
    assert kinds(racy, 2, 128, x, np.zeros(7, np.float32))[0] == {"global-race"}
    assert kinds(racy, 2, 128, np.ones(256, np.float32), np.zeros(7, np.float32))[0] == set()
    assert kinds(ordered, 1, 64, np.zeros(64, np.float32))[0] == set()
    assert kinds(ordered, 2, 64, np.zeros(64, np.float32))[0] == {"global-race"}
    assert kinds(racy, 2, 1, x, np.zeros(7, np.float32))[0] == set()


def test_shared_float_max_is_not_a_race():
    @cuda.jit
    def kernel(x, y):  # compiles to a volatile load and a compare-and-swap loop
        s = cuda.shared.array(1, float32)
        if cuda.threadIdx.x == 0:
            s[0] = 0
        cuda.syncthreads()
        cuda.atomic.max(s, 0, x[cuda.threadIdx.x])
        cuda.atomic.max(s, 0, -x[cuda.threadIdx.x])
        cuda.syncthreads()
        y[0] = s[0]

    x, y = np.random.default_rng(0).random(128, np.float32), np.zeros(1, np.float32)
    found, _ = kinds(kernel, 1, 128, x, y)
    assert not found and y[0] == x.max()


def test_atomic_and_plain_access_race():
    @cuda.jit
    def mixed(y):
        s = cuda.shared.array(1, int32)
        if cuda.threadIdx.x == 0:
            s[0] = 0
        cuda.atomic.add(s, 0, 1)
        cuda.syncthreads()
        y[0] = s[0]

    assert kinds(mixed, 1, 64, np.zeros(1, np.int32))[0] == {"shared-race"}


def test_divergent_barriers():
    @cuda.jit
    def conditional(x):
        if cuda.threadIdx.x < 40:
            cuda.syncthreads()
        x[cuda.threadIdx.x] = 1

    @cuda.jit
    def two_places(x):
        if cuda.threadIdx.x < 32:
            x[cuda.threadIdx.x] = 2
            cuda.syncthreads()
        else:
            x[cuda.threadIdx.x] = 3
            cuda.syncthreads()
            x[cuda.threadIdx.x] += 1

    @cuda.jit
    def early_return(x, n):
        if cuda.grid(1) >= n:
            return
        cuda.syncthreads()
        x[cuda.grid(1)] = 1

    for kernel, args in ((conditional, ()), (two_places, ()), (early_return, (50,))):
        assert kinds(kernel, 1, 64, np.zeros(64, np.float32), *args)[0] == {"barrier-divergence"}, kernel
    assert kinds(early_return, 1, 64, np.zeros(64, np.float32), 64)[0] == set()


def test_uninitialised_shared_read():
    @cuda.jit
    def forgot(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        if t < 60:
            s[t] = x[t]
        cuda.syncthreads()
        y[t] = s[t]

    y = np.zeros(64, np.float32)
    found, r = kinds(forgot, 3, 64, np.ones(64, np.float32), y)
    assert found == {"uninitialised"} and r.errors[0].count == 12 and np.isnan(y[60:]).all()


def test_membermask_names_absent_lanes():
    @cuda.jit
    def half_warp(x, y):
        t = cuda.threadIdx.x
        if t < 16:
            y[t] = cuda.shfl_xor_sync(FULL, x[t], 1)
        else:
            cuda.syncthreads()

    found, _ = kinds(half_warp, 1, 32, np.ones(32, np.float32), np.zeros(32, np.float32))
    assert "warp-sync" in found


def test_membermask_must_name_the_lane():
    @cuda.jit
    def wrong_mask(x, y, mask):
        y[cuda.threadIdx.x] = cuda.shfl_xor_sync(mask, x[cuda.threadIdx.x], 1)

    x = np.ones(32, np.float32)
    assert kinds(wrong_mask, 1, 32, x, np.zeros(32, np.float32), 0xFFFF)[0] == {"warp-sync"}
    assert kinds(wrong_mask, 1, 32, x, np.zeros(32, np.float32), FULL)[0] == set()


def test_slices_keep_their_alignment():
    params = ", ".join(f".param .u64 p{i}" for i in range(7))
    text = (
        f".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k({params}) {{\n"
        ".reg .f32 %f<5>; .reg .b64 %r<3>; .reg .b32 %t;\nld.param.u64 %r1, [p4]; mov.u32 %t, %tid.x;\n"
        "mul.wide.u32 %r2, %t, 16; add.u64 %r1, %r1, %r2;\n"
        "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%r1]; st.global.f32 [%r1], %f4;\nret;\n}\n"
    )
    x = np.arange(160, dtype=np.float32)
    for start, found in ((1, {"misaligned"}), (4, set()), (8, set())):
        r = ptxsim.run_ptx(text, 1, 32, (x[start : start + 128],))
        assert {e.kind for e in r.errors} == found
        if not found:
            assert np.array_equal(x[start : start + 128 : 4], np.arange(start, start + 128, 4) + 3)
            assert r.counters.global_load.sectors == (16 if start == 8 else 17)
            x = np.arange(160, dtype=np.float32)


def test_unknown_instruction_is_named():
    text = (
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() {\n.reg .b32 %r<3>;\n"
        "dp4a.u32.u32 %r1, %r1, %r1, %r1;\nret;\n}\n"
    )
    with pytest.raises(NotImplementedError, match=r"dp4a.u32.u32 at PTX line 6"):
        ptxsim.run_ptx(text, 1, 32, ())


def test_endless_loop_is_stopped():
    @cuda.jit
    def forever(x):
        while x[0] == 0:
            x[1] += 1

    with pytest.raises(TimeoutError):
        ptxsim.launch(forever, 1, 1, (np.zeros(2, np.int32),), max_steps=1000)
