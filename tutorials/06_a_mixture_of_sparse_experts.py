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
# A language model that suggests the next word needs five words. To find them it scores all the tens of thousands that it
# knows. Nearly all of that work is for words that were never in question: after "he walked ten" nobody asks for the score
# of "although".
#
# DS-Softmax (Liao and others, arXiv 1901.10668) turns this into a method. A small *gate* looks at the query and picks one
# *expert*; the expert holds a few of the classes and scores only those. Who holds what is not given: it is learned. We
# first watch it find a hierarchy that we have hidden in made-up data, then give it the words of an encyclopedia, and then
# look at the clock.

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
# The method fits in a few lines. `gate` has one row for each expert. Expert `k` has its own row for each class that it
# still holds, and the list of these classes.
#
# $$ g = \mathrm{softmax}(\mathrm{gate}\; h), \qquad k = \arg\max g, \qquad s_c = g_k \, (w_{k,c} \cdot h) . $$


# %%
def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def answer(h, gate, experts, k):
    """The k best classes for one query; experts is a list of (classes, rows)."""
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
# Classes 0 and 3 belong to two experts each. That is allowed, and useful: "the" is a good answer to very different
# queries.
#
# `PackedDSSoftmax` holds the same with all experts in one array, one behind the other, and answers a batch of queries at
# once.

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
# ## What it costs
#
# Count multiplications, each as one `d`-long product. The full softmax takes `L` of them. Here the gate takes `E`, one
# for each expert; and when expert `k` gets the share `u[k]` of all queries, scoring takes `u @ sizes` on average:
#
# $$ \text{speed-up} = \frac{L}{E + \sum_k u_k\, |v_k|} . $$


# %%
def speed_up(n_classes, sizes, shares):
    return n_classes / (len(sizes) + shares @ sizes)


shares = packed.utilisation(queries)
print(f"shares {shares}, sizes {packed.sizes}: {speed_up(L, packed.sizes, shares):.2f} times fewer products")
assert np.isclose(speed_up(L, packed.sizes, shares), packed.speed_up(queries))

# %% [markdown]
# With so few classes that is nothing to speak of. The formula also says what must come true if it is to be much: experts
# must be small, and above all *those that are asked often* must be small.
#
# ## Why the gate's value stays
#
# A mixture of experts usually divides the kept values by their sum. With one expert kept, that sum is the value itself,
# and it becomes 1. Then nothing that the loss sees depends on the gate: a small change of the gate's scores changes
# nothing, until suddenly another expert is picked. Slopes are zero, and the gate never learns. Measure it:


# %%
def loss(scores_of_gate, h, classes, rows, target, renormalised):
    g = softmax(scores_of_gate)
    value = 1.0 if renormalised else g.max()
    return -np.log(softmax(value * (rows @ h))[classes == target][0])


def slopes(function, at, e=1e-6):
    steps = e * np.eye(len(at))
    return np.array([(function(at + step) - function(at - step)) / (2 * e) for step in steps])


h = queries[0].astype(np.float64)
scores = gate.astype(np.float64) @ h
classes, expert_rows = experts[scores.argmax()]
for renormalised in (True, False):
    slope = slopes(lambda s: loss(s, h, classes, expert_rows, classes[0], renormalised), scores)
    print(
        f"{'divided by its sum' if renormalised else 'as it is':<19} slope by the gate's scores: {np.round(slope, 4)}"
    )
    assert (np.abs(slope).max() < 1e-9) == renormalised

# %% [markdown]
# So the value stays. It acts as an inverse temperature: an expert of which the gate is sure answers sharply, one that was
# picked with doubt answers flatly. An expert that answers well pulls its value up, one that is wrong is better off flat
# and pushes it down. By this push and pull the gate learns.
#
# ## A hierarchy that nobody mentions
#
# The test is the paper's. Draw a few centres far apart, the super-classes; around each, centres of its classes; around
# each of these, points. A query is a point, and its target is the class. *The super-class is not told.* Will every expert
# end with the classes of one super-class?

# %%
n_super, n_sub, points, width = 8, 10, 100, 100
n_classes = n_super * n_sub
contexts, targets = data.hierarchy(n_super, n_sub, points + 20, width, seed=0)
n_train = points * n_classes
print(f"{n_classes} classes; {n_train:,} points to learn from, {len(contexts) - n_train:,} to ask")

# %% [markdown]
# Four forces shape the experts while they train:
#
# - the **cross-entropy** wants the target's row in the expert that is asked;
# - a **group lasso**, the root mean square of each row, pulls every row towards zero, whole rows at a time: one that the
#   cross-entropy does not defend dies. A second one does the same for each class over all experts, so that a class does
#   not stay in many;
# - **balance** punishes a gate that sends everything to one expert: the squared coefficient of variation of the gate
#   values that the experts get. *Noise* on the gate's scores lets the other experts be tried;
# - **pruning**: at the end of an epoch rows with a root mean square below a threshold are removed for good.
#
# And one trick: **mitosis**. Training begins with two experts that hold everything. When they have shed what they do not
# need, each is cloned, the gate's rows of the two clones are nudged apart, and on it goes. So the large number of experts
# comes into being when experts are small already.


# %%
def held_by(packed):
    """(E, L) bool: which expert holds which class."""
    held = np.zeros((packed.n_experts, packed.n_classes), bool)
    held[np.repeat(np.arange(packed.n_experts), packed.sizes), packed.ids] = True
    return held


def trained(noise, seed, after_stage=None):
    model = DSSoftmax(
        n_experts=n_super, first_experts=2, epochs=15, prune_after=3, batch_size=100, learning_rate=0.01, noise=noise,
        class_lasso=0.002, expert_lasso=0.002, balance=10.0, threshold=0.03, seed=seed, device="cpu", progress=False,
    )  # fmt: skip
    return model.fit(contexts[:n_train], targets[:n_train], after_stage=after_stage)


stages = []
model = trained(noise=1.0, seed=0, after_stage=lambda n_experts, packed: stages.append(packed))

# %% [markdown]
# A picture for each stage: a line for each expert, a column for each class, those of a super-class side by side between
# two grey lines. A mark says: the expert holds the class.

# %%
figure, axes = plt.subplots(
    len(stages), sharex=True, figsize=(7.2, 5.2), height_ratios=[packed.n_experts + 1 for packed in stages]
)
for packed, ax in zip(stages, axes, strict=True):
    held = held_by(packed)
    first = np.where(held.any(1), held.argmax(1), n_classes)
    held = held[np.argsort(first, kind="stable")]  # experts in the order of the first class that they hold
    ax.imshow(
        np.where(held[..., None], plt.matplotlib.colors.to_rgb(BLUE), 1.0), aspect="auto", interpolation="nearest",
        extent=(0, n_classes, packed.n_experts, 0),
    )  # fmt: skip
    ax.grid(False)
    ax.vlines(np.arange(n_sub, n_classes, n_sub), 0, packed.n_experts, color=GREY, linewidth=0.8)
    ax.hlines(np.arange(1, packed.n_experts), 0, n_classes, color="white", linewidth=1.5)
    ax.set(yticks=[], ylabel=f"{packed.n_experts}")
figure.supylabel("experts")
axes[-1].set(xlabel=f"classes, {n_sub} of each super-class side by side")
show(figure, "06_stages")

# %% [markdown]
# How good are the answers, and what do they cost? A super-class counts as found when one expert holds all of its classes
# and no other expert any of them. Were every expert to hold one super-class and to get its queries, the speed-up would be
# the last line's.

# %%
asked, truth = contexts[n_train:], targets[n_train:]


def found_by(packed):
    """How many super-classes lie in one expert, whole, and in no other."""
    by_super = held_by(packed).reshape(packed.n_experts, n_super, n_sub)
    return ((by_super.any(2).sum(0) == 1) & (by_super.all(2).sum(0) == 1)).sum()


print("experts   rows  found  accuracy  speed-up")
for packed in stages:
    accuracy = (packed.top_k(asked, 1)[1][:, 0] == truth).mean()
    print(
        f"{packed.n_experts:7} {packed.ids.size:6} {found_by(packed):6} {accuracy:9.1%} {packed.speed_up(asked):9.2f}"
    )
ideal = n_classes / (n_super + n_sub)
print(f"  ideal {n_classes:6} {n_super:6} {'':9} {ideal:9.2f}")
assert accuracy > 0.98 and packed.speed_up(asked) > ideal / 2 and packed.ids.size < 2 * n_classes

# %% [markdown]
# And how it came about, epoch by epoch: how many rows all experts have together. Dashed lines are mitoses. Without
# mitosis we should have begun with the grey line, all experts with all classes.

# %%
history = model.history_
figure, ax = plt.subplots(figsize=(7.2, 3.8))
epochs = np.arange(1, len(history) + 1)
ax.plot(epochs, [record["rows"] for record in history], "o-", color=BLUE, markersize=4, label="rows of all experts")
ax.axhline(n_super * n_classes, color=GREY, label="all experts, all classes")
ax.axhline(n_classes, color=GREEN, label="one row a class")
for mitosis in range(model.epochs, len(history), model.epochs):
    ax.axvline(
        mitosis + 0.5, color=ORANGE, linestyle="--", linewidth=1.5, label="mitosis" if mitosis == model.epochs else None
    )
ax.set(xlabel="epoch", ylabel="rows", ylim=(0, 1.1 * n_super * n_classes))
figure.legend(loc="outside upper center", ncols=4, fontsize=10, frameon=False)
show(figure, "06_rows")
most = max(record["rows"] + record["removed"] for record in history)
print(f"rows at most, in any epoch: {most:,}; without mitosis: {n_super * n_classes:,}")
assert most < n_super * n_classes

# %% [markdown]
# Was that luck? Other seeds - for the gate, the order of the points, and mitosis - and each without the noise, too. Look
# at the sizes: without noise, an expert that nobody asks learns nothing, so nobody asks it, and it may end up empty while
# others hold two super-classes.

# %%
for seed in range(size(2, 0)):
    for noise in (1.0, 0.0):
        packed = trained(noise, seed + 1).pack()
        print(
            f"seed {seed + 1}, noise {noise:.0f}: {found_by(packed)} of {n_super} found, sizes {np.sort(packed.sizes)}, "
            f"speed-up {packed.speed_up(asked):.2f}"
        )

# %% [markdown]
# ## Which words go together?
#
# Now without a hidden truth. A small language model reads a part of WikiText-2, an LSTM of which tutorial 7 tells; here
# it is enough that it turns the words so far into a vector, the context, that its output layer multiplies with a row for
# each word. These rows and contexts are what DS-Softmax starts from. Rare words count as `<unk>` here, to make it a
# matter of a minute.

# %%
corpus = data.load_text("wikitext-2", min_count=size(20, 500))
words, n_tokens = np.array(corpus.vocabulary.words), size(200_000, 20_000)
text = corpus.train[:n_tokens]
language = train.LanguageModel(
    width=size(64, 16), n_layers=1, sampler="log-uniform", n_samples=200, dropout=0.1, batch_size=32, epochs=2,
    device="cpu", progress=False,
).fit(text, vocabulary=corpus.vocabulary)  # fmt: skip
perplexity = language.perplexity(corpus.valid[:20_000])
print(f"{len(words):,} words, {n_tokens:,} tokens; perplexity on others {perplexity:.0f}")
assert perplexity < len(words)

# %% [markdown]
# `contexts` gives the input of the output layer before each word, and that word. The words that follow are the targets.

# %%
h, following = language.contexts(text)
output = np.ascontiguousarray(language.network_.output.weights)
print("contexts", h.shape, "output rows", output.shape)

start = time.perf_counter()
mixture = DSSoftmax(
    n_experts=8, epochs=1, batch_size=512, noise=1.0, class_lasso=1e-3, expert_lasso=1e-3, device="cpu", progress=False
).fit(h, following, output)
packed = mixture.pack()
print(f"{time.perf_counter() - start:.0f} s; words of the experts: {packed.sizes}")

# %% [markdown]
# What does an expert stand for? Of all the times a word is the next one, how often is this expert asked? For the smallest
# experts, the words for which that share is largest:

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
# Look for what the words of a line have in common. It may be that they begin a sentence, or follow "has been", or are
# measures. Nobody told the gate about grammar: it groups *contexts* that ask for the same kind of word. With more text,
# more experts and hours instead of seconds, the paper finds experts of money, of time, of comparison.
#
# By how many experts is a word held? The frequent ones are answers to everything:

# %%
held_in, order = packed.experts_per_class, np.argsort(-occurrences, kind="stable")
edges = np.unique(np.round(np.geomspace(1, len(words), 14)).astype(int))
middle = np.sqrt(edges[:-1] * edges[1:])
mean = [held_in[order[a - 1 : b - 1]].mean() for a, b in zip(edges, edges[1:], strict=False)]
figure, ax = plt.subplots(figsize=(7.2, 3.6))
ax.semilogx(middle, mean, "o-", color=BLUE)
ax.set(xlabel="rank of the word by frequency", ylabel="experts that hold it", ylim=(0, packed.n_experts + 0.5))
show(figure, "06_experts_of_a_word")
assert mean[0] >= mean[-1]

# %% [markdown]
# ## The clock
#
# Products are not seconds. A small layer is read from the cache in no time, and what is left is the price of a call. So
# we ask the clock, on contexts that neither model has seen: the full softmax against the mixture, one query at a time,
# and 64 at once. Both get one thread; times are the best of several rounds.

# %%
unseen, truth = language.contexts(corpus.valid[: size(20_000, 2000)])
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
# And are the answers the same? Not all: where the expert lacks the full softmax's first word, it must give another one.
# But that is not yet worse: the experts were trained, and what counts is the true next word.

# %%
full_ids, ids = full.top_k(unseen, 10)[1], packed.top_k(unseen, 10)[1]
print(f"same first word:           {(full_ids[:, 0] == ids[:, 0]).mean():.1%}")
in_both = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(full_ids, ids, strict=True)])
print(f"of the ten best, the same: {in_both:.1%}")
print(f"speed-up by products:      {packed.speed_up(unseen):.2f}")
hits = {name: (a == truth[:, None]) for name, a in (("full softmax", full_ids), ("experts", ids))}
for name, hit in hits.items():
    print(f"{name:<13} true word first {hit[:, 0].mean():.1%}, among ten {hit.any(1).mean():.1%}")
assert hits["experts"][:, 0].mean() > hits["full softmax"][:, 0].mean() - 0.05

# %% [markdown]
# The definition of all this is `reference.ds_softmax`, in NumPy and float64. The last check asks it.

# %%
from_definition = definition.answer(unseen[:20], packed.gate, packed, 10)
agree = (from_definition[1] == ids[:20]).mean()
print(f"ids as defined: {agree:.1%}")
assert agree > 0.98 and np.abs(from_definition[0] - packed.top_k(unseen[:20], 10)[0]).max() < 1e-4

# %% [markdown]
# ## Exercises
#
# **1.** 32,768 classes are divided evenly among `E` experts, with no class in two of them, and every expert gets as many
# queries. More experts are smaller; but the gate grows. For which `E` are the products fewest?

# %% exercise="best"
best_number_of_experts = ...

# %% check="best"


def is_best(n):
    cost = {e: e + 32_768 / e for e in range(1, 32_769)}
    return n in cost and cost[n] <= min(cost.values()) * 1.0001


check("1", best_number_of_experts, is_best, "Minimise E + L / E: where do the two parts cost the same?")

# %% [markdown]
# **2.** The way by which the gate learns. The scores of the expert's classes are `s = rows @ h`, the logits are `g * s`,
# the loss is minus the logarithm of the target's probability. Write the derivative of the loss by `g`, a number.


# %% exercise="gate"
def slope_by_gate_value(g, s, target):
    return ...


# %% check="gate"
s = random.normal(size=6)


def is_slope(got):
    e = 1e-6
    up, down = (-np.log(softmax(value * s)[2]) for value in (0.7 + e, 0.7 - e))
    return np.isclose(got, (up - down) / (2 * e), atol=1e-6)


hint = "By each logit the slope is p - [target]; a logit changes by s when g does."
check("2", slope_by_gate_value(0.7, s, 2), is_slope, hint)

# %% [markdown]
# **3.** Two of ten experts hold 1,000 of 10,000 classes each and get 40 % of the queries each. The other eight share the
# rest of the queries evenly. How many classes may each of these hold, at most, if the speed-up is to be 5 or more?

# %% exercise="budget"
most_classes = ...

# %% check="budget"


def is_most(n):
    def reached(n):
        return speed_up(10_000, np.array([1000] * 2 + [n] * 8), np.array([0.4] * 2 + [0.025] * 8)) >= 5 - 1e-9

    return n == int(n) and reached(n) and not reached(n + 1)


hint = "A speed-up of 5 leaves 2,000 products for a query. The gate takes some, the two large experts some."
check("3", most_classes, is_most, hint)
