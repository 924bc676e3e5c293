"""What is called: for every public function and method, a few calls with other arguments each.

A group is a function of a seed that makes objects and returns ``{name: [call, ...]}``. A call takes no arguments and
returns what is compared, bit by bit. It leaves the group's objects as they are, so that many threads may share a group:
what changes its object works on a copy. Sizes are such that kernels have several parts to share out, and a thousand
calls take seconds.
"""

import copy
import dataclasses
import functools
import inspect
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import scipy.sparse

import sparsemax_nb as nb
from sparsemax_nb import data, train

#: Public callables without an entry, and why.
EXCUSED = {
    "Labels": "a pair of arrays, computes nothing",
    "train.MemoryLimitError": "an exception",
    "train.ModelFileError": "an exception",
    "train.TrainingError": "an exception",
    "train.Classifier.get_metadata_routing": "what scikit-learn shall pass on, computes nothing",
    "train.Classifier.set_fit_request": "what scikit-learn shall pass on, computes nothing",
    "train.Classifier.set_partial_fit_request": "what scikit-learn shall pass on, computes nothing",
    "train.Classifier.set_score_request": "what scikit-learn shall pass on, computes nothing",
    "train.Explanation": "holds names and numbers, computes nothing",
    "train.Explanation.plot": "calls matplotlib's pyplot, which is not for threads",
    "data.Corpus": "holds arrays, computes nothing",
    "data.DataError": "an exception",
    "data.LabeledTexts": "holds texts, computes nothing",
    "data.Sequences": "holds arrays, computes nothing",
    "data.TextCorpus": "holds arrays, computes nothing",
    "data.XCData": "holds arrays, computes nothing",
    **{
        f"train.Classifier.{name}": "describes the estimator to scikit-learn, computes nothing"
        for name in ("get_metadata_routing", "set_fit_request", "set_partial_fit_request", "set_score_request")
    },
}
GROUPS = {}


def group(function):
    """Register a group."""
    GROUPS[function.__name__] = function
    return function


def public_callables():
    """Names of all public functions, classes and methods: ``top_k`` of `FullSoftmax` is "FullSoftmax.top_k"."""
    found, seen = [], set()
    for module, prefix in ((nb, ""), (nb.metrics, "metrics."), (train, "train."), (data, "data.")):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value) or id(value) in seen:
                continue
            seen.add(id(value))
            found.append(prefix + name)
            if inspect.isclass(value) and not issubclass(value, (BaseException, tuple)):
                methods = (method for method in dir(value) if not method.startswith("_"))
                found += [f"{prefix}{name}.{method}" for method in methods if callable(getattr(value, method))]
    return found


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def targets_of(seed, n, n_classes):
    return np.random.default_rng(seed).integers(0, n_classes, n).astype(np.int32)


def label_matrix(seed, n_rows, n_labels, per_row=3):
    return data.power_law_labels(n_rows, n_labels, per_row, exponent=0.5, seed=seed)


def changed(make, *changes):
    """What comes of a fresh object and of changing it: the results of ``change(object)``, one after the other."""
    fresh = make()
    return [change(fresh) for change in changes]


# ------------------------------------------------------------ optimizers


@group
def optimizers(seed):
    array, gradient, found = normal(seed, 3000, 16), normal(seed + 1, 3000, 16), {}
    rows = np.unique(targets_of(seed, 200, 3000))

    def run(make, *changes):
        """The array after the changes, and the optimizer's state of it."""
        w, optimizer = array.copy(), make()
        results = [change(optimizer, w) for change in changes]
        state = optimizer.state_of(w)
        return w, state.count, state.factor, [*state.moments], results

    def step(optimizer, w):
        optimizer.step(w, gradient)

    def step_rows(optimizer, w):
        optimizer.step_rows(w, rows, gradient[: len(rows)])

    def replace(optimizer, w):
        other = w[:100].copy()
        optimizer.replace(w, other, lambda moment: moment[:100])
        optimizer.step(other, gradient[:100])
        return other, [*optimizer.state_of(other).moments]

    def begin(optimizer, w):
        kind, rates, moments = optimizer.begin_step(w)
        return int(kind), list(map(float, rates)), [*moments]

    for name, makes in {
        "SGD": [lambda: nb.SGD(0.1), lambda: nb.SGD(0.5)],
        "Adam": [lambda: nb.Adam(0.01), lambda: nb.Adam(0.1)],
    }.items():
        for method, changes in {
            "": [step],
            ".step": [step, step, step],
            ".step_rows": [step_rows, step, step_rows],
            ".replace": [step, replace],
            ".begin_step": [step, begin],
            ".end_step": [step, lambda optimizer, w: optimizer.end_step(w), step],
            ".scale_rate": [lambda optimizer, w: optimizer.scale_rate(w, 3.0), step],
            ".state_of": [step, step],
            ".check_writable": [step, lambda optimizer, w: optimizer.check_writable(w=w), step],
        }.items():
            found[name + method] = [functools.partial(run, make, *changes) for make in makes]
    return found


# ------------------------------------------------------------ sparse output layers


@group
def layers(seed):
    n_labels, n_inputs = 700 + seed, 96
    fixed = nb.FixedFanIn.random(n_labels, n_inputs, 8, seed)
    shared = nb.GroupSharedFanIn.random(n_labels, n_inputs, 8, 16, seed)
    rounded = nb.GroupSharedFanIn.random(n_labels, n_inputs, 8, 16, seed, dtype="bfloat16")
    batches = [normal(seed + n, n, n_inputs) for n in (1, 17, 80)]
    labels = [label_matrix(seed + len(x), len(x), n_labels) for x in batches]
    features = data.bag_of_words(300, 60, 6, 50, 2, seed)

    def step(layer, x, y, loss, optimizer):
        layer, optimizer = copy.deepcopy(layer), optimizer()
        results = [nb.fixed_fan_in_step(x, layer, y, loss, optimizer) for _ in range(2)]
        return results, [*layer.arrays], [*optimizer.state_of(layer.values).moments]

    def rewire(layer, fraction, optimizer):
        layer, optimizer = copy.deepcopy(layer), optimizer and optimizer()
        return nb.rewire(layer, fraction, seed, optimizer, step=3), [*layer.arrays]

    def dscores(x):
        return normal(seed + 5, len(x), n_labels)

    every = [(layer, x) for x in batches for layer in (fixed, shared, rounded)]
    ids = fixed.indices, fixed.values.copy(), fixed.bias.copy()
    of_groups = shared.indices, shared.values.copy(), shared.bias.copy()
    return {
        "FixedFanIn": [lambda: nb.FixedFanIn(n_inputs, *(a.copy() for a in ids)).values],
        "FixedFanIn.random": [
            functools.partial(lambda n: nb.FixedFanIn.random(n, 96, 8, seed).arrays, n) for n in (500, 900, 31)
        ],
        "FixedFanIn.to_dense": [fixed.to_dense],
        "GroupSharedFanIn": [lambda: nb.GroupSharedFanIn(n_inputs, *(a.copy() for a in of_groups), 16).values],
        "GroupSharedFanIn.random": [
            functools.partial(lambda n: nb.GroupSharedFanIn.random(n, 96, 8, 4, seed).arrays, n) for n in (500, 900)
        ],
        "GroupSharedFanIn.to_dense": [shared.to_dense],
        "fixed_fan_in_forward": [functools.partial(nb.fixed_fan_in_forward, x, layer) for layer, x in every],
        "fixed_fan_in_backward": [
            functools.partial(nb.fixed_fan_in_backward, x, layer, dscores(x)) for layer, x in every
        ],
        "fixed_fan_in_top_k": [
            functools.partial(nb.fixed_fan_in_top_k, x, layer, k) for layer, x in every for k in (1, 7, 300)
        ],
        "fixed_fan_in_step": [
            functools.partial(step, layer, x, y, loss, optimizer)
            for x, y in zip(batches, labels, strict=True)
            for layer, loss, optimizer in (
                (fixed, "squared-hinge", nb.Adam), (shared, "bce", nb.Adam), (rounded, "bce", nb.Adam),
                (fixed, "bce", functools.partial(nb.SGD, 0.1)), (fixed, "softmax", nb.Adam),
                (shared, "softmax", nb.Adam),
            )
        ],
        "rewire": [
            functools.partial(rewire, layer, fraction, optimizer)
            for layer in (fixed, shared)
            for fraction in (0.1, 0.3)
            for optimizer in (None, nb.Adam)
        ],
        "group_labels": [
            functools.partial(nb.group_labels, features.features, features.labels, size, by, seed)
            for size, by in ((4, "similar"), (8, "frequency"), (8, "random"))
        ],
    }  # fmt: skip


# ------------------------------------------------------------ softmax over all classes, and what comes near it


@group
def softmax(seed):
    n_classes, width = 900 + seed, 48
    w, bias, found = normal(seed, n_classes, width), normal(seed + 1, n_classes), {}
    batches = [normal(seed + n, n, width) for n in (1, 9, 70)]
    counts = np.random.default_rng(seed).integers(0, 100, n_classes)
    makes = {
        "FullSoftmax": lambda: nb.FullSoftmax(w, bias),
        "SVDSoftmax": lambda: nb.SVDSoftmax(w, bias, width=8),
        "DSoftmax": lambda: nb.DSoftmax(w, counts, bias),
    }
    for name, make in makes.items():
        layer = make()
        found[name] = [lambda make=make: make().top_k(batches[1], 5)]
        found[f"{name}.top_k"] = [functools.partial(layer.top_k, h, k) for h in batches for k in (1, 6)]
    narrow = [a.astype(ml_dtypes.bfloat16) for a in (batches[2], w)]
    return found | {
        "softmax_cross_entropy": [
            *(functools.partial(nb.softmax_cross_entropy, h, w, targets_of(seed, len(h), n_classes)) for h in batches),
            lambda: nb.softmax_cross_entropy(batches[2], w, label_matrix(seed, 70, n_classes), bias),
            functools.partial(nb.softmax_cross_entropy, *narrow, targets_of(seed, 70, n_classes)),
        ],
        "target_ranks": [
            functools.partial(nb.target_ranks, h, w, targets_of(seed, len(h), n_classes)) for h in batches
        ],
    }


# ------------------------------------------------------------ samplers


@group
def samplers(seed):
    n_classes, width = 800 + seed, 16
    classes, found = normal(seed, n_classes, width), {}
    counts = np.random.default_rng(seed).integers(1, 100, n_classes)
    batches = [normal(seed + n, n, width) for n in (1, 5, 60)]
    makes = {
        "UniformSampler": lambda: nb.UniformSampler(n_classes),
        "LogUniformSampler": lambda: nb.LogUniformSampler(n_classes),
        "UnigramSampler": lambda: nb.UnigramSampler(counts, 0.75),
        "LSHSampler": lambda: nb.LSHSampler(classes, seed=seed),
        "SphereSampler": lambda: nb.SphereSampler(classes),
        "RFFSampler": lambda: nb.RFFSampler(classes, seed=seed),
    }

    def calls(name, make, sampler):
        found[name] = [lambda: make().sample(batches[1], 9, seed)]
        found[f"{name}.sample"] = [functools.partial(sampler.sample, h, m, seed, m) for h in batches for m in (3, 40)]
        found[f"{name}.log_prob"] = [
            functools.partial(sampler.log_prob, h, ids)
            for h in batches
            for ids in (targets_of(seed, 30, n_classes), targets_of(seed, (len(h), 7), n_classes))
        ]

    for name, make in makes.items():
        calls(name, make, make())

    def build(kind, residual):
        popularity = counts if residual == "popularity" else None
        options = {"popularity": popularity, "class_weights": counts}
        return nb.InvertedMultiIndex.build(classes, 8, kind, residual, seed, **options)

    def quantized(index):
        return index.codebooks, index.codes

    how = [(kind, residual) for kind in ("rq", "pq") for residual in ("uniform", "popularity", "exact")]
    for kind, residual in how:
        index, before = build(kind, residual), dict(found)
        calls("InvertedMultiIndex", functools.partial(build, kind, residual), index)
        for name in ("InvertedMultiIndex", "InvertedMultiIndex.sample", "InvertedMultiIndex.log_prob"):
            found[name] = before.get(name, []) + found[name]
    plain, moved = build("rq", "uniform"), classes + np.float32(0.3) * normal(seed + 7, n_classes, width)
    arrays = plain.codebooks, plain.codes, "rq", "uniform", None, None, classes
    found["InvertedMultiIndex"] = [lambda: nb.InvertedMultiIndex(*arrays).sample(batches[2], 5, seed)]
    found["InvertedMultiIndex.build"] = [functools.partial(lambda *how: quantized(build(*how)), *some) for some in how]
    found["InvertedMultiIndex.update"] = [
        lambda: changed(
            lambda: copy.deepcopy(plain),
            lambda index: index.update(moved),
            lambda index: (quantized(index), index.sample(batches[1], 5, seed)),
        )
    ]
    uniform = nb.UniformSampler(n_classes)

    def loss(h, is_shared, correction):
        targets = targets_of(seed, len(h), n_classes)
        ids, log_q = uniform.sample(h, 20, seed)
        ids, log_q = (ids[0].copy(), log_q[0].copy()) if is_shared else (ids, log_q)
        log_q_targets = uniform.log_prob(h, targets[:, None]).reshape(-1)
        return nb.sampled_softmax(h, classes, targets, ids, log_q, log_q_targets, correction=correction)

    found["sampled_softmax"] = [
        functools.partial(loss, h, is_shared, correction)
        for h in batches
        for is_shared in (False, True)
        for correction in ("paper", "importance")
    ]
    return found


# ------------------------------------------------------------ a sparse mixture of sparse experts


def reloaded(model, load):
    """What `load` reads of what `save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        model.save(path)
        return load(path, device="cpu")


@group
def experts(seed):
    classes = normal(seed, 120, 24)
    batches, adam = [normal(seed + n, n, 24) for n in (2, 30, 100)], functools.partial(nb.Adam, 0.01)
    dense = nb.SparseExperts.dense(classes, 4, seed)
    dense.prune(0.9)
    packed = dense.pack()
    arrays = packed.gate, packed.starts, packed.ids, packed.weights

    def state(experts):
        return experts.gate, experts.starts, experts.ids, experts.weights, experts.sizes, experts.experts_per_class

    def step(h, **options):
        trained, optimizer = copy.deepcopy(dense), adam()
        losses = [trained.step(h, targets_of(seed, len(h), 120), optimizer, seed=seed, **options) for _ in range(2)]
        removed = trained.prune(0.95, optimizer)
        trained.split(optimizer, seed)
        losses.append(trained.step(h, targets_of(seed, len(h), 120), optimizer))
        return losses, removed, state(trained)

    def reload(model, load):
        again = reloaded(model, load)
        return state(again), again.top_k(batches[1], 3)

    options = {"class_lasso": 1e-3, "expert_lasso": 1e-3, "balance": 1.0, "noise": 0.1}
    found = {
        "PackedDSSoftmax": [lambda: state(nb.PackedDSSoftmax(*arrays, 120))],
        "SparseExperts": [lambda: state(nb.SparseExperts(*(a.copy() for a in arrays), 120))],
        "SparseExperts.dense": [lambda: state(nb.SparseExperts.dense(classes, 3, seed))],
        "SparseExperts.pack": [lambda: state(dense.pack())],
        "SparseExperts.step": [functools.partial(step, h, **more) for h in batches for more in ({}, options)],
        "SparseExperts.prune": [
            lambda: changed(lambda: copy.deepcopy(dense), lambda e: e.prune(1.0), lambda e: (state(e), repr(e)))
        ],
        "SparseExperts.split": [
            lambda: changed(lambda: copy.deepcopy(dense), lambda e: e.split(seed=seed), lambda e: (state(e), repr(e)))
        ],
    }
    for name, model in (("PackedDSSoftmax", packed), ("SparseExperts", dense)):
        found |= {
            f"{name}.top_k": [functools.partial(model.top_k, h, k) for h in batches for k in (1, 5)],
            f"{name}.choose": [functools.partial(model.choose, h) for h in batches],
            f"{name}.utilisation": [functools.partial(model.utilisation, h) for h in batches],
            f"{name}.speed_up": [functools.partial(model.speed_up, h) for h in batches],
            f"{name}.speed_up_at": [lambda model=model: model.speed_up_at(np.full(4, 0.25))],
            f"{name}.save": [functools.partial(reload, model, nb.PackedDSSoftmax.load)],
            f"{name}.load": [functools.partial(reload, model, type(model).load)],
        }
    return found


# ------------------------------------------------------------ estimators


def parameters(model):
    """What is the same in every loading of a fitted classifier or language model."""
    return model.network_.parameters, model.get_params()


@group
def linear(seed):
    x = scipy.sparse.random(300, 80, 0.1, "csr", np.float32, random_state=seed)
    labels = label_matrix(seed, 300, 200)
    layer = nb.SparseLinear.choose(x, labels, at_least=8)
    _, duals = nb.sparse_linear_step(x, layer, labels)

    def step(some):
        mine = copy.deepcopy(layer)
        loss, new = nb.sparse_linear_step(x, mine, labels, duals if some else None, C=1.0)
        return loss, [*new], [*mine.arrays]

    h, w, bias = normal(seed, 300, 50), normal(seed + 1, 200, 50), np.full(200, -1, np.float32)
    _, dense_duals = nb.dense_linear_step(h, w.copy(), bias, labels)

    def dense_step(some, search):
        mine = w.copy()
        loss, new = nb.dense_linear_step(h, mine, bias, labels, dense_duals if some else None, slack=0.1, search=search)
        return loss, [*new], mine

    parts, together = (x[:1], x[40:73], x), nb.CoOccurrence(labels)
    best = nb.sparse_linear_top_k(x, layer, 20)
    return {
        "CoOccurrence": [lambda: [*nb.CoOccurrence(labels).arrays]],
        "CoOccurrence.extended": [lambda: [*together.extended(labels[:30]).arrays]],
        "rerank": [functools.partial(nb.rerank, *best, together, k, weight=0.2) for k in (1, 5, 20)],
        "SparseLinear": [lambda: [*nb.SparseLinear(layer.weights, layer.bias).arrays]],
        "SparseLinear.choose": [lambda n=n: [*nb.SparseLinear.choose(x, labels, at_least=n).arrays] for n in (3, 20)],
        "sparse_linear_forward": [functools.partial(nb.sparse_linear_forward, part, layer) for part in parts],
        "sparse_linear_top_k": [
            functools.partial(nb.sparse_linear_top_k, part, layer, k) for part in parts for k in (1, 5, 100)
        ],
        "dense_linear_step": [
            functools.partial(dense_step, *how) for how in ((False, True), (True, True), (True, False))
        ],
        "sparse_linear_step": [functools.partial(step, some) for some in (False, True)],
    }


@group
def neighbor_kernel(seed):
    points = normal(seed, 3000, 24)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels, h = label_matrix(seed, 3000, 200), points[:300]
    similarities, neighbors = nb.nearest_neighbors(points, points, 100)
    rows, kernels = np.random.default_rng(seed).permutation(3000), np.maximum(similarities, 0) ** 4
    lists = np.zeros(3000, np.int32), np.zeros((3000, 40), np.int32), np.zeros((3000, 40), np.float32)
    nb.neighbor_kernel_step(rows[:2000], neighbors, kernels, lists, labels[rows[:2000]], 200)
    bias = np.full(200, -1, np.float32)
    layer = nb.NeighborKernel(points, lists, bias)

    def step(some):
        mine = copy.deepcopy(lists)
        return nb.neighbor_kernel_step(some, neighbors, kernels, mine, labels[some], 200, C=2.0), [*mine]

    return {
        "nearest_neighbors": [functools.partial(nb.nearest_neighbors, h, points, k) for k in (5, 100)],
        "NeighborKernel": [lambda: [*nb.NeighborKernel(points, layer.duals, bias).arrays]],
        "neighbor_kernel_forward": [functools.partial(nb.neighbor_kernel_forward, part, layer) for part in (h[:1], h)],
        "neighbor_kernel_top_k": [functools.partial(nb.neighbor_kernel_top_k, h, layer, k) for k in (1, 5, 100)],
        "neighbor_kernel_step": [functools.partial(step, some) for some in (rows, rows[1500:])],
    }


POINTS = {"n_rows": 150, "n_features": 40, "words_per_row": 5, "n_labels": 60, "labels_per_row": 2}
CLASSIFIERS = {
    "fixed-fan-in": {},
    "group-shared": {"output": "group-shared", "group_size": 8},
    "unstructured": {"output": "unstructured"},
    "dense": {"output": "dense", "intermediate": None},
    "sampled": {"output": "bottleneck", "bottleneck": 16, "loss": "softmax", "sampler": "midx-rq"},
    "sampled, sparse": {"output": "group-shared", "group_size": 8, "loss": "softmax", "sampler": "unigram"},
    "dense features": {"output": "bottleneck", "loss": "softmax"},
    "linear": None,
    "kernel": None,
    "wide-and-deep": None,
}
#: Parameters of those that are no network.
OTHERS = {
    "linear": {"C": 0.5},
    "kernel": {"n_neighbors": 20},
    "wide-and-deep": {"C": 0.5, "n_neighbors": 20, "head_weight": "auto", "dense_columns": 8},
}


@functools.cache
def fitted_classifiers(seed):
    """Fitted models with the features and labels that they know."""
    points, found = data.bag_of_words(**POINTS, seed=seed), []
    for name, changes in CLASSIFIERS.items():
        network = {
            "architecture": "network", "embedding": 16, "intermediate": 32, "fan_in": 4, "epochs": 2, "batch_size": 32,
            "rewire_every": 4, "n_samples": 5, "n_codewords": 4, "dropout": 0.2,
        }  # fmt: skip
        params = {"epochs": 2} | OTHERS[name] if changes is None else network | changes
        model = train.Classifier(**params, progress=False, device="cpu", seed=seed)
        features = points.features
        if name == "wide-and-deep":
            features = scipy.sparse.hstack([features, normal(seed, POINTS["n_rows"], 8)], "csr")
        elif name in ("dense features", "kernel"):
            features = features.toarray()
        found.append((model.fit(features, points.labels), features, points.labels))
    return found


@group
def classifiers(seed):
    models = copy.deepcopy(fitted_classifiers(seed))

    def fit(model, x, y):
        again = train.Classifier(**model.get_params()).fit(x, y, validation=(x[:40], y[:40]))
        return parameters(again), again.history_.losses, again.predict(x[:20], 3)

    def reload(model, x):
        again = reloaded(model, train.Classifier.load)
        return parameters(again), again.predict(x[:30], 3)

    def go_on(model, x, y):
        again = copy.deepcopy(model).partial_fit(x[:50], y[:50])
        return parameters(again), again.predict(x[:20], 3)

    def recalibrated(model, x, y):
        again = copy.deepcopy(model).calibrate(x, y)
        return again.threshold_, again.limit_, again.predict_proba(x, 5)

    def without_some(model, x):
        again = copy.deepcopy(model).retire([0, 3])
        return parameters(again), again.predict(x[:20], 3)

    def some(x):
        return x[:1], x[20:61], x

    def explained(model, x, i):
        return list(map(dataclasses.asdict, model.explain(x[i : i + 1])))

    linear = [one for one in models if one[0].architecture_ == "linear"]
    read = [(model, part) for model, x, _ in models for part in some(x)]
    return {
        "train.Classifier": [lambda: repr(train.Classifier(fan_in=8))],
        "train.Classifier.fit": [functools.partial(fit, *one) for one in models],
        "train.Classifier.top_k": [functools.partial(model.top_k, part, k) for model, part in read for k in (1, 5)],
        "train.Classifier.predict": [functools.partial(model.predict, part, 3) for model, part in read],
        "train.Classifier.explain": [
            functools.partial(explained, model, x, i) for model, x, _ in models for i in (0, 30)
        ],
        "train.Classifier.encode": [
            functools.partial(model.encode, part) for model, part in read if model.architecture_ == "network"
        ],
        "train.Classifier.partial_fit": [functools.partial(go_on, *one) for one in linear],
        "train.Classifier.retire": [functools.partial(without_some, model, x) for model, x, _ in linear],
        "train.Classifier.calibrate": [functools.partial(recalibrated, *one) for one in models],
        "train.Classifier.predict_proba": [
            functools.partial(model.predict_proba, part, k)
            for model, x, _ in models
            if model.calibration_ is not None
            for part in some(x)
            for k in (None, 3)
        ],
        "train.Classifier.decision_function": [
            functools.partial(model.decision_function, part) for model, part in read
        ],
        "train.Classifier.evaluate": [functools.partial(model.evaluate, x, y) for model, x, y in models],
        "train.Classifier.score": [functools.partial(model.score, x, y) for model, x, y in models],
        "train.Classifier.save": [functools.partial(reload, model, x) for model, x, _ in models],
        "train.Classifier.load": [functools.partial(reload, model, x) for model, x, _ in models],
        "train.Classifier.get_params": [functools.partial(model.get_params) for model, *_ in models],
        "train.Classifier.set_params": [
            lambda: changed(train.Classifier, lambda model: repr(model.set_params(fan_in=seed + 1)))
        ],
    }


@functools.cache
def fitted_language_models(seed):
    """Fitted language models: tied and not, of running text."""
    text, found = targets_of(seed, 900, 30), []
    for changes in ({}, {"tied": False, "sampler": "unigram", "n_layers": 1}):
        model = train.LanguageModel(
            **{"width": 16, "n_samples": 5, "n_codewords": 4, "epochs": 1, "batch_size": 8, "unroll": 10, "seed": seed}
            | {"progress": False, "device": "cpu"}
            | changes
        )  # fmt: skip
        found.append((model.fit(text), text))
    return found


@group
def language_models(seed):
    models = copy.deepcopy(fitted_language_models(seed))
    random = np.random.default_rng(seed)
    lines = data.Sequences(
        "lines", None, np.concatenate([[0], np.cumsum(random.integers(0, 12, 40))]), targets_of(seed, 500, 30)
    )
    lines = data.Sequences("lines", None, lines.indptr, lines.items[: lines.indptr[-1]])

    def fit(model, text):
        again = train.LanguageModel(**model.get_params()).fit(text[:400], validation=text[:150], n_words=30)
        return parameters(again), again.history_.losses, again.perplexity(text[:90])

    def reload(model, text):
        again = reloaded(model, train.LanguageModel.load)
        return parameters(again), again.perplexity(text[:60])

    read = [(model, part) for model, text in models for part in (text[:7], text[100:350], text, lines)]
    prompts = [(model, text[start : start + n]) for model, text in models for start, n in ((0, 1), (50, 12))]
    return {
        "train.LanguageModel": [lambda: repr(train.LanguageModel(width=8))],
        "train.LanguageModel.fit": [functools.partial(fit, *one) for one in models],
        "train.LanguageModel.evaluate": [functools.partial(model.evaluate, part) for model, part in read],
        "train.LanguageModel.perplexity": [functools.partial(model.perplexity, part) for model, part in read],
        "train.LanguageModel.encode": [functools.partial(model.encode, part) for model, part in read],
        "train.LanguageModel.targets": [functools.partial(model.targets, part) for model, part in read],
        "train.LanguageModel.generate": [
            functools.partial(model.generate, part, 6, temperature=temperature, seed=seed)
            for model, part in prompts
            for temperature in (0, 1.0)
        ],
        "train.LanguageModel.save": [functools.partial(reload, *one) for one in models],
        "train.LanguageModel.load": [functools.partial(reload, *one) for one in models],
        "train.LanguageModel.get_params": [functools.partial(model.get_params) for model, _ in models],
        "train.LanguageModel.set_params": [
            lambda: changed(train.LanguageModel, lambda model: repr(model.set_params(width=seed + 2)))
        ],
    }


@functools.cache
def fitted_ds_softmax(seed):
    contexts, targets = data.hierarchy(4, 5, 8, 16, seed)
    options = {"n_experts": 8, "first_experts": 4, "epochs": 1, "batch_size": 40, "progress": False, "device": "cpu"}
    options |= {"seed": seed}
    return nb.DSSoftmax(**options).fit(contexts, targets), contexts, targets


@group
def ds_softmax(seed):
    model, contexts, targets = copy.deepcopy(fitted_ds_softmax(seed))
    labels = label_matrix(seed, len(contexts), 20, 2)

    def state(experts):
        return experts.gate, experts.starts, experts.ids, experts.weights

    def fit(targets):
        again = nb.DSSoftmax(**model.get_params()).fit(contexts, targets, validation=(contexts[:30], targets[:30]))
        return state(again.experts_), [(r["loss"], r["validation"]) for r in again.history_]

    return {
        "DSSoftmax": [lambda: repr(nb.DSSoftmax(n_experts=8))],
        "DSSoftmax.fit": [functools.partial(fit, targets), functools.partial(fit, labels)],
        "DSSoftmax.pack": [lambda: state(model.pack())],
        "DSSoftmax.evaluate": [functools.partial(model.evaluate, contexts, some) for some in (targets, labels)],
        "DSSoftmax.save": [lambda: state(reloaded(model, nb.PackedDSSoftmax.load))],
        "DSSoftmax.get_params": [model.get_params],
        "DSSoftmax.set_params": [lambda: changed(nb.DSSoftmax, lambda one: repr(one.set_params(epochs=seed + 3)))],
    }


# ------------------------------------------------------------ metrics and data


@group
def ranking_metrics(seed):
    y = label_matrix(seed, 300, 80)
    ids = np.argsort(normal(seed, 300, 80), axis=1, kind="stable")[:, :6].astype(np.int32)
    counts, ranks = np.bincount(y.indices, minlength=80), targets_of(seed, 300, 80)
    propensity = nb.metrics.propensities(counts, 300)
    found = {
        f"metrics.{name}": [functools.partial(getattr(nb.metrics, name), ids, y, k) for k in (1, 5)]
        for name in (
            *("precision_at_k", "ndcg_at_k", "recall_at_k", "f1_at_k", "map_at_k", "coverage_at_k"),
            *("macro_f1_at_k", "per_label", "hits_at_k"),
        )
    }
    predicted, hits = label_matrix(seed + 1, 300, 80), nb.metrics.hits_at_k(ids, y, 6)
    probabilities = np.random.default_rng(seed).random(hits.shape)
    found |= {
        f"metrics.{name}": [functools.partial(getattr(nb.metrics, name), predicted, y)]
        for name in ("sample_f1", "micro_f1", "macro_f1")
    }
    found |= {
        f"metrics.{name}": [functools.partial(getattr(nb.metrics, name), probabilities, hits, n) for n in (5, 15)]
        for name in ("expected_calibration_error", "reliability")
    }
    return found | {
        "metrics.psp_at_k": [functools.partial(nb.metrics.psp_at_k, ids, y, propensity, k) for k in (1, 5)],
        "metrics.propensities": [functools.partial(nb.metrics.propensities, counts, 300)],
        "metrics.ranking_metrics": [functools.partial(nb.metrics.ranking_metrics, ranks, 10)],
        "metrics.popularity_ranks": [functools.partial(nb.metrics.popularity_ranks, counts, ranks)],
        "metrics.unigram_perplexity": [functools.partial(nb.metrics.unigram_perplexity, counts, ranks)],
    }


WORDS = ["a", "rose", "is", "tea", "milk", "and", "jam", "with", "no", "thorn"]


@functools.cache
def _files(seed):
    """A folder with a small file of each kind; the object that removes it stays in the cache."""
    folder = tempfile.TemporaryDirectory()
    path, points, random = Path(folder.name), data.bag_of_words(**POINTS, seed=seed), np.random.default_rng(seed)
    lines = [" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(60)]
    (path / "points").mkdir()
    for part in ("train", "test"):
        data.write_xc(path / "points" / f"{part}.txt", points.features, points.labels)
    for name in ("corpus", "sequences"):
        (path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (path / "labeled.tsv").write_text("".join(f"{line}\t{line.split()[0]}\tany\n" for line in lines))
    (path / "vocabulary.tsv").write_text("".join(f"{word}\t{word} {seed}\n" for word in WORDS))
    concepts = (f'<http://a.b/{word}> a s:Concept; s:prefLabel "{word} {seed}"@en.\n' for word in WORDS)
    (path / "vocabulary.ttl").write_text("@prefix s: <http://www.w3.org/2004/02/skos/core#>.\n" + "".join(concepts))
    return folder, path, points, [line.split() for line in lines]


@group
def files(seed):
    _, path, points, lines = _files(seed)
    vocabulary, tfidf = data.Vocabulary.build(lines), data.Tfidf().fit(points.features)
    sequences = data.load_sequences(path / "sequences.txt")
    tokens, _ = vocabulary.encode(lines)

    def write():
        with tempfile.TemporaryDirectory() as folder:
            data.write_xc(Path(folder, "x.txt"), points.features, points.labels)
            return Path(folder, "x.txt").read_bytes()

    def text(corpus):
        return corpus.vocabulary.words, corpus.train, corpus.valid, corpus.test, corpus.unknown

    def of_sequences(sequences):
        return sequences.vocabulary.words, sequences.indptr, sequences.items

    def arrays(points):
        return points.features, points.labels

    def corpus():
        loaded = data.load(path / "points")
        return arrays(loaded.train), arrays(loaded.test)

    texts = [" ".join(line) for line in lines]
    vectorizer, hashed = data.TextVectorizer().fit(texts), data.TextVectorizer(hash_bits=8).fit(texts)

    def extended():
        again = copy.deepcopy(vectorizer).extend(["a new word", *texts[:9]])
        return again.feature_names(), again.idf_

    def labeled():
        read = data.read_texts(path / "labeled.tsv")
        return read.texts, read.labels

    return {
        "data.load": [corpus],
        "data.load_text": [lambda: text(data.load_text(path)), lambda: text(data.load_text(path, 2, raw=True))],
        "data.load_sequences": [lambda: of_sequences(data.load_sequences(path / "sequences.txt", 2))],
        "data.leave_last_out": [lambda: [of_sequences(part) for part in data.leave_last_out(sequences)]],
        "data.read_xc": [lambda: arrays(data.read_xc(path / "points" / "train.txt"))],
        "data.write_xc": [write],
        "data.read_words": [lambda: list(data.read_words(path / "corpus.txt"))],
        "data.read_texts": [labeled],
        "data.read_vocabulary": [
            functools.partial(data.read_vocabulary, path / f"vocabulary.{ending}") for ending in ("tsv", "ttl")
        ],
        "data.read_names": [lambda: data.read_names(path / "corpus.txt")],
        "data.fingerprint": [functools.partial(data.fingerprint, points.features, points.labels)],
        "data.bag_of_words": [lambda: arrays(data.bag_of_words(**POINTS, seed=seed))],
        "data.hierarchy": [functools.partial(data.hierarchy, 3, 4, 5, 16, seed)],
        "data.power_law_labels": [functools.partial(data.power_law_labels, 200, 50, 3, 1.0, seed)],
        "data.Tfidf": [lambda: data.Tfidf().sublinear],
        "data.Tfidf.fit": [lambda: data.Tfidf().fit(points.features).idf_],
        "data.Tfidf.transform": [functools.partial(tfidf.transform, points.features[:n]) for n in (1, 60)],
        "data.Tfidf.fit_transform": [lambda: data.Tfidf().fit_transform(points.features)],
        "data.TextVectorizer": [lambda: data.TextVectorizer().char_ngrams],
        "data.TextVectorizer.fit": [lambda: data.TextVectorizer(char_ngrams=3).fit(texts).idf_],
        "data.TextVectorizer.fit_transform": [lambda: data.TextVectorizer().fit_transform(texts)],
        "data.TextVectorizer.transform": [
            functools.partial(one.transform, texts[:n]) for one in (vectorizer, hashed) for n in (1, 60)
        ],
        "data.TextVectorizer.extend": [extended],
        "data.TextVectorizer.feature_names": [vectorizer.feature_names],
        "data.TextVectorizer.parts": [functools.partial(vectorizer.parts, texts[0])],
        "data.Vocabulary": [lambda: data.Vocabulary(WORDS).words],
        "data.Vocabulary.build": [lambda: data.Vocabulary.build(lines, 2).words],
        "data.Vocabulary.of_counts": [lambda: data.Vocabulary.of_counts({"a": 2, "b": 3}).words],
        "data.Vocabulary.encode": [functools.partial(vocabulary.encode, lines[:n]) for n in (1, 50)],
        "data.Vocabulary.decode": [functools.partial(vocabulary.decode, tokens[:n]) for n in (1, 50)],
        "data.Vocabulary.find": [functools.partial(vocabulary.find, WORDS)],
        "data.Vocabulary.split": [functools.partial(vocabulary.split, "a rose is a rose")],
    }


def missing():
    """Public callables that have neither an entry nor an excuse, and entries of what is not public (any more)."""
    have = {name for make in GROUPS.values() for name in make(0)} | set(EXCUSED)
    return sorted(set(public_callables()) - have), sorted(have - set(public_callables()))


# ------------------------------------------------------------ bits


def bits(value):
    """`value` in a form that is equal if, and only if, all of its bits are; seconds do not count."""
    if isinstance(value, dict):
        return {name: bits(some) for name, some in value.items() if name != "seconds"}
    if isinstance(value, (tuple, list)):
        return tuple(map(bits, value))
    if scipy.sparse.issparse(value):
        return bits((value.shape, value.indptr, value.indices, value.data))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (float, np.floating)):
        return np.float64(value).tobytes()
    if isinstance(value, (str, bytes, int, np.integer, np.bool_, type(None))):
        return value
    raise TypeError(f"no bits known of {type(value).__name__}")
