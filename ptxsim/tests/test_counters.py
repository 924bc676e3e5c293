"""Counters with known answers."""

import numpy as np
import pytest
from numba import cuda, float32, int32

import ptxsim

N = 1 << 14


@cuda.jit
def copy(x, y):
    i = cuda.grid(1)
    y[i] = x[i]


def test_coalesced_copy():
    x, y = np.random.default_rng(0).random(N, np.float32), np.zeros(N, np.float32)
    r = ptxsim.launch(copy, N // 128, 128, (x, y)).raise_on_error()
    for t in (r.counters.global_load, r.counters.global_store):
        assert t.requests == N // 32 and t.sectors == N * 4 // 32
        assert t.bytes == t.unique_bytes == 4 * N and t.sectors_per_request == 4
    assert r.counters.dram_read_bytes == r.counters.dram_write_bytes == 4 * N
    assert r.counters.average_active_lanes == 32
    assert r.counters.instructions["load_global"] == N // 32
    assert not r.worst_accesses() and np.array_equal(x, y)


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (32, 32)])
def test_strided_access(stride, sectors):
    @cuda.jit
    def strided(x, y, s):
        i = cuda.grid(1)
        y[i] = x[i * s]

    x, y = np.zeros(stride * 1024, np.float32), np.zeros(1024, np.float32)
    c = ptxsim.launch(strided, 8, 128, (x, y, stride)).counters
    assert c.global_load.sectors_per_request == sectors
    assert c.global_load.unique_bytes == 4096


def test_broadcast_and_permuted_access():
    @cuda.jit
    def gather(x, idx, y):
        i = cuda.grid(1)
        y[i] = x[idx[i]] + x[0]

    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    idx = (np.arange(256) ^ 5).astype(np.int32)
    c = ptxsim.launch(gather, 2, 128, (x, idx, y)).counters
    assert c.global_load.requests == 24 and c.global_load.sectors == 8 * (4 + 4 + 1)
    assert np.array_equal(y, x[idx])


@pytest.mark.parametrize(("stride", "ways"), [(1, 1), (2, 2), (16, 16), (32, 32), (33, 1), (0, 1)])
def test_bank_conflicts(stride, ways):
    @cuda.jit
    def banks(y, s):
        buf = cuda.shared.array(33 * 32, float32)
        t = cuda.threadIdx.x
        for j in range(t, 33 * 32, 32):
            buf[j] = j
        cuda.syncthreads()
        y[t] = buf[t * s]

    y = np.zeros(32, np.float32)
    c = ptxsim.launch(banks, 1, 32, (y, stride)).raise_on_error().counters
    assert c.shared_load.requests == 1 and c.shared_load.extra_wavefronts == ways - 1
    assert c.shared_store.extra_wavefronts == 0 and np.array_equal(y, np.arange(32) * stride)


def test_divergence_and_branches():
    @cuda.jit
    def half(x):
        t = cuda.threadIdx.x
        if t % 32 < 8:
            for _ in range(100):
                x[t] += 1

    c = ptxsim.launch(half, 1, 64, (np.zeros(64, np.float32),)).counters
    assert 8 <= c.average_active_lanes < 12


def test_atomic_conflicts():
    @cuda.jit
    def count(out, width):
        cuda.atomic.add(out, cuda.grid(1) % width, 1)

    for width, conflicts in ((32, 0), (8, 24 * 4), (1, 31 * 4)):
        out = np.zeros(32, np.int32)
        c = ptxsim.launch(count, 2, 64, (out, width)).counters
        (total,) = c.atomics.values()
        assert total == {"requests": 4, "lanes": 128, "conflicts": conflicts} and out.sum() == 128


def test_l2_model_capacity():
    @cuda.jit
    def twice(x, y):
        for _ in range(2):
            for j in range(cuda.grid(1), x.size, cuda.gridsize(1)):
                y[j] += x[j]

    n = 1 << 15
    args = np.zeros(n, np.float32), np.zeros(n, np.float32)
    small = ptxsim.launch(twice, 2, 128, args, l2_bytes=1 << 12).counters
    large = ptxsim.launch(twice, 2, 128, args).counters
    assert large.dram_read_bytes == 2 * 4 * n and large.dram_write_bytes == 4 * n
    assert small.dram_read_bytes == 2 * large.dram_read_bytes
    assert small.dram_write_bytes == 2 * large.dram_write_bytes


def test_sampled_blocks_are_scaled_and_flagged():
    x, y = np.ones(N, np.float32), np.zeros(N, np.float32)
    full = ptxsim.launch(copy, N // 128, 128, (x, y)).counters
    y[:] = 0
    r = ptxsim.launch(copy, N // 128, 128, (x, y), max_blocks=16)
    assert r.counters.estimated and r.counters.blocks_executed == 16 and not full.estimated
    assert y.sum() == 16 * 128 and "ESTIMATES" in r.report()
    assert r.counters.instructions == full.instructions and r.counters.global_load == full.global_load


def test_sampled_blocks_do_not_multiply_shared_arrays():
    @cuda.jit
    def rows(table, y):
        t = cuda.threadIdx.x
        acc = float32(0)
        for r in range(table.shape[0]):
            acc += table[r, t]
        y[cuda.grid(1)] = acc

    table, y = np.ones((16, 128), np.float32), np.zeros(N, np.float32)
    full = ptxsim.launch(rows, N // 128, 128, (table, y)).counters
    part = ptxsim.launch(rows, N // 128, 128, (table, y), max_blocks=16).counters
    assert part.global_load == full.global_load and part.global_store == full.global_store
    assert part.dram_read_bytes == full.dram_read_bytes == table.nbytes
    assert part.dram_write_bytes == full.dram_write_bytes == y.nbytes


def test_report_and_resources():
    @cuda.jit
    def kernel(x):
        s = cuda.shared.array(100, int32)
        t = cuda.threadIdx.x
        s[t] = t
        cuda.syncthreads()
        x[t * 32] = x[t * 32] * float32(2) + s[t]

    r = ptxsim.launch(kernel, 1, 64, (np.ones(2048, np.float32),)).raise_on_error()
    text = r.report("H200", bandwidth=1e12)
    assert "lower bound" in text and "NOT a measurement" in text and "least coalesced" in text
    assert "arithmetic intensity" in text and r.report("RTX3050-4GB")
    if r.resources:
        assert r.resources["registers"] > 0 and r.resources["shared_bytes"] >= 400
    bounds = ptxsim.lower_bound(r.counters, "H200", bandwidth=1e9)
    assert bounds["memory (unique bytes)"] == pytest.approx(2 * 256 / 1e9)


def test_speed_of_a_streaming_kernel():
    n = 1 << 19
    x, y = np.zeros(n, np.float32), np.zeros(n, np.float32)
    ptxsim.launch(copy, n // 256, 256, (x, y))
    r = ptxsim.launch(copy, n // 256, 256, (x, y))
    assert r.counters.thread_instructions / r.seconds > 5e6
