# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your first kernel
#
# A GPU runs the same small function in many thousands of threads. Writing this function is easy. Whether it is fast
# depends on *which thread reads and writes which bytes*. In this tutorial we turn the forward pass of a fixed fan-in
# layer from one line of NumPy into a first kernel, find out what it reads, and improve it twice. Then one kernel
# performs a whole training step.
#
# No GPU? Numba has a simulator that runs kernels as Python threads. It is slow, so all sizes are tiny, but the results
# are the same. Whatever needs a real device is marked.

# %%
import os
import subprocess
import sys

PROBE = "from numba import cuda; raise SystemExit(not cuda.is_available())"
if subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False).returncode:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # must be set before numba is imported
os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = "0"  # our grids are small on purpose

import functools
import itertools
import marshal
import pickle
import re
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse
from lesson import GREY, can_compile, check, find_ptxas, plt, show, size
from numba import config, cuda, float32

from sparsemax_nb import SGD, FixedFanIn, fixed_fan_in_step

random = np.random.default_rng(0)
print("Numba's simulator" if config.ENABLE_CUDASIM else "a CUDA device")

# %% [markdown]
# ## One line of NumPy
#
# Label `l` is connected to `K` of the `H` inputs: `indices[l]` are their positions, and `values[l]` are their weights.

# %%
B, H, L, K = 33, 64, 35, 4  # rows and labels that are not multiples of a block size
layer = FixedFanIn.random(n_labels=L, n_inputs=H, fan_in=K, seed=0)
layer.bias[:] = random.standard_normal(L, np.float32)
indices, values, bias = layer.indices, layer.values, layer.bias
h = random.standard_normal((B, H), np.float32)

wanted = bias + (h[:, indices] * values).sum(-1)
print(f"h[:, indices] has shape {h[:, indices].shape}")
print(f"for 128 rows, 670,000 labels and 32 connections it would take {4 * 128 * 670_000 * 32 / 1e9:.1f} GB")

# %% [markdown]
# This is the disadvantage of the one-liner: it stores all products before it adds them. A loop adds each product
# immediately. So we write the loop, for *one* score. It is plain Python, and we will also use it as such.


# %%
def score_of(h, indices, values, bias, row, label):
    score = bias[label]
    for k in range(indices.shape[1]):
        score += values[label, k] * h[row, indices[label, k]]
    return score


assert np.isclose(score_of(h, indices, values, bias, 3, 5), wanted[3, 5], atol=1e-6)

# %% [markdown]
# ## The first kernel
#
# A *kernel* is the body of the loop over all scores; the hardware runs the loop. We launch the kernel on a *grid* of
# *blocks* of threads. Each thread asks for its position in the grid (`cuda.grid(2)`) and computes one score. All blocks
# have the same size, so some threads are outside of the array. That is why we need the `if`: without it, these threads
# would write to memory that is not theirs.

# %%
score_on_gpu = cuda.jit(device=True, inline="always")(score_of)  # a function that kernels can call


@cuda.jit
def first_kernel(h, indices, values, bias, scores):
    label, row = cuda.grid(2)
    if row < scores.shape[0] and label < scores.shape[1]:
        scores[row, label] = score_on_gpu(h, indices, values, bias, row, label)


def blocks(n, size_of_block):
    """How many blocks cover n threads."""
    return -(-n // size_of_block)


def on_device(*arrays):
    return [cuda.to_device(array) for array in arrays]


scores = cuda.device_array((B, L), np.float32)
first_kernel[(blocks(L, 32), blocks(B, 4)), (32, 4)](*on_device(h, indices, values, bias), scores)
difference = np.abs(scores.copy_to_host() - wanted).max()
print(f"differs from NumPy by {difference:.0e}")
assert difference < 1e-6

# %% [markdown]
# ## What does it read?
#
# Threads do not run individually. A group of 32 neighbouring threads, a *warp*, executes each instruction together. If
# the instruction is a load, the 32 addresses are sent to memory together. Memory transfers *sectors* of 32 bytes. If
# the 32 threads load 32 neighbouring numbers of 4 bytes, this takes 4 sectors, and every byte is used. If the numbers
# are far apart, it takes 32 sectors, and seven eighths of the bytes are not used.
#
# So the question for each load is: how many sectors for one warp? We can count them. `score_of` is plain Python, so we
# call it for each of the 32 threads with arrays that record every access, and then compare the accesses of the threads.


# %%
class Recording:
    """An array that records the addresses of all accesses."""

    def __init__(self, name, array, log):
        self.name, self.array, self.shape, self.log = name, array, array.shape, log

    def _record(self, index):
        flat = np.ravel_multi_index(index if isinstance(index, tuple) else (index,), self.shape)
        self.log.append((self.name, 4 * int(flat)))

    def __getitem__(self, index):
        self._record(index)
        return self.array[index]

    def __setitem__(self, index, value):
        self._record(index)
        self.array[index] = value


def accesses(thread, arrays, positions):
    """[(array, addresses of the 32 threads)] per instruction; `positions` are the grid positions of the threads."""
    logs = []
    for position in positions:
        logs.append([])
        thread(*(Recording(name, array, logs[-1]) for name, array in arrays.items()), *position)
    instructions = ([access for access in together if access] for together in itertools.zip_longest(*logs))
    return [(together[0][0], [address for _, address in together]) for together in instructions]


def sectors(addresses):
    return len({address // 32 for address in addresses})


def first_thread(h, indices, values, bias, scores, row, label):
    scores[row, label] = score_of(h, indices, values, bias, row, label)


# a layer of more realistic size; here we only count its accesses, without using the device
WIDE = FixedFanIn.random(n_labels=256, n_inputs=1024, fan_in=32, seed=1)
wide_h = random.standard_normal((32, 1024), np.float32)


def table_of(title, thread, h, positions):
    """Sectors that one warp requests, per array. With 32 scores per warp, the sum is also bytes per score."""
    arrays = {"h": h, "indices": WIDE.indices, "values": WIDE.values, "bias": WIDE.bias}
    arrays["scores"] = np.zeros((32, 256), np.float32)
    total = dict.fromkeys(arrays, 0)
    for name, addresses in accesses(thread, arrays, positions):
        total[name] += sectors(addresses)
    print(f"{title:<28}" + "".join(f"{count:9}" for count in total.values()) + f"{sum(total.values()):16}")
    return total


print(f"{'sectors per warp':<28}{'h':>9}{'indices':>9}{'values':>9}{'bias':>9}{'scores':>9}{'bytes per score':>16}")
neighbours_are_labels = [(0, label) for label in range(32)]
first = table_of("first kernel", first_thread, wide_h, neighbours_are_labels)
assert first["indices"] == first["values"] == 32 * 32
assert first["scores"] == 4

# %% [markdown]
# The scores are written efficiently: neighbours in the grid are neighbours in memory. Everything else is about as bad
# as possible. The indices of the 32 labels are `K` numbers apart, and each label needs a different input.
#
# (These are the requested sectors. A sector that is requested again soon may still be in a cache, so less comes from
# memory. But the cache also transfers a limited number of sectors at a time.)
#
# ## A warp of 32 rows
#
# Which threads could share their accesses? Two *rows* with the same label: they use the same indices and the same
# weights. If a warp computes 32 rows of one label, an index is one sector for the whole warp. The hardware reads it
# once and sends it to all threads.

# %%
neighbours_are_rows = [(row, 7) for row in range(32)]
by_rows = table_of("a warp takes 32 rows", first_thread, wide_h, neighbours_are_rows)
assert by_rows["indices"] == by_rows["values"] == 32

# %% [markdown]
# But now all 32 threads need the same *feature* of 32 different rows, and the rows of `h` are far apart in memory. The
# solution is to store the transposed array: `ht` of shape `(H, B)` has one feature of all rows next to each other. This
# costs a transpose of a small array, once per batch.


# %%
def score_transposed(ht, indices, values, bias, row, label):
    score = bias[label]
    for k in range(indices.shape[1]):
        score += values[label, k] * ht[indices[label, k], row]
    return score


def transposed_thread(ht, indices, values, bias, scores, row, label):
    scores[row, label] = score_transposed(ht, indices, values, bias, row, label)


transposed = table_of("... of the transposed inputs", transposed_thread, wide_h.T.copy(), neighbours_are_rows)
assert transposed["h"] == 4 * 32

# %% [markdown]
# The three access patterns as a figure, for a small layer. The upper row shows the memory of the inputs, the lower row
# that of the weights. The coloured squares are the numbers that the 32 threads of a warp need in *one* load, from light
# (first thread) to dark (last thread). Pale orange is what is transferred in addition, because memory transfers whole
# sectors (between two vertical lines). In the third column, neighbouring threads read neighbouring numbers, and nothing
# is transferred in addition. Such accesses are called *coalesced*.


# %%
def draw(axes, shape, addresses):
    lanes, fetched = np.full(int(np.prod(shape)), np.nan), np.zeros(int(np.prod(shape)))
    for lane, address in enumerate(addresses):
        lanes[address // 4] = lane
        fetched[address // 32 * 8 : address // 32 * 8 + 8] = 1
    axes.pcolormesh(fetched.reshape(shape), cmap=plt.matplotlib.colors.ListedColormap(["white", "#F6D08F"]))
    picture = axes.pcolormesh(lanes.reshape(shape), cmap="viridis_r", vmin=0, vmax=31)
    axes.vlines(range(8, shape[1], 8), 0, shape[0], color=GREY, linewidth=0.5)
    axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0), xticks=np.linspace(0, shape[1], 5))
    axes.grid(visible=False)
    caption, box = (
        f"{sectors(addresses)} sector" + "s" * (sectors(addresses) > 1),
        {"facecolor": "w", "edgecolor": GREY},
    )
    axes.text(0.97, 0.95, caption, transform=axes.transAxes, ha="right", va="top", bbox=box)
    return picture


small = FixedFanIn.random(n_labels=32, n_inputs=96, fan_in=16, seed=3)
few = random.standard_normal((32, 96), np.float32)
figure, panels = plt.subplots(2, 3, figsize=(10, 6.4))
for column, (thread, array, positions, caption, axes_of_h) in zip(
    panels.T,
    (
        (first_thread, few, [(5, label) for label in range(32)], "first kernel", ("input", "row")),
        (first_thread, few, [(row, 9) for row in range(32)], "a warp takes 32 rows", ("input", "row")),
        (transposed_thread, few.T.copy(), [(row, 9) for row in range(32)], "... transposed inputs", ("row", "input")),
    ),
    strict=True,
):
    arrays = {
        "h": array,
        "i": small.indices,
        "values": small.values,
        "b": small.bias,
        "s": np.zeros((32, 32), np.float32),
    }
    for axes, name, labels in zip(column, ("h", "values"), (axes_of_h, ("connection", "label")), strict=True):
        loads = [addresses for array_name, addresses in accesses(thread, arrays, positions) if array_name == name]
        picture = draw(axes, arrays[name].shape, loads[5])
        axes.set(xlabel=labels[0], ylabel=labels[1])
    column[0].set_title(caption, fontsize=12)
figure.colorbar(picture, ax=panels, label="thread of the warp", shrink=0.6, ticks=(0, 8, 16, 24, 31))
show(figure, "03_who_reads_what")

# %% [markdown]
# The kernel hardly changes: rows are the first coordinate of the grid, and `ht` replaces `h`.

# %%
score_transposed_on_gpu = cuda.jit(device=True, inline="always")(score_transposed)


@cuda.jit
def transposed_kernel(ht, indices, values, bias, scores):
    row, label = cuda.grid(2)
    if row < scores.shape[0] and label < scores.shape[1]:
        scores[row, label] = score_transposed_on_gpu(ht, indices, values, bias, row, label)


scores = cuda.device_array((B, L), np.float32)
transposed_kernel[(blocks(B, 32), blocks(L, 4)), (32, 4)](*on_device(h.T.copy(), indices, values, bias), scores)
assert np.abs(scores.copy_to_host() - wanted).max() < 1e-6

# %% [markdown]
# ## Coalesced writes: a tile in shared memory
#
# Look at the last columns of the table again. The inputs have improved, but the scores have become worse: neighbouring
# threads now belong to different rows, and the rows of `scores` are `L` numbers apart. Inputs need one order, scores
# the other.
#
# The solution is an intermediate copy. The threads of a block share a small, fast memory on the chip. They compute a
# tile of 32 rows and 32 labels in the order that suits the inputs, and store it in shared memory. They wait for each
# other (`syncthreads`), and then write the tile to memory in the order that suits the scores.

# %%
TILE = 32
PITCH = TILE + 1


@cuda.jit
def tiled_kernel(ht, indices, values, bias, scores):
    tile = cuda.shared.array((TILE, PITCH), float32)
    first_row, first_label = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
    n_rows, n_labels = scores.shape
    row = first_row + cuda.threadIdx.x
    for j in range(cuda.threadIdx.y, TILE, cuda.blockDim.y):
        if row < n_rows and first_label + j < n_labels:
            tile[j, cuda.threadIdx.x] = score_transposed_on_gpu(ht, indices, values, bias, row, first_label + j)
    cuda.syncthreads()
    label = first_label + cuda.threadIdx.x
    for i in range(cuda.threadIdx.y, TILE, cuda.blockDim.y):
        if first_row + i < n_rows and label < n_labels:
            scores[first_row + i, label] = tile[cuda.threadIdx.x, i]


scores = cuda.device_array((B, L), np.float32)
tiled_kernel[(blocks(B, TILE), blocks(L, TILE)), (TILE, 2)](*on_device(h.T.copy(), indices, values, bias), scores)
assert np.abs(scores.copy_to_host() - wanted).max() < 1e-6

tiled = transposed | {"scores": sectors([4 * label for label in range(32)])}
print("bytes per score, and how many of them are for writing it (counted)")
for name, total in (("first", first), ("32 rows", by_rows), ("transposed", transposed), ("tiled", tiled)):
    print(f"{name:<12}{sum(total.values()):6}{total['scores']:6}")
assert tiled["scores"] == 4 and sum(tiled.values()) < sum(first.values()) / 8

# %% [markdown]
# Why does a row of the tile have 33 numbers instead of 32? Shared memory has 32 *banks*. Number `n` is in bank `n %
# 32`, and a bank serves one address at a time. When a warp writes the scores, it reads a *column* of the tile. How many
# of its threads access the same bank?


# %%
def max_per_bank(addresses):
    return np.bincount(np.array(addresses) // 4 % 32).max()


for pitch in (32, 33):
    print(f"rows of {pitch}: up to {max_per_bank([4 * pitch * lane for lane in range(32)])} threads in one bank")
assert max_per_bank([4 * 33 * lane for lane in range(32)]) == 1

# %% [markdown]
# ## On a device: do the counts agree with the times?
#
# This cell times the three kernels on a GPU. The simulator's times would be meaningless.

# %%


def milliseconds(run, tries=20):
    run()
    start, end = cuda.event(), cuda.event()
    start.record()
    for _ in range(tries):
        run()
    end.record()
    end.synchronize()
    return cuda.event_elapsed_time(start, end) / tries


if config.ENABLE_CUDASIM:
    print("no GPU: nothing is timed")
else:
    b, n = 128, 200_000
    big = FixedFanIn.random(n_labels=n, n_inputs=16_384, fan_in=32, seed=0)
    inputs = random.standard_normal((b, 16_384), np.float32)
    plain, other, *rest = on_device(inputs, inputs.T.copy(), big.indices, big.values, big.bias)
    out = cuda.device_array((b, n), np.float32)
    for name, kernel, array, grid, block in (
        ("first", first_kernel, plain, (blocks(n, 32), blocks(b, 4)), (32, 4)),
        ("transposed", transposed_kernel, other, (blocks(b, 32), blocks(n, 4)), (32, 4)),
        ("tiled", tiled_kernel, other, (blocks(b, TILE), blocks(n, TILE)), (TILE, 8)),
    ):
        run = functools.partial(kernel[grid, block], array, *rest, out)
        print(f"{name:<11}{milliseconds(run):8.3f} ms")

# %% [markdown]
# ## The compiled code: registers, without a GPU
#
# The compiler is available as a Python wheel, so we can inspect the machine code on any computer. Each thread keeps its
# numbers in *registers*. A multiprocessor has 65,536 registers, so the more a thread uses, the fewer threads fit at the
# same time. And many threads are needed: while one waits for memory, others can compute.
#
# A process cannot use both the simulator and the compiler. So we send the bytecode of the functions to another process,
# which compiles them to PTX, NVIDIA's portable assembly language, and pass the PTX to `ptxas`.

# %%
COMPILE = """
import marshal, pickle, sys, types
from numba import cuda, float32, int32
names, device, kernels = pickle.load(sys.stdin.buffer)
names |= {"cuda": cuda, "float32": float32}
kinds = {"i": int32[:, ::1], "f": float32[:, ::1], "v": float32[::1], "n": int32[::1], "s": float32}
function = lambda code: types.FunctionType(marshal.loads(code), names)
names |= {name: cuda.jit(device=True, inline="always")(function(code)) for name, code in device.items()}
for code, arguments in kernels:
    print(cuda.compile_ptx(function(code), tuple(kinds[a] for a in arguments), cc=(8, 0))[0], end=chr(0))
"""


def ptx_of(*kernels):
    """PTX of each (kernel, types): f and i are float32 and int32 matrices, v and n such vectors, s is a float32."""
    device = {"score_on_gpu": score_of, "score_transposed_on_gpu": score_transposed}
    device = {name: marshal.dumps(function.__code__) for name, function in device.items()}
    codes = [
        (marshal.dumps((kernel.fn if config.ENABLE_CUDASIM else kernel.py_func).__code__), arguments)
        for kernel, arguments in kernels
    ]
    names = {
        name: value for name, value in globals().items() if name.isupper() and isinstance(value, (int, np.float32))
    }
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command, sent = [sys.executable, "-c", COMPILE], pickle.dumps((names, device, codes))
    done = subprocess.run(command, input=sent, capture_output=True, env=environment, check=True)
    return done.stdout.decode().split(chr(0))[:-1]


def registers(ptx):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = find_ptxas(), "-v", "-arch=sm_80", source, "-o", Path(folder) / "kernel.cubin"
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Used (\d+) registers", output)[1])


if can_compile():
    names, kernels = ("first", "transposed", "tiled"), (first_kernel, transposed_kernel, tiled_kernel)
    for name, ptx in zip(names, ptx_of(*((kernel, "fifvf") for kernel in kernels)), strict=True):
        print(f"{name:<11} {registers(ptx):3} registers per thread; .f64 in the code: {'.f64' in ptx}")
        assert ".f64" not in ptx

# %% [markdown]
# Always check for `.f64`. A single careless literal, such as `0.5 * score`, makes Numba compute in float64, and on many
# GPUs float64 is many times slower. The simulator, being Python, would not show it. Tutorial 8 finds such a mistake.
#
# ## Backward: concurrent additions
#
# In the backward pass, the gradient of an input is a sum over all labels that use it: `dh[row, indices[l, k]] +=
# values[l, k] * dscores[row, l]`, for all `l` and `k`. Different blocks process different labels, and two labels may
# use the same input. Then two threads read the same number, add to it, and write it back. If both read before either of
# them writes, one addition is lost. This is called a *race*. The hardware does not guarantee any order, so we force the
# worst order with a barrier between reading and writing.


# %%
@cuda.jit
def racing_kernel(total):
    old = total[0]
    cuda.syncthreads()  # all threads have read, and none has written
    total[0] = old + float32(1)


@cuda.jit
def atomic_kernel(total):
    cuda.atomic.add(total, 0, float32(1))


for name, kernel in (("read, add, write", racing_kernel), ("atomic add", atomic_kernel)):
    (total,) = on_device(np.zeros(1, np.float32))
    kernel[1, 32](total)
    print(f"32 threads each add 1 ({name}): {total.copy_to_host()[0]:.0f}")
    assert total.copy_to_host()[0] == (1 if kernel is racing_kernel else 32)

# %% [markdown]
# An *atomic* addition is one indivisible operation, performed at the memory. It has two disadvantages. Threads that add
# to the same address at the same time must wait for each other. And the order of the additions is not determined, so
# the last bits of a floating-point sum may differ from run to run:

# %%
numbers = random.standard_normal(1000, np.float32)
sums = {float(functools.reduce(np.add, random.permutation(numbers), np.float32(0))) for _ in range(20)}
print(f"the same 1000 numbers in 20 orders: {len(sums)} different sums, {max(sums) - min(sums):.0e} apart")
assert 1 < len(sums) and max(sums) - min(sums) < 1e-3

# %% [markdown]
# ## A whole training step in one kernel
#
# Now the idea of the library's step. If scores, loss, gradients and update are separate steps, each of them writes an
# array of batch times labels for the next one to read:

# %%
rows, labels = 128, 670_000
one = 4 * rows * labels
print(
    f"scores of a batch: {one / 1e6:.0f} MB. Scores are written and read, dscores written and read twice (dh, dvalues):"
)
print(f"{5 * one / 1e9:.2f} GB per step; the indices and values of the layer are {8 * 32 * labels / 1e9:.2f} GB")
assert 5 * one > 8 * 32 * labels

# %% [markdown]
# But only the label itself needs its scores. So a *block processes one label*, and each of its threads one row. The
# score stays in a register. Its derivative goes to shared memory, because dvalues is a sum over rows. Then the block
# updates the label's weights. No array of size `B L` is ever stored in memory.

# %%
ROWS = 64  # maximum number of rows in this kernel
ZERO, ONE = np.float32(0), np.float32(1)


@cuda.jit
def step_kernel(ht, indices, values, bias, targets, rate, dht, losses):
    """A block processes a label, a thread a row (squared hinge, plain SGD). Adds to dht with atomics."""
    slopes = cuda.shared.array(ROWS, float32)
    label, row = cuda.blockIdx.x, cuda.threadIdx.x
    n_rows, fan_in = ht.shape[1], indices.shape[1]
    slopes[row] = ZERO
    if row < n_rows:
        y = ONE if targets[row] == label else -ONE
        margin = max(ZERO, ONE - y * score_transposed_on_gpu(ht, indices, values, bias, row, label))
        slope = -(y + y) * margin / float32(n_rows)
        slopes[row] = slope
        if margin > ZERO:
            cuda.atomic.add(losses, label, margin * margin / float32(n_rows))
            for k in range(fan_in):
                cuda.atomic.add(dht, (indices[label, k], row), values[label, k] * slope)
    cuda.syncthreads()  # all slopes are stored, and no thread reads the old weights any more
    for k in range(row, fan_in + 1, cuda.blockDim.x):
        total = ZERO
        for q in range(n_rows):
            total += slopes[q] * (ht[indices[label, k], q] if k < fan_in else ONE)
        if k < fan_in:
            values[label, k] -= rate * total
        else:
            bias[label] -= rate * total


b, n = size(32, 9), size(24, 6)
sparse = FixedFanIn.random(n_labels=n, n_inputs=H, fan_in=K, seed=0)
targets, rate = random.integers(n, size=b).astype(np.int32), np.float32(0.1)
inputs = random.standard_normal((b, H), np.float32)
arrays = on_device(inputs.T.copy(), sparse.indices, sparse.values, sparse.bias, targets)
new_values, dht, losses = arrays[2], *on_device(np.zeros((H, b), np.float32), np.zeros(n, np.float32))
step_kernel[n, blocks(b, 32) * 32](*arrays, rate, dht, losses)

hot = scipy.sparse.csr_matrix((np.ones(b, np.float32), targets, np.arange(b + 1)), (b, n))
loss, dh = fixed_fan_in_step(inputs, sparse, hot, "squared-hinge", SGD(learning_rate=float(rate)))
for name, got, want in (
    ("loss", losses.copy_to_host().sum(), loss),
    ("dh", dht.copy_to_host().T, dh),
    ("values", new_values.copy_to_host(), sparse.values),
):
    difference = np.abs(got - want).max() / np.abs(want).max()
    print(f"{name:<7} differs from fixed_fan_in_step by {difference:.0e}")
    assert difference < 1e-5

if can_compile():
    (ptx,) = ptx_of((step_kernel, "fifvnsfv"))
    print(f"{registers(ptx)} registers per thread, {ptx.count('atom.')} atomic instructions")
    assert ".f64" not in ptx

# %% [markdown]
# ## Now read the library's kernels
#
# Open `sparsemax_nb/cuda/fixed_fan_in.py`. You already know most of it.
#
# | here | there | what is new there |
# |---|---|---|
# | `score_transposed` | `_score` | unsigned indices: no test for negative ones |
# | `transposed_kernel` | `forward_kernel` | a loop over rows, for any batch size |
# | `tiled_kernel` | `forward_tiled_kernel` | several tiles of rows per block |
# | | `forward_wide_kernel`, `_scores_of_four` | four rows per thread in one load: an index is used for 128 rows |
# | `step_kernel` | `step_kernel` | any loss of the library, Adam or SGD (`_scaled_gradient`, `_update`), any batch |
# | | `step_wide_kernel` | one warp per label: no barrier for the whole block |
# | | `_add_tile`, `_add_all_rows`, `_add_rows_one_by_one` | different code for few and for many rows with a gradient |
#
# The docstring of each kernel says what a thread processes, what is read and written, and whether there are atomics:
# the questions of this tutorial. `cuda/launch.py` chooses the grid, as our `blocks` does, and `cuda/ptx.py` has the
# load of four numbers.
#
# ## Exercises
#
# Replace `...` by your answer; the cell below checks it.
#
# **1.** A warp uses every *second* row: thread `t` loads `ht[i, 2 * t]`. How many sectors is that?

# %% exercise="stride"
sectors_of_stride_2 = ...

# %% check="stride"
check("1", sectors_of_stride_2, lambda n: n == sectors([8 * t for t in range(32)]), "Half of each sector is used.")

# %% [markdown]
# **2.** The gradient with respect to the bias is a sum over rows: `dbias[l] = dscores[:, l].sum()`. Write the code of
# *one thread* such that no two threads write to the same element, no atomics are needed, and every load of a warp takes
# four sectors. `t` is the number of the thread in the grid.


# %% exercise="dbias"
def dbias_thread(dscores, dbias, t):
    return ...


# %% check="dbias"
def is_dbias_thread(_):
    arrays = {"dscores": random.standard_normal((20, 32), np.float32), "dbias": np.zeros(32, np.float32)}
    seen = accesses(dbias_thread, arrays, [(t,) for t in range(32)])
    right = np.allclose(arrays["dbias"], arrays["dscores"].sum(0), atol=1e-5)
    return right and all(sectors(addresses) == 4 for _, addresses in seen)


check("2", dbias_thread(np.ones((2, 2), np.float32), np.zeros(2, np.float32), 0), is_dbias_thread,
      "Neighbouring threads should read neighbouring columns.")  # fmt: skip

# %% [markdown]
# **3.** A warp reads every second row of a tile: thread `t` reads `tile[2 * t, 0]`. The rows of the tile have `pitch`
# numbers. With the best `pitch`, how many threads access the most used bank?

# %% exercise="banks"
threads_in_fullest_bank = ...

# %% check="banks"
check(
    "3", threads_in_fullest_bank,
    lambda n: n == min(max_per_bank([8 * pitch * t for t in range(32)]) for pitch in range(32, 97)),
    "An even number times the pitch is even. How many banks have an even number?",
)  # fmt: skip
