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
# "It is slow" is not a finding. A finding says *how far from what is possible*, and *held up by what*. This tutorial
# measures what your machine can do, draws it as a roofline, puts operations of the library into it, and then takes a
# slow loop apart until it reaches its floor. At the end we read what CUDA kernels were compiled to - without a GPU -
# and see how to profile one with a GPU.
#
# Up to the last step everything runs on one core, so that times can be compared.

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
    """The best of some calls, after one that does not count: other programs only ever make it slower."""
    run()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


# %% [markdown]
# ## Two times, and a machine that drifts
#
# You compare A and B. Half-way through the measurement something else wakes up and the machine becomes slower. If you
# measured all of A and then all of B, B pays for it. Let us play this with made-up times, where we know that B takes
# 1.2 times as long as A.

# %%
speed = np.r_[np.ones(20), np.full(20, 1.5)]  # how slow the machine is at each of forty moments
noise = 1 + 0.05 * random.random(40)
one_after_the_other = np.median(1.2 * (speed * noise)[20:]) / np.median((speed * noise)[:20])
in_turn = np.median(1.2 * (speed * noise)[1::2] / (speed * noise)[::2])
print(f"B / A: one after the other {one_after_the_other:.2f}, in turn and round by round {in_turn:.2f}; true 1.20")
assert abs(in_turn - 1.2) < 0.06 < abs(one_after_the_other - 1.2)

# %% [markdown]
# That is why `bench/harness.py` measures A B A B ..., and takes the ratio of each round before it takes a median. Three
# more habits of it are worth copying: a result is *checked before it is timed* (`compare`); the first call, which
# compiles, is kept apart; and each row of results carries machine, versions, commit and command (`make_row`).
#
# The benchmarks are one script a question, and `sparsemax-nb bench` lists them:

# %%


def run(*command, lines=None, **options):
    """Run a Python module from the source tree, outside of Numba's simulator, and print what it says."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment, check=False, **options
    )
    said = (done.stdout + done.stderr).strip("\n").splitlines()
    print("\n".join(line[:150] for line in said[:lines]))
    return done


done = run("-m", "sparsemax_nb", "bench", lines=8)
assert done.returncode == 0

# %% [markdown]
# One of them, at a small size. Read the second table first: what our kernel has to move and compute, at rates that were
# measured on this machine a moment ago. The largest of these times is the *floor*. Where the first table's "ours" is
# near it, stop optimising; where it is far, go and find out why. (A rival that is not installed is listed with the
# reason. `--json` keeps this toy out of `bench/results`; `bench/README.md` says what each benchmark compares.)

# %%
with tempfile.TemporaryDirectory() as folder:
    sizes = ["--labels", "50000", "--rows", "64", "--repeats", "7", "--threads", "1", "--json", f"{folder}/rows.json"]
    done = run("-m", "sparsemax_nb", "bench", "forward", *size(sizes, ["--help"]), lines=size(None, 2))
assert done.returncode == 0

# %% [markdown]
# ## A roofline
#
# A program can be held up by arithmetic or by memory. Which of them depends on one number, its *intensity*: FLOP
# computed for each byte that must come from memory. With few FLOP a byte, memory's rate times the intensity is the
# limit; with many, the processor's peak. In a plot with logarithmic axes that is a slanted roof that becomes flat, and
# no point can lie above it (but for what the measurement is off, and for data small enough to stay in a cache).
#
# The two rates first: a copy, and a product of two square matrices.

# %%
source = np.ones(size(1 << 25, 1 << 20), np.float32)
target = np.zeros_like(source)
BYTES_PER_S = 2 * source.nbytes / seconds(lambda: np.copyto(target, source))
square = random.standard_normal((size(1536, 256),) * 2, np.float32)
FLOP_PER_S = 2 * len(square) ** 3 / seconds(lambda: square @ square)
RIDGE = FLOP_PER_S / BYTES_PER_S
print(f"copy {BYTES_PER_S / 1e9:.1f} GB/s, product {FLOP_PER_S / 1e9:.0f} GFLOP/s")
print(f"below {RIDGE:.1f} FLOP a byte, memory is the limit")

# %% [markdown]
# Four operations of an output layer. Bytes and FLOP are counted by hand: each array once, each multiply-add as two.
#
# - a dense product, `x @ w.T`
# - SciPy's product of a sparse matrix (CSR) with the same inputs
# - `fixed_fan_in_forward`
# - `fixed_fan_in_step` with SGD, every score with a gradient: forward, dx and dvalues are two FLOP each, and no scores are stored

# %%
B, H, K = 64, size(8192, 256), 32
L, WIDTH, DENSE = size(100_000, 3000), 256, size(50_000, 1000)
layer = FixedFanIn.random(n_labels=L, n_inputs=H, fan_in=K, seed=0)
x = random.standard_normal((B, H), np.float32)
h, w = random.standard_normal((B, WIDTH), np.float32), random.standard_normal((DENSE, WIDTH), np.float32)
csr = scipy.sparse.csr_matrix((layer.values.ravel(), layer.indices.ravel(), np.arange(0, L * K + 1, K)), (L, H))
labels = scipy.sparse.csr_matrix((np.ones(B, np.float32), random.integers(L, size=B), np.arange(B + 1)), (B, L))
xt, scores, sgd = x.T.copy(), np.empty((B, L), np.float32), SGD(learning_rate=1e-4)

fixed_fan_in_forward(x, layer, out=scores)
assert np.abs((csr @ xt).T + layer.bias - scores).max() < 1e-4

weights, products = L * (8 * K + 4), 2 * B * L * K  # indices, values and bias in bytes; FLOP of one pass
POINTS = {
    "dense product": (
        ORANGE, 2 * B * WIDTH * DENSE, 4 * (B * WIDTH + DENSE * WIDTH + B * DENSE), lambda: h @ w.T),
    "SciPy CSR": (PURPLE, products, weights + x.nbytes + scores.nbytes, lambda: csr @ xt),
    "fixed fan-in forward": (
        BLUE, products, weights + x.nbytes + scores.nbytes, lambda: fixed_fan_in_forward(x, layer, out=scores)),
    "fixed fan-in step": (
        GREEN, 3 * products, weights + L * (4 * K + 4) + 2 * x.nbytes,
        lambda: fixed_fan_in_step(x, layer, labels, "bce", sgd)),
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
# A point *below* the roof asks a question, and the roof says what it is not. The sparse products have as many FLOP a
# byte as one could wish, so main memory does not hold them up. What is left? Their inputs are gathered: each of the `B
# L K` products fetches a number from a cache. Caches have rates as well, and the harness measures them
# (`machine_limits` in `bench/machine.py`): the floor in the table above was probably that of the L2 cache and not of
# memory.
#
# SciPy and our kernel gather the same numbers. Ours packs the inputs so that one fetch brings sixteen rows, and keeps
# the sum in registers meanwhile. Their distance in the plot is what that is worth here.
#
# ## A slow loop, and its floor
#
# Now a loop of our own. The slope of the squared hinge, where every label is wrong (`y = -1`), takes the place of the
# scores, and the sum of the losses is returned:
#
# $$ \ell = \sum \max(0,\, 1 + s)^2, \qquad s \leftarrow 2 \max(0,\, 1 + s) . $$
#
# Every score is read once and written once. The floor is the simplest pass that does just that, `np.negative(a,
# out=a)`, and we time one beside each version, in turn.

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
    """Check the kernel, then time it and a pass at the floor in turn; the best of five rounds."""
    scores = start.copy()
    loss = kernel(scores)
    assert abs(loss / wanted_loss - 1) < 1e-3 and np.abs(scores - wanted_slopes).max() < 1e-5
    rounds = [(seconds(lambda: kernel(scores), 1), seconds(floor_pass, 1)) for _ in range(5)]
    found[kernel.__name__] = measured, floor = np.min(rounds, 0)
    print(f"{kernel.__name__:<16}{1e3 * measured:9.2f} ms, floor {1e3 * floor:.2f} ms")


report(slow)

# %% [markdown]
# **Layout.** The inner loop walks down a column, and the numbers of a column are a whole row apart: each one brings a
# cache line of 64 bytes, of which 4 are used before it is thrown out again. On a GPU this would be called uncoalesced;
# here it is the same mistake. Turn the loops.


# %%
@numba.njit
def turned(scores):
    loss = 0.0
    for row in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            margin = max(0.0, 1.0 + scores[row, label])
            loss += margin**2
            scores[row, label] = 2.0 * margin
    return loss


report(turned)

# %% [markdown]
# **Types.** The scores are float32, and the literals `0.0`, `1.0`, `2.0` are float64: so Numba converts each score to
# float64, computes there and converts back. It does what we wrote. We can see it in the code that it made: `fpext`
# widens, `fptrunc` narrows, and the type is called `double`.


# %%
def count_in_llvm(kernel, *words):
    """How often words occur in what a kernel was compiled to (LLVM's language), without the wrappers that Python calls."""
    (code,) = kernel.inspect_llvm().values()
    functions = [part.partition("\n}")[0] for part in code.split("\ndefine ")[1:]]
    body = "\n".join(f for f in functions if not re.search("@(_ZN7cpython|cfunc)", f.partition("\n")[0]))
    return {word: body.count(word) for word in words}


print("turned      ", count_in_llvm(turned, "fpext", "fptrunc", "double"))
assert count_in_llvm(turned, "fpext")["fpext"] > 0
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
print("in_float32  ", count_in_llvm(in_float32, "fpext", "fptrunc", "double"))
assert count_in_llvm(in_float32, "fpext", "fptrunc") == {"fpext": 0, "fptrunc": 0}

# %% [markdown]
# **The order of a sum.** One thing still forces the processor to go number by number: `loss_of_row += ...`. A float sum
# depends on its order, and the compiler keeps ours - each addition waits for the one before. With `fastmath` we say
# that we do not mind, and it may run several sums side by side, in vectors (`<4 x float>` or wider in the code). Name
# what you allow, and allow no more: `"reassoc"` is about order; `"nnan"` promises that nothing is NaN, which `max`
# needs here to become one instruction.


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
# **All cores.** Only now. More cores make a bad loop faster, too, and hide what is wrong with it. The rows are
# independent, and each keeps its own sum, so the result does not depend on the number of threads. Memory is shared, and
# all cores together have a floor of their own:


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
show(figure, "08_mended")

# %% [markdown]
# Each step had a reason that could be *seen* before it was mended: a stride, a `double`, a missing vector. Which of
# them pays depends on the machine, and often one is worth nothing until another is out of the way: that is no failure.
# Look at the floor, find what holds the loop up *now*, and stop when it is close.
#
# ## PTX and registers, without a GPU
#
# For CUDA kernels the same questions have answers in the compiled code, and compiling needs no GPU.
# `tests/contracts/table.py` compiles all kernels of the library; `python -m tests.contracts.table` prints registers,
# shared memory, spills and *occupancy* - the share of a multiprocessor's warps that fit at a time - for three
# generations of GPUs. That takes minutes, so here are two of its rows, and what their PTX holds.

# %%
READ = """
from tests.contracts import table
names = "forward_tiled_kernel", "forward_wide_kernel"
words = (".f64", "ld.global.f32", "ld.global.v4.f32", "st.shared", "fma.rn.f32")
print(f"{'':<22}" + "".join(f"{word:>18}" for word in words) + f"{'registers':>11}{'spills':>8}")
for name in names:
    ptx = table.ptx_of("fixed_fan_in." + name, (8, 0))
    used = table.resources("fixed_fan_in." + name, (8, 0))
    print(f"{name:<22}" + "".join(f"{ptx.count(word):18}" for word in words) + f"{used['registers']:>11}{used['spills']:>8}")
    assert ".f64" not in ptx and ("ld.global.v4.f32" in ptx) == ("wide" in name)
"""
if can_compile():
    done = run("-c", READ)
    assert done.returncode == 0

# %% [markdown]
# How to read that:
#
# - `.f64` must be absent from a float32 kernel. It is the same slip as our `1.0 + s`, and on many GPUs float64 runs at a small fraction of float32's rate.
# - `ld.global.v4.f32` loads four numbers a thread with one instruction: 512 bytes for a warp. The index arithmetic before it is done
# once for four rows, and arithmetic on addresses is most of what such kernels do.
# - Registers: at 32 a thread all warps fit; at twice that about half. More is no mistake where each thread has more loads in flight.
# - Spills: registers that did not fit and went to memory. Any number but zero deserves a look.
#
# The contract tests pin all of it down, kernel by kernel: registers, shared memory, promised instructions. A change
# that makes the compiler fall back to narrow loads fails a test on a laptop.
#
# ## With a GPU
#
# Compiled code says what *could* be slow; a profiler says what *is*. There are two tools, and two questions.
#
# *Which kernel?* `nsys` draws a time line of a whole program: kernels, copies, gaps in which the GPU waits for Python.
# Begin here.
#
# ```
# nsys profile -o step sparsemax-nb bench step --device cuda
# nsys stats step.nsys-rep
# ```
#
# *Why this kernel?* `ncu` runs one kernel several times and reads the hardware's counters. Python programs launch many
# kernels, and you want one, and not its first launch, which compiles. The benchmarks take `--profile MODULE.KERNEL` for
# that: they go on until the kernel has run once, open the profiler for its next launch, and stop.
#
# ```
# ncu --profile-from-start off --set full sparsemax-nb bench step --device cuda --profile fixed_fan_in.step_wide_kernel
# ```
#
# What to look at first, and where this course has met it:
#
# | in ncu | asks | see |
# |---|---|---|
# | Speed of light: memory and compute throughput | near which roof is it? | the roofline above |
# | Memory workload: sectors per request | is it coalesced? 4 is ideal for 32 floats, 16 for wide loads | tutorial 3, the table of sectors |
# | Shared memory: bank conflicts | does a column meet in one bank? | tutorial 3, the 33rd column |
# | Occupancy: theoretical, achieved | enough warps to hide the waiting? limited by registers? | the table above |
# | Warp state: the longest stall | what do warps wait for: memory, a barrier, the atomics? | tutorial 3, the step |
#
# Without a GPU, `--profile` says what it lacks and stops:

# %%
if size(True, False):
    done = run("-m", "bench.step", "--device", "cpu", "--profile", "fixed_fan_in.step_wide_kernel")
    assert done.returncode != 0 and "needs a CUDA device" in done.stderr

# %% [markdown]
# ## Exercises
#
# Put your answer in the place of `...`; the cell below it checks it.
#
# **1.** A dense layer of width 512 and very many classes: `x @ w.T` for `n` rows. `x` is small; per class it reads a
# row of `w` and writes `n` scores. On a machine whose ridge lies at 8 FLOP a byte, from how many rows on is it limited
# by arithmetic?

# %% exercise="ridge"
rows_at_ridge = ...

# %% check="ridge"
check(
    "1", rows_at_ridge, lambda n: n == min(n for n in range(1, 1000) if 2 * n * 512 >= 8 * 4 * (512 + n)),
    "2 n 512 FLOP and 4 (512 + n) bytes a class. When is their ratio 8?",
)  # fmt: skip

# %% [markdown]
# **2.** `half_square` computes $s^2 / 2$. Write it so that Numba keeps a float32 `s` in float32, and the result as
# well.


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
# **3.** Rounds of two contestants in turn, `a` and `b`, on a machine that drifts and hiccups. Write how many times as
# long as `a` contestant `b` takes.


# %% exercise="ratio"
def ratio(a, b):
    return ...


# %% check="ratio"
a = np.linspace(1, 3, 21)
b = 1.2 * a
a[[3, 9]] *= 20  # somebody else's work
b[[0, 14]] *= 30
check("3", ratio(a, b), lambda r: abs(r - 1.2) < 1e-9, "Compare within a round, and then be robust.")
