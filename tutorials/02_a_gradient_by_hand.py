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
# # A gradient by hand
#
# This library uses no framework for automatic differentiation: every backward pass is written by hand. This is less
# work than it sounds, because one simple rule is enough. We start with the loss of a *single row*, end with the
# backward pass of a sparse output layer, and check each step against finite differences.
#
# The rule: for each array `z` that is computed on the way to the loss, there is an array `dz` *of the same shape*. Each
# entry of `dz` is the derivative of the loss with respect to that entry of `z`. A backward pass goes through the
# forward pass in reverse order, and computes the `d` of each operation's inputs from the `d` of its result.

# %%
import numpy as np
import scipy.sparse
from lesson import BLUE, GREY, ORANGE, check, plt, show, size

from sparsemax_nb import SGD, FixedFanIn, fixed_fan_in_backward, fixed_fan_in_forward, fixed_fan_in_step

random = np.random.default_rng(0)

# %% [markdown]
# ## The loss of one row
#
# A row of the batch has one score per class, and one class is correct, the target $t$. The softmax loss is
#
# $$ \ell(s) = \log \sum_j e^{s_j} - s_t . $$
#
# In code we first subtract the largest score, so that `exp` cannot overflow. We add it again after the logarithm, so
# the result is the same.


# %%
def loss_of_row(scores, target):
    largest = scores.max()
    return largest + np.log(np.exp(scores - largest).sum()) - scores[target]


scores, target = random.normal(size=6), 2
print(f"loss {loss_of_row(scores, target):.4f}; if all classes were equally likely, it would be {np.log(6):.4f}")

# %% [markdown]
# Now the derivative with respect to one score. The derivative of the logarithm is one over the sum; the derivative of
# the sum is the exponential:
#
# $$ \frac{\partial \ell}{\partial s_i} = \frac{e^{s_i}}{\sum_j e^{s_j}} - [i = t] = p_i - [i = t] . $$
#
# This is the probability that the model predicts, minus the probability that it should predict. A gradient step
# therefore raises the score of the correct class in proportion to the missing probability, and lowers each other score
# in proportion to its probability.


# %%
def gradient_of_row(scores, target):
    p = np.exp(scores - scores.max())
    p /= p.sum()
    p[target] -= 1
    return p


print(np.round(gradient_of_row(scores, target), 3), "sum", f"{gradient_of_row(scores, target).sum():.0e}")

# %% [markdown]
# The entries sum to zero, because adding the same number to all scores does not change the loss.
#
# ## Is it correct? Finite differences
#
# A derivative is a slope, and a slope can be measured: increase one entry by `e`, decrease it by `e`, and divide the
# difference of the two losses by `2 e`. This needs two losses per entry, which is far too slow for training. But it
# does not depend on our algebra, so it is an independent check.


# %%
def slopes(function, array, e=1e-6):
    """The gradient of ``function()`` with respect to `array`, by finite differences."""
    found = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        old = array[index]
        array[index] = old + e
        up = function()
        array[index] = old - e
        down = function()
        array[index] = old
        found[index] = (up - down) / (2 * e)
    return found


def relative_error(got, want):
    """The largest difference, relative to the largest entry."""
    return np.abs(got - want).max() / np.abs(want).max()


error = relative_error(gradient_of_row(scores, target), slopes(lambda: loss_of_row(scores, target), scores))
print(f"largest difference {error:.0e}")
assert error < 1e-8

# %% [markdown]
# Which `e` is best? If `e` is large, we measure the slope of a chord instead of the tangent. If `e` is small, we
# subtract two numbers that agree in almost all digits. The error has a minimum in between, whose position depends on
# the precision. This is why gradients are checked in float64, even if training uses float32.

# %%
steps = np.logspace(-12, 0, size(49, 13))
figure, axes = plt.subplots()
for dtype, colour in ((np.float64, BLUE), (np.float32, ORANGE)):
    narrow, errors = scores.astype(dtype), []
    exact = gradient_of_row(scores, target)
    for e in steps:
        up, down = narrow.copy(), narrow.copy()
        up[0] += dtype(e)
        down[0] -= dtype(e)
        slope = (float(loss_of_row(up, target)) - float(loss_of_row(down, target))) / (2 * e)
        errors.append(max(abs(slope - exact[0]), 1e-16))
    axes.loglog(steps, errors, color=colour, label=np.dtype(dtype).name)
axes.loglog(steps, steps**2 / 10, color=GREY, linestyle="--", linewidth=1.2, label="e² (error of the chord)")
axes.set(xlabel="step e", ylabel="error of the measured slope", ylim=(1e-13, 10))
axes.legend()
show(figure, "02_valley")

# %% [markdown]
# ## Through the layer
#
# The scores of a batch come from a layer. `h` has a row of `H` inputs for each of the `B` rows of the batch; `w` has a
# row of `H` weights for each of the `L` classes.
#
# | forward | backward | shapes |
# |---|---|---|
# | `scores = h @ w.T + bias` | `dh = dscores @ w` | `(B, L) (L, H)` to `(B, H)` |
# | | `dw = dscores.T @ h` | `(L, B) (B, H)` to `(L, H)` |
# | | `dbias = dscores.sum(0)` | `(B, L)` to `(L,)` |
#
# You need not memorize these formulas. To find `dh[b, i]`, ask where `h[b, i]` is used: in `scores[b, l]`, for every
# `l`, multiplied by `w[l, i]`. So its derivative is the sum of `dscores[b, l] * w[l, i]` over `l`, which is a matrix
# product. *Wherever the forward pass uses a number several times, the backward pass sums over these uses.* And only one
# order of the factors fits the shapes.
#
# The loss of a batch is the mean over its rows, so the gradient of each row is divided by `B`.


# %%
def loss_of_batch(h, w, bias, targets):
    scores = h @ w.T + bias
    return np.mean([loss_of_row(row, t) for row, t in zip(scores, targets, strict=True)])


def gradients_of_batch(h, w, bias, targets):
    scores = h @ w.T + bias
    dscores = np.stack([gradient_of_row(row, t) for row, t in zip(scores, targets, strict=True)]) / len(h)
    return dscores @ w, dscores.T @ h, dscores.sum(0)


B, H, L = 4, 5, 7
h, w, bias = random.normal(size=(B, H)), random.normal(size=(L, H)), random.normal(size=L)
targets = random.integers(L, size=B)
for name, array, got in zip(("h", "w", "bias"), (h, w, bias), gradients_of_batch(h, w, bias, targets), strict=True):
    error = relative_error(got, slopes(lambda: loss_of_batch(h, w, bias, targets), array))
    print(f"d{name:<5} {got.shape!s:<8} largest difference {error:.0e}")
    assert error < 1e-7

# %% [markdown]
# ## Several labels, and a gradient that is mostly zero
#
# If a row can have several labels, there is a separate yes-or-no question for each label: `y = +1` if it is one of the
# row's labels, `-1` if not. The squared hinge requires a score that is on the correct side of zero by a margin of at
# least 1. Beyond the margin, loss and gradient are zero:
#
# $$ \ell = \sum_l \max(0,\, 1 - y_l s_l)^2, \qquad
# \frac{\partial \ell}{\partial s_l} = -2\, y_l \max(0,\, 1 - y_l s_l) . $$


# %%
def hinge(scores, y):
    margin = np.maximum(0, 1 - y * scores)
    return (margin**2).sum() / len(scores), -2 * y * margin / len(scores)


y = np.where(random.random((B, L)) < 0.2, 1.0, -1.0)
scores = h @ w.T + bias
loss, dscores = hinge(scores, y)
error = relative_error(dscores, slopes(lambda: hinge(scores, y)[0], scores))
print(f"largest difference {error:.0e}; {np.mean(dscores == 0):.0%} of the gradient is exactly zero")
assert error < 1e-7

# %% [markdown]
# In a trained layer with many labels, almost all of the gradient is zero, because most labels are wrong for most rows,
# with scores well below -1. The library's kernels skip these products.
#
# ## Through a sparse layer: gather and scatter
#
# In a fixed fan-in layer, label `l` only uses the inputs `indices[l]`. The forward pass *gathers* these inputs. In the
# backward pass, the gradient of an input is a sum over all labels that use it. In NumPy this is a *scatter*, and it has
# a pitfall.


# %%
def sparse_forward(h, indices, values, bias):
    return bias + (h[:, indices] * values).sum(-1)  # h[:, indices] is (B, L, K)


def sparse_backward(h, indices, values, dscores):
    dh = np.zeros(h.shape)
    for b in range(len(h)):
        np.add.at(dh[b], indices, dscores[b][:, None] * values)
    dvalues = np.einsum("bl,blk->lk", dscores, h[:, indices])
    return dh, dvalues, dscores.sum(0)


layer = FixedFanIn.random(n_labels=L, n_inputs=H, fan_in=3, seed=0)
indices, values, sparse_bias = layer.indices, layer.values.astype(np.float64), layer.bias.astype(np.float64)
_, dscores = hinge(sparse_forward(h, indices, values, sparse_bias), y)
for name, array, got in zip(
    ("h", "values", "bias"), (h, values, sparse_bias), sparse_backward(h, indices, values, dscores), strict=True
):
    error = relative_error(got, slopes(lambda: hinge(sparse_forward(h, indices, values, sparse_bias), y)[0], array))
    print(f"d{name:<7} {got.shape!s:<7} largest difference {error:.0e}")
    assert error < 1e-7

# %% [markdown]
# The pitfall: `dh[b][indices] += ...` looks equivalent to `np.add.at`. But if an input occurs several times in
# `indices`, NumPy first reads all old values, and then the last write overwrites the others:

# %%
wrong = np.zeros(H)
wrong[indices] += dscores[0][:, None] * values
right = sparse_backward(h, indices, values, dscores)[0][0]
print("with +=       ", np.round(wrong, 3))
print("with np.add.at", np.round(right, 3))

# %% [markdown]
# The same problem occurs on a GPU, where thousands of threads add to `dh` at the same time. The solution there is an
# *atomic* addition; see tutorial 3.
#
# ## The library
#
# `fixed_fan_in_forward` and `fixed_fan_in_backward` compute the same from float32 arrays, with Numba. They should agree
# to about seven digits.

# %%
h32, dscores32 = h.astype(np.float32), dscores.astype(np.float32)
print(
    f"scores  {relative_error(fixed_fan_in_forward(h32, layer), sparse_forward(h, indices, values, sparse_bias)):.0e}"
)
for name, got, want in zip(
    ("dh", "dvalues", "dbias"),
    fixed_fan_in_backward(h32, layer, dscores32),
    sparse_backward(h, indices, values, dscores),
    strict=True,
):
    print(f"{name:<7} {relative_error(got, want):.0e}")
    assert relative_error(got, want) < 1e-6

# %% [markdown]
# Training does not call them one after the other. For each label, `fixed_fan_in_step` computes the scores, the loss and
# the gradients, and updates the weights before it continues with the next label. An array of batch times labels never
# exists. With plain SGD, the result must be the same as ours.

# %%
rate = 0.1
labels = scipy.sparse.csr_matrix((y > 0).astype(np.float32))
by_hand = values - rate * sparse_backward(h, indices, values, dscores)[1]
loss, dh = fixed_fan_in_step(h32, layer, labels, "squared-hinge", SGD(learning_rate=rate))
print(f"loss {loss:.6f}, by hand {hinge(sparse_forward(h, indices, values, sparse_bias), y)[0]:.6f}")
print(f"new weights differ by at most {np.abs(layer.values - by_hand).max():.0e}")
assert np.abs(layer.values - by_hand).max() < 1e-6

# %% [markdown]
# ## Exercises
#
# Replace `...` by your answer; the cell below checks it.
#
# **1.** A layer with 1,000,000 labels computes scores for a batch of 128 rows. How many bytes does the gradient with
# respect to the scores take in float32? (`fixed_fan_in_step` never stores this array.)

# %% exercise="bytes"
bytes_of_dscores = ...

# %% check="bytes"
check("1", bytes_of_dscores, lambda n: n == 128 * 1_000_000 * 4, "Rows times labels times the bytes of one number.")

# %% [markdown]
# **2.** Binary cross-entropy is a smoother version of the same question: $\ell = \log(1 + e^{-y s})$. Compute its
# gradient with respect to `scores` (an array of the same shape as `y`), without dividing by the number of rows.


# %% exercise="bce"
def bce_gradient(scores, y):
    return ...


# %% check="bce"
def is_bce_gradient(got):
    return (
        np.shape(got) == y.shape
        and relative_error(got, slopes(lambda: np.logaddexp(0, -y * scores).sum(), scores)) < 1e-6
    )


check(
    "2", bce_gradient(scores, y), is_bce_gradient, "Chain rule: the inner derivative is -y; what remains is a sigmoid."
)

# %% [markdown]
# **3.** The layer below the output is a ReLU, `h = np.maximum(z, 0)`. Compute `dz`, the gradient with respect to `z`,
# from `dh` and `z`.


# %% exercise="relu"
def relu_backward(dh, z):
    return ...


# %% check="relu"
z, upstream = random.normal(size=(B, H)), random.normal(size=(B, H))


def is_relu_backward(got):
    return (
        np.shape(got) == z.shape and relative_error(got, slopes(lambda: (upstream * np.maximum(z, 0)).sum(), z)) < 1e-6
    )


check(
    "3",
    relu_backward(upstream, z),
    is_relu_backward,
    "An input that the forward pass set to zero has no influence on the loss.",
)
