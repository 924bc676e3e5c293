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
# # A mixture of sparse experts
#
# A language model that suggests five next words must find the five best ones. To do this, it computes scores for all
# the tens of thousands of words that it knows. Almost all of this work is wasted on words that are out of the question:
# after "he walked ten", the score of "although" does not matter.
#
# DS-Softmax (Liao and others, arXiv 1901.10668) avoids this work. A small *gate* reads the query `h` and chooses one
# *expert*. The expert contains a few of the classes, and only their scores are computed. Which expert contains which
# classes is not given, but learned. We first watch it find a hidden hierarchy in synthetic data, then apply it to the
# words of an encyclopedia, and then measure the time.

# %%
import time

import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, check, one_thread, plt, show, size

from sparsemax_nb import DSSoftmax, FullSoftmax, PackedDSSoftmax, data, train
from sparsemax_nb.reference import ds_softmax as definition

one_thread()
random = np.random.default_rng(0)

# %% [markdown]
# ## One query, one expert
#
# The method fits into a few lines. `gate` has one row per expert. Expert `k` has a list of classes, and its own row of
# weights for each of them.
#
# $$ g = \mathrm{softmax}(\mathrm{gate}\; h), \qquad k = \arg\max g, \qquad s_c = g_k \, (w_{k,c} \cdot h) . $$


# %%
def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def answer(h, gate, experts, k):
    """The k best classes for one query h; experts is a list of (classes, weights)."""
    g = softmax(gate @ h)
    chosen = g.argmax()
    classes, rows = experts[chosen]
    probabilities = softmax(g[chosen] * (rows @ h))
    best = np.argsort(-probabilities, kind="stable")[:k]
    return probabilities[best], classes[best]


L, d = 12, 6
gate = random.standard_normal((3, d), dtype=np.float32)
experts = [(np.array(c, np.int32), random.standard_normal((len(c), d), dtype=np.float32))
           for c in ([0, 1, 2, 3, 4], [3, 5, 6, 7], [0, 8, 9, 10, 11])]  # fmt: skip
queries = random.standard_normal((4, d), dtype=np.float32)
for h in queries:
    probabilities, classes = answer(h, gate, experts, 3)
    print(f"expert {softmax(gate @ h).argmax()}: classes {classes}, probabilities {np.round(probabilities, 3)}")

# %% [markdown]
# Classes 0 and 3 belong to two experts each. This is allowed, and useful: "the" is a good answer to very different
# queries.
#
# `PackedDSSoftmax` stores all experts concatenated in one array, and answers a batch of queries at once.

# %%
starts = np.cumsum([0] + [len(classes) for classes, _ in experts]).astype(np.int32)
ids, rows = (np.concatenate(part) for part in zip(*experts, strict=True))
packed = PackedDSSoftmax(gate, starts, ids, rows, n_classes=L)
probabilities, found = packed.top_k(queries, 3)
for h, row, of_row in zip(queries, probabilities, found, strict=True):
    by_hand, classes = answer(h, gate, experts, 3)
    assert (of_row == classes).all() and np.abs(row - by_hand).max() < 1e-5
print("as by hand:", found.tolist())

# %% [markdown]
# ## The cost
#
# We count products of two vectors of length `d`. The full softmax needs `L` of them. Here the gate needs `E`, one per
# expert. If expert `k` has $|v_k|$ classes and gets the share $u_k$ of all queries, its scores need $\sum_k u_k |v_k|$
# products on average:
#
# $$ \text{speed-up} = \frac{L}{E + \sum_k u_k\, |v_k|} . $$


# %%
def speed_up(n_classes, sizes, shares):
    return n_classes / (len(sizes) + shares @ sizes)


shares = packed.utilisation(queries)
print(f"shares {shares}, sizes {packed.sizes}: {speed_up(L, packed.sizes, shares):.2f} times fewer products")
assert np.isclose(speed_up(L, packed.sizes, shares), packed.speed_up(queries))

# %% [markdown]
# With so few classes, the speed-up is negligible. But the formula shows what is needed for a large one: experts must be
# small, and above all *the most used experts* must be small.
#
# ## Why the gate value is kept
#
# Most mixtures of experts divide the gate values of the chosen experts by their sum. With a single expert, this always
# gives 1. Then the loss does not depend on the gate: a small change of the gate's scores changes nothing, until
# suddenly a different expert is chosen. The gradient is zero, and the gate never learns. We can measure this:


# %%
def loss(scores_of_gate, h, classes, rows, target, renormalized):
    g = softmax(scores_of_gate)
    value = 1.0 if renormalized else g.max()
    return -np.log(softmax(value * (rows @ h))[classes == target][0])


def slopes(function, point, e=1e-6):
    steps = e * np.eye(len(point))
    return np.array([(function(point + step) - function(point - step)) / (2 * e) for step in steps])


h = queries[0].astype(np.float64)
scores = gate.astype(np.float64) @ h
classes, expert_rows = experts[scores.argmax()]
for renormalized in (True, False):
    slope = slopes(lambda s: loss(s, h, classes, expert_rows, classes[0], renormalized), scores)
    print(
        f"{'divided by the sum' if renormalized else 'kept':<18} gradient with respect to the gate's scores: "
        f"{np.round(slope, 4)}"
    )
    assert (np.abs(slope).max() < 1e-9) == renormalized

# %% [markdown]
# So the gate value is kept. It acts as an inverse temperature: if the gate is confident, the expert's probabilities are
# sharp; if not, they are flat. For a good answer, a larger gate value reduces the loss; for a wrong answer, a smaller
# one does. This is how the gate learns.
#
# ## A hidden hierarchy
#
# This is the test from the paper. Draw a few centres that are far apart, the super-classes. Around each of them, draw
# the centres of its classes, and around each of these, draw points. The query `h` is a point, and its target is the
# class. *The super-class is not given.* Will every expert contain exactly the classes of one super-class?

# %%
n_super, n_sub, points, width = 8, 10, 100, 100
n_classes = n_super * n_sub
points_h, targets = data.hierarchy(n_super, n_sub, points + 20, width, seed=0)
n_train = points * n_classes
print(f"{n_classes} classes; {n_train:,} training points, {len(points_h) - n_train:,} test points")

# %% [markdown]
# Four terms influence the experts during training:
#
# - The **cross-entropy** needs the row of the target in the chosen expert.
# - A **group lasso** on the root mean square of each row pulls whole rows towards zero, and removes those that the
#   cross-entropy does not need. A second one acts on each class across all experts, so that a class does not remain in
#   many experts.
# - **Balance** penalizes a gate that sends everything to one expert: the squared coefficient of variation of the gate
#   values of the experts. *Noise* on the gate's scores makes it try the other experts.
# - **Pruning**: at the end of an epoch, rows with a root mean square below a threshold are removed permanently.
#
# In addition there is **mitosis**. Training starts with two experts that contain all classes. When they have lost the
# rows that they do not need, each is cloned, the gate rows of the two clones are changed slightly in opposite
# directions, and training continues. So there are many experts only when experts are already small.


# %%
def membership(packed):
    """(E, L) bool: which expert contains which class."""
    member = np.zeros((packed.n_experts, packed.n_classes), bool)
    member[np.repeat(np.arange(packed.n_experts), packed.sizes), packed.ids] = True
    return member


def trained(noise, seed, after_stage=None):
    model = DSSoftmax(
        n_experts=n_super, first_experts=2, epochs=15, prune_after=3, batch_size=100, learning_rate=0.01, noise=noise,
        class_lasso=0.002, expert_lasso=0.002, balance=10.0, threshold=0.03, seed=seed, device="cpu", progress=False,
    )  # fmt: skip
    return model.fit(points_h[:n_train], targets[:n_train], after_stage=after_stage)


stages = []
model = trained(noise=1.0, seed=0, after_stage=lambda n_experts, packed: stages.append(packed))

# %% [markdown]
# One panel for each stage: a row for each expert, and a column for each class. The classes of a super-class are between
# two grey lines. A mark means that the expert contains the class.

# %%
figure, axes = plt.subplots(
    len(stages), sharex=True, figsize=(7.2, 5.2), height_ratios=[packed.n_experts + 1 for packed in stages]
)
for packed, ax in zip(stages, axes, strict=True):
    member = membership(packed)
    first = np.where(member.any(1), member.argmax(1), n_classes)
    member = member[np.argsort(first, kind="stable")]  # sort experts by the first class that they contain
    ax.imshow(
        np.where(member[..., None], plt.matplotlib.colors.to_rgb(BLUE), 1.0), aspect="auto", interpolation="nearest",
        extent=(0, n_classes, packed.n_experts, 0),
    )  # fmt: skip
    ax.grid(False)
    ax.vlines(np.arange(n_sub, n_classes, n_sub), 0, packed.n_experts, color=GREY, linewidth=0.8)
    ax.hlines(np.arange(1, packed.n_experts), 0, n_classes, color="white", linewidth=1.5)
    ax.set(yticks=[], ylabel=f"{packed.n_experts}")
figure.supylabel("experts")
axes[-1].set(xlabel=f"classes, grouped by super-class ({n_sub} each)")
show(figure, "06_stages")

# %% [markdown]
# How accurate are the answers, and what do they cost? A super-class counts as found if one expert contains all of its
# classes and no other expert contains any of them. The last line is the ideal speed-up, if every expert contains one
# super-class and gets its queries.

# %%
test_h, truth = points_h[n_train:], targets[n_train:]


def found_by(packed):
    """Number of super-classes that are completely in one expert and in no other."""
    by_super = membership(packed).reshape(packed.n_experts, n_super, n_sub)
    return ((by_super.any(2).sum(0) == 1) & (by_super.all(2).sum(0) == 1)).sum()


print("experts   rows  found  accuracy  speed-up")
for packed in stages:
    accuracy = (packed.top_k(test_h, 1)[1][:, 0] == truth).mean()
    print(
        f"{packed.n_experts:7} {packed.ids.size:6} {found_by(packed):6} {accuracy:9.1%} {packed.speed_up(test_h):9.2f}"
    )
ideal = n_classes / (n_super + n_sub)
print(f"  ideal {n_classes:6} {n_super:6} {'':9} {ideal:9.2f}")
assert accuracy > 0.98 and packed.speed_up(test_h) > ideal / 2 and packed.ids.size < 2 * n_classes

# %% [markdown]
# How did this develop? The plot shows the total number of rows of all experts after each epoch. Dashed lines mark
# mitoses. Without mitosis, training would have started at the grey line, where all experts contain all classes.

# %%
history = model.history_
figure, ax = plt.subplots(figsize=(7.2, 3.8))
epochs = np.arange(1, len(history) + 1)
ax.plot(epochs, [record["rows"] for record in history], "o-", color=BLUE, markersize=4, label="rows of all experts")
ax.axhline(n_super * n_classes, color=GREY, label="all experts, all classes")
ax.axhline(n_classes, color=GREEN, label="one row per class")
for mitosis in range(model.epochs, len(history), model.epochs):
    ax.axvline(
        mitosis + 0.5, color=ORANGE, linestyle="--", linewidth=1.5, label="mitosis" if mitosis == model.epochs else None
    )
ax.set(xlabel="epoch", ylabel="rows", ylim=(0, 1.1 * n_super * n_classes))
figure.legend(loc="outside upper center", ncols=4, fontsize=10, frameon=False)
show(figure, "06_rows")
max_rows = max(record["rows"] + record["removed"] for record in history)
print(f"maximum number of rows: {max_rows:,}; without mitosis: {n_super * n_classes:,}")
assert max_rows < n_super * n_classes

# %% [markdown]
# Was this luck? We try other seeds for the gate, the order of the points and mitosis, each with and without noise. Look
# at the sizes: without noise, an expert that gets no queries does not learn, and so it never gets queries. It can end
# up empty, while other experts contain two super-classes.

# %%
for seed in range(size(2, 0)):
    for noise in (1.0, 0.0):
        packed = trained(noise, seed + 1).pack()
        print(
            f"seed {seed + 1}, noise {noise:.0f}: {found_by(packed)} of {n_super} found, sizes "
            f"{np.sort(packed.sizes)}, "
            f"speed-up {packed.speed_up(test_h):.2f}"
        )

# %% [markdown]
# ## Which words belong together?
#
# Now data without a known structure. A small language model reads a part of WikiText-2. It is an LSTM (tutorial 7
# explains it); here it is enough to know that it turns the previous words into a vector `h`, which the output layer
# multiplies with a row of weights for each word. DS-Softmax starts from these weights and vectors. Rare words are
# replaced by `<unk>`, to keep the running time short.

# %%
corpus = data.load_text("wikitext-2", min_count=size(20, 500))
words, n_tokens = np.array(corpus.vocabulary.words), size(200_000, 20_000)
text = corpus.train[:n_tokens]
language = train.LanguageModel(
    width=size(64, 16), n_layers=1, sampler="log-uniform", n_samples=200, dropout=0.1, batch_size=32, epochs=2,
    device="cpu", progress=False,
).fit(text, vocabulary=corpus.vocabulary)  # fmt: skip
perplexity = language.perplexity(corpus.valid[:20_000])
print(f"{len(words):,} words, {n_tokens:,} tokens; perplexity on the validation set {perplexity:.0f}")
assert perplexity < len(words)

# %% [markdown]
# `encode` returns the input of the output layer at each position, and the next word. The next words are the targets.

# %%
h, following = language.encode(text)
output = np.ascontiguousarray(language.network_.output.weights)
print("h", h.shape, "output weights", output.shape)

start = time.perf_counter()
mixture = DSSoftmax(
    n_experts=8, epochs=1, batch_size=512, noise=1.0, class_lasso=1e-3, expert_lasso=1e-3, device="cpu", progress=False
).fit(h, following, output)
packed = mixture.pack()
print(f"{time.perf_counter() - start:.0f} s; words of the experts: {packed.sizes}")

# %% [markdown]
# What is an expert responsible for? For each word, we compute how often this expert is chosen when the word is the next
# one. For the smallest experts, we print the words with the largest shares:

# %%
chosen = packed.choose(h)
occurrences = np.bincount(following, minlength=len(words))
for k in np.argsort(packed.sizes)[:4]:
    mine = packed.ids[packed.starts[k] : packed.starts[k + 1]]
    here = np.bincount(following[chosen == k], minlength=len(words))
    share = np.where(occurrences[mine] >= 12, here[mine] / np.maximum(occurrences[mine], 1), 0)
    best = mine[np.argsort(-share, kind="stable")[:14]]
    print(f"expert {k}: {len(mine):,} words, {np.mean(chosen == k):.0%} of the queries\n    {' '.join(words[best])}")

# %% [markdown]
# Look for common properties of the words of an expert. They may start a sentence, follow "has been", or be units of
# measurement. The gate was not given any grammar: it groups *contexts* in which similar words follow. With more text,
# more experts, and hours instead of seconds of training, the paper finds experts for money, time, and comparisons.
#
# How many experts contain a word? Frequent words are in almost all of them, because they are possible answers to most
# queries:

# %%
n_experts_of, order = packed.experts_per_class, np.argsort(-occurrences, kind="stable")
edges = np.unique(np.round(np.geomspace(1, len(words), 14)).astype(int))
middle = np.sqrt(edges[:-1] * edges[1:])
mean = [n_experts_of[order[a - 1 : b - 1]].mean() for a, b in zip(edges, edges[1:], strict=False)]
figure, ax = plt.subplots(figsize=(7.2, 3.6))
ax.semilogx(middle, mean, "o-", color=BLUE)
ax.set(xlabel="rank of the word by frequency", ylabel="experts that contain it", ylim=(0, packed.n_experts + 0.5))
show(figure, "06_experts_of_a_word")
assert mean[0] >= mean[-1]

# %% [markdown]
# ## Measured times
#
# The number of products is not the time. A small layer is read from the cache quickly, and then most of the time is the
# overhead of the call. So we measure the full softmax and the mixture on unseen queries, one at a time and 64 at a
# time. Both use one thread; the times are the minimum of several rounds.

# %%
unseen, truth = language.encode(corpus.valid[: size(20_000, 2000)])
full = FullSoftmax(output)


def microseconds(layer, n_queries, rounds=size(7, 2), calls=size(100, 5)):
    batch, best = np.ascontiguousarray(unseen[:n_queries]), np.inf
    layer.top_k(batch, 10)  # compiles
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            layer.top_k(batch, 10)
        best = min(best, time.perf_counter() - start)
    return best / calls * 1e6


print("queries   full softmax   experts   times faster   (by products)")
for n_queries in (1, 64):
    both = microseconds(full, n_queries), microseconds(packed, n_queries)
    by_products = packed.speed_up(unseen[:n_queries])
    print(f"{n_queries:7} {both[0]:11.0f} µs {both[1]:6.0f} µs {both[0] / both[1]:14.2f} {by_products:15.2f}")

# %% [markdown]
# Are the answers the same? Not always: if the expert does not contain the best word of the full softmax, it must answer
# with another one. But this is not necessarily worse: the experts were trained, and what counts is the true next word.

# %%
full_ids, ids = full.top_k(unseen, 10)[1], packed.top_k(unseen, 10)[1]
print(f"same best word:            {(full_ids[:, 0] == ids[:, 0]).mean():.1%}")
in_both = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(full_ids, ids, strict=True)])
print(f"in common of the ten best: {in_both:.1%}")
print(f"speed-up by products:      {packed.speed_up(unseen):.2f}")
hits = {name: (a == truth[:, None]) for name, a in (("full softmax", full_ids), ("experts", ids))}
for name, hit in hits.items():
    print(
        f"{name:<13} the true word is the best one {hit[:, 0].mean():.1%}, among the ten best {hit.any(1).mean():.1%}"
    )
assert hits["experts"][:, 0].mean() > hits["full softmax"][:, 0].mean() - 0.05

# %% [markdown]
# The module `reference.ds_softmax` defines the method, in NumPy and float64. The last check compares with it.

# %%
from_definition = definition.answer(unseen[:20], packed.gate, packed, 10)
agree = (from_definition[1] == ids[:20]).mean()
print(f"ids that agree with the definition: {agree:.1%}")
assert agree > 0.98 and np.abs(from_definition[0] - packed.top_k(unseen[:20], 10)[0]).max() < 1e-4

# %% [markdown]
# ## Exercises
#
# **1.** 32,768 classes are divided evenly among `E` experts, each class in one of them, and every expert gets the same
# number of queries. With more experts, each is smaller, but the gate is larger. Which `E` needs the fewest products?

# %% exercise="best"
best_number_of_experts = ...

# %% check="best"


def is_best(n):
    cost = {e: e + 32_768 / e for e in range(1, 32_769)}
    return n in cost and cost[n] <= min(cost.values()) * 1.0001


check("1", best_number_of_experts, is_best, "Minimise E + L / E: where do the two parts cost the same?")

# %% [markdown]
# **2.** How the gate learns: the scores of the expert's classes are `s = weights @ h`, the logits are `g * s`, and the
# loss is the negative logarithm of the target's probability. Compute the derivative of the loss with respect to the
# number `g`.


# %% exercise="gate"
def slope_by_gate_value(g, s, target):
    return ...


# %% check="gate"
s = random.normal(size=6)


def is_slope(got):
    e = 1e-6
    up, down = (-np.log(softmax(value * s)[2]) for value in (0.7 + e, 0.7 - e))
    return np.isclose(got, (up - down) / (2 * e), atol=1e-6)


hint = "The derivative with respect to a logit is p - [target], and the derivative of a logit with respect to g is s."
check("2", slope_by_gate_value(0.7, s, 2), is_slope, hint)

# %% [markdown]
# **3.** Two of ten experts contain 1,000 of 10,000 classes each, and get 40 % of the queries each. The other eight
# experts share the remaining queries evenly. How many classes can each of these eight contain at most, for a speed-up
# of at least 5?

# %% exercise="budget"
most_classes = ...

# %% check="budget"


def is_most(n):
    def reached(n):
        return speed_up(10_000, np.array([1000] * 2 + [n] * 8), np.array([0.4] * 2 + [0.025] * 8)) >= 5 - 1e-9

    return n == int(n) and reached(n) and not reached(n + 1)


hint = "A speed-up of 5 allows 2,000 products per query. Subtract those of the gate and of the two large experts."
check("3", most_classes, is_most, hint)
