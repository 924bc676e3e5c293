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
# A text has no fixed length, so a network that reads it needs a memory: something that it carries from word to word and
# rewrites a little at each. Its backward pass walks the text from the end to the beginning. We write such a network by
# hand, an LSTM: one step, its derivative, then many steps, then a language model that learns a text by heart.
#
# The habit is that of tutorial 2: for each array `z` on the way to the loss there is an array `dz` of the same shape, and
# finite differences are the judge.

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
# The memory is `c`, a row of `H` numbers for each sequence of the batch; what the network shows of it is `h`. A step
# takes the input `x` and the old `h`, and computes four things side by side, `H` columns each:
#
# - the *input gate* `i` and the *candidate* `g`: how much to write, and what;
# - the *forget gate* `f`: how much of the old memory stays;
# - the *output gate* `o`: how much of the new memory is shown.
#
# $$ a = x W + h_{t-1} U + b, \qquad i, f, o = \sigma(a), \quad g = \tanh(a), \qquad c_t = f\, c_{t-1} + i\, g, \qquad h_t = o \tanh(c_t) . $$


# %%
def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def cell(pre, before):
    """Gates (B, 4H), c (B, H) and h (B, H), from the sums pre (B, 4H) and the old c (B, H)."""
    i, f, g, o = np.split(pre, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * before + i * g
    return np.hstack([i, f, g, o]), c, o * np.tanh(c)


B, H = 3, 4
pre, before = random.normal(size=(B, 4 * H)), random.normal(size=(B, H))
gates, c, h = cell(pre, before)
print("gates", gates.shape, "c", c.shape, "h", h.shape)

# %% [markdown]
# ## One step back
#
# `h` goes to the outside and into the next step; `c` goes into the next step. So two gradients arrive: `dh`, and
# `dc_next`, which is what the next step says about `c`. Now collect, in reverse order.
#
# `c` was handed out twice: to `h`, by `o * tanh(c)`, and to the next step. Both parts are added:
#
#     dc = dh * o * (1 - tanh(c)**2) + dc_next
#
# From there everything is a product rule. `c = f * before + i * g` hands `dc` to each factor times the other one, and
# each gate is behind a sigmoid, whose slope is `s * (1 - s)`, or a tanh, whose slope is `1 - g**2`:
#
# | gate | by its value | by its sum |
# |---|---|---|
# | `i` | `dc * g` | times `i * (1 - i)` |
# | `f` | `dc * before` | times `f * (1 - f)` |
# | `g` | `dc * i` | times `1 - g**2` |
# | `o` | `dh * tanh(c)` | times `o * (1 - o)` |
#
# The old memory gets `dc * f`. Remember that line: it is what the LSTM was invented for.


# %%
def cell_backward(dh, dc_next, gates, before, c):
    """Gradients by pre (B, 4H) and by the old c (B, H)."""
    i, f, g, o = np.split(gates, 4, axis=1)
    tanh_c = np.tanh(c)
    dc = dh * o * (1 - tanh_c**2) + dc_next
    dpre = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
    return np.hstack(dpre), dc * f


# %% [markdown]
# The judge needs one number. We take random weights `dh` and `dc` and call the weighted sum of all outputs the loss: its
# gradient by `h` is then just `dh`, that by `c` is `dc`.


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


dh, dc = random.normal(size=(B, H)), random.normal(size=(B, H))


def loss_of_cell():
    _, c, h = cell(pre, before)
    return (h * dh).sum() + (c * dc).sum()


for name, array, got in zip(("dpre", "dbefore"), (pre, before), cell_backward(dh, dc, gates, before, c), strict=True):
    error = worst(got, slopes(loss_of_cell, array))
    print(f"{name:<8} largest difference {error:.0e}")
    assert error < 1e-7

# %% [markdown]
# ## Unrolled in time
#
# A sequence is a loop over the cell, with the same weights in each step. All inputs are known beforehand, so their
# product with `W` is one large product; only `h @ U` has to wait for the step before.


# %%
def forward(x, state, W, U, b):
    """x (T, B, D), state (h, c): all h and c, (T + 1, B, H), the state first; and all gates."""
    hs, cs, gates = [state[0]], [state[1]], []
    for from_input in x @ W + b:
        gate, c, h = cell(from_input + hs[-1] @ U, cs[-1])
        gates.append(gate)
        cs.append(c)
        hs.append(h)
    return np.stack(hs), np.stack(cs), np.stack(gates)


# %% [markdown]
# Backwards the loop runs from the last step to the first, and carries two arrays to the left, `dh` and `dc`. A weight was
# handed to every step, so it collects from every step: its gradient is a sum over time.
#
#     step t:   dout[t] ──►(+)──► cell_backward ──► dpre[t] ──► dW += x[t].T @ dpre[t]
#                           ▲           │    ▲                  dU += h[t-1].T @ dpre[t]
#          dh = dpre[t+1] @ U.T         │    │                  dx[t] = dpre[t] @ W.T
#                                       ▼    └── dc of step t+1
#                                  dc for step t-1


# %%
def backward(dout, x, W, U, hs, cs, gates):
    """Gradients by x, W, U, b and by every h, (T, B, H), when dout (T, B, H) comes to the h from outside."""
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
    error = worst(got, slopes(lambda: (forward(x, state, W, U, b)[0][1:] * dout).sum(), array))
    print(f"d{name} {got.shape!s:<10} largest difference {error:.0e}")
    assert error < 1e-6

# %% [markdown]
# ## How far back does it reach?
#
# To learn that a word at the beginning of a sentence matters at its end, the gradient must come back all the way. Put the
# loss on the last step only, and look at the size of the gradient by `h`, step by step backwards. At each step, the
# memory's path multiplies by the forget gate `f`. If `f` is one half, thirty steps leave a billionth. The bias of the
# forget gate decides where `f` begins, before anything has been learned:


# %%
def norms_back(forget_bias, T=60, H=32):
    """The norm of the gradient by every h when the loss sees the last one alone, from the last step back."""
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
    left = norms / norms[0]
    ax.semilogy(left, color=colour, label=f"bias {bias}: f begins at {sigmoid(bias):.2f}")
    print(f"bias {bias}: after 20 steps {left[20]:.0e} of the gradient is left, after 50 {left[50]:.0e}")
ax.set(xlabel="steps back in time", ylabel="norm of the gradient by h,\nas a share of the last step's")
ax.legend(loc="lower left")
show(figure, "07_gradient_in_time")
assert norms_back(0)[50] < norms_back(1)[50] < norms_back(3)[50]

# %% [markdown]
# Nothing is lost that training could not win: the gate can learn to stay open. But it must see a gradient to learn from,
# and so the library, like most, starts this bias at 1.
#
# ## A text is longer than a step
#
# To go back through a whole book, all its gates would have to be kept. Instead a text is read in chunks of, say, 35
# words. The *state* that one chunk ends with is where the next one begins, so the forward pass notices nothing. The
# *gradient* stops at the beginning of the chunk: the state counts as given. That is truncated back-propagation through
# time.

# %%
T, H = 64, 8
x = random.normal(size=(T, B, D))
W, U = random.uniform(-1, 1, (D, 4 * H)), random.uniform(-0.4, 0.4, (H, 4 * H))
b = np.zeros(4 * H)
b[H : 2 * H] = 2
dout = random.normal(size=(T, B, H))


def in_chunks(length):
    """All h, and the gradient by U, when x is read `length` steps at a time."""
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
    print(f"chunks of {length:2}: same h; the gradient by U is off by {errors[-1]:.0%} of its norm")
assert errors[-1] < errors[0]

# %% [markdown]
# The shorter the chunk, the more of the gradient is cut off; what remains is still what it should be *within* a chunk.
# Longer chunks cost memory in proportion, and the gain falls off.
#
# ## The library's LSTM
#
# Its definition is `sparsemax_nb.reference.lstm`, in float64; we wrote it once more above.

# %%
hs, cs, gates = forward(x, np.zeros((2, B, H)), W, U, b)
defined = definition.forward(U, x @ W + b, cs[:1], hs[:1])
for name, got, want in zip(("gates", "c", "h"), defined, (gates, cs, hs), strict=True):
    assert worst(got, want) < 1e-12, name
dpre = definition.backward(U, gates, cs, dout)
assert worst(np.einsum("tbh,tbg->hg", hs[:-1], dpre), exact) < 1e-12
print("the definition says the same")

# %% [markdown]
# `train.LanguageModel` uses float32 and Numba, on the CPU or the GPU. We train a small one on a toy text - six lines,
# again and again - and take its layer apart.

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
print(f"h   {worst(out, hs[1:]):.0e}")
for got, want, name in zip((dx, *gradients.values()), by_hand, ("dx", "dW", "dU", "db"), strict=False):
    print(f"{name}  {worst(got, want):.0e}")
    assert worst(got, want) < 1e-4

# %% [markdown]
# ## A whole language model
#
# Below the LSTM a table with a row for each word, above it a softmax over all words. Forward: look up, run, score,
# compare with the word that really follows. Backward: the parts that we have, in reverse order. The table's gradient is a
# scatter, `np.add.at`, because a word may occur twice.


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
    """tokens and following (T, B): the mean loss, all gradients by name, and the state behind the last step."""
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
    error = worst(gradients[name], slopes(lambda: loss_and_gradients(small, tokens, following, state)[0], array))
    print(f"d{name:<6} {array.shape!s:<8} largest difference {error:.0e}")
    assert error < 1e-6

# %% [markdown]
# ## Learning by heart
#
# Our own loop: the text as four streams side by side, ten words a step, the state carried on, Adam from the library. One
# more precaution belongs to every recurrent network: *clipping*. Gradients through time can explode as well as vanish,
# and one such step would undo a thousand. If the norm of all gradients together exceeds 1, all are scaled down.


# %%
def clipped(gradients, most=1.0):
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    return {name: g * np.float32(min(1, most / norm)) for name, g in gradients.items()}


def streams(text, n_streams):
    """(T + 1, n_streams): the text in parts of the same length, side by side; each begins where its neighbour ends."""
    T = (len(text) - 1) // n_streams
    return np.stack([text[s * T : (s + 1) * T + 1] for s in range(n_streams)], axis=1)


def learn(text, n_epochs, unroll=10, n_streams=4, H=32):
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


model, perplexities = learn(np.tile(poem, 4), n_epochs=size(60, 25))
print(f"perplexity: at first {perplexities[0]:.1f} of {len(words)} words, at last {perplexities[-1]:.2f}")

# %% [markdown]
# Perplexity is the exponential of the mean loss: among how many equally likely words the model hesitates. It begins near
# the number of words, and one is certainty. To compare: a model that knows only the last word can not tell what follows
# "the". The grey line is the best that such a model could do.

# %%
pairs = np.bincount(poem * len(words) + np.roll(poem, -1), minlength=len(words) ** 2).reshape(len(words), -1)
after_one = pairs[poem] / pairs[poem].sum(1, keepdims=True)
by_pairs = np.exp(-np.log(after_one[np.arange(len(poem)), np.roll(poem, -1)]).mean())
figure, ax = plt.subplots()
ax.semilogy(np.arange(1, len(perplexities) + 1), perplexities, color=BLUE, label="LSTM")
ax.axhline(by_pairs, color=GREY, label="knows the last word alone")
ax.set(xlabel="epoch", ylabel="perplexity", yticks=[1, 2, 5, 10, 20, 50], yticklabels=[1, 2, 5, 10, 20, 50])
ax.minorticks_off()
ax.legend()
show(figure, "07_perplexity")
assert perplexities[-1] < by_pairs < perplexities[0]

# %% [markdown]
# Now it goes on by itself: the state remembers, the best word becomes the next input.


# %%
def go_on(model, prompt, n_words):
    H = len(model["U"])
    state, said = np.zeros((2, 1, H), np.float32), list(prompt)
    for n in range(len(prompt) + n_words - 1):
        hs, cs, _ = forward(model["table"][[[said[n]]]], state, model["W"], model["U"], model["b"])
        state = hs[-1], cs[-1]
        if n >= len(prompt) - 1:
            said.append(int((model["out"] @ hs[-1, 0] + model["bias"]).argmax()))
    return said


prompt = poem[:6]
said = go_on(model, prompt, n_words=40)
print(" ".join(words[n] for n in said).replace(" . ", " .\n").replace(" ? ", " ?\n"))
print(f"right: {np.mean(np.array(said) == poem[: len(said)]):.0%}")
assert np.mean(np.array(said[6:12]) == poem[6:12]) > 0.5
if size(True, False):
    assert (np.array(said) == poem[: len(said)]).all()

# %% [markdown]
# `language.generate(poem[:6], 40, temperature=0)` is the same for the library's model; what it adds - several layers,
# dropout, sampling for large vocabularies, checkpoints - changes nothing in the backward pass that you have just read.
#
# ## Exercises
#
# **1.** A forget gate that always stands at `f = sigmoid(bias)`: after how many steps is half of a gradient left on the
# memory's path? Write the function of the bias; the number need not be whole.


# %% exercise="half"
def half_life(bias):
    return ...


# %% check="half"
def is_half_life(n):
    return np.isclose(sigmoid(3.0) ** n, 0.5)


check("1", half_life(3.0), is_half_life, "f multiplied by itself n times is one half; take the logarithm.")

# %% [markdown]
# **2.** A thriftier cell has no input gate of its own: it writes where it forgets, $c_t = f c_{t-1} + (1 - f) g$. Write
# the gradient by the sum that becomes `f`, from `dc`, the old memory `before`, `g` and `f`.


# %% exercise="coupled"
def coupled_forget_gradient(dc, before, g, f):
    return ...


# %% check="coupled"
a, old, new, upstream = (random.normal(size=(3, 4)) for _ in range(4))


def is_coupled(got):
    def loss():
        return ((sigmoid(a) * old + (1 - sigmoid(a)) * new) * upstream).sum()

    return np.shape(got) == a.shape and worst(got, slopes(loss, a)) < 1e-6


hint = "f meets the loss twice: with the old memory and with g."
check("2", coupled_forget_gradient(upstream, old, new, sigmoid(a)), is_coupled, hint)

# %% [markdown]
# **3.** A text of 1,000 words, one stream, read 50 words a step with the state carried on. The loss of the word at place
# 120 (the first is at place 0) is predicted from the words before it. From which place on can these words' embeddings get
# a gradient *from that loss*?

# %% exercise="truncated"
first_place = ...

# %% check="truncated"
hint = "In which chunk does the step lie that predicts it, and where does that chunk begin?"
check("3", first_place, lambda n: n == 100, hint)
