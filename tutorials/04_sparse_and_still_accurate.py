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
# # Sparse, and still accurate
#
# An output layer with a weight from every input to every label is the largest array of a network with many labels. The
# obvious diet is to keep few connections: `K` for each label, whatever the width below. It saves the memory - and, done
# naively, it loses the accuracy. We first see why, with no training involved that could be blamed; then what moving
# connections can mend, what an *intermediate layer* mends, and in the end what the network says about works of art.

# %%
import math
import textwrap
import time

import numpy as np
import scipy.sparse
from lesson import BLUE, GREEN, GREY, ORANGE, VERMILION, check, plt, show, size

from sparsemax_nb import Adam, FixedFanIn, data, fixed_fan_in_step, metrics, rewire, train

random = np.random.default_rng(0)

# %% [markdown]
# ## Artworks and their subjects
#
# The bundled corpus describes artworks of the Tate Collection: words of title, medium and artist, and the subjects that
# curators gave them. We take a part of the works and the most frequent subjects, so that all runs of this tutorial are
# short.

# %%
n_works, n_tests, n_labels = size(12_000, 1_500), size(2_000, 500), size(3_000, 300)
tate = data.load("tate")
works, tests = tate.train.features[:n_works], tate.test.features[:n_tests]
frequency = np.bincount(tate.train.labels.indices, minlength=tate.train.labels.shape[1])
kept = np.sort(np.argsort(-frequency, kind="stable")[:n_labels])
names = [tate.label_names[label] for label in kept]
subjects, true_subjects = tate.train.labels[:n_works, kept], tate.test.labels[:n_tests, kept]
print(f"{n_works:,} works to learn from, {n_tests:,} to test, {n_labels:,} of {len(frequency):,} subjects")

# %% [markdown]
# Words become features that are *given*, as if an encoder had been trained elsewhere: the `D` strongest directions of
# the TF-IDF matrix, turned by a random rotation, each with variance 1. The rotation hides nothing and loses nothing. It
# takes care that no coordinate means anything by itself, as in the embeddings that come out of most encoders.

# %%
D = 128
tfidf = data.Tfidf().fit(works)
weighted, weighted_tests = tfidf.transform(works), tfidf.transform(tests)
basis = random.normal(size=(weighted.shape[1], D)).astype(np.float32)
for _ in range(4):  # subspace iteration: towards the D strongest directions
    basis, _ = np.linalg.qr(weighted.T @ (weighted @ basis))
x, x_test = weighted @ basis, weighted_tests @ basis
variances, axes_of_variance = np.linalg.eigh(np.cov(x.T))
rotation, _ = np.linalg.qr(random.normal(size=(D, D)))
to_features = axes_of_variance / np.sqrt(variances) @ rotation
x, x_test = (((part - x.mean(axis=0)) @ to_features).astype(np.float32) for part in (x, x_test))
print("features:", x.shape, x.dtype)
assert np.allclose(np.cov(x.T), np.eye(D), atol=1e-2)

# %% [markdown]
# ## What it costs
#
# A dense layer holds `D` weights for each label. A fixed fan-in layer holds `K` weights and `K` numbers that say where
# they lead, eight bytes a connection. A *bottleneck* - a narrow dense layer first, of width `2 K` - takes as much: that
# is the rival to keep in mind.

# %%
K = 16
for name, numbers in (("dense", D), (f"fixed fan-in {K}", 2 * K), (f"bottleneck of {2 * K}", 2 * K)):
    print(
        f"{name:16} {4 * n_labels * numbers / 1e6:6.2f} MB here, {4 * 670_000 * numbers / 1e6:6.0f} MB for 670,000 labels"
    )

# %% [markdown]
# ## Too few of the inputs
#
# Give every label `K` inputs, drawn at random, and the *best* weights they can have for the squared error. These have a
# closed form, so neither optimiser nor patience plays a part: for the inputs `S` of a label, solve `(X'X)[S, S] w =
# (X'y)[S]`. We compare three ways to choose what a label sees:
#
# - `K` inputs at random;
# - the `K` inputs that have most to do with the label (the largest entries of `X'y`);
# - `K` directions that all labels share, which is what a bottleneck learns (the best `K` for all labels together).


# %%
gram = x.T.astype(np.float64) @ x + 0.01 * n_works * np.eye(D)
moments = (subjects.T @ x.astype(np.float64)).T  # X'y of each label, (D, L)
base = np.asarray(subjects.mean(axis=0)).ravel()


def precision(weights):
    """P@3 on the test works, of a dense matrix of weights (D, L)."""
    best = np.argsort(-(x_test @ weights + base), axis=1)[:, :3].astype(np.int32)
    return 100 * metrics.precision_at_k(best, true_subjects, 3)


def best_weights(seen):
    """The best weights of all labels, (D, L), where label l may use the inputs seen[l] only."""
    inner = gram[seen[:, :, None], seen[:, None, :]]
    solved = np.linalg.solve(inner, moments[seen, np.arange(n_labels)[:, None]][..., None])[..., 0]
    weights = np.zeros((D, n_labels))
    weights[seen, np.arange(n_labels)[:, None]] = solved
    return weights


full = np.linalg.solve(gram, moments)
outer, strengths, inner = np.linalg.svd(full, full_matrices=False)
relevance = np.argsort(-np.abs(moments), axis=0).T  # (L, D): the inputs of a label, the most telling first
shuffled = np.argsort(random.random((n_labels, D)), axis=1)
widths, curves = [1, 2, 4, 8, 16, 32, 64], {"at random": [], "the most telling": [], "shared directions": []}
for k in widths:
    curves["at random"].append(precision(best_weights(shuffled[:, :k])))
    curves["the most telling"].append(precision(best_weights(relevance[:, :k])))
    curves["shared directions"].append(precision((outer[:, :k] * strengths[:k]) @ inner[:k]))
figure, axes = plt.subplots()
for (name, values), colour, marker in zip(curves.items(), (VERMILION, BLUE, GREEN), "osD", strict=True):
    axes.plot(widths, values, color=colour, marker=marker, label=name)
axes.axhline(precision(full), color=GREY, linestyle="--", label=f"all {D} inputs")
axes.set_xscale("log", base=2)
axes.set_xticks(widths, widths)
axes.set(xlabel="inputs (or directions) that a label sees", ylabel="P@3 on the test works (%)")
figure.legend(loc="outside upper center", ncols=4, fontsize=10, frameon=False, columnspacing=1.2)
show(figure, "04_few_inputs")
assert curves["at random"][4] < precision(full)

# %% [markdown]
# The lowest curve, of random inputs, is the trouble. What tells one subject from another is spread over all
# coordinates, and a label that sees a few of them sees little of it. No training can give back what is not there. It is
# not the *number* of weights that is too small - a few shared directions nearly do - but *where they lead*.
#
# The blue curve, of the most telling ones, says that choosing connections helps; it does not close the gap, since here
# no coordinate means anything by itself. So there are two ways out: move the connections to better inputs, or make
# *better inputs to connect to*. The method takes both.
#
# ## Moving connections
#
# To see connections move we need a problem where the right ones are known. Sixty-four inputs, drawn as a map of 8 by 8;
# each label is about the inputs of a small figure on the map, and starts with random connections.

# %%
SIDE, FAN_IN, N_TOY = 8, 16, 6
figures = np.zeros((N_TOY, SIDE, SIDE), bool)
figures[0, 3, 1:7] = True
figures[1, 1:7, 4] = True
figures[2, range(1, 7), range(1, 7)] = True
figures[3, range(1, 7), range(6, 0, -1)] = True
figures[4, [2, 2, 2, 5, 5, 5], [2, 4, 6, 2, 4, 6]] = True
figures[5, [1, 2, 3, 4, 5, 6], [1, 1, 1, 6, 6, 6]] = True
wanted = figures.reshape(N_TOY, -1)


def toy_batch(n_rows=128):
    """Random inputs; a label is on where the inputs of its figure sum to much."""
    inputs = random.normal(size=(n_rows, SIDE * SIDE)).astype(np.float32)
    return inputs, scipy.sparse.csr_matrix((inputs @ wanted.T / math.sqrt(6) > 0.5).astype(np.float32))


layer, adam = FixedFanIn.random(n_labels=N_TOY, n_inputs=SIDE * SIDE, fan_in=FAN_IN, seed=1), Adam(learning_rate=0.01)


def train_toy(n_steps):
    for _ in range(n_steps):
        inputs, labels = toy_batch()
        loss, _ = fixed_fan_in_step(inputs, layer, labels, "squared-hinge", adam)
    return loss


print(f"{layer}; loss after 100 steps {train_toy(100):.3f}")

# %% [markdown]
# A rewiring drops the connections with the smallest weights *of the whole layer* and gives each label as many new ones,
# at random among the inputs it did not have. `rewire` returns the slots that changed, pairs of (label, place). Inputs,
# weights and the optimizer's moments of these slots are new; all others are as before.

# %%
indices_before, values_before = layer.indices.copy(), layer.values.copy()
slots = rewire(layer, fraction=0.15, seed=0, optimizer=adam, step=100)
labels, places = slots.T
print(f"{len(slots)} of {layer.indices.size} slots; the first of them:")
for label, place in slots[:5]:
    old, new = indices_before[label, place], layer.indices[label, place]
    weights = f"{values_before[label, place]:+.3f}, now {layer.values[label, place]:.0f}"
    print(f"  label {label}, slot {place:2}: input {old:2} -> {new:2}; weight was {weights}")
untouched = np.ones(layer.indices.shape, bool)
untouched[labels, places] = False
assert len(slots) == round(0.15 * layer.indices.size) and (layer.values[labels, places] == 0).all()
assert (layer.indices[untouched] == indices_before[untouched]).all() and (
    layer.values[untouched] == values_before[untouched]
).all()
assert np.abs(values_before[labels, places]).max() <= np.abs(values_before[untouched]).min()

# %% [markdown]
# A new connection starts at 0 - and still learns, because its gradient is made of what comes in and of what the label
# lacks, not of its own weight. It has until the next rewiring to grow larger than the smallest; if not, it makes way
# for another try.

# %%
rounds, shown = size(40, 12), size((0, 3, 10, 40), (0, 2, 6, 12))


def connections():
    """|w| of every label on the map of inputs, (N_TOY, SIDE, SIDE); NaN where there is no connection."""
    weights = np.full((N_TOY, SIDE * SIDE), np.nan)
    weights[np.arange(N_TOY)[:, None], layer.indices] = np.abs(layer.values)
    return weights.reshape(figures.shape)


def found():
    """The share of the figures' inputs that their labels are connected to."""
    return np.mean(
        [np.isin(np.flatnonzero(inputs), layer.indices[label]).mean() for label, inputs in enumerate(wanted)]
    )


maps, sizes, shares, losses = {0: connections()}, {0: np.abs(layer.values).ravel()}, [found()], []
for number in range(1, rounds + 1):
    losses.append(train_toy(60))
    if number < rounds:  # what a rewiring has brought must be trained before it is looked at
        rewire(layer, fraction=0.15, seed=0, optimizer=adam, step=100 + number)
    shares.append(found())
    if number in shown:
        maps[number], sizes[number] = connections(), np.abs(layer.values).ravel()
print(f"connected to {shares[0]:.0%} of the figures' inputs at first, to {shares[-1]:.0%} in the end")
assert shares[-1] > shares[0]

figure, axes = plt.subplots(len(shown), N_TOY, figsize=(7.6, 5.4))
for row, number in zip(axes, shown, strict=True):
    for label, panel in enumerate(row):
        panel.imshow(maps[number][label], cmap="Blues", vmin=-0.15, vmax=0.6)
        rows, columns = np.nonzero(figures[label])
        panel.scatter(columns, rows, s=42, marker="s", facecolors="none", edgecolors=ORANGE, linewidths=1.3)
        panel.set(xticks=[], yticks=[])
        panel.grid(False)
        panel.spines[["top", "right"]].set_visible(True)
    row[0].set_ylabel("start" if number == 0 else f"{number} rounds")
for label, panel in enumerate(axes[-1]):
    panel.set_xlabel(f"label {label}")
show(figure, "04_connections_move")

# %% [markdown]
# Each column is a label, each row a moment (the start is after those first steps). Orange squares are the inputs that
# the label is about, blue is where it is connected, the darker the larger the weight. From round to round more squares
# turn blue. Once a label holds all of its figure, only the rest keep moving: small weights on inputs that mean nothing
# to it, which is the right thing to be random about.
#
# The same in numbers: the weights part into two heaps, and what lies at the left is what a rewiring takes.

# %%
figure, (first, second) = plt.subplots(1, 2, figsize=(8.4, 3.6))
for number, colour in zip((shown[0], shown[-1]), (GREY, BLUE), strict=True):
    name = "start" if number == 0 else f"after {number} rounds"
    first.hist(sizes[number], bins=np.linspace(0, 0.7, 29), color=colour, alpha=0.65, label=name)
first.set(xlabel="|w|", ylabel="connections")
first.legend()
second.plot(range(rounds + 1), 100 * np.array(shares), color=BLUE)
second.set(xlabel="rounds of 60 steps and a rewiring", ylabel="figures' inputs found (%)", ylim=(0, 103))
show(figure, "04_two_heaps")

# %% [markdown]
# ## Better inputs to connect to
#
# Back to the artworks. There rewiring has nothing to find: one rotated coordinate is as good as another. So we put a
# wide dense layer with a ReLU between features and labels. It is shared by all labels, so it costs little where labels
# are many, and it *learns*: the gradient that comes down from the labels bends its units towards combinations which
# labels can use as they are.
#
# Four networks over the same features, for the same number of steps. The frozen one has the wide layer as well, but it
# stays as random as it began.

# %%
hidden, epochs = size(1024, 128), size(4, 2)
common = {
    "architecture": "network",
    "fan_in": K,
    "rewire_every": 100,
    "learning_rate": 2e-3,
    "dropout": 0.0,
    "epochs": epochs,
    "device": "cpu",
}
contestants = {
    "sparse": {"intermediate": None},
    "sparse, wide layer frozen": {"intermediate": hidden, "intermediate_lr_multiplier": 1e-9},
    "sparse, wide layer learns": {"intermediate": hidden, "intermediate_lr_multiplier": 1.0},
    f"bottleneck of {2 * K}": {"output": "bottleneck", "bottleneck": 2 * K},
    "dense": {"output": "dense"},
}
contestants = dict(list(contestants.items())[:: size(1, 2)][: size(5, 2)])
models, figures_of = {}, {}
for name, params in contestants.items():
    start = time.perf_counter()
    models[name] = train.Classifier(**common | params, progress=False).fit(x, subjects)
    figures_of[name] = models[name].evaluate(x_test, true_subjects)
    row = "  ".join(f"P@{k} {100 * figures_of[name][f'P@{k}']:5.1f} %" for k in (1, 3, 5))
    megabytes = models[name].network_.output_nbytes / 1e6
    print(f"{name:26} {row}   output layer {megabytes:5.2f} MB   {time.perf_counter() - start:5.1f} s")

assert figures_of["sparse, wide layer learns"]["P@3"] > figures_of["sparse"]["P@3"]

# %% [markdown]
# Width alone mends little: `K` random units out of many tell a label hardly more than `K` coordinates did. It is the
# learning. (Do not read too much into the comparison with the dense layer: without a hidden layer, that one is linear
# in the features. It marks what plain weights can do at four times the memory.)
#
# The bottleneck does well on this corpus, too. Its limit is another one: all labels must share the same few directions,
# which suffices for some thousand subjects that overlap, and no longer for hundreds of thousands that have nothing in
# common. (In the paper's tables the order of the two turns on such data.) With a wide layer every label has its *own*
# few out of very many.

# %%
figure, axes = plt.subplots(figsize=(7.6, 3.6))
order = list(figures_of)[::-1]
for offset, (k, colour) in zip((0.26, 0, -0.26), ((1, BLUE), (3, ORANGE), (5, GREEN)), strict=True):
    axes.barh(
        np.arange(len(order)) + offset,
        [100 * figures_of[name][f"P@{k}"] for name in order],
        0.24,
        color=colour,
        label=f"P@{k}",
    )
axes.set_yticks(range(len(order)), order)
axes.set(xlabel="precision on the test works (%)")
axes.grid(axis="y", visible=False)
figure.legend(loc="outside upper right", ncols=3, fontsize=10, frameon=False)
show(figure, "04_precision")

# %% [markdown]
# We can look at what was learned. For each subject, how well does its *best single* input go together with it? We take
# the largest correlation over the test works, among the features, and among the units that the labels of each network
# see.


# %%
def best_correlation(inputs):
    """For each subject of ten test works or more: the largest |correlation| with one input."""
    y = true_subjects.toarray()[:, np.asarray(true_subjects.sum(axis=0)).ravel() >= 10]
    columns = inputs[:, inputs.std(axis=0) > 0].astype(np.float64)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    return np.abs(((y - y.mean(axis=0)) / y.std(axis=0)).T @ columns / len(y)).max(axis=1)


figure, axes = plt.subplots(figsize=(7.2, 3.6))
seen = {"features": x_test} | {name.split(", ")[1]: models[name].contexts(x_test) for name in models if ", " in name}
best = {name: best_correlation(inputs) for name, inputs in seen.items()}
looks = {"features": (VERMILION, "-"), "wide layer frozen": (GREY, ":"), "wide layer learns": (BLUE, "-")}
for name, values in best.items():
    colour, style = looks[name]
    axes.plot(np.sort(values), np.linspace(0, 100, len(values)), color=colour, linestyle=style, label=name)
axes.set(xlabel="correlation of a subject with its best single input", ylabel="share of the subjects (%)", xlim=(0, 1))
axes.legend(loc="lower right", fontsize=11)
show(figure, "04_best_input")
assert np.median(best["wide layer learns"]) > np.median(best["features"])

# %% [markdown]
# The curve of the learned units lies to the right: there are units which by themselves nearly say "this is a portrait".
#
# ## In words
#
# Five works that no network has seen; `+` marks a subject that the curators gave, too.

# %%
picks = np.sort(random.choice(np.flatnonzero(true_subjects.sum(axis=1).A1 >= 5), 5, replace=False))
for work in picks:
    words = [tate.feature_names[word] for word in tests[work].indices]
    print("words:    ", textwrap.shorten(" ".join(words), 100, placeholder=" ..."))
    true = set(true_subjects[work].indices.tolist())
    print("true:     ", textwrap.shorten("; ".join(names[label] for label in sorted(true)), 100, placeholder=" ..."))
    for name in ("sparse", "sparse, wide layer learns"):
        predicted = models[name].predict(x_test[work : work + 1], k=5)[0].tolist()
        print(
            f"{name}:\n          ", "; ".join(("+ " if label in true else "- ") + names[label] for label in predicted)
        )
    print()

# %% [markdown]
# The sparse network without the wide layer falls back on subjects that are frequent, whatever the work. That is what an
# output layer does that can not see.
#
# ## Exercises
#
# **1.** A label is about `r` of `H` inputs and is connected to `K` of them, drawn at random without repetition. With
# which probability has it *none* of those it is about? (`math.comb` helps.)


# %% exercise="miss"
def probability_of_none(H, K, r):  # noqa: N803
    return ...


# %% check="miss"
def is_probability(p):
    drawn = np.argsort(np.random.default_rng(1).random((20_000, 20)), axis=1)[:, :5]
    exact = np.prod([(15 - i) / (20 - i) for i in range(5)])
    return abs(p - exact) < 1e-9 and abs(p - (drawn >= 5).all(axis=1).mean()) < 0.02


check("1", probability_of_none(20, 5, 5), is_probability, "How many choices of K avoid the r? Out of how many choices?")

# %% [markdown]
# **2.** The wide layer is not free: from `D` features to width `W` it has `D W` weights (forget biases). A dense layer
# over the features has `D` weights a label; a fixed fan-in layer stores `2 K` numbers a label. From how many labels on
# does wide layer plus sparse output take less memory than the dense layer, for `D = 768`, `W = 32768`, `K = 32`? The
# smallest whole number of labels.

# %% exercise="break-even"
break_even = ...

# %% check="break-even"
check(
    "2", break_even, lambda n: n * 768 > n * 64 + 768 * 32768 and (n - 1) * 768 <= (n - 1) * 64 + 768 * 32768,
    "L D on one side, D W + 2 K L on the other; it must be strictly less.",
)  # fmt: skip

# %% [markdown]
# **3.** `rewire` draws the new inputs at random. One could choose: take the free input whose weight would have the
# *largest gradient*, as a weight of 0 on it would grow fastest. Given the inputs of a batch `x` (B, H), the gradient by
# the scores of one label `dscores` (B,) and the inputs it has (`connected`), return that input.


# %% exercise="choose"
def most_promising(x, dscores, connected):
    return ...


# %% check="choose"
toy_x, toy_y = toy_batch(500)
lacking = np.where(toy_y.toarray()[:, 0] > 0, -1.0, 1.0)
gradients = np.abs(lacking @ toy_x)
three_best = np.argsort(-gradients)[:3]
check(
    "3", most_promising(toy_x, lacking, three_best[:2]), lambda i: i == three_best[2],
    "What is the gradient of a weight? Its sign does not matter. And those that are connected already must not win.",
)  # fmt: skip
