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
# # Back-propagation through time
#
# A text has no fixed length, so a network that reads it needs a memory, which it updates with each word. Its backward
# pass goes through the text from the end to the beginning. In this tutorial we write such a network by hand, an LSTM:
# one step and its derivative, then many steps, and then a language model that memorizes a text.
#
# The rule is the same as in tutorial 2: for each array `z` on the way to the loss, there is an array `dz` of the same
# shape. We check all gradients with finite differences.

# %%
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, check, one_thread, plt, show, size

from sparsemax_nb import Adam, train
from sparsemax_nb.reference import lstm as definition

one_thread()
random = np.random.default_rng(0)

# %% [markdown]
# ## One step
#
# The memory is `c`, with `H` numbers for each sequence of the batch. The output `h` is the part of the memory that the
# network shows. From the input `x` and the previous `h`, a step computes four arrays with `H` columns each:
#
# - the *input gate* `i` and the *candidate* `g`: how much to write, and what to write;
# - the *forget gate* `f`: how much of the old memory to keep;
# - the *output gate* `o`: how much of the new memory to show.
#
# $$ a = x W + h_{t-1} U + b, \qquad i, f, o = \sigma(a), \quad g = \tanh(a), \qquad
# c_t = f\, c_{t-1} + i\, g, \qquad h_t = o \tanh(c_t) . $$


# %%
def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def cell(pre, before):
    """Gates (B, 4H), c (B, H) and h (B, H), from the pre-activations pre (B, 4H) and the old memory (B, H)."""
    i, f, g, o = np.split(pre, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * before + i * g
    return np.hstack([i, f, g, o]), c, o * np.tanh(c)


B, H = 3, 4
pre, before = random.normal(size=(B, 4 * H)), random.normal(size=(B, H))
gates, c, h = cell(pre, before)
print("gates", gates.shape, "c", c.shape, "h", h.shape)

# %% [markdown]
# ## One step backward
#
# `h` is used outside and in the next step; `c` is used in the next step. So we get two gradients: `dh`, and `dc_next`,
# which comes from the next step. We go through the forward pass in reverse order.
#
# `c` was used twice: in `h`, by `o * tanh(c)`, and in the next step. So we add both gradients:
#
#     dc = dh * o * (1 - tanh(c)**2) + dc_next
#
# The rest is the product rule. In `c = f * before + i * g`, the gradient of each factor is `dc` times the other factor.
# Each gate is the result of a sigmoid, with derivative `s * (1 - s)`, or of a tanh, with derivative `1 - g**2`:
#
# | gate | gradient of its value | factor for the gradient of its pre-activation |
# |---|---|---|
# | `i` | `dc * g` | `i * (1 - i)` |
# | `f` | `dc * before` | `f * (1 - f)` |
# | `g` | `dc * i` | `1 - g**2` |
# | `o` | `dh * tanh(c)` | `o * (1 - o)` |
#
# The gradient of the old memory is `dc * f`. Remember this product: it is the reason why the LSTM was invented.


# %%
def cell_backward(dh, dc_next, gates, before, c):
    """Gradients with respect to pre (B, 4H) and the old memory (B, H)."""
    i, f, g, o = np.split(gates, 4, axis=1)
    tanh_c = np.tanh(c)
    dc = dh * o * (1 - tanh_c**2) + dc_next
    dpre = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
    return np.hstack(dpre), dc * f


# %% [markdown]
# Finite differences need a single number as the loss. We use random weights `dh` and `dc`, and call the weighted sum of
# all outputs the loss. Then its gradient with respect to `h` is `dh`, and with respect to `c` it is `dc`.


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


dh, dc = random.normal(size=(B, H)), random.normal(size=(B, H))


def loss_of_cell():
    _, c, h = cell(pre, before)
    return (h * dh).sum() + (c * dc).sum()


for name, array, got in zip(("dpre", "dbefore"), (pre, before), cell_backward(dh, dc, gates, before, c), strict=True):
    error = relative_error(got, slopes(loss_of_cell, array))
    print(f"{name:<8} largest difference {error:.0e}")
    assert error < 1e-7

# %% [markdown]
# ## Unrolled in time
#
# A sequence is a loop over the cell, with the same weights in each step. All inputs are known in advance, so their
# product with `W` is one large matrix product. Only `h @ U` must wait for the previous step.


# %%
def forward(x, state, W, U, b):
    """From x (T, B, D) and the state (h, c): all h and c, (T + 1, B, H), starting with the state; and all gates."""
    hs, cs, gates = [state[0]], [state[1]], []
    for from_input in x @ W + b:
        gate, c, h = cell(from_input + hs[-1] @ U, cs[-1])
        gates.append(gate)
        cs.append(c)
        hs.append(h)
    return np.stack(hs), np.stack(cs), np.stack(gates)


# %% [markdown]
# The backward loop runs from the last step to the first, and passes two arrays to the previous step, `dh` and `dc`. A
# weight is used in every step, so its gradient is a sum over all steps.
#
#     step t:   dout[t] ──►(+)──► cell_backward ──► dpre[t] ──► dW += x[t].T @ dpre[t]
#                           ▲           │    ▲                  dU += h[t-1].T @ dpre[t]
#          dh = dpre[t+1] @ U.T         │    │                  dx[t] = dpre[t] @ W.T
#                                       ▼    └── dc of step t+1
#                                  dc for step t-1


# %%
def backward(dout, x, W, U, hs, cs, gates):
    """Gradients of x, W, U, b and of every h, (T, B, H), if dout (T, B, H) is the gradient of h from outside."""
    dpre, dhs = np.zeros_like(gates), np.zeros_like(dout)
    dh = dc = np.zeros_like(hs[0])
    for t in reversed(range(len(x))):
        dhs[t] = dout[t] + dh
        dpre[t], dc = cell_backward(dhs[t], dc, gates[t], cs[t], cs[t + 1])
        dh = dpre[t] @ U.T
    dW = np.einsum("tbd,tbg->dg", x, dpre)
    dU = np.einsum("tbh,tbg->hg", hs[:-1], dpre)
    return dpre @ W.T, dW, dU, dpre.sum((0, 1)), dhs


T, D = 5, 3
x, W, U, b = (random.normal(size=shape) for shape in ((T, B, D), (D, 4 * H), (H, 4 * H), (4 * H,)))
state = random.normal(size=(2, B, H))
dout = random.normal(size=(T, B, H))
found = backward(dout, x, W, U, *forward(x, state, W, U, b))
for name, array, got in zip("xWUb", (x, W, U, b), found, strict=False):
    error = relative_error(got, slopes(lambda: (forward(x, state, W, U, b)[0][1:] * dout).sum(), array))
    print(f"d{name} {got.shape!s:<10} largest difference {error:.0e}")
    assert error < 1e-6

# %% [markdown]
# ## How far back does the gradient reach?
#
# To learn that a word at the beginning of a sentence matters at its end, the gradient must reach the beginning. We use
# a loss that only depends on the last step, and look at the size of the gradient of `h` at each earlier step. On the
# path through the memory, each step multiplies the gradient by the forget gate `f`. If `f` is one half, a billionth
# remains after thirty steps. The bias of the forget gate determines the value of `f` before any training:


# %%
def norms_back(forget_bias, T=60, H=32):
    """Norm of the gradient of every h, from the last step backward, if the loss only depends on the last h."""
    random = np.random.default_rng(1)
    scale = 1 / np.sqrt(H)
    W, U = random.uniform(-scale, scale, (2, H, 4 * H))
    b = np.zeros(4 * H)
    b[H : 2 * H] = forget_bias
    x, dout = random.normal(size=(T, 8, H)), np.zeros((T, 8, H))
    dout[-1] = random.normal(size=(8, H))
    *_, dhs = backward(dout, x, W, U, *forward(x, np.zeros((2, 8, H)), W, U, b))
    return np.linalg.norm(dhs, axis=(1, 2))[::-1]


figure, ax = plt.subplots()
for bias, colour in ((0, ORANGE), (1, BLUE), (3, GREEN)):
    norms = norms_back(bias)
    relative = norms / norms[0]
    ax.semilogy(relative, color=colour, label=f"bias {bias}: f starts at {sigmoid(bias):.2f}")
    print(f"bias {bias}: after 20 steps {relative[20]:.0e} of the gradient remains, after 50 {relative[50]:.0e}")
ax.set(xlabel="steps back in time", ylabel="norm of the gradient of h,\nrelative to the last step")
ax.legend(loc="lower left")
show(figure, "07_gradient_in_time")
assert norms_back(0)[50] < norms_back(1)[50] < norms_back(3)[50]

# %% [markdown]
# Training can also open the gate. But to learn this, the gate needs a gradient; so the library, like most others,
# initializes this bias with 1.
#
# ## A text is longer than a training step
#
# To back-propagate through a whole book, we would have to store all its gates. Instead, a text is read in chunks of,
# for example, 35 words. Each chunk starts with the *state* at the end of the previous chunk, so the forward pass does
# not change. But the *gradient* stops at the beginning of the chunk: the state is treated as a constant. This is called
# truncated back-propagation through time.

# %%
T, H = 64, 8
x = random.normal(size=(T, B, D))
W, U = random.uniform(-1, 1, (D, 4 * H)), random.uniform(-0.4, 0.4, (H, 4 * H))
b = np.zeros(4 * H)
b[H : 2 * H] = 2
dout = random.normal(size=(T, B, H))


def in_chunks(length):
    """All h, and the gradient of U, if x is read in chunks of `length` steps."""
    state, hidden, total = np.zeros((2, B, H)), [], 0
    for t in range(0, T, length):
        part = x[t : t + length]
        hs, cs, gates = forward(part, state, W, U, b)
        total = total + backward(dout[t : t + length], part, W, U, hs, cs, gates)[2]
        hidden.append(hs[1:])
        state = hs[-1], cs[-1]
    return np.concatenate(hidden), total


whole, exact = in_chunks(T)
lengths, errors = [1, 2, 4, 8, 16, 32], []
for length in lengths:
    hidden, got = in_chunks(length)
    assert np.abs(hidden - whole).max() < 1e-12
    errors.append(np.linalg.norm(got - exact) / np.linalg.norm(exact))
    print(f"chunks of {length:2}: same h; relative error of the gradient of U: {errors[-1]:.0%}")
assert errors[-1] < errors[0]

# %% [markdown]
# The shorter the chunk, the larger the missing part of the gradient; the gradient *within* a chunk is correct. The
# memory grows in proportion to the length of the chunk, while the benefit of longer chunks decreases.
#
# ## The library's LSTM
#
# `sparsemax_nb.reference.lstm` defines the LSTM in float64. It must agree with ours.

# %%
hs, cs, gates = forward(x, np.zeros((2, B, H)), W, U, b)
defined = definition.forward(U, x @ W + b, cs[:1], hs[:1])
for name, got, want in zip(("gates", "c", "h"), defined, (gates, cs, hs), strict=True):
    assert relative_error(got, want) < 1e-12, name
dpre = definition.backward(U, gates, cs, dout)
assert relative_error(np.einsum("tbh,tbg->hg", hs[:-1], dpre), exact) < 1e-12
print("same result as the definition")

# %% [markdown]
# `train.LanguageModel` uses float32 and Numba, on the CPU or the GPU. We train a small one on a toy text of six lines
# that are repeated, and then compare its LSTM layer with ours.

# %%
LINES = """
the owl sat in the old oak and the more it heard the less it spoke .
the less it spoke the more it heard and every bird took its word .
a fox came by and asked the owl why do you sit and never growl ?
the owl said nothing for a while and then it answered with a smile .
who talks all day can hear no sound of mice that run along the ground .
the fox went home and did the same and that is how he earned his name .
"""
tokens_of_text = LINES.split()
words = sorted(set(tokens_of_text))
number = {word: n for n, word in enumerate(words)}
poem = np.array([number[word] for word in tokens_of_text], np.int32)
print(f"{len(poem)} words, {len(words)} of them different")

language = train.LanguageModel(
    width=24, n_layers=1, tied=False, sampler="none", dropout=0.0, batch_size=4, unroll=10, learning_rate=0.02,
    epochs=size(60, 10), device="cpu", progress=False,
).fit(np.tile(poem, 4))  # fmt: skip
print(f"perplexity {language.perplexity(np.tile(poem, 4)):.2f}")

layer = language.network_.lstms[0]
x32, dout32 = (random.normal(size=(12, 5, 24)).astype(np.float32) for _ in range(2))
zero = np.zeros((5, 24), np.float32)
out, _ = layer.forward(x32, (zero, zero), keep=True)
hs, cs, gates = forward(x32.astype(np.float64), (zero, zero), layer.weights, layer.recurrent, layer.bias)
by_hand = backward(dout32, x32, layer.weights, layer.recurrent, hs, cs, gates)
dx, gradients = layer.backward(dout32)
print(f"h   {relative_error(out, hs[1:]):.0e}")
for got, want, name in zip(
    (dx, *(gradient.values for gradient in gradients)), by_hand, ("dx", "dW", "dU", "db"), strict=False
):
    print(f"{name}  {relative_error(got, want):.0e}")
    assert relative_error(got, want) < 1e-4

# %% [markdown]
# ## A whole language model
#
# Below the LSTM is a table with a row for each word; above it is a softmax over all words. Forward pass: look up the
# rows, run the LSTM, compute scores, compare with the next word. Backward pass: the parts that we already have, in
# reverse order. The gradient of the table is a scatter, `np.add.at`, because a word may occur several times.


# %%
def new_model(n_words, H, dtype, seed=0):
    random, scale = np.random.default_rng(seed), 1 / np.sqrt(H)
    shapes = {"table": (n_words, H), "W": (H, 4 * H), "U": (H, 4 * H), "b": (4 * H,)}
    shapes |= {"out": (n_words, H), "bias": (n_words,)}
    model = {name: random.uniform(-scale, scale, shape).astype(dtype) for name, shape in shapes.items()}
    model["b"][:] = 0
    model["b"][H : 2 * H] = 1
    return model


def loss_and_gradients(model, tokens, following, state):
    """From tokens and following (T, B): the mean loss, all gradients by name, and the state after the last step."""
    x = model["table"][tokens]
    hs, cs, gates = forward(x, state, model["W"], model["U"], model["b"])
    h = hs[1:].reshape(-1, hs.shape[2])
    scores = h @ model["out"].T + model["bias"]
    scores -= scores.max(1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    rows, right = np.arange(len(h)), following.reshape(-1)
    dscores = np.exp(log_p)
    dscores[rows, right] -= 1
    dscores /= len(h)
    dout = (dscores @ model["out"]).reshape(hs[1:].shape)
    dx, dW, dU, db, _ = backward(dout, x, model["W"], model["U"], hs, cs, gates)
    dtable = np.zeros_like(model["table"])
    np.add.at(dtable, tokens, dx)
    gradients = {"table": dtable, "W": dW, "U": dU, "b": db, "out": dscores.T @ h, "bias": dscores.sum(0)}
    return -log_p[rows, right].mean(), gradients, (hs[-1], cs[-1])


small = new_model(n_words=6, H=3, dtype=np.float64)
tokens, following = random.integers(6, size=(2, 4, 2))
state = random.normal(size=(2, 2, 3))
_, gradients, _ = loss_and_gradients(small, tokens, following, state)
for name, array in small.items():
    error = relative_error(
        gradients[name], slopes(lambda: loss_and_gradients(small, tokens, following, state)[0], array)
    )
    print(f"d{name:<6} {array.shape!s:<8} largest difference {error:.0e}")
    assert error < 1e-6

# %% [markdown]
# ## Memorizing a text
#
# Now the training loop: four streams of text next to each other, ten words per step, the state passed from chunk to
# chunk, and Adam from the library. Every recurrent network needs one more precaution, *clipping*. Gradients through
# time can explode as well as vanish, and a single exploding step can undo a thousand good ones. If the norm of all
# gradients together exceeds 1, all are scaled down.


# %%
def clipped(gradients, max_norm=1.0):
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    return {name: g * np.float32(min(1, max_norm / norm)) for name, g in gradients.items()}


def streams(text, n_streams):
    """(T + 1, n_streams): consecutive parts of the text, as columns of equal length."""
    T = (len(text) - 1) // n_streams
    return np.stack([text[s * T : (s + 1) * T + 1] for s in range(n_streams)], axis=1)


def train_model(text, n_epochs, unroll=10, n_streams=4, H=32):
    model, adam, perplexities = new_model(len(words), H, np.float32), Adam(learning_rate=0.01), []
    side_by_side = streams(text, n_streams)
    for _ in range(n_epochs):
        state, losses = np.zeros((2, n_streams, H), np.float32), []
        for t in range(0, len(side_by_side) - 1, unroll):
            part = side_by_side[t : t + unroll + 1]
            loss, gradients, state = loss_and_gradients(model, part[:-1], part[1:], state)
            losses.append(loss)
            for name, gradient in clipped(gradients).items():
                adam.step(model[name], np.ascontiguousarray(gradient, np.float32))
        perplexities.append(np.exp(np.mean(losses)))
    return model, perplexities


model, perplexities = train_model(np.tile(poem, 4), n_epochs=size(60, 25))
print(f"perplexity: {perplexities[0]:.1f} in the first epoch ({len(words)} words), {perplexities[-1]:.2f} in the last")

# %% [markdown]
# Perplexity is the exponential of the mean loss: the number of equally likely words that would give the same loss. It
# starts near the number of words; a perplexity of 1 is certainty. For comparison: a model that only knows the previous
# word cannot predict what follows "the". The grey line is the best that such a model can reach.

# %%
pairs = np.bincount(poem * len(words) + np.roll(poem, -1), minlength=len(words) ** 2).reshape(len(words), -1)
after_one = pairs[poem] / pairs[poem].sum(1, keepdims=True)
by_pairs = np.exp(-np.log(after_one[np.arange(len(poem)), np.roll(poem, -1)]).mean())
figure, ax = plt.subplots()
ax.semilogy(np.arange(1, len(perplexities) + 1), perplexities, color=BLUE, label="LSTM")
ax.axhline(by_pairs, color=GREY, label="best model of the previous word only")
ax.set(xlabel="epoch", ylabel="perplexity", yticks=[1, 2, 5, 10, 20, 50], yticklabels=[1, 2, 5, 10, 20, 50])
ax.minorticks_off()
ax.legend()
show(figure, "07_perplexity")
assert perplexities[-1] < by_pairs < perplexities[0]

# %% [markdown]
# Now the model continues the text by itself: the best word becomes the next input.


# %%
def continue_text(model, prompt, n_words):
    H = len(model["U"])
    state, generated = np.zeros((2, 1, H), np.float32), list(prompt)
    for n in range(len(prompt) + n_words - 1):
        hs, cs, _ = forward(model["table"][[[generated[n]]]], state, model["W"], model["U"], model["b"])
        state = hs[-1], cs[-1]
        if n >= len(prompt) - 1:
            generated.append(int((model["out"] @ hs[-1, 0] + model["bias"]).argmax()))
    return generated


prompt = poem[:6]
generated = continue_text(model, prompt, n_words=40)
print(" ".join(words[n] for n in generated).replace(" . ", " .\n").replace(" ? ", " ?\n"))
print(f"correct words: {np.mean(np.array(generated) == poem[: len(generated)]):.0%}")
assert np.mean(np.array(generated[6:12]) == poem[6:12]) > 0.5
if size(True, False):
    assert (np.array(generated) == poem[: len(generated)]).all()

# %% [markdown]
# For the library's model, this is `language.generate(poem[:6], 40, temperature=0)`. The library adds several layers,
# dropout, sampling for large vocabularies, and checkpoints; the backward pass is the one that you have just read.
#
# ## Exercises
#
# **1.** If the forget gate is constant, `f = sigmoid(bias)`, after how many steps does half of the gradient remain on
# the path through the memory? Write it as a function of the bias; the result need not be an integer.


# %% exercise="half"
def half_life(bias):
    return ...


# %% check="half"
def is_half_life(n):
    return np.isclose(sigmoid(3.0) ** n, 0.5)


check("1", half_life(3.0), is_half_life, "f to the power of n is one half; take the logarithm.")

# %% [markdown]
# **2.** A simpler cell has no input gate; it writes as much as it forgets: $c_t = f c_{t-1} + (1 - f) g$. Compute the
# gradient with respect to the pre-activation of `f`, from `dc`, the old memory `before`, `g` and `f`.


# %% exercise="coupled"
def coupled_forget_gradient(dc, before, g, f):
    return ...


# %% check="coupled"
a, old, new, upstream = (random.normal(size=(3, 4)) for _ in range(4))


def is_coupled(got):
    def loss():
        return ((sigmoid(a) * old + (1 - sigmoid(a)) * new) * upstream).sum()

    return np.shape(got) == a.shape and relative_error(got, slopes(loss, a)) < 1e-6


hint = "f is used twice: as a factor of the old memory and, as 1 - f, of g."
check("2", coupled_forget_gradient(upstream, old, new, sigmoid(a)), is_coupled, hint)

# %% [markdown]
# **3.** A text of 1,000 words is read as one stream, 50 words per step, and the state is passed from step to step. The
# word at position 120 is predicted from the words before it (the first word has position 0). Which is the first
# position whose embedding gets a gradient *from the loss of that prediction*?

# %% exercise="truncated"
first_position = ...

# %% check="truncated"
hint = "Which chunk contains the position from which it is predicted, and where does that chunk begin?"
check("3", first_position, lambda n: n == 100, hint)
