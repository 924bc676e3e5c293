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
# In a network with many labels, a dense output layer - a weight from every input to every label - is the largest array.
# The obvious way to shrink it is to keep only `K` connections per label, whatever the width of the layer below. This
# saves memory, but done naively it costs accuracy. We first see why, without any training. Then we look at two
# remedies: moving connections, and an *intermediate layer*. At the end we look at predictions for works of art.

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
# The bundled corpus describes artworks of the Tate Collection: the words of title, medium and artist, and the subjects
# assigned by curators. We use a part of the works and the most frequent subjects, to keep the running time short.

# %%
n_works, n_tests, n_labels = size(12_000, 1_500), size(2_000, 500), size(3_000, 300)
tate = data.load("tate")
works, tests = tate.train.features[:n_works], tate.test.features[:n_tests]
frequency = np.bincount(tate.train.labels.indices, minlength=tate.train.labels.shape[1])
kept = np.sort(np.argsort(-frequency, kind="stable")[:n_labels])
names = [tate.label_names[label] for label in kept]
subjects, true_subjects = tate.train.labels[:n_works, kept], tate.test.labels[:n_tests, kept]
print(f"{n_works:,} training works, {n_tests:,} test works, {n_labels:,} of {len(frequency):,} subjects")

# %% [markdown]
# The features are *given*, as if they came from an encoder that was trained elsewhere. We use the `D` strongest
# directions of the TF-IDF matrix, apply a random rotation, and scale each coordinate to variance 1. The rotation loses
# no information. It ensures that no coordinate has a meaning of its own, as in the embeddings of most encoders.

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
# ## Memory
#
# A dense layer stores `D` weights per label. A fixed fan-in layer stores `K` weights and `K` indices of inputs, eight
# bytes per connection. A *bottleneck* - a narrow dense layer of width `2 K` below the output - takes the same memory
# per label. It is the competitor to beat.

# %%
K = 16
for name, numbers in (("dense", D), (f"fixed fan-in {K}", 2 * K), (f"bottleneck of {2 * K}", 2 * K)):
    print(
        f"{name:16} {4 * n_labels * numbers / 1e6:6.2f} MB here, {4 * 670_000 * numbers / 1e6:6.0f} MB for 670,000 "
        "labels"
    )

# %% [markdown]
# ## Too few inputs
#
# Connect every label to `K` random inputs, and give it the *best possible* weights for the squared error. These have a
# closed form, so neither the optimizer nor the number of steps matters: for the inputs `S` of a label, solve `(X'X)[S,
# S] w = (X'y)[S]`. We compare three ways to choose the inputs of a label:
#
# - `K` random inputs;
# - the `K` inputs that are most related to the label (the largest absolute entries of `X'y`);
# - `K` directions shared by all labels, as in a bottleneck (the best `K` for all labels together).


# %%
gram = x.T.astype(np.float64) @ x + 0.01 * n_works * np.eye(D)
moments = (subjects.T @ x.astype(np.float64)).T  # X'y of each label, (D, L)
base = np.asarray(subjects.mean(axis=0)).ravel()


def precision(weights):
    """P@3 on the test works for a dense matrix of weights (D, L)."""
    best = np.argsort(-(x_test @ weights + base), axis=1)[:, :3].astype(np.int32)
    return 100 * metrics.precision_at_k(best, true_subjects, 3)


def best_weights(allowed):
    """The best weights of all labels, (D, L), if label l may only use the inputs allowed[l]."""
    inner = gram[allowed[:, :, None], allowed[:, None, :]]
    solved = np.linalg.solve(inner, moments[allowed, np.arange(n_labels)[:, None]][..., None])[..., 0]
    weights = np.zeros((D, n_labels))
    weights[allowed, np.arange(n_labels)[:, None]] = solved
    return weights


full = np.linalg.solve(gram, moments)
outer, strengths, inner = np.linalg.svd(full, full_matrices=False)
relevance = np.argsort(-np.abs(moments), axis=0).T  # (L, D): inputs of each label, the most related first
shuffled = np.argsort(random.random((n_labels, D)), axis=1)
widths, curves = [1, 2, 4, 8, 16, 32, 64], {"random": [], "most related": [], "shared directions": []}
for k in widths:
    curves["random"].append(precision(best_weights(shuffled[:, :k])))
    curves["most related"].append(precision(best_weights(relevance[:, :k])))
    curves["shared directions"].append(precision((outer[:, :k] * strengths[:k]) @ inner[:k]))
figure, axes = plt.subplots()
for (name, values), colour, marker in zip(curves.items(), (VERMILION, BLUE, GREEN), "osD", strict=True):
    axes.plot(widths, values, color=colour, marker=marker, label=name)
axes.axhline(precision(full), color=GREY, linestyle="--", label=f"all {D} inputs")
axes.set_xscale("log", base=2)
axes.set_xticks(widths, widths)
axes.set(xlabel="inputs (or directions) per label", ylabel="P@3 on the test works (%)")
figure.legend(loc="outside upper center", ncols=4, fontsize=10, frameon=False, columnspacing=1.2)
show(figure, "04_few_inputs")
assert curves["random"][4] < precision(full)

# %% [markdown]
# The lowest curve, with random inputs, shows the problem. The information that distinguishes a subject is spread over
# all coordinates, and a label with few of them sees little of it. No training can restore information that is not
# there. The *number* of weights is not too small - a few shared directions almost suffice - the problem is *which
# inputs* they are connected to.
#
# The blue curve, with the most related inputs, shows that choosing connections helps. It does not close the gap,
# because here no coordinate has a meaning of its own. So there are two remedies: move the connections to better inputs,
# or create *better inputs to connect to*. The method does both.
#
# ## Moving connections
#
# To watch connections move, we need a problem with known correct connections. We arrange 64 inputs as an 8 by 8 map.
# Each label depends on the inputs of a small shape on the map, and starts with random connections.

# %%
SIDE, FAN_IN, N_TOY = 8, 16, 6
shapes = np.zeros((N_TOY, SIDE, SIDE), bool)
shapes[0, 3, 1:7] = True
shapes[1, 1:7, 4] = True
shapes[2, range(1, 7), range(1, 7)] = True
shapes[3, range(1, 7), range(6, 0, -1)] = True
shapes[4, [2, 2, 2, 5, 5, 5], [2, 4, 6, 2, 4, 6]] = True
shapes[5, [1, 2, 3, 4, 5, 6], [1, 1, 1, 6, 6, 6]] = True
wanted = shapes.reshape(N_TOY, -1)


def toy_batch(n_rows=128):
    """Random inputs; a row has a label if the sum of the inputs of its shape is large."""
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
# A rewiring removes the connections with the smallest absolute weights *of the whole layer*, and gives each label the
# same number of new ones, chosen at random among the inputs it is not connected to. `rewire` returns the changed slots
# as pairs (label, position). Inputs, weights and optimizer moments of these slots are new; all others are unchanged.

# %%
indices_before, values_before = layer.indices.copy(), layer.values.copy()
slots = rewire(layer, fraction=0.15, seed=0, optimizer=adam, step=100)
labels, positions = slots.T
print(f"{len(slots)} of {layer.indices.size} slots; the first five:")
for label, position in slots[:5]:
    old, new = indices_before[label, position], layer.indices[label, position]
    weights = f"{values_before[label, position]:+.3f}, now {layer.values[label, position]:.0f}"
    print(f"  label {label}, slot {position:2}: input {old:2} -> {new:2}; weight was {weights}")
untouched = np.ones(layer.indices.shape, bool)
untouched[labels, positions] = False
assert len(slots) == round(0.15 * layer.indices.size) and (layer.values[labels, positions] == 0).all()
assert (layer.indices[untouched] == indices_before[untouched]).all() and (
    layer.values[untouched] == values_before[untouched]
).all()
assert np.abs(values_before[labels, positions]).max() <= np.abs(values_before[untouched]).min()

# %% [markdown]
# A new connection starts with weight 0, and still learns: its gradient depends on its input and on the error of the
# label, not on its own weight. It has until the next rewiring to become larger than the smallest weights; otherwise it
# is replaced by another one.

# %%
rounds, shown = size(40, 12), size((0, 3, 10, 40), (0, 2, 6, 12))


def connections():
    """|w| of every label on the map of inputs, (N_TOY, SIDE, SIDE); NaN where there is no connection."""
    weights = np.full((N_TOY, SIDE * SIDE), np.nan)
    weights[np.arange(N_TOY)[:, None], layer.indices] = np.abs(layer.values)
    return weights.reshape(shapes.shape)


def found():
    """The share of the inputs of all shapes that are connected to their label."""
    return np.mean(
        [np.isin(np.flatnonzero(inputs), layer.indices[label]).mean() for label, inputs in enumerate(wanted)]
    )


maps, sizes, shares, losses = {0: connections()}, {0: np.abs(layer.values).ravel()}, [found()], []
for number in range(1, rounds + 1):
    losses.append(train_toy(60))
    if number < rounds:  # new connections must be trained before we look at them
        rewire(layer, fraction=0.15, seed=0, optimizer=adam, step=100 + number)
    shares.append(found())
    if number in shown:
        maps[number], sizes[number] = connections(), np.abs(layer.values).ravel()
print(f"connected to {shares[0]:.0%} of the inputs of the shapes at first, to {shares[-1]:.0%} at the end")
assert shares[-1] > shares[0]

figure, axes = plt.subplots(len(shown), N_TOY, figsize=(7.6, 5.4))
for row, number in zip(axes, shown, strict=True):
    for label, panel in enumerate(row):
        panel.imshow(maps[number][label], cmap="Blues", vmin=-0.15, vmax=0.6)
        rows, columns = np.nonzero(shapes[label])
        panel.scatter(columns, rows, s=42, marker="s", facecolors="none", edgecolors=ORANGE, linewidths=1.3)
        panel.set(xticks=[], yticks=[])
        panel.grid(False)
        panel.spines[["top", "right"]].set_visible(True)
    row[0].set_ylabel("start" if number == 0 else f"{number} rounds")
for label, panel in enumerate(axes[-1]):
    panel.set_xlabel(f"label {label}")
show(figure, "04_connections_move")

# %% [markdown]
# Each column is a label, and each row a moment (the start is after the first 100 steps). Orange squares are the inputs
# that the label depends on. Blue squares are its connections; the darker, the larger the weight. From round to round,
# more orange squares turn blue. Once a label is connected to its whole shape, only its other connections continue to
# move: small weights on inputs that are irrelevant to it.
#
# The same in numbers: the weights separate into two groups, and a rewiring removes weights of the left group.

# %%
figure, (first, second) = plt.subplots(1, 2, figsize=(8.4, 3.6))
for number, colour in zip((shown[0], shown[-1]), (GREY, BLUE), strict=True):
    name = "start" if number == 0 else f"after {number} rounds"
    first.hist(sizes[number], bins=np.linspace(0, 0.7, 29), color=colour, alpha=0.65, label=name)
first.set(xlabel="|w|", ylabel="connections")
first.legend()
second.plot(range(rounds + 1), 100 * np.array(shares), color=BLUE)
second.set(xlabel="rounds of 60 steps and a rewiring", ylabel="inputs of the shapes found (%)", ylim=(0, 103))
show(figure, "04_two_groups")

# %% [markdown]
# ## Better inputs to connect to
#
# Back to the artworks. Here rewiring does not help, because one rotated coordinate is as good as another. So we insert
# a wide dense layer with a ReLU between features and labels. All labels share it, so its cost is small if there are
# many labels. And it *learns*: the gradients from the labels change its units into combinations of features that labels
# can use directly.
#
# We train five networks on the same features for the same number of steps. In the one with a frozen wide layer, that
# layer keeps its random initial weights.

# %%
hidden, epochs = size(1024, 128), size(4, 2)
common = {
    "architecture": "network",
    "fan_in": K,
    "rewire_every": 100,
    "learning_rate": 2e-3,
    "dropout": 0.0,
    "epochs": epochs,
    "initial": "random",
    "embedding_lr_multiplier": 10.0,
    "batch_size": 128,
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
models, results = {}, {}
for name, params in contestants.items():
    start = time.perf_counter()
    models[name] = train.Classifier(**common | params, progress=False).fit(x, subjects)
    results[name] = models[name].evaluate(x_test, true_subjects)
    row = "  ".join(f"P@{k} {100 * results[name][f'P@{k}']:5.1f} %" for k in (1, 3, 5))
    megabytes = models[name].network_.output_nbytes / 1e6
    print(f"{name:26} {row}   output layer {megabytes:5.2f} MB   {time.perf_counter() - start:5.1f} s")

assert results["sparse, wide layer learns"]["P@3"] > results["sparse"]["P@3"]

# %% [markdown]
# Width alone does not help much: `K` of many random units tell a label hardly more than `K` coordinates. Learning makes
# the difference. (The dense network has no hidden layer, so it is linear in the features. It shows what plain weights
# reach with four times the memory.)
#
# The bottleneck also does well on this corpus. It has a different limit: all labels must share the same few directions.
# This is sufficient for some thousands of overlapping subjects, but not for hundreds of thousands of unrelated labels.
# (In the paper, the sparse layer with a wide intermediate layer is better on such data.) With a wide layer, every label
# has its *own* few out of very many units.

# %%
figure, axes = plt.subplots(figsize=(7.6, 3.6))
order = list(results)[::-1]
for offset, (k, colour) in zip((0.26, 0, -0.26), ((1, BLUE), (3, ORANGE), (5, GREEN)), strict=True):
    axes.barh(
        np.arange(len(order)) + offset,
        [100 * results[name][f"P@{k}"] for name in order],
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
# We can inspect what was learned. For each subject, how well does the *best single* input correlate with it? We compute
# the largest correlation over the test works, among the features and among the units of each network's wide layer.


# %%
def best_correlation(inputs):
    """For each subject with at least ten test works: the largest |correlation| with a single input."""
    y = true_subjects.toarray()[:, np.asarray(true_subjects.sum(axis=0)).ravel() >= 10]
    columns = inputs[:, inputs.std(axis=0) > 0].astype(np.float64)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    return np.abs(((y - y.mean(axis=0)) / y.std(axis=0)).T @ columns / len(y)).max(axis=1)


figure, axes = plt.subplots(figsize=(7.2, 3.6))
inputs_of = {"features": x_test} | {name.split(", ")[1]: models[name].encode(x_test) for name in models if ", " in name}
best = {name: best_correlation(inputs) for name, inputs in inputs_of.items()}
styles = {"features": (VERMILION, "-"), "wide layer frozen": (GREY, ":"), "wide layer learns": (BLUE, "-")}
for name, values in best.items():
    colour, style = styles[name]
    axes.plot(np.sort(values), np.linspace(0, 100, len(values)), color=colour, linestyle=style, label=name)
axes.set(xlabel="correlation of a subject with its best single input", ylabel="share of the subjects (%)", xlim=(0, 1))
axes.legend(loc="lower right", fontsize=11)
show(figure, "04_best_input")
assert np.median(best["wide layer learns"]) > np.median(best["features"])

# %% [markdown]
# The curve of the learned units is to the right of the others: some single units almost mean "this is a portrait".
#
# ## Predictions
#
# Five works from the test set. `+` marks predicted subjects that the curators assigned as well.

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
# The sparse network without the wide layer predicts frequent subjects, whatever the work, because its labels see too
# little of the input.
#
# ## Exercises
#
# **1.** A label depends on `r` of `H` inputs and is connected to `K` of them, drawn at random without repetition. What
# is the probability that it is connected to *none* of the `r` inputs? (`math.comb` helps.)


# %% exercise="miss"
def probability_of_none(H, K, r):  # noqa: N803
    return ...


# %% check="miss"
def is_probability(p):
    drawn = np.argsort(np.random.default_rng(1).random((20_000, 20)), axis=1)[:, :5]
    exact = np.prod([(15 - i) / (20 - i) for i in range(5)])
    return abs(p - exact) < 1e-9 and abs(p - (drawn >= 5).all(axis=1).mean()) < 0.02


check(
    "1",
    probability_of_none(20, 5, 5),
    is_probability,
    "How many choices of K inputs avoid all r? How many choices are there in total?",
)

# %% [markdown]
# **2.** The wide layer is not free: from `D` features to width `W` it has `D W` weights (ignore the biases). A dense
# layer over the features has `D` weights per label; a fixed fan-in layer stores `2 K` numbers per label. From how many
# labels on do wide layer and sparse output together take less memory than the dense layer, for `D = 768`, `W = 32768`,
# `K = 32`? Give the smallest whole number of labels.

# %% exercise="break-even"
break_even = ...

# %% check="break-even"
check(
    "2", break_even, lambda n: n * 768 > n * 64 + 768 * 32768 and (n - 1) * 768 <= (n - 1) * 64 + 768 * 32768,
    "Compare L D with D W + 2 K L; the second must be strictly smaller.",
)  # fmt: skip

# %% [markdown]
# **3.** `rewire` chooses the new inputs at random. Another option is to choose the unconnected input whose weight would
# have the *largest gradient*, because a weight of 0 on it would grow fastest. Given the inputs `x` (B, H) of a batch,
# the gradient `dscores` (B,) with respect to the scores of one label, and its inputs (`connected`), return that input.


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
    "What is the gradient of a weight? Its sign does not matter. Exclude inputs that are already connected.",
)  # fmt: skip
