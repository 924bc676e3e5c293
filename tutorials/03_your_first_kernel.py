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
# A GPU runs the same small function in many thousands of threads. Writing that function is easy; what decides whether
# it is fast is *which thread touches which byte*. We take the forward pass of a fixed fan-in layer from one line of
# NumPy to a first kernel, find out what it reads, and mend it twice. Then one kernel does a whole training step.
#
# No GPU? Numba has a simulator that runs kernels as Python threads. It is slow, so everything is tiny, but results are
# the same. What only a real device can tell is marked.

# %%
import os
import subprocess
import sys

PROBE = "from numba import cuda; raise SystemExit(not cuda.is_available())"
if subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False).returncode:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # read when numba is imported, so it comes first
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
# Label `l` looks at `K` of the `H` inputs: `indices[l]` says which, `values[l]` holds their weights.

# %%
B, H, L, K = 33, 64, 35, 4  # odd numbers of rows and labels: no block of threads will fit them exactly
layer = FixedFanIn.random(n_labels=L, n_inputs=H, fan_in=K, seed=0)
layer.bias[:] = random.standard_normal(L, np.float32)
indices, values, bias = layer.indices, layer.values, layer.bias
x = random.standard_normal((B, H), np.float32)

wanted = bias + (x[:, indices] * values).sum(-1)
print(f"x[:, indices] has shape {x[:, indices].shape}")
print(f"for 128 rows, 670,000 labels and 32 connections it would take {4 * 128 * 670_000 * 32 / 1e9:.1f} GB")

# %% [markdown]
# That is the price of the line: it writes down every product before it adds them up. A loop would add as it goes. So
# let us write the loop - for *one* score. It is plain Python, and we will use it as such, too.


# %%
def score_of(x, indices, values, bias, row, label):
    score = bias[label]
    for k in range(indices.shape[1]):
        score += values[label, k] * x[row, indices[label, k]]
    return score


assert np.isclose(score_of(x, indices, values, bias, 3, 5), wanted[3, 5], atol=1e-6)

# %% [markdown]
# ## The first kernel
#
# A *kernel* is the body of the loop over all scores; the loop itself is the hardware. We start it on a *grid* of
# *blocks* of threads, and each thread asks where it is (`cuda.grid(2)`) and does its own score. Blocks have a fixed
# size, so some threads stick out over the edge: hence the `if`, without which they would write into somebody else's
# memory.

# %%
score_on_gpu = cuda.jit(device=True, inline="always")(score_of)  # for kernels to call


@cuda.jit
def first_kernel(x, indices, values, bias, scores):
    label, row = cuda.grid(2)
    if row < scores.shape[0] and label < scores.shape[1]:
        scores[row, label] = score_on_gpu(x, indices, values, bias, row, label)


def blocks(n, size_of_block):
    """How many blocks cover n threads."""
    return -(-n // size_of_block)


def on_device(*arrays):
    return [cuda.to_device(array) for array in arrays]


scores = cuda.device_array((B, L), np.float32)
first_kernel[(blocks(L, 32), blocks(B, 4)), (32, 4)](*on_device(x, indices, values, bias), scores)
difference = np.abs(scores.copy_to_host() - wanted).max()
print(f"differs from NumPy by {difference:.0e}")
assert difference < 1e-6

# %% [markdown]
# ## What does it read?
#
# Threads do not run one by one. Thirty-two neighbours, a *warp*, execute each instruction together, and when it is a
# load, their 32 addresses go to memory together. Memory answers in *sectors* of 32 bytes. If the 32 threads want 32
# neighbouring numbers of 4 bytes, that makes 4 sectors, all of it used. If they want 32 numbers far apart it makes 32
# sectors, of which seven eighths are carried for nothing.
#
# So the question for each load is: how many sectors for one warp? We need not guess. `score_of` is plain Python, so we
# hand it arrays that write down each access, once for each of the 32 threads, and lay the accesses side by side.


# %%
class Watched:
    """An array that notes which bytes are touched."""

    def __init__(self, name, array, log):
        self.name, self.array, self.shape, self.log = name, array, array.shape, log

    def _note(self, place):
        flat = np.ravel_multi_index(place if isinstance(place, tuple) else (place,), self.shape)
        self.log.append((self.name, 4 * int(flat)))

    def __getitem__(self, place):
        self._note(place)
        return self.array[place]

    def __setitem__(self, place, value):
        self._note(place)
        self.array[place] = value


def accesses(thread, arrays, places):
    """[(array, addresses of the 32 threads)] of each instruction; `places` says where in the grid the threads are."""
    logs = []
    for place in places:
        logs.append([])
        thread(*(Watched(name, array, logs[-1]) for name, array in arrays.items()), *place)
    instructions = ([seen for seen in together if seen] for together in itertools.zip_longest(*logs))
    return [(together[0][0], [address for _, address in together]) for together in instructions]


def sectors(addresses):
    return len({address // 32 for address in addresses})


def first_thread(x, indices, values, bias, scores, row, label):
    scores[row, label] = score_of(x, indices, values, bias, row, label)


# a layer of more usual proportions, to look at: nothing is computed on the device here
WIDE = FixedFanIn.random(n_labels=256, n_inputs=1024, fan_in=32, seed=1)
wide_x = random.standard_normal((32, 1024), np.float32)


def table_of(title, thread, x, places):
    """Sectors that one warp asks for, by array. They make 32 scores, 32 bytes a sector: the sum is bytes a score."""
    arrays = {"x": x, "indices": WIDE.indices, "values": WIDE.values, "bias": WIDE.bias}
    arrays["scores"] = np.zeros((32, 256), np.float32)
    total = dict.fromkeys(arrays, 0)
    for name, addresses in accesses(thread, arrays, places):
        total[name] += sectors(addresses)
    print(f"{title:<28}" + "".join(f"{count:9}" for count in total.values()) + f"{sum(total.values()):15}")
    return total


print(f"{'sectors of a warp':<28}{'x':>9}{'indices':>9}{'values':>9}{'bias':>9}{'scores':>9}{'bytes a score':>15}")
neighbours_are_labels = [(0, label) for label in range(32)]
first = table_of("first kernel", first_thread, wide_x, neighbours_are_labels)
assert first["indices"] == first["values"] == 32 * 32
assert first["scores"] == 4

# %% [markdown]
# The scores are written well: neighbours in the grid are neighbours in memory. Everything else is about as bad as can
# be: the 32 labels have their indices `K` numbers apart, and each label wants another input.
#
# (This counts what is asked for. A sector that is asked for again soon may still lie in a cache, so less than that
# comes from memory. But the cache, too, hands out a limited number of sectors at a time.)
#
# ## Turn the warp
#
# Which neighbour shares something? Two *rows* that ask for the same label: they have the same indices and the same
# weights. If a warp takes 32 rows of one label, an index is one sector for the whole warp - the hardware reads it once
# and hands it to all.

# %%
neighbours_are_rows = [(row, 7) for row in range(32)]
turned = table_of("a warp takes 32 rows", first_thread, wide_x, neighbours_are_rows)
assert turned["indices"] == turned["values"] == 32

# %% [markdown]
# But the inputs: all 32 threads want the same *feature*, of 32 different rows, and the rows of `x` are far apart.
# Unless we store `x` the other way: `xt` of shape `(H, B)` keeps one feature of all rows side by side. That costs a
# transpose of a small array, once a batch.


# %%
def score_of_turned(xt, indices, values, bias, row, label):
    score = bias[label]
    for k in range(indices.shape[1]):
        score += values[label, k] * xt[indices[label, k], row]
    return score


def turned_thread(xt, indices, values, bias, scores, row, label):
    scores[row, label] = score_of_turned(xt, indices, values, bias, row, label)


transposed = table_of("... of the transposed inputs", turned_thread, wide_x.T.copy(), neighbours_are_rows)
assert transposed["x"] == 4 * 32

# %% [markdown]
# The three patterns in a picture: above, the memory that holds the inputs of a small layer, below that of its weights.
# Coloured squares are the numbers that the 32 threads of a warp want in *one* load, light for the first thread, dark
# for the last; pale orange is what comes along because memory speaks in sectors (between two vertical lines). In the
# third column neighbouring threads read neighbouring numbers, and nothing comes along. That is *coalescing*.


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
for column, (thread, array, places, caption, axes_of_x) in zip(
    panels.T,
    (
        (first_thread, few, [(5, label) for label in range(32)], "first kernel", ("input", "row")),
        (first_thread, few, [(row, 9) for row in range(32)], "a warp takes 32 rows", ("input", "row")),
        (turned_thread, few.T.copy(), [(row, 9) for row in range(32)], "... transposed inputs", ("row", "input")),
    ),
    strict=True,
):
    arrays = {
        "x": array,
        "i": small.indices,
        "values": small.values,
        "b": small.bias,
        "s": np.zeros((32, 32), np.float32),
    }
    for axes, name, labels in zip(column, ("x", "values"), (axes_of_x, ("connection", "label")), strict=True):
        loads = [addresses for of, addresses in accesses(thread, arrays, places) if of == name]
        picture = draw(axes, arrays[name].shape, loads[5])
        axes.set(xlabel=labels[0], ylabel=labels[1])
    column[0].set_title(caption, fontsize=12)
figure.colorbar(picture, ax=panels, label="thread of the warp", shrink=0.6, ticks=(0, 8, 16, 24, 31))
show(figure, "03_who_reads_what")

# %% [markdown]
# The kernel hardly changes: rows come first in the grid, and `xt` takes the place of `x`.

# %%
score_on_gpu_turned = cuda.jit(device=True, inline="always")(score_of_turned)


@cuda.jit
def turned_kernel(xt, indices, values, bias, scores):
    row, label = cuda.grid(2)
    if row < scores.shape[0] and label < scores.shape[1]:
        scores[row, label] = score_on_gpu_turned(xt, indices, values, bias, row, label)


scores = cuda.device_array((B, L), np.float32)
turned_kernel[(blocks(B, 32), blocks(L, 4)), (32, 4)](*on_device(x.T.copy(), indices, values, bias), scores)
assert np.abs(scores.copy_to_host() - wanted).max() < 1e-6

# %% [markdown]
# ## Write whole lines: a tile in shared memory
#
# Look at the last column of the table again. What the inputs have won, the scores have lost: neighbours are rows now,
# and the rows of `scores` lie `L` numbers apart. Inputs want one order, scores the other.
#
# The way out is a stopover. The threads of a block share a small, fast memory on the chip. They compute a tile of 32
# rows and 32 labels in the order that suits the inputs, put it there, wait for each other (`syncthreads`), and carry it
# out in the order that suits the scores.

# %%
TILE = 32
PITCH = TILE + 1


@cuda.jit
def tiled_kernel(xt, indices, values, bias, scores):
    tile = cuda.shared.array((TILE, PITCH), float32)
    first_row, first_label = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
    n_rows, n_labels = scores.shape
    row = first_row + cuda.threadIdx.x
    for j in range(cuda.threadIdx.y, TILE, cuda.blockDim.y):
        if row < n_rows and first_label + j < n_labels:
            tile[j, cuda.threadIdx.x] = score_on_gpu_turned(xt, indices, values, bias, row, first_label + j)
    cuda.syncthreads()
    label = first_label + cuda.threadIdx.x
    for i in range(cuda.threadIdx.y, TILE, cuda.blockDim.y):
        if first_row + i < n_rows and label < n_labels:
            scores[first_row + i, label] = tile[cuda.threadIdx.x, i]


scores = cuda.device_array((B, L), np.float32)
tiled_kernel[(blocks(B, TILE), blocks(L, TILE)), (TILE, 2)](*on_device(x.T.copy(), indices, values, bias), scores)
assert np.abs(scores.copy_to_host() - wanted).max() < 1e-6

tiled = transposed | {"scores": sectors([4 * label for label in range(32)])}
print("bytes a score, of them for writing it (by count)")
for name, total in (("first", first), ("turned", turned), ("transposed", transposed), ("tiled", tiled)):
    print(f"{name:<12}{sum(total.values()):6}{total['scores']:6}")
assert tiled["scores"] == 4 and sum(tiled.values()) < sum(first.values()) / 8

# %% [markdown]
# Why is a line of the tile 33 numbers long and not 32? Shared memory has 32 *banks*; number `n` of it lies in bank `n %
# 32`, and a bank serves one address at a time. On the way out a warp reads a *column* of the tile. How many of its
# threads meet in one bank?


# %%
def most_in_a_bank(addresses):
    return np.bincount(np.array(addresses) // 4 % 32).max()


for pitch in (32, 33):
    print(f"lines of {pitch}: up to {most_in_a_bank([4 * pitch * lane for lane in range(32)])} threads in one bank")
assert most_in_a_bank([4 * 33 * lane for lane in range(32)]) == 1

# %% [markdown]
# ## On a device: does the count agree with the clock?
#
# This cell times the three kernels where there is a GPU. The simulator's time would say nothing.

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
        ("turned", turned_kernel, other, (blocks(b, 32), blocks(n, 4)), (32, 4)),
        ("tiled", tiled_kernel, other, (blocks(b, TILE), blocks(n, TILE)), (TILE, 8)),
    ):
        run = functools.partial(kernel[grid, block], array, *rest, out)
        print(f"{name:<8}{milliseconds(run):8.3f} ms")

# %% [markdown]
# ## What has it become? Registers, without a GPU
#
# The compiler is in a wheel, so we can look at the machine code's needs on any computer. Each thread keeps its numbers
# in *registers*; a multiprocessor has 65,536 of them, and the more a thread takes, the fewer threads fit at a time -
# and it is other threads that fill the time in which one waits for memory.
#
# This process may be the simulator, and a process can not be both. So we hand the functions' bytecode to another one,
# which compiles them to PTX, NVIDIA's portable assembly, and gives that to `ptxas`.

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
    """PTX of each (kernel, arguments): matrices of float32 and int32 are f and i, vectors v and n, a float32 is s."""
    device = {"score_on_gpu": score_of, "score_on_gpu_turned": score_of_turned}
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
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Used (\d+) registers", said)[1])


if can_compile():
    names, kernels = ("first", "turned", "tiled"), (first_kernel, turned_kernel, tiled_kernel)
    for name, ptx in zip(names, ptx_of(*((kernel, "fifvf") for kernel in kernels)), strict=True):
        print(f"{name:<8} {registers(ptx):3} registers a thread; .f64 in the code: {'.f64' in ptx}")
        assert ".f64" not in ptx

# %% [markdown]
# That `.f64` is worth a look each time. One careless literal - `0.5 * score` - makes Numba compute in float64, which
# many GPUs do at a small fraction of their speed; the simulator, being Python, would never tell. Tutorial 8 hunts one.
#
# ## Backward: who may add?
#
# In the backward pass an input collects from all labels that look at it: `dx[row, indices[l, k]] += values[l, k] *
# slope`, for all `l` and `k`. Different blocks own different labels, and two labels may share an input. Then two
# threads do "read, add, write back" on the same number, and if both read before either writes, one of the two is lost:
# a *race*. The hardware gives no order; so let us play the worst one that it may choose, by a barrier between reading
# and writing.


# %%
@cuda.jit
def racing_kernel(total):
    old = total[0]
    cuda.syncthreads()  # all have read, nobody has written
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
# An *atomic* add is one indivisible operation, carried out where the memory is. It has two prices. Threads that add to
# the same address at the same time queue up. And the order of the additions is whatever it happens to be, so the last
# bits of a float sum may differ from run to run:

# %%
numbers = random.standard_normal(1000, np.float32)
sums = {float(functools.reduce(np.add, random.permutation(numbers), np.float32(0))) for _ in range(20)}
print(f"the same 1000 numbers in 20 orders: {len(sums)} different sums, {max(sums) - min(sums):.0e} apart")
assert 1 < len(sums) and max(sums) - min(sums) < 1e-3

# %% [markdown]
# ## A whole training step in one kernel
#
# Now the idea of the library's step. Done one after the other - scores, loss, gradient by the scores, gradients, update
# - every stage writes an array of batch times labels for the next one to read:

# %%
rows, labels = 128, 670_000
one = 4 * rows * labels
print(f"scores of a batch: {one / 1e6:.0f} MB. Written, read by the loss, slopes written, read for dx and for dvalues:")
print(f"{5 * one / 1e9:.2f} GB a step; the layer's own indices and values are {8 * 32 * labels / 1e9:.2f} GB")
assert 5 * one > 8 * 32 * labels

# %% [markdown]
# But the scores of a label are needed by that label alone. So a *block owns a label*, and each of its threads a row.
# The score stays in a register; the slope goes into shared memory, since dvalues sums over the rows; then the block
# changes its own weights. Nothing of size `B L` ever reaches memory.

# %%
ROWS = 64  # most rows that a block takes in this kernel
ZERO, ONE = np.float32(0), np.float32(1)


@cuda.jit
def step_kernel(xt, indices, values, bias, targets, rate, dxt, losses):
    """A block owns a label, a thread a row (squared hinge, plain SGD). dxt by atomics."""
    slopes = cuda.shared.array(ROWS, float32)
    label, row = cuda.blockIdx.x, cuda.threadIdx.x
    n_rows, fan_in = xt.shape[1], indices.shape[1]
    slopes[row] = ZERO
    if row < n_rows:
        y = ONE if targets[row] == label else -ONE
        margin = max(ZERO, ONE - y * score_on_gpu_turned(xt, indices, values, bias, row, label))
        slope = -(y + y) * margin / float32(n_rows)
        slopes[row] = slope
        if margin > ZERO:
            cuda.atomic.add(losses, label, margin * margin / float32(n_rows))
            for k in range(fan_in):
                cuda.atomic.add(dxt, (indices[label, k], row), values[label, k] * slope)
    cuda.syncthreads()  # all slopes are there, and all have read the old weights
    for k in range(row, fan_in + 1, cuda.blockDim.x):
        total = ZERO
        for q in range(n_rows):
            total += slopes[q] * (xt[indices[label, k], q] if k < fan_in else ONE)
        if k < fan_in:
            values[label, k] -= rate * total
        else:
            bias[label] -= rate * total


b, n = size(32, 9), size(24, 6)
sparse = FixedFanIn.random(n_labels=n, n_inputs=H, fan_in=K, seed=0)
targets, rate = random.integers(n, size=b).astype(np.int32), np.float32(0.1)
inputs = random.standard_normal((b, H), np.float32)
arrays = on_device(inputs.T.copy(), sparse.indices, sparse.values, sparse.bias, targets)
new_values, dxt, losses = arrays[2], *on_device(np.zeros((H, b), np.float32), np.zeros(n, np.float32))
step_kernel[n, blocks(b, 32) * 32](*arrays, rate, dxt, losses)

hot = scipy.sparse.csr_matrix((np.ones(b, np.float32), targets, np.arange(b + 1)), (b, n))
loss, dx = fixed_fan_in_step(inputs, sparse, hot, "squared-hinge", SGD(learning_rate=float(rate)))
for name, got, want in (
    ("loss", losses.copy_to_host().sum(), loss),
    ("dx", dxt.copy_to_host().T, dx),
    ("values", new_values.copy_to_host(), sparse.values),
):
    difference = np.abs(got - want).max() / np.abs(want).max()
    print(f"{name:<7} differs from fixed_fan_in_step by {difference:.0e}")
    assert difference < 1e-5

if can_compile():
    (ptx,) = ptx_of((step_kernel, "fifvnsfv"))
    print(f"{registers(ptx)} registers a thread, {ptx.count('atom.')} atomic instructions")
    assert ".f64" not in ptx

# %% [markdown]
# ## Now read the library's
#
# Open `sparsemax_nb/cuda/fixed_fan_in.py` beside this page. You know most of it.
#
# | here | there | what is new there |
# |---|---|---|
# | `score_of_turned` | `_score` | unsigned indices: no test for negative ones |
# | `turned_kernel` | `forward_kernel` | rows stride, so any batch fits |
# | `tiled_kernel` | `forward_tiled_kernel` | several tiles of rows a block |
# | | `forward_wide_kernel`, `_scores_of_four` | four rows a thread, loaded at once: an index serves 128 rows |
# | `step_kernel` | `step_kernel` | any loss of the library, Adam or SGD (`_slope`, `_update`), any number of rows |
# | | `step_wide_kernel` | a warp a label: no barrier for the whole block |
# | | `_add_tile`, `_add_many`, `_add_few` | few rows with a gradient are handled otherwise than many |
#
# Each is documented by what a thread owns, what is read and written, and whether there are atomics - the questions of
# this tutorial. `cuda/launch.py` holds what we did with `blocks`, and `cuda/ptx.py` the wide load.
#
# ## Exercises
#
# Put your answer in the place of `...`; the cell below it checks it.
#
# **1.** A warp works on every *second* row: thread `t` loads `xt[i, 2 * t]`. How many sectors is that?

# %% exercise="stride"
sectors_of_stride_2 = ...

# %% check="stride"
check("1", sectors_of_stride_2, lambda n: n == sectors([8 * t for t in range(32)]), "Half of each sector is used.")

# %% [markdown]
# **2.** The gradient by the bias is a sum over rows: `dbias[l] = dscores[:, l].sum()`. Write what *one thread* does,
# such that no two threads write to the same place, no atomics are needed, and every load of a warp is four sectors.
# Thread number `t` of the grid is handed to you.


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
      "Neighbouring threads should look at neighbouring columns.")  # fmt: skip

# %% [markdown]
# **3.** Somebody reads every second line of a tile: thread `t` takes `tile[2 * t, 0]`, from a tile whose lines are
# `pitch` numbers long. With the best choice of `pitch`, how many threads meet in the fullest bank?

# %% exercise="banks"
threads_in_fullest_bank = ...

# %% check="banks"
check(
    "3", threads_in_fullest_bank,
    lambda n: n == min(most_in_a_bank([8 * pitch * t for t in range(32)]) for pitch in range(32, 97)),
    "Twice anything is even. How many banks are left?",
)  # fmt: skip
