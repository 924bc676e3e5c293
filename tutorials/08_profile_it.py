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
# # Profile it
#
# "It is slow" is not a useful statement. A useful one says *how far it is from what is possible*, and *what limits it*.
# In this tutorial we measure what your machine can do, draw it as a roofline, and compare operations of the library
# with it. Then we improve a slow loop step by step until it reaches its floor. At the end we inspect compiled CUDA
# kernels - without a GPU - and see how to profile a kernel on a GPU.
#
# Except for one step, everything runs on one core, so that times can be compared.

# %%
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_NUM_THREADS="1")  # read when NumPy is imported
import numba
import numpy as np
import scipy.sparse
from lesson import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, can_compile, check, plt, show, size

import sparsemax_nb
from sparsemax_nb import SGD, FixedFanIn, fixed_fan_in_forward, fixed_fan_in_step

CORES = numba.get_num_threads()
numba.set_num_threads(1)
random = np.random.default_rng(0)
ROOT = Path(sparsemax_nb.__file__).parents[1]  # the source tree


def seconds(run, tries=5):
    """The minimum time of several calls after a warm-up: other programs can only make a call slower."""
    run()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


# %% [markdown]
# ## Comparing two times on a machine that drifts
#
# You compare A and B. Half-way through the measurement, another program starts and the machine becomes slower. If you
# measure all of A before all of B, only B is affected. We simulate this with artificial times in which B takes exactly
# 1.2 times as long as A.

# %%
speed = np.r_[np.ones(20), np.full(20, 1.5)]  # how slow the machine is at each of forty moments
noise = 1 + 0.05 * random.random(40)
sequential = np.median(1.2 * (speed * noise)[20:]) / np.median((speed * noise)[:20])
alternating = np.median(1.2 * (speed * noise)[1::2] / (speed * noise)[::2])
print(f"B / A: first A, then B: {sequential:.2f}; alternating, ratio per round: {alternating:.2f}; true: 1.20")
assert abs(alternating - 1.2) < 0.06 < abs(sequential - 1.2)

# %% [markdown]
# That is why `bench/timing.py` measures A B A B ..., and computes the ratio of each round before it takes the median.
# Three more of its habits are worth copying: a result is *checked before it is timed* (`compare`); the first call,
# which compiles, is recorded separately; and each row of results contains the machine, versions, commit and command
# (`make_row` in `bench/tables.py`).
#
# Each benchmark script answers one question. `python -m bench` lists them:

# %%


def run(*command, lines=None, **options):
    """Run a Python module from the source tree, without Numba's simulator, and print its output."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment, check=False, **options
    )
    output = (done.stdout + done.stderr).strip("\n").splitlines()
    print("\n".join(line[:150] for line in output[:lines]))
    return done


done = run("-m", "bench", lines=8)
assert done.returncode == 0

# %% [markdown]
# We run one of them at a small size. Read the second table first: it lists what our kernel must move and compute, and
# the times at rates that were just measured on this machine. The largest of these times is the *floor*. If the time of
# "ours" in the first table is close to it, stop optimizing; if it is far away, find out why. (If a competitor is not
# installed, the table gives the reason. `--json` keeps this toy result out of `bench/results`. `bench/README.md`
# explains what each benchmark compares.)

# %%
with tempfile.TemporaryDirectory() as folder:
    sizes = ["--labels", "50000", "--rows", "64", "--repeats", "7", "--threads", "1", "--json", f"{folder}/rows.json"]
    done = run("-m", "bench.forward", *size(sizes, ["--help"]), lines=size(None, 2))
assert done.returncode == 0

# %% [markdown]
# ## A roofline
#
# A program is limited by arithmetic or by memory. Which of the two depends on one number, its *intensity*: the number
# of FLOPs per byte that comes from memory. At low intensity, the limit is the bandwidth of memory times the intensity;
# at high intensity, it is the peak rate of the processor. In a plot with logarithmic axes this is a slanted line that
# becomes horizontal, like a roof. No point can be above it (except for measurement errors, and for data that fits into
# a cache).
#
# We first measure the two rates, by a copy and by a product of two square matrices.

# %%
source = np.ones(size(1 << 25, 1 << 20), np.float32)
target = np.zeros_like(source)
BYTES_PER_S = 2 * source.nbytes / seconds(lambda: np.copyto(target, source))
square = random.standard_normal((size(1536, 256),) * 2, np.float32)
FLOP_PER_S = 2 * len(square) ** 3 / seconds(lambda: square @ square)
RIDGE = FLOP_PER_S / BYTES_PER_S
print(f"copy {BYTES_PER_S / 1e9:.1f} GB/s, product {FLOP_PER_S / 1e9:.0f} GFLOP/s")
print(f"below {RIDGE:.1f} FLOPs per byte, memory is the limit")

# %% [markdown]
# Next, four operations of an output layer. We count bytes and FLOPs by hand: each array once, and each multiply-add as
# two FLOPs.
#
# - a dense product, `h @ w.T`
# - SciPy's product of a sparse matrix (CSR) with the same inputs
# - `fixed_fan_in_forward`
# - `fixed_fan_in_step` with SGD, where every score has a gradient: the forward pass, dh and dvalues take two FLOPs per
#   connection and row each, and no scores are stored

# %%
B, H, K = 64, size(8192, 256), 32
L, WIDTH, DENSE = size(100_000, 3000), 256, size(50_000, 1000)
layer = FixedFanIn.random(n_labels=L, n_inputs=H, fan_in=K, seed=0)
h = random.standard_normal((B, H), np.float32)
narrow_h, w = random.standard_normal((B, WIDTH), np.float32), random.standard_normal((DENSE, WIDTH), np.float32)
csr = scipy.sparse.csr_matrix((layer.values.ravel(), layer.indices.ravel(), np.arange(0, L * K + 1, K)), (L, H))
labels = scipy.sparse.csr_matrix((np.ones(B, np.float32), random.integers(L, size=B), np.arange(B + 1)), (B, L))
ht, scores, sgd = h.T.copy(), np.empty((B, L), np.float32), SGD(learning_rate=1e-4)

fixed_fan_in_forward(h, layer, out=scores)
assert np.abs((csr @ ht).T + layer.bias - scores).max() < 1e-4

weights, products = L * (8 * K + 4), 2 * B * L * K  # bytes of indices, values and bias; FLOPs of one pass
POINTS = {
    "dense product": (
        ORANGE, 2 * B * WIDTH * DENSE, 4 * (B * WIDTH + DENSE * WIDTH + B * DENSE), lambda: narrow_h @ w.T),
    "SciPy CSR": (PURPLE, products, weights + h.nbytes + scores.nbytes, lambda: csr @ ht),
    "fixed fan-in forward": (
        BLUE, products, weights + h.nbytes + scores.nbytes, lambda: fixed_fan_in_forward(h, layer, out=scores)),
    "fixed fan-in step": (
        GREEN, 3 * products, weights + L * (4 * K + 4) + 2 * h.nbytes,
        lambda: fixed_fan_in_step(h, layer, labels, "bce", sgd)),
}  # fmt: skip

figure, axes = plt.subplots(figsize=(7.2, 4.8))
intensity = np.logspace(-0.5, 2.5, 100)
axes.loglog(intensity, np.minimum(FLOP_PER_S, intensity * BYTES_PER_S) / 1e9, "k-", label="roof of one core")
print(f"{'':<22}{'FLOP/byte':>10}{'GFLOP/s':>10}{'of the roof':>13}")
for (name, (colour, flop, n_bytes, call)), marker in zip(POINTS.items(), "sv^o", strict=True):
    rate, roof = flop / seconds(call, 3), min(FLOP_PER_S, flop / n_bytes * BYTES_PER_S)
    print(f"{name:<22}{flop / n_bytes:10.1f}{rate / 1e9:10.1f}{rate / roof:13.0%}")
    axes.loglog(flop / n_bytes, rate / 1e9, marker, color=colour, markersize=10, label=name)
axes.axvline(RIDGE, color=GREY, linestyle=":", linewidth=1.2)
axes.set(xlabel="FLOP per byte of memory", ylabel="GFLOP/s", ylim=(FLOP_PER_S / 4e10, FLOP_PER_S / 5e8))
axes.yaxis.set_minor_formatter(plt.NullFormatter())
figure.legend(loc="outside upper center", ncols=3, fontsize=11)
show(figure, "08_roofline")

# %% [markdown]
# For a point *below* the roof, the roof tells us what is not the limit. The sparse products have a high intensity, so
# main memory does not limit them. What does? Their inputs are gathered: each of the `B L K` products loads a number
# from a cache. Caches have a limited bandwidth as well, and the benchmarks measure it (`machine_limits` in
# `bench/machine.py`): the floor in the table above was probably that of the L2 cache, not that of memory.
#
# SciPy and our kernel gather the same numbers. Ours arranges the inputs so that one load brings the numbers of sixteen
# rows, and keeps the sums in registers. Their distance in the plot shows the benefit.
#
# ## A slow loop and its floor
#
# Now we optimize a loop. It overwrites the scores with the gradient of the squared hinge, if every label is wrong (`y =
# -1`), and returns the sum of the losses:
#
# $$ \ell = \sum \max(0,\, 1 + s)^2, \qquad s \leftarrow 2 \max(0,\, 1 + s) . $$
#
# Every score is read once and written once. The floor is the simplest operation that does the same, `np.negative(a,
# out=a)`. We time it in alternation with each version.

# %%
ROWS, LABELS = 128, size(1 << 17, 1 << 11)
start = random.standard_normal((ROWS, LABELS), np.float32)
margin = np.maximum(0, 1 + start.astype(np.float64))
wanted_loss, wanted_slopes = (margin**2).sum(), 2 * margin


@numba.njit
def slow(scores):
    loss = 0.0
    for label in range(scores.shape[1]):
        for row in range(scores.shape[0]):
            margin = max(0.0, 1.0 + scores[row, label])
            loss += margin**2
            scores[row, label] = 2.0 * margin
    return loss


found, same = {}, np.ones_like(start)


def report(kernel, floor_pass=lambda: np.negative(same, out=same)):
    """Check the kernel, then time it in alternation with the floor; the minimum of five rounds."""
    scores = start.copy()
    loss = kernel(scores)
    assert abs(loss / wanted_loss - 1) < 1e-3 and np.abs(scores - wanted_slopes).max() < 1e-5
    rounds = [(seconds(lambda: kernel(scores), 1), seconds(floor_pass, 1)) for _ in range(5)]
    found[kernel.__name__] = measured, floor = np.min(rounds, 0)
    print(f"{kernel.__name__:<16}{1e3 * measured:9.2f} ms, floor {1e3 * floor:.2f} ms")


report(slow)

# %% [markdown]
# **Layout.** The inner loop goes down a column, and the numbers of a column are a whole row apart. Each access loads a
# cache line of 64 bytes, of which only 4 are used before the line is evicted. On a GPU this is called uncoalesced
# access; here it is the same mistake. We exchange the two loops.


# %%
@numba.njit
def loops_exchanged(scores):
    loss = 0.0
    for row in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            margin = max(0.0, 1.0 + scores[row, label])
            loss += margin**2
            scores[row, label] = 2.0 * margin
    return loss


report(loops_exchanged)

# %% [markdown]
# **Types.** The scores are float32, but the literals `0.0`, `1.0` and `2.0` are float64. So Numba converts each score
# to float64, computes in float64, and converts back: exactly what the code says. The compiled code shows it: `fpext`
# converts to float64, `fptrunc` converts back, and the type is called `double`.


# %%
def count_in_llvm(kernel, *words):
    """Number of occurrences of words in the LLVM code of a kernel, without the wrappers for Python."""
    (code,) = kernel.inspect_llvm().values()
    functions = [part.partition("\n}")[0] for part in code.split("\ndefine ")[1:]]
    body = "\n".join(f for f in functions if not re.search("@(_ZN7cpython|cfunc)", f.partition("\n")[0]))
    return {word: body.count(word) for word in words}


print("loops_exchanged ", count_in_llvm(loops_exchanged, "fpext", "fptrunc", "double"))
assert count_in_llvm(loops_exchanged, "fpext")["fpext"] > 0
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@numba.njit
def in_float32(scores):
    loss = ZERO
    for row in range(scores.shape[0]):
        loss_of_row = ZERO
        for label in range(scores.shape[1]):
            margin = max(ZERO, ONE + scores[row, label])
            loss_of_row += margin * margin
            scores[row, label] = TWO * margin
        loss += loss_of_row
    return loss


report(in_float32)
print("in_float32      ", count_in_llvm(in_float32, "fpext", "fptrunc", "double"))
assert count_in_llvm(in_float32, "fpext", "fptrunc") == {"fpext": 0, "fptrunc": 0}

# %% [markdown]
# **The order of a sum.** The processor still works number by number, because of `loss_of_row += ...`. A floating-point
# sum depends on the order of the additions, so the compiler must keep our order, and each addition waits for the
# previous one. With `fastmath` we allow another order, and the compiler can compute several sums in parallel, with
# vector instructions (`<4 x float>` or wider in the code). Only allow what you need: `"reassoc"` permits reordering;
# `"nnan"` promises that no number is NaN, which is needed here to compile `max` to a single instruction.


# %%
@numba.njit(fastmath={"reassoc", "nnan", "nsz"})
def in_vectors(scores):
    loss = ZERO
    for row in range(scores.shape[0]):
        loss_of_row = ZERO
        for label in range(scores.shape[1]):
            margin = max(ZERO, ONE + scores[row, label])
            loss_of_row += margin * margin
            scores[row, label] = TWO * margin
        loss += loss_of_row
    return loss


report(in_vectors)
for kernel in (in_float32, in_vectors):
    print(f"{kernel.__name__:<16}", count_in_llvm(kernel, "x float>"))
assert count_in_llvm(in_vectors, "x float>")["x float>"] > 0

# %% [markdown]
# **All cores.** This comes last: more cores also speed up a bad loop, and hide what is wrong with it. The rows are
# independent, and each has its own sum, so the result does not depend on the number of threads. Memory is shared, so
# all cores together have a different floor:


# %%
@numba.njit(parallel=True, fastmath={"reassoc", "nnan", "nsz"})
def on_all_cores(scores):
    losses = np.zeros(scores.shape[0], np.float32)
    for row in numba.prange(scores.shape[0]):
        loss_of_row = ZERO
        for label in range(scores.shape[1]):
            margin = max(ZERO, ONE + scores[row, label])
            loss_of_row += margin * margin
            scores[row, label] = TWO * margin
        losses[row] = loss_of_row
    return losses.sum()


@numba.njit(parallel=True)
def negative_on_all_cores(numbers):
    for i in numba.prange(numbers.size):
        numbers[i] = -numbers[i]


numba.set_num_threads(CORES)
report(on_all_cores, lambda: negative_on_all_cores(same.reshape(-1)))
numba.set_num_threads(1)

figure, axes = plt.subplots(figsize=(7.2, 3.4))
names = [name.replace("_", " ") for name in found]
times, floors = 1e3 * np.array(list(found.values())).T
axes.barh(names, times, color=[VERMILION, *[BLUE] * 3, GREEN], height=0.6)
for i, (measured, least) in enumerate(zip(times, floors, strict=True)):
    axes.text(max(measured, least) * 1.1, i, f"{measured / least:.1f} x floor", va="center", fontsize=11)
axes.vlines(floors, np.arange(5) - 0.38, np.arange(5) + 0.38, color="k", linewidth=3, label="floor")
axes.set(xscale="log", xlabel="ms", xlim=(min(*times, *floors) / 2, 4 * times.max()))
axes.invert_yaxis()
axes.grid(visible=False, axis="y")
axes.legend(loc="lower right")
show(figure, "08_improved")

# %% [markdown]
# Each step had a cause that we could *see* before we fixed it: a stride, a `double`, a missing vector instruction.
# Which step helps most depends on the machine, and often a step has no effect until another limit is removed. Compare
# with the floor, find what limits the loop *now*, and stop when it is close to the floor.
#
# ## PTX and registers, without a GPU
#
# The same questions can be asked about compiled CUDA kernels, and compiling needs no GPU. `python -m
# tests.contracts.table` compiles all kernels of the library and prints registers, shared memory, spills and *occupancy*
# - the share of the possible warps that fit on a multiprocessor at the same time - for three generations of GPUs. This
# takes minutes, so here are only two of its rows, with some counts of PTX instructions.

# %%
READ = """
from tests.contracts import table
names = "forward_tiled_kernel", "forward_wide_kernel"
words = (".f64", "ld.global.f32", "ld.global.v4.f32", "st.shared", "fma.rn.f32")
print(f"{'':<22}" + "".join(f"{word:>18}" for word in words) + f"{'registers':>11}{'spills':>8}")
for name in names:
    ptx = table.ptx_of("fixed_fan_in." + name, (8, 0))
    used = table.resources("fixed_fan_in." + name, (8, 0))
    counts = "".join(f"{ptx.count(word):18}" for word in words)
    print(f"{name:<22}{counts}{used['registers']:>11}{used['spills']:>8}")
    assert ".f64" not in ptx and ("ld.global.v4.f32" in ptx) == ("wide" in name)
"""
if can_compile():
    done = run("-c", READ)
    assert done.returncode == 0

# %% [markdown]
# How to read this table:
#
# - `.f64` must not occur in a float32 kernel. It is the same mistake as our `1.0 + s`, and on many GPUs float64 is many
#   times slower than float32.
# - `ld.global.v4.f32` loads four numbers per thread with one instruction: 512 bytes per warp. The index arithmetic for
#   it is then needed only once for four rows. In such kernels, most instructions are index arithmetic.
# - Registers: with 32 per thread, all warps fit; with 64, about half of them. More registers are acceptable if each
#   thread has more loads in flight.
# - Spills are registers that did not fit and were stored in memory. Any number but zero should be examined.
#
# The contract tests verify all this for each kernel: registers, shared memory, required instructions. If a change makes
# the compiler use narrow loads again, a test fails, even on a laptop.
#
# ## With a GPU
#
# Compiled code shows what *could* be slow; a profiler shows what *is* slow. There are two tools for two questions.
#
# *Which kernel?* `nsys` records a timeline of a whole program: kernels, copies, and gaps in which the GPU waits for
# Python. Start with it.
#
# ```
# nsys profile -o step python -m bench.step --device cuda
# nsys stats step.nsys-rep
# ```
#
# *Why is this kernel slow?* `ncu` runs one kernel several times and reads the hardware counters. A Python program
# launches many kernels. You want to profile one of them, and not its first launch, which compiles. The benchmarks have
# the option `--profile MODULE.KERNEL` for this: they run until the kernel has been launched once, profile its next
# launch, and exit.
#
# ```
# ncu --profile-from-start off --set full python -m bench.step --device cuda --profile fixed_fan_in.step_wide_kernel
# ```
#
# What to look at first, and where these tutorials explain it:
#
# | in ncu | question | see |
# |---|---|---|
# | Speed of light: memory and compute throughput | Which roof is close? | the roofline above |
# | Memory workload: sectors per request | Coalesced? 4 is ideal for 32 floats, 16 for wide loads. | tutorial 3 |
# | Shared memory: bank conflicts | Do several threads access the same bank? | tutorial 3, the 33rd column |
# | Occupancy: theoretical, achieved | Enough warps to hide latency? Do registers limit it? | the table above |
# | Warp state: the longest stall | What do warps wait for: memory, a barrier, atomics? | tutorial 3: step |
#
# Without a GPU, `--profile` prints what is missing and exits:

# %%
if size(True, False):
    done = run("-m", "bench.step", "--device", "cpu", "--profile", "fixed_fan_in.step_wide_kernel")
    assert done.returncode != 0 and "needs a CUDA device" in done.stderr

# %% [markdown]
# ## Exercises
#
# Replace `...` by your answer; the cell below checks it.
#
# **1.** A dense layer of width 512 has very many classes and computes `h @ w.T` for `n` rows. `h` is small; per class,
# the product reads a row of `w` and writes `n` scores. The ridge of the machine (where the roof becomes horizontal) is
# at 8 FLOPs per byte. From how many rows on is the product limited by arithmetic?

# %% exercise="ridge"
rows_at_ridge = ...

# %% check="ridge"
check(
    "1", rows_at_ridge, lambda n: n == min(n for n in range(1, 1000) if 2 * n * 512 >= 8 * 4 * (512 + n)),
    "2 n 512 FLOPs and 4 (512 + n) bytes per class. When is their ratio 8?",
)  # fmt: skip

# %% [markdown]
# **2.** `half_square` computes $s^2 / 2$. Write it such that Numba computes in float32 for a float32 `s`, and returns
# float32.


# %% exercise="float32"
def half_square(s):
    return ...


# %% check="float32"
def is_float32(_):
    compiled = numba.njit(half_square)
    right = np.isclose(compiled(np.float32(3)), 4.5)
    return right and "float32" in str(compiled.nopython_signatures[0].return_type) and not any(
        count_in_llvm(compiled, "fpext", "fptrunc").values()
    )  # fmt: skip


check("2", half_square(np.float32(3)), is_float32, "What is the type of 0.5, and of a float32 divided by an integer?")

# %% [markdown]
# **3.** `a` and `b` are the times of two contestants, measured in alternating rounds on a machine that drifts and is
# interrupted. Compute how many times as long as `a` contestant `b` takes.


# %% exercise="ratio"
def ratio(a, b):
    return ...


# %% check="ratio"
a = np.linspace(1, 3, 21)
b = 1.2 * a
a[[3, 9]] *= 20  # another program
b[[0, 14]] *= 30
check(
    "3",
    ratio(a, b),
    lambda r: abs(r - 1.2) < 1e-9,
    "Compare within each round, then use a statistic that is robust against outliers.",
)
