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
# # Sampling a softmax
#
# The gradient of a softmax over `L` classes needs all `L` scores, for every row of every batch. Most of these scores
# belong to classes that the network would never confuse with the target. So we draw a few classes, called *negatives*,
# and compare the target only with them. How we draw them, and how we correct for it, decides whether the network still
# learns the same model.
#
# We first look at this in two dimensions, where a gradient is an arrow. Then we build the *inverted multi-index* (MIDX)
# by hand, which draws almost from the softmax itself. Finally we train two language models with different negatives.

# %%
import time

import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, check, plt, show, size

from sparsemax_nb import InvertedMultiIndex, UniformSampler, data, metrics, sampled_softmax, train

random = np.random.default_rng(0)

# %% [markdown]
# ## The full gradient
#
# Our classes are 300 points in the plane, in a few clusters, as is typical for embeddings. `h` is what the network
# computed for one row; the score of class `i` is `h . x_i`. The gradient of the loss with respect to `h` is the
# expected class vector under the model, minus the vector of the target:
#
# $$ p_i \propto e^{h \cdot x_i}, \qquad \frac{\partial \ell}{\partial h} = \sum_i p_i\, x_i - x_t . $$

# %%
L = 300
centres = np.array([[2.0, 0.6], [1.0, 2.0], [-1.4, 1.3], [-2.1, -0.8], [0.1, -1.9], [2.0, -1.6], [0.0, 0.2]])
cluster = random.integers(len(centres), size=L)
classes = centres[cluster] + 0.33 * random.normal(size=(L, 2))
popularity = random.permutation(1 / np.arange(1, L + 1))
popularity /= popularity.sum()
h = np.array([1.6, 1.2])
target = int((classes @ h).argmax())  # the target is the class with the best score


def softmax(scores):
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


scores = classes @ h
P = softmax(scores)
full = P @ classes - classes[target]
print(
    f"full gradient {full.round(3)}, from {L} scores; {(np.sort(P)[::-1].cumsum() < 0.9).sum() + 1} classes hold 90 % "
    "of P"
)

# %% [markdown]
# ## Naive negatives
#
# Draw `M` classes, add the target, and pretend that there are no other classes. Each draw gives a different gradient.
# What matters is the *mean* over many draws, because training takes many steps. Uniform draws are the simplest; draws
# by popularity are as cheap.
#
# There is a simple correction. A class with probability `Q(i)` is drawn `M Q(i)` times on average, but occurs once in
# the full sum. So divide its exponential by `M Q(i)`; that is, subtract `log(M Q(i))` from its score. (If the target is
# drawn as a negative, ignore it, because it is already in the sum.)


# %%
def sampled_gradients(Q, n_samples, n_draws, corrected):  # noqa: N803
    """Gradients (n_draws, 2) of n_draws independent draws of n_samples classes from Q."""
    ids = random.choice(L, size=(n_draws, n_samples), p=Q)
    drawn = scores[ids] - (np.log(n_samples * Q[ids]) if corrected else 0)
    drawn[ids == target] = -np.inf
    p = softmax(np.column_stack([np.full(n_draws, scores[target]), drawn]))
    return p[:, :1] * classes[target] + np.einsum("nm,nmd->nd", p[:, 1:], classes[ids]) - classes[target]


uniform = np.full(L, 1 / L)
counts, work = [2**i for i in range(13)], size(1_500_000, 60_000)
figure, axes = plt.subplots()
biases = {}
for name, Q, corrected, colour, style in (
    ("uniform", uniform, False, VERMILION, "--"),
    ("popularity", popularity, False, BLUE, "--"),
    ("uniform, corrected", uniform, True, VERMILION, "-"),
    ("popularity, corrected", popularity, True, BLUE, "-"),
):
    means = [sampled_gradients(Q, n, max(work // n, 50), corrected).mean(axis=0) for n in counts]
    biases[name] = np.linalg.norm(np.array(means) - full, axis=1) / np.linalg.norm(full)
    axes.loglog(counts, biases[name], color=colour, linestyle=style, label=name)
axes.axvline(L, color=GREY, linewidth=1, linestyle=":")
axes.set(xlabel=f"negatives M (dotted: all {L} classes)", ylabel="|mean gradient - full| / |full|", ylim=(1e-3, 2))
axes.legend(loc="lower left", fontsize=11)
show(figure, "05_bias")
assert biases["uniform, corrected"][8] < biases["uniform"][4]
assert biases["popularity, corrected"][-1] < biases["popularity"][-1]

# %% [markdown]
# Dashed lines: without the correction. With draws by popularity, the gradient remains wrong for any number of
# negatives: the model learns the softmax *times* the popularity. Uniform draws are closest when `M` is about `L`, where
# sampling saves nothing, and become worse again for larger `M`. Solid lines: with the correction, the bias decreases
# about in proportion to `1 / M`, until the noise of our experiment hides it.
#
# But look at the left side, where `M` is small enough to be useful. There even the corrected curves have a large bias.
# The correction is exact in the limit; how fast it converges depends on how close `Q` is to `P`. The best choice would
# be `Q = P`, but drawing from the softmax needs all scores, which we want to avoid.
#
# ## Almost the softmax: replace each class by a nearby point
#
# If many classes were *at the same point*, they would all have the same score. So we move them: k-means finds `K`
# codewords, and each class is replaced by the nearest one.


# %%
def k_means(points, n_codewords, n_iterations=30):
    """Codewords (K, 2), and the index of the nearest one for each point."""
    codewords = points[random.choice(len(points), n_codewords, replace=False)]
    for _ in range(n_iterations):
        nearest = ((points[:, None] - codewords) ** 2).sum(axis=-1).argmin(axis=1)
        codewords = np.array(
            [points[nearest == k].mean(axis=0) if (nearest == k).any() else codewords[k] for k in range(n_codewords)]
        )
    return codewords, ((points[:, None] - codewords) ** 2).sum(axis=-1).argmin(axis=1)


K = 6
first, k0 = k_means(classes, K)
residuals = classes - first[k0]
print(f"mean distance to the codeword: {np.linalg.norm(residuals, axis=1).mean():.2f}")

# %% [markdown]
# This is still coarse. More codewords would help, but each query must compute `K` scores. A *residual* index uses a
# second codebook for the residuals, `x_i` minus its codeword. All residuals are close to the origin, whichever cluster
# they come from, so *one* second codebook works for all of them. Two codebooks of `K` codewords can represent `K²`
# points.

# %%
second, k1 = k_means(residuals, K)
quantised = first[k0] + second[k1]
print(f"mean distance to the sum of both: {np.linalg.norm(classes - quantised, axis=1).mean():.2f}")
assert np.linalg.norm(classes - quantised, axis=1).mean() < np.linalg.norm(residuals, axis=1).mean()


colours = plt.matplotlib.colors.ListedColormap([BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY])


def draw_cells(axes, points, codewords, nearest, limit):
    """Draw points in the colours of their codewords, on top of the cells of the codewords."""
    line = np.linspace(-limit, limit, 300)
    grid = np.stack(np.meshgrid(line, line), axis=-1)
    cell = ((grid[:, :, None] - codewords) ** 2).sum(axis=-1).argmin(axis=-1)
    axes.imshow(cell, extent=[-limit, limit] * 2, origin="lower", cmap=colours, vmin=0, vmax=K - 1, alpha=0.22)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.scatter(*points.T, s=9, c=nearest, cmap=colours, vmin=0, vmax=K - 1)
    axes.scatter(*codewords.T, s=130, marker="*", color="black", edgecolors="white", zorder=3)


figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.8))
draw_cells(panels[0], classes, first, k0, 3.4)
draw_cells(panels[1], residuals, second, k1, 1.5)
for point, approximation in zip(classes, quantised, strict=True):
    panels[2].plot(*np.stack([point, approximation]).T, color=GREY, linewidth=0.8)
panels[2].scatter(*classes.T, s=9, color=BLUE, label="class")
panels[2].scatter(*quantised.T, s=22, marker="x", color=VERMILION, linewidths=1.2, label="approximation")
panels[2].annotate("", xy=h, xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.6})
panels[2].text(*(h + 0.08), "h", fontsize=13)
panels[2].set(xlim=(-3.4, 3.4), ylim=(-3.4, 3.4), aspect="equal")
panels[2].legend(loc="lower left", fontsize=9)
for panel, name in zip(
    panels,
    ("classes and first codewords", "residuals and second codewords", "approximations: sums of two"),
    strict=True,
):
    panel.set(xlabel="first coordinate", title=name)
    panel.title.set_fontsize(12)
panels[0].set_ylabel("second coordinate")
show(figure, "05_two_codebooks")

# %% [markdown]
# ## Drawing from the index
#
# The score of an approximated class is the sum of two numbers, one for each codebook: `r0 = first @ h` and `r1 = second
# @ h`. All classes in the cell `(k0, k1)` have the same score, and `W[k0, k1]` is their number. So
#
# $$ Q(k_0, k_1) \propto W[k_0, k_1]\, e^{r_0[k_0] + r_1[k_1]}, \qquad
# Q(i) = Q(k_0(i), k_1(i))\, /\, W[k_0(i), k_1(i)] . $$
#
# Nothing here has length `L`: there are `2 K` scores and one table of `K²` numbers. We draw a cell, and then a class of
# this cell with equal probabilities.

# %%
W = np.zeros((K, K))
np.add.at(W, (k0, k1), 1)
r0, r1 = first @ h, second @ h
cells = W * np.exp(r0[:, None] + r1)
cells /= cells.sum()
Q = (cells / np.maximum(W, 1))[k0, k1]
assert abs(Q.sum() - 1) < 1e-12


def kl(p, q):
    """KL(p || q) in nats: the additional message length if p is encoded with a code that is optimal for q."""
    return (p * np.log(p / q)).sum(axis=-1)


for name, q in (("uniform", uniform), ("popularity", popularity), (f"MIDX, {K} + {K} codewords", Q)):
    print(f"KL(P || Q) {kl(P, q):6.3f}  {name}")
assert kl(P, Q) < min(kl(P, uniform), kl(P, popularity))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(1, 1.5))
image = left.imshow(cells, cmap="Blues")
for a in range(K):
    for b in range(K):
        colour = "white" if cells[a, b] > 0.6 * cells.max() else "black"
        left.text(b, a, f"{W[a, b]:.0f}", ha="center", va="center", fontsize=10, color=colour)
left.set(xlabel="second codeword", ylabel="first codeword")
left.grid(False)
figure.colorbar(image, ax=left, label="Q(cell); number: classes in the cell", shrink=0.9)
order = np.argsort(-P)
right.semilogy(popularity[order], ".", color=GREEN, markersize=4, label="popularity")
right.semilogy(Q[order], ".", color=BLUE, markersize=6, label="MIDX")
right.semilogy(uniform, color=VERMILION, label="uniform")
right.semilogy(P[order], color="black", label="softmax P")
right.set(xlabel="classes, the most probable first", ylabel="probability", ylim=(P.min() / 3, 5))
right.legend(loc="upper right", ncols=2, fontsize=10)
show(figure, "05_proposal")

# %% [markdown]
# The blue dots (MIDX) follow the black curve over many orders of magnitude. The other two distributions do not depend
# on `h` at all. What is the benefit? The next figure shows the gradients of single draws, with few negatives each. The
# cross is the full gradient.

# %%
M = 8
figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.8), sharex=True, sharey=True)
spreads = {}
for panel, (name, q) in zip(panels, {"uniform": uniform, "popularity": popularity, "MIDX": Q}.items(), strict=True):
    arrows = sampled_gradients(q, M, size(1500, 400), corrected=True)
    spreads[name] = np.sqrt(((arrows - full) ** 2).sum(axis=1).mean()) / np.linalg.norm(full)
    panel.scatter(*arrows.T, s=5, color=BLUE, alpha=0.35, linewidths=0)
    panel.scatter(*arrows.mean(axis=0), s=70, color=ORANGE, edgecolors="black", label="their mean", zorder=3)
    panel.scatter(*full, s=120, marker="x", color="black", linewidths=2.5, label="full gradient", zorder=4)
    panel.set(xlabel="first coordinate", title=f"{name}, M = {M}")
panels[0].set_ylabel("second coordinate")
handles, labels = panels[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=11, frameon=False)
show(figure, "05_arrows")
print("root mean square error of one draw:", ", ".join(f"{name} {error:.0%}" for name, error in spreads.items()))
assert spreads["MIDX"] < spreads["uniform"]

# %% [markdown]
# ## The library
#
# `InvertedMultiIndex.build` builds such an index for float32 embeddings of any width. Its probabilities must agree with
# our formula for its codewords, and their sum must be one.

# %%
points, h32 = classes.astype(np.float32), h.astype(np.float32)[None]
index = InvertedMultiIndex.build(points, n_codewords=K, kind="rq", seed=0)
everything = np.arange(L, dtype=np.int32)
log_q = index.log_prob(h32, everything)[0]
by_hand = (index.codebooks[0] @ h)[index.codes[:, 0]] + (index.codebooks[1] @ h)[index.codes[:, 1]]
by_hand -= np.log(np.exp(by_hand).sum())
print(index)
print(f"largest difference of log Q {np.abs(log_q - by_hand).max():.0e}; Q sums to {np.exp(log_q).sum():.6f}")
assert np.abs(log_q - by_hand).max() < 1e-5

n_draws = size(200_000, 20_000)
ids, drawn_log_q = index.sample(h32, n_samples=n_draws, seed=0)
shares = np.bincount(ids[0], minlength=L) / n_draws
print(f"largest difference between sampled frequency and Q {np.abs(shares - np.exp(log_q)).max():.1e}")
assert np.abs(shares - np.exp(log_q)).max() < 5 / np.sqrt(n_draws)
assert np.allclose(drawn_log_q[0], log_q[ids[0]], atol=1e-6)

# %% [markdown]
# `sampled_softmax` takes the draws and their log-probabilities. It returns the loss, the gradient with respect to `h`,
# and the gradient with respect to the embeddings, but only for the rows that occur. `correction="importance"` is the
# correction that we have used so far.

# %%
ids, log_q = index.sample(h32, n_samples=M, seed=1)
targets = np.array([target], np.int32)
log_q_target = index.log_prob(h32, targets)[0]
loss, dh, (touched, dweights) = sampled_softmax(
    h32, points, targets, ids, log_q, log_q_target, correction="importance", mask_hits=True
)
kept = ids[0] != target
p = softmax(np.append(scores[target], scores[ids[0]][kept] - np.log(M) - log_q[0][kept]))
want = p[0] * classes[target] + p[1:] @ classes[ids[0]][kept] - classes[target]
print(f"by the library {dh[0].round(4)}, by hand {want.round(4)}; rows with a gradient: {len(touched)} of {L}")
assert np.abs(dh[0] - want).max() < 1e-4

# %% [markdown]
# (The default correction of the library subtracts `log Q` from *all* scores, including that of the target. It is the
# correction of the paper; exercise 3 examines it.)
#
# ## The cost of a draw
#
# The cost of computing all scores grows with the number of classes. The index computes scores of `2 K` codewords,
# whatever `L` is.

# %%
width, batch, repeats = 32, 64, size(5, 2)
sizes = size([1_000, 4_000, 16_000, 64_000, 256_000], [1_000, 4_000])
some = random.normal(size=(batch, width)).astype(np.float32) / 4


def microseconds(function):
    """The minimum time of several calls, per query."""
    times = []
    for step in range(repeats + 1):  # the first call compiles
        start = time.perf_counter()
        function(step)
        times.append(time.perf_counter() - start)
    return 1e6 * min(times[1:]) / batch


costs = {"all scores": [], "MIDX, 64 codewords": [], "uniform": []}
for n in sizes:
    table = random.normal(size=(n, width)).astype(np.float32)
    large, plain = InvertedMultiIndex.build(table, n_codewords=64, n_iterations=1), UniformSampler(n)
    costs["all scores"].append(microseconds(lambda _, table=table: softmax(some @ table.T)))
    costs["MIDX, 64 codewords"].append(microseconds(lambda step, large=large: large.sample(some, 50, 0, step)))
    costs["uniform"].append(microseconds(lambda step, plain=plain: plain.sample(some, 50, 0, step)))
figure, axes = plt.subplots()
for (name, values), colour, marker in zip(costs.items(), (GREY, BLUE, VERMILION), "sov", strict=True):
    axes.loglog(sizes, values, color=colour, marker=marker, label=name)
axes.set(xlabel="classes", ylabel="microseconds per query, 50 draws")
axes.legend(loc="upper left", fontsize=11)
show(figure, "05_cost")

# %% [markdown]
# ## Two language models
#
# The classes of a language model are words, and there are tens of thousands of them. We train two models on the same
# part of WikiText-2, in the same order, from the same initial weights. They only differ in how the twenty negatives per
# word are drawn. The index is updated as the embeddings change. Both models are evaluated with the full softmax on
# held-out text. As a baseline, a third model only knows the word frequencies.

# %%
corpus = data.load_text("wikitext-2", min_count=size(5, 100))
text, held_out = corpus.train[: size(80_000, 5_000)], corpus.valid[: size(10_000, 1_000)]
n_words = len(corpus.vocabulary)
word_counts = np.bincount(text, minlength=n_words)
models, perplexities = {}, {"frequencies only": metrics.unigram_perplexity(word_counts, held_out)}
for sampler in ("uniform", "midx-rq"):
    model = train.LanguageModel(
        width=size(48, 16), n_layers=1, sampler=sampler, n_samples=20, n_codewords=32, dropout=0.1,
        batch_size=size(32, 16), unroll=20, epochs=size(4, 2), device="cpu", progress=False,
    )  # fmt: skip
    start = time.perf_counter()
    models[sampler] = model.fit(text, vocabulary=corpus.vocabulary)
    perplexities[sampler] = model.perplexity(held_out)
    print(f"{sampler:8} {time.perf_counter() - start:5.1f} s, first call compiles")
print(f"{n_words:,} words, {len(text):,} training tokens, {len(held_out):,} held-out tokens")
for name, perplexity in perplexities.items():
    print(f"perplexity {perplexity:7.1f}  {name}")
assert size(perplexities["midx-rq"] < perplexities["uniform"], np.isfinite(list(perplexities.values())).all())

# %% [markdown]
# The number of steps and the number of negatives are the same. Uniform negatives are mostly rare words, to which the
# model already gives a small probability. Their gradient is almost zero, and the few negatives that matter cause large
# noise.
#
# ## How close is Q to the softmax?
#
# We can now measure the distance for trained embeddings: the mean of KL(P || Q) over positions of the held-out text,
# for codebooks of different sizes. `encode` returns the input of the output layer.

# %%
hidden, _ = models["midx-rq"].encode(held_out)
hidden = np.ascontiguousarray(hidden[:: len(hidden) // 100])
embeddings = models["midx-rq"].network_.output.weights
true_p = softmax((hidden @ embeddings.T).astype(np.float64))
words, sizes = np.arange(n_words, dtype=np.int32), size([4, 8, 16, 32, 64, 128], [4, 16])
figure, axes = plt.subplots()
distances = {}
for kind, colour, marker in (("rq", BLUE, "o"), ("pq", GREEN, "s")):
    distances[kind] = []
    for n in sizes:
        index = InvertedMultiIndex.build(embeddings, n_codewords=n, kind=kind)
        distances[kind].append(kl(true_p, np.exp(index.log_prob(hidden, words).astype(np.float64))).mean())
    axes.plot(sizes, distances[kind], color=colour, marker=marker, label=f"MIDX, {kind}")
for name, q, style in (("uniform", np.ones(n_words), "--"), ("frequency", word_counts + 1.0, ":")):
    distances[name] = kl(true_p, q / q.sum()).mean()
    axes.axhline(distances[name], color=VERMILION, linestyle=style, label=name)
axes.set_xscale("log", base=2)
axes.set_xticks(sizes, sizes)
axes.set(xlabel="codewords in each codebook", ylabel="KL(P || Q), mean (nats)", ylim=(0, None))
figure.legend(loc="outside upper center", ncols=4, fontsize=11, frameon=False)
show(figure, "05_kl")
assert distances["rq"][-1] < distances["rq"][0] and distances["rq"][-1] < distances["uniform"]

# %% [markdown]
# ## Exercises
#
# **1.** With uniform negatives, `M = 20` of `L = 33,278` words: which number must be *added* to the score of each
# negative?

# %% exercise="shift"
shift = ...

# %% check="shift"
check(
    "1",
    shift,
    lambda s: abs(s - np.log(33_278 / 20)) < 1e-6,
    "Minus log(M Q), with Q = 1 / L. Few negatives represent many classes: should their scores increase or decrease?",
)

# %% [markdown]
# **2.** The index draws the first codeword before the second. Compute the probabilities of the first codeword, (K,),
# from `r0`, `r1` (K,) and `W` (K, K), without computing `K²` exponentials.


# %% exercise="first"
def first_probabilities(r0, r1, W):  # noqa: N803
    return ...


# %% check="first"
check(
    "2", first_probabilities(r0, r1, W), lambda p: np.shape(p) == (K,) and np.allclose(p, cells.sum(axis=1)),
    "Sum the table over k1. Factor out what does not depend on k1; what remains is a matrix times a vector.",
)  # fmt: skip

# %% [markdown]
# **3.** Suppose that the proposal is exact, `Q = P`, and that `log Q` is subtracted from *all* scores, including the
# target's (`correction="paper"`, no masking). What is the *loss* with `M` negatives? Write it as a function of `M`; the
# next cell compares it with the library. (And how can a network learn from such a loss?)


# %% exercise="constant"
def loss_of_exact(M):  # noqa: N803
    return ...


# %% check="constant"
def is_loss_of_exact(values):
    exact = InvertedMultiIndex.build(points, n_codewords=K, residual="exact")
    for n, value in zip((1, 5, 50), values, strict=True):
        ids, log_q = exact.sample(h32, n, seed=2)
        loss, _, _ = sampled_softmax(h32, points, targets, ids, log_q, exact.log_prob(h32, targets)[0])
        if abs(loss - value) > 1e-4:
            return False
    return True


answers = [loss_of_exact(n) for n in (1, 5, 50)]
check(
    "3",
    ... if answers[0] is ... else answers,
    is_loss_of_exact,
    "h . x - log P is the same number for every class: what is the softmax of equal scores?",
)
