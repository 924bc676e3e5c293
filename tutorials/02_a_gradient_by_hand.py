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
# No framework will differentiate for us in this library: every backward pass is written down. That is less work than it
# sounds, because one small habit carries all of it. We start with the loss of a *single row*, end with the backward pass of
# a sparse output layer, and check each step against finite differences.
#
# The habit: for each array `z` on the way to the loss there is an array `dz` *of the same shape*, whose entries say how
# much the loss grows when that entry of `z` grows a little. A backward pass walks through the forward pass in reverse and
# turns the `d` of each result into the `d` of what it was made from.

# %%
import numpy as np
import scipy.sparse
from lesson import BLUE, GREY, ORANGE, check, plt, show, size

from sparsemax_nb import SGD, FixedFanIn, fixed_fan_in_backward, fixed_fan_in_forward, fixed_fan_in_step

random = np.random.default_rng(0)

# %% [markdown]
# ## The loss of one row
#
# A row of the batch comes with scores, one for each class, and one class is right. The softmax loss is
#
# $$ \ell(s) = \log \sum_j e^{s_j} - s_t . $$
#
# In code we subtract the largest score first. It changes nothing in the result - the same number leaves the logarithm as
# enters the exponentials - but `exp` can no longer overflow.


# %%
def loss_of_row(scores, target):
    largest = scores.max()
    return largest + np.log(np.exp(scores - largest).sum()) - scores[target]


scores, target = random.normal(size=6), 2
print(f"loss {loss_of_row(scores, target):.4f}; were all classes equally likely, it would be {np.log(6):.4f}")

# %% [markdown]
# Now its derivative by one score. The logarithm gives one over the sum, the sum gives the exponential:
#
# $$ \frac{\partial \ell}{\partial s_i} = \frac{e^{s_i}}{\sum_j e^{s_j}} - [i = t] = p_i - [i = t] . $$
#
# The probability that the model gives, minus the probability that it should have given. All of classification is in that
# line: the right class is pushed up by what is missing, every other class is pushed down by what it has too much.


# %%
def gradient_of_row(scores, target):
    p = np.exp(scores - scores.max())
    p /= p.sum()
    p[target] -= 1
    return p


print(np.round(gradient_of_row(scores, target), 3), "sum", f"{gradient_of_row(scores, target).sum():.0e}")

# %% [markdown]
# The entries sum to zero: adding the same number to all scores does not change the loss.
#
# ## Is it right? Ask the loss itself
#
# A derivative is a slope, and a slope can be measured: move one entry up by `e`, down by `e`, and divide the difference of
# the losses by `2 e`. It costs two losses for each entry, far too much for training, but it knows nothing of our algebra. That
# makes it the judge.


# %%
def slopes(function, array, e=1e-6):
    """The gradient of ``function()`` by `array`, entry by entry, measured."""
    found = np.zeros(array.shape)
    for place in np.ndindex(array.shape):
        old = array[place]
        array[place] = old + e
        up = function()
        array[place] = old - e
        down = function()
        array[place] = old
        found[place] = (up - down) / (2 * e)
    return found


def worst(got, want):
    """The largest difference, as a share of the largest entry."""
    return np.abs(got - want).max() / np.abs(want).max()


error = worst(gradient_of_row(scores, target), slopes(lambda: loss_of_row(scores, target), scores))
print(f"largest difference {error:.0e}")
assert error < 1e-8

# %% [markdown]
# Which `e`? A large one measures a chord, not a tangent; a small one subtracts two numbers that agree in nearly all their
# digits. The error has a valley, and where its floor lies depends on the precision: this is why gradients are checked in
# float64, even where training runs in float32.

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
axes.loglog(steps, steps**2 / 10, color=GREY, linestyle="--", linewidth=1.2, label="grows with e² (chord)")
axes.set(xlabel="step e", ylabel="error of the measured slope", ylim=(1e-13, 10))
axes.legend()
show(figure, "02_valley")

# %% [markdown]
# ## Through the layer
#
# The scores of a batch come from a layer: `x` holds one row of `H` inputs for each of the `B` rows, `w` one row of `H` weights
# for each of the `L` classes.
#
# | forward | backward | shapes |
# |---|---|---|
# | `scores = x @ w.T + bias` | `dx = dscores @ w` | `(B, L) (L, H)` to `(B, H)` |
# | | `dw = dscores.T @ x` | `(L, B) (B, H)` to `(L, H)` |
# | | `dbias = dscores.sum(0)` | `(B, L)` to `(L,)` |
#
# No need to learn these by heart. `dx[b, h]` asks: where does `x[b, h]` go? Into `scores[b, l]`, for every `l`, times `w[l, h]`.
# So it collects `dscores[b, l] * w[l, h]` from all of them - a sum over `l`, which is the matrix product. *What the
# forward pass hands out, the backward pass collects.* And shapes leave only one way to write it.
#
# The loss of a batch is the mean over its rows, so each row's gradient is divided by `B`.


# %%
def loss_of_batch(x, w, bias, targets):
    scores = x @ w.T + bias
    return np.mean([loss_of_row(row, t) for row, t in zip(scores, targets, strict=True)])


def gradients_of_batch(x, w, bias, targets):
    scores = x @ w.T + bias
    dscores = np.stack([gradient_of_row(row, t) for row, t in zip(scores, targets, strict=True)]) / len(x)
    return dscores @ w, dscores.T @ x, dscores.sum(0)


B, H, L = 4, 5, 7
x, w, bias = random.normal(size=(B, H)), random.normal(size=(L, H)), random.normal(size=L)
targets = random.integers(L, size=B)
for name, array, got in zip(("x", "w", "bias"), (x, w, bias), gradients_of_batch(x, w, bias, targets), strict=True):
    error = worst(got, slopes(lambda: loss_of_batch(x, w, bias, targets), array))
    print(f"d{name:<5} {got.shape!s:<8} largest difference {error:.0e}")
    assert error < 1e-7

# %% [markdown]
# ## Several labels, and a gradient that is mostly zero
#
# Where a row may have several labels, every label gets a yes-or-no question of its own: `y = +1` where it is one of the row's,
# `-1` where not. The squared hinge asks for a score beyond a margin of 1 on the right side, and once it is there, stops asking:
#
# $$ \ell = \sum_l \max(0,\, 1 - y_l s_l)^2, \qquad \frac{\partial \ell}{\partial s_l} = -2\, y_l \max(0,\, 1 - y_l s_l) . $$


# %%
def hinge(scores, y):
    margin = np.maximum(0, 1 - y * scores)
    return (margin**2).sum() / len(scores), -2 * y * margin / len(scores)


y = np.where(random.random((B, L)) < 0.2, 1.0, -1.0)
scores = x @ w.T + bias
loss, dscores = hinge(scores, y)
error = worst(dscores, slopes(lambda: hinge(scores, y)[0], scores))
print(f"largest difference {error:.0e}; exactly zero: {np.mean(dscores == 0):.0%} of the gradient")
assert error < 1e-7

# %% [markdown]
# In a trained layer with many labels that is nearly all of it, because most labels are wrong for most rows and
# well below -1. What is zero need not be multiplied. The library's kernels skip it.
#
# ## Through a sparse layer: gather, and scatter
#
# In a fixed fan-in layer, label `l` sees only the inputs `indices[l]`. The forward pass *gathers*. In the backward pass an input
# collects from all labels that look at it. In NumPy that is a *scatter*, and it has a trap.


# %%
def sparse_forward(x, indices, values, bias):
    return bias + (x[:, indices] * values).sum(-1)  # x[:, indices] is (B, L, K)


def sparse_backward(x, indices, values, dscores):
    dx = np.zeros(x.shape)
    for b in range(len(x)):
        np.add.at(dx[b], indices, dscores[b][:, None] * values)
    dvalues = np.einsum("bl,blk->lk", dscores, x[:, indices])
    return dx, dvalues, dscores.sum(0)


layer = FixedFanIn.random(n_labels=L, n_inputs=H, fan_in=3, seed=0)
indices, values, sparse_bias = layer.indices, layer.values.astype(np.float64), layer.bias.astype(np.float64)
_, dscores = hinge(sparse_forward(x, indices, values, sparse_bias), y)
for name, array, got in zip(
    ("x", "values", "bias"), (x, values, sparse_bias), sparse_backward(x, indices, values, dscores), strict=True
):
    error = worst(got, slopes(lambda: hinge(sparse_forward(x, indices, values, sparse_bias), y)[0], array))
    print(f"d{name:<7} {got.shape!s:<7} largest difference {error:.0e}")
    assert error < 1e-7

# %% [markdown]
# The trap: `dx[b][indices] += ...` looks the same as `np.add.at`. But where an input occurs twice among the indices, NumPy
# reads all old values first, and the last write wins:

# %%
wrong = np.zeros(H)
wrong[indices] += dscores[0][:, None] * values
right = sparse_backward(x, indices, values, dscores)[0][0]
print("with +=       ", np.round(wrong, 3))
print("with np.add.at", np.round(right, 3))

# %% [markdown]
# The same trap waits on a GPU, where thousands of threads add to `dx` at once. There the name of the remedy is an *atomic*
# add, and tutorial 3 meets it.
#
# ## The library
#
# `fixed_fan_in_forward` and `fixed_fan_in_backward` compute the same from float32 arrays, with Numba. They should agree to about
# seven digits, and they do.

# %%
x32, dscores32 = x.astype(np.float32), dscores.astype(np.float32)
print(f"scores  {worst(fixed_fan_in_forward(x32, layer), sparse_forward(x, indices, values, sparse_bias)):.0e}")
for name, got, want in zip(
    ("dx", "dvalues", "dbias"), fixed_fan_in_backward(x32, layer, dscores32), sparse_backward(x, indices, values, dscores),
    strict=True,
):  # fmt: skip
    print(f"{name:<7} {worst(got, want):.0e}")
    assert worst(got, want) < 1e-6

# %% [markdown]
# In training nobody calls them one after the other. `fixed_fan_in_step` scores a label, takes its loss, sends the gradient
# back and updates the label's weights before it turns to the next: no array of batch times labels ever exists. With plain SGD
# it must do precisely what we do by hand.

# %%
rate = 0.1
labels = scipy.sparse.csr_matrix((y > 0).astype(np.float32))
by_hand = values - rate * sparse_backward(x, indices, values, dscores)[1]
loss, dx = fixed_fan_in_step(x32, layer, labels, "squared-hinge", SGD(learning_rate=rate))
print(f"loss {loss:.6f}, by hand {hinge(sparse_forward(x, indices, values, sparse_bias), y)[0]:.6f}")
print(f"new weights differ by at most {np.abs(layer.values - by_hand).max():.0e}")
assert np.abs(layer.values - by_hand).max() < 1e-6

# %% [markdown]
# ## Exercises
#
# Put your answer in the place of `...`; the cell below it checks it.
#
# **1.** A layer of 1,000,000 labels scores a batch of 128 rows. How many bytes does the gradient by the scores take in float32 -
# the array that `fixed_fan_in_step` never makes?

# %% exercise="bytes"
bytes_of_dscores = ...

# %% check="bytes"
check("1", bytes_of_dscores, lambda n: n == 128 * 1_000_000 * 4, "Rows times labels times the bytes of one number.")

# %% [markdown]
# **2.** Binary cross-entropy asks the same question more softly: $\ell = \log(1 + e^{-y s})$. Write its gradient by `scores`
# (arrays of the same shape as `y`), without the mean.


# %% exercise="bce"
def bce_gradient(scores, y):
    return ...


# %% check="bce"
def is_bce_gradient(got):
    return np.shape(got) == y.shape and worst(got, slopes(lambda: np.logaddexp(0, -y * scores).sum(), scores)) < 1e-6


check(
    "2", bce_gradient(scores, y), is_bce_gradient, "Chain rule: the inner derivative is -y; what remains is a sigmoid."
)

# %% [markdown]
# **3.** Below the output sits a ReLU, `x = np.maximum(z, 0)`. Write the gradient by `z` from `dx` and `z`.


# %% exercise="relu"
def relu_backward(dx, z):
    return ...


# %% check="relu"
z, upstream = random.normal(size=(B, H)), random.normal(size=(B, H))


def is_relu_backward(got):
    return np.shape(got) == z.shape and worst(got, slopes(lambda: (upstream * np.maximum(z, 0)).sum(), z)) < 1e-6


check("3", relu_backward(upstream, z), is_relu_backward, "What did not pass forwards does not pass backwards.")
