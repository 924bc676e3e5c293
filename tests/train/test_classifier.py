"""`Classifier`, the loop and model files: learning, determinism, manners, bad input."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train
from sparsemax_nb.core import checkpoint
from sparsemax_nb.core.device import to_numpy
from sparsemax_nb.grouping import GROUPINGS
from sparsemax_nb.train import TrainingError
from sparsemax_nb.train.negatives import BASELINES, MIDX_KINDS, SAMPLERS

SMALL = {
    "architecture": "network",
    "embedding": 16,
    "intermediate": 32,
    "fan_in": 8,
    "bottleneck": 8,
    "batch_size": 32,
    "progress": False,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def corpus():
    return data.bag_of_words(n_rows=300, n_features=60, words_per_row=5, n_labels=25, labels_per_row=2, seed=1)


def fitted(corpus, **changes):
    return train.Classifier(**SMALL | changes).fit(corpus.features, corpus.labels)


def weights(model):
    return {name: to_numpy(a) for name, a in model.network_.parameters.items()}


def same_bits(a, b):
    return all(np.array_equal(a[name].view(np.uint32), b[name].view(np.uint32)) for name in a)


@pytest.mark.parametrize("loss", ["squared-hinge", "bce"])
@pytest.mark.parametrize("output", ["dense", "bottleneck", "unstructured", "fixed-fan-in", "group-shared"])
def test_learns(corpus, output, loss):
    model = fitted(corpus, output=output, loss=loss, epochs=30, learning_rate=2e-2, dropout=0.0)
    history = model.history_
    assert history.steps == 30 * 10 and len(history.losses) == 30 and history.losses[-1] < 0.7 * history.losses[0]
    result = model.evaluate(corpus.features, corpus.labels, ks=(1, 2))
    assert result["P@1"] > 0.8 and result["nDCG@2"] > 0.7
    assert model.score(corpus.features, corpus.labels) == result["P@1"]


GROUPED = {"output": "group-shared", "group_size": 4}


@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
def test_labels_of_groups_keep_their_ids(corpus, tmp_path, weight_dtype):
    """Whatever their order in the layer; also when the model comes back from a file, to the bit, bfloat16 or not."""
    model = fitted(corpus, **GROUPED, weight_dtype=weight_dtype, epochs=30, learning_rate=2e-2, dropout=0.0)
    order = model.network_.output.order
    assert (np.sort(order) == np.arange(25)).all() and (order != np.arange(25)).any()
    assert model.network_.output.values.dtype.name == weight_dtype
    assert model.score(corpus.features, corpus.labels) > 0.8
    model.save(tmp_path / "model")
    loaded = train.Classifier.load(tmp_path / "model", device="cpu")
    assert {n: a.tobytes() for n, a in weights(loaded).items()} == {n: a.tobytes() for n, a in weights(model).items()}
    for got, want in zip(loaded.top_k(corpus.features, 3), model.top_k(corpus.features, 3), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("output", ["fixed-fan-in", "group-shared", "unstructured"])
def test_rewirings_tell_the_share_of_the_connections(corpus, output):
    model = fitted(
        corpus, output=output, group_size=4, epochs=2, rewire_every=5, rewire_until=1.0, rewire_fraction=0.25
    )
    assert [record["share"] for record in model.history_.rewirings] == pytest.approx([0.25] * 4, abs=0.01)


def test_groupings_differ(corpus):
    orders = [fitted(corpus, **GROUPED, grouping=by, epochs=1).network_.output.order.tolist() for by in GROUPINGS]
    assert len(set(map(tuple, orders))) == 3
    counts = corpus.labels.getnnz(axis=0)
    assert (np.diff(counts[orders[GROUPINGS.index("frequency")]]) <= 0).all()


def test_an_order_that_is_none_is_refused(corpus):
    model = fitted(corpus, **GROUPED, epochs=1)
    with pytest.raises(ValueError, match=r"output\.order must be a permutation of the labels"):
        model.network_.set_parameters(weights(model) | {"output.order": np.zeros(25, np.int32)})


def test_bias_of_groups_starts_at_each_labels_own_odds(corpus):
    """One step at a rate of nearly nothing: sorted back, the bias is that of a plain layer."""
    biases = []
    for output in (GROUPED, {}):
        model = fitted(corpus, **output, loss="bce", epochs=1, learning_rate=1e-9, initial="random")
        bias = model.network_.output.bias
        biases.append(bias[np.argsort(model.network_.output.order)] if output else bias)
    np.testing.assert_allclose(*biases, atol=1e-6)
    assert np.ptp(biases[0]) > 0.1


#: A network that learns everything in its training.
RANDOM = {"initial": "random", "embedding_lr_multiplier": 10.0}
#: A softmax over 25 labels, few negatives.
SOFTMAX = {"output": "dense", "loss": "softmax", "n_samples": 6, "n_codewords": 4, "index_every": 7}
SPARSE_SOFTMAX = SOFTMAX | {"output": "fixed-fan-in"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_learns_by_the_softmax(corpus, sampler):
    model = fitted(corpus, **SOFTMAX, sampler=sampler, epochs=30, learning_rate=1e-2, dropout=0.0, **RANDOM)
    result = model.evaluate(corpus.features, corpus.labels, ks=(1, 2))
    assert result["P@1"] > 0.8 and result["nDCG@2"] > 0.7
    assert list(model.network_.output.parameters) == ["output.weights"]
    updates = model.history_.index_updates
    assert [u["step"] for u in updates] == ([*range(0, 300, 7)] if sampler in (*MIDX_KINDS, *BASELINES) else [])
    if sampler in MIDX_KINDS:
        assert updates[0]["share"] == 1 and 0 < updates[1]["share"] <= 1 and updates[-1]["share"] < 0.5


@pytest.mark.parametrize("sampler", ["none", "uniform", "unigram", "sphere", "midx-pq", "midx-rq"])
@pytest.mark.parametrize("output", ["fixed-fan-in", "group-shared"])
def test_sparse_outputs_learn_by_the_softmax(corpus, tmp_path, output, sampler):
    """All connections stay where they are, without rewiring; the model comes back from a file to the bit."""
    more = SOFTMAX | {"output": output, "group_size": 4, "sampler": sampler, "rewire_fraction": 0.0}
    model = fitted(corpus, **more, epochs=40, learning_rate=1e-2, dropout=0.0, **RANDOM)
    result = model.evaluate(corpus.features, corpus.labels, ks=(1, 2))
    assert result["P@1"] > 0.75 and result["nDCG@2"] > 0.65
    assert model.history_.epochs[-1]["loss"] < 0.7 * model.history_.epochs[0]["loss"]
    updates = [u["step"] for u in model.history_.index_updates]
    assert updates == ([*range(0, 400, 7)] if sampler in (*MIDX_KINDS, *BASELINES) else [])
    model.save(tmp_path / "model")
    loaded = train.Classifier.load(tmp_path / "model", device="cpu")
    assert same_bits(weights(loaded), weights(model))
    for got, want in zip(loaded.top_k(corpus.features, 3), model.top_k(corpus.features, 3), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("output", ["fixed-fan-in", "group-shared", "unstructured"])
def test_clipping_that_clips_nothing_changes_no_softmax(corpus, output):
    """With clip, the layer stores its scores: the loss and the weights are the same up to rounding."""
    few = SOFTMAX | {"output": output, "group_size": 4, "epochs": 1, "learning_rate": 1e-3, "dropout": 0.0}
    plain, clipped = (fitted(corpus, **few, clip=clip) for clip in (None, 1e6))
    np.testing.assert_allclose(plain.history_.losses, clipped.history_.losses, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"residual": "popularity"}, {"residual": "exact"}, {"correction": "importance", "mask_hits": True}]
)
def test_options_of_the_sampler_arrive(corpus, changes):
    plain, other = (fitted(corpus, **SOFTMAX | more, sampler="midx-rq", epochs=1) for more in ({}, changes))
    assert not same_bits(weights(plain), weights(other)) and np.isfinite(other.history_.losses).all()


def test_only_the_rows_that_occur_are_updated(corpus):
    few = SMALL | SOFTMAX | {"sampler": "uniform", "n_samples": 3, "epochs": 1}
    model = train.Classifier(**few).fit(corpus.features[:2], corpus.labels[:2])
    moved, label_rows = np.flatnonzero(weights(model)["output.weights"].any(axis=1)), corpus.labels[:2].indices
    assert model.history_.steps == 1 and set(label_rows) < set(moved) and len(moved) <= len(label_rows) + 6 < 25


def test_only_the_labels_that_occur_are_updated_in_a_sparse_output(corpus):
    """Two steps of two rows. Labels without points may be drawn, but their score of -1e30 gives them no gradient."""
    few = (
        SMALL | SPARSE_SOFTMAX | {"sampler": "unigram", "n_samples": 3, "epochs": 1, "batch_size": 2, "rewire_every": 9}
    )
    model = train.Classifier(**few).fit(corpus.features[:4], corpus.labels[:4])
    seen, moved = corpus.labels[:4].indices, np.flatnonzero(weights(model)["output.values"].any(axis=1))
    assert model.history_.steps == 2 and len(moved) > 3 and set(moved) <= set(seen)
    bias = weights(model)["output.bias"]
    assert (np.delete(bias, seen) == np.float32(-1e30)).all() and (bias[moved] != 0).all()


@pytest.mark.parametrize("more", [{}, SOFTMAX])
def test_contexts_are_what_the_output_layer_sees(corpus, more):
    model, (features, _) = fitted(corpus, epochs=2, **more), (corpus.features, corpus.labels)
    h, out = model.encode(features), np.empty((300, model.network_.width), np.float32)
    assert model.encode(features, out=out) is out and h.shape == (300, 16 if more else 32) and (h == out).all()
    layer = model.network_.output
    dense = layer.weights if more else np.zeros((25, 32), np.float32)
    if not more:
        np.put_along_axis(dense, layer.layer.indices.astype(int), layer.values, axis=1)
    scores, ids = model.top_k(features, 3)
    want = h @ dense.T + (0 if more else layer.bias)
    np.testing.assert_allclose(scores, np.take_along_axis(want, ids.astype(int), 1), rtol=1e-4, atol=1e-5)
    assert np.abs(scores).max() > 0.01 and model.encode(features[:0]).shape == (0, h.shape[1])
    with pytest.raises(ValueError, match="out must have shape"):
        model.encode(features, out=out[:5])


def test_index_is_updated_once_an_epoch(corpus):
    model = fitted(corpus, **SOFTMAX | {"index_every": None}, sampler="midx-rq", epochs=3)
    assert [u["step"] for u in model.history_.index_updates] == [0, 10, 20]


def _fifty_steps(threads, features, labels, output):
    import numba
    import threadpoolctl

    numba.set_num_threads(threads)
    with threadpoolctl.threadpool_limits(threads):
        more = {"softmax": SOFTMAX, "sparse softmax": SPARSE_SOFTMAX}.get(output)
        more = {"output": output} if more is None else more | {"sampler": "midx-rq"}
        model = train.Classifier(**SMALL | more | {"epochs": 5}).fit(features, labels)
    assert model.history_.steps == 50
    return weights(model)


@pytest.fixture(scope="module")
def processes():
    """Two fresh ones, which compute with one thread and with two."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as one, ProcessPoolExecutor(1, context) as two:
        yield one, two


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("output", ["dense", "fixed-fan-in", "softmax", "sparse softmax"])
def test_same_bits_with_one_and_two_threads(corpus, output, processes):
    running = [
        process.submit(_fifty_steps, threads, corpus.features, corpus.labels, output)
        for threads, process in enumerate(processes, 1)
    ]
    assert same_bits(*(future.result() for future in running))


def test_seed_decides(corpus):
    first, again, other = (fitted(corpus, epochs=1, seed=s) for s in (1, 1, 2))
    assert same_bits(weights(first), weights(again)) and not same_bits(weights(first), weights(other))


@pytest.mark.parametrize(
    "more",
    [
        {},
        SOFTMAX | {"sampler": "none"},
        SOFTMAX | {"sampler": "midx-rq", "index_every": 2},
        SPARSE_SOFTMAX | {"sampler": "none"},
        SPARSE_SOFTMAX | {"sampler": "midx-rq", "index_every": 2},
        SPARSE_SOFTMAX | {"output": "group-shared", "group_size": 4, "sampler": "none"},
        SPARSE_SOFTMAX | {"output": "group-shared", "group_size": 4, "sampler": "unigram"},
    ],
)
@pytest.mark.cuda
def test_trains_on_cuda(corpus, more):
    """The loop, whole, through the CUDA path (in the simulator: a few rows)."""
    small = {"embedding": 4, "intermediate": 6, "fan_in": 3, "batch_size": 4, "epochs": 1, "seed": 6}
    features, labels = corpus.features[:12], corpus.labels[:12, :9]
    models = [train.Classifier(**SMALL | small | more | {"device": d}).fit(features, labels) for d in ("cpu", "cuda")]
    assert models[1].device_ == "cuda" and models[1].history_.steps == 3
    np.testing.assert_allclose(models[0].history_.losses, models[1].history_.losses, rtol=1e-3)
    assert models[1].predict(features, 2).shape == (12, 2)


def test_budget_stops_training(corpus, ticking):
    """After the first step, whose seconds may go into compiling, and two of a quarter of a second each."""
    history = fitted(corpus, epochs=100, budget_seconds=0.3, initial="random").history_
    assert (history.stopped, history.seconds, history.first_step_seconds, history.steps) == ("budget", 0.5, 0.25, 3)


def test_after_epoch_sees_a_model_that_predicts(corpus):
    seen = []
    model = train.Classifier(**SMALL | {"epochs": 3})
    model.fit(
        corpus.features,
        corpus.labels,
        after_epoch=lambda e, h: seen.append((e, h.steps, model.predict(corpus.features[:2], 1))),
    )
    assert [(e, steps) for e, steps, _ in seen] == [(0, 10), (1, 20), (2, 30)]


def test_scikit_learn_manners():
    model = train.Classifier(fan_in=8)
    assert model.get_params()["fan_in"] == 8 and model.set_params(fan_in=4) is model and model.fan_in == 4
    assert repr(model) == "Classifier(fan_in=4)"
    assert train.Classifier(**model.get_params()).get_params() == model.get_params()
    with pytest.raises(ValueError, match="parameter must be one of .*'fan_in'.* got 'width'"):
        model.set_params(width=3)


def test_progress_shows_loss_and_memory(corpus, capsys):
    """Into a file or a pipe: a plain line for every tenth of the steps."""
    fitted(corpus, epochs=3, progress=True)
    shown = capsys.readouterr().err
    assert "\r" not in shown and [line.split("  ")[0] for line in shown.splitlines()] == [
        f"step {step} of 30 ({step / 30:.0%})" for step in range(3, 31, 3)
    ]
    assert all("loss=" in line and "GiB=" in line for line in shown.splitlines())


def test_rows_without_features_or_labels(corpus):
    features, labels = corpus.features.tolil(), corpus.labels.tolil()
    features[0], labels[1] = 0, 0
    model = train.Classifier(**SMALL | {"epochs": 1}).fit(features.tocsr(), labels.tocsr())
    assert np.isfinite(model.history_.losses[0])
    assert model.predict(scipy.sparse.csr_matrix((2, 60), dtype=np.float32), 3).shape == (2, 3)
    assert model.predict(corpus.features[:0], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            {"output": "wide"},
            ValueError,
            "output must be one of 'dense', 'bottleneck', 'unstructured', 'fixed-fan-in', 'group-shared', got 'wide'",
        ),
        ({"loss": "mse"}, ValueError, "loss must be one of"),
        ({"fan_in": 33}, ValueError, r"fan_in must be between 1 and 32 \(the width of the layer below is 32\), got 33"),
        ({"fan_in": 17, "intermediate": None}, ValueError, "the width of the layer below is 16"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, got float"),
        ({"embedding": True}, TypeError, "embedding must be an integer"),
        ({"dropout": 1.0}, ValueError, "dropout must lie in"),
        ({"learning_rate": 0}, ValueError, "learning_rate must lie in"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must lie in"),
        ({"budget_seconds": -1}, ValueError, "budget_seconds must lie in"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"rewire_fraction": 1.5}, ValueError, r"rewire_fraction must lie in \[0, 1\], got 1.5"),
        ({"rewire_fraction": -0.1}, ValueError, "rewire_fraction must lie in"),
        ({"rewire_every": 0}, ValueError, "rewire_every must be at least 1"),
        ({"rewire_until": 2}, ValueError, "rewire_until must lie in"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"decay": "cosine"}, ValueError, "decay must be one of 'linear', 'plateau'"),
        ({"warm_up": -1}, ValueError, "warm_up must be at least 0"),
        ({"validation_fraction": 1}, ValueError, "validation_fraction must lie in"),
        (
            {"fan_in": 17},
            ValueError,
            "fan_in must be at most half the width of the layer below, 16, got 17: a label may need",
        ),
        ({"fan_in": 17, "output": "unstructured"}, ValueError, "got 17: output='unstructured' draws"),
        (
            {"output": "group-shared", "group_size": 26},
            ValueError,
            r"group_size must be between 1 and 25 \(n_labels = 25\)",
        ),
        ({"group_size": 0}, ValueError, "group_size must be at least 1"),
        *(
            ({name: 99999999999}, ValueError, f"{name} must be between 1 and 2147483647, got 99999999999")
            for name in ("embedding", "intermediate", "bottleneck")
        ),
        ({"tfidf": "yes"}, ValueError, "tfidf must be 'auto', True or False, got 'yes'"),
        ({"grouping": "size"}, ValueError, "grouping must be one of 'similar', 'frequency', 'random', got 'size'"),
        ({"weight_dtype": "float16"}, ValueError, "weight_dtype must be one of 'float32', 'bfloat16', got 'float16'"),
        (
            {"weight_dtype": "bfloat16"},
            ValueError,
            "weight_dtype='bfloat16' needs output='group-shared', got 'fixed-fan-in'",
        ),
        ({"embedding_lr_multiplier": 0}, ValueError, "embedding_lr_multiplier must lie in"),
        ({"intermediate_lr_multiplier": -1}, ValueError, "intermediate_lr_multiplier must lie in"),
        (
            {"sampler": "uniform"},
            ValueError,
            "sampler='uniform' needs loss='softmax', got loss='squared-hinge'",
        ),
        (
            SOFTMAX | {"sampler": "best"},
            ValueError,
            "sampler must be one of 'none', 'uniform', .*'midx-rq', got 'best'",
        ),
        (
            {"loss": "softmax", "sampler": "uniform", "output": "unstructured"},
            ValueError,
            "sampler='uniform' needs another output than 'unstructured'; use output='fixed-fan-in'",
        ),
        (
            {"loss": "softmax", "sampler": "uniform", "output": "group-shared", "weight_dtype": "bfloat16"},
            ValueError,
            "sampler='uniform' updates single labels, which needs weight_dtype='float32'",
        ),
        (
            {"loss": "softmax", "sampler": "midx-rq", "n_codewords": 4, "residual": "exact"},
            ValueError,
            "residual='exact' needs output='dense' or 'bottleneck', got 'fixed-fan-in'",
        ),
        (
            {"loss": "softmax", "sampler": "midx-rq", "n_codewords": 4, "intermediate": 1 << 23},
            ValueError,
            "a dense matrix of at most 134,217,728 numbers, which would have 209,715,200; use a narrower layer below "
            "the output, or sampler='uniform'",
        ),
        (SOFTMAX | {"n_samples": 0}, ValueError, "n_samples must be at least 1, got 0"),
        (
            SOFTMAX | {"sampler": "midx-rq", "n_codewords": 26},
            ValueError,
            r"n_codewords must be between 1 and 25 \(there are 25 labels\), got 26",
        ),
        (
            SOFTMAX | {"sampler": "midx-pq", "embedding": 15},
            ValueError,
            "sampler='midx-pq' halves the output weights: their width must be even, got 15",
        ),
        (SOFTMAX | {"residual": "none"}, ValueError, "residual must be one of"),
        (SOFTMAX | {"correction": "none"}, ValueError, "correction must be one of"),
        (SOFTMAX | {"mask_hits": 1}, TypeError, "mask_hits must be True or False, got 1"),
        (SOFTMAX | {"index_every": 0}, ValueError, "index_every must be at least 1, got 0"),
        ({"memory_limit": 0}, ValueError, "memory_limit must be at least 1"),
        ({"device": "gpu"}, ValueError, "device must be 'auto', 'cpu' or 'cuda', got 'gpu'"),
    ],
)
def test_bad_parameters(corpus, params, error, message):
    with pytest.raises(error, match=message):
        fitted(corpus, **params)


def poisoned(matrix, value):
    matrix = matrix.copy()
    matrix.data[matrix.indptr[7]] = value
    return matrix


def poisoned_dense(matrix):
    matrix = matrix.toarray()
    matrix[7, 3] = np.inf
    return matrix


def outside(matrix):
    matrix = matrix.copy()
    matrix.indices[matrix.indptr[7]] = matrix.shape[1]
    return matrix


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x.toarray()[0], y), ValueError, r"X must be a matrix, got shape \(60,\)"),
        (lambda x, y: (x.toarray() * 1j, y), ValueError, "Complex data not supported: X is complex"),
        (lambda x, y: (x * 1j, y), ValueError, "Complex data not supported: X is complex"),
        (lambda x, y: (poisoned_dense(x), y), ValueError, "X must be finite as float32, got NaN or infinity in row 7"),
        (lambda x, y: (x, None), ValueError, "requires y to be passed"),
        (lambda x, y: (x, [[5, 7]] * 300), ValueError, "got 5 in it; convert lists of .* MultiLabelBinarizer"),
        (lambda x, y: (x, [[5, 7], [1]] * 150), ValueError, "0/1 matrix .*; convert lists of label ids"),
        (lambda x, y: (x, -y.toarray()), ValueError, "0/1 matrix .*, got -1 in it"),
        (lambda x, y: (x, y[:5]), ValueError, "X and y must have the same number of rows"),
        (lambda x, y: (x[:0], y[:0]), ValueError, "at least one row"),
        (lambda x, y: (x[:, :0], y), ValueError, r"X has 0 feature\(s\) \(shape=\(300, 0\)\) while a minimum of 1"),
        (lambda x, y: (poisoned(x, np.nan), y), ValueError, "X must be finite, got NaN or infinity in row 7"),
        (lambda x, y: (poisoned(x, np.inf), y), ValueError, "X must be finite, got NaN or infinity in row 7"),
        (lambda x, y: (x, poisoned(y, np.nan)), ValueError, "y must be finite"),
        (lambda x, y: (x, y.toarray() * 1j), ValueError, "0/1 matrix .*, got complex"),
        (lambda x, y: (outside(x), y), ValueError, "X is not a valid CSR matrix"),
        (lambda x, y: (x, outside(y)), ValueError, "y is not a valid CSR matrix"),
    ],
)
def test_bad_data(corpus, change, error, message):
    with pytest.raises(error, match=message):
        train.Classifier(**SMALL).fit(*change(corpus.features, corpus.labels))


def test_one_column_is_one_label(corpus):
    """Of a sparse matrix; a dense column is a vector of classes."""
    ones = scipy.sparse.csr_matrix((np.arange(300) % 3 == 0).astype(int)[:, None])
    model = train.Classifier(**SMALL | {"epochs": 1}).fit(corpus.features, ones)
    assert model.label_counts_.tolist() == [100] and model.predict(corpus.features).shape == (300, 1)
    assert model.score(corpus.features, ones) == pytest.approx(1 / 3)


def as_weights(matrix, negative=False):
    """Features that are weights already, as `TfidfVectorizer` makes them."""
    matrix = matrix.copy()
    matrix.data = np.random.default_rng(0).uniform(0.01, 1, matrix.nnz).astype(np.float32)
    matrix.data[::2] *= -1 if negative else 1
    return matrix


@pytest.mark.parametrize("negative", [False, True])
def test_features_that_are_weights_are_taken_as_they_are(corpus, tmp_path, capsys, negative):
    x = as_weights(corpus.features, negative)
    auto, off = (
        train.Classifier(**SMALL | {"epochs": 2, "tfidf": how}).fit(x, corpus.labels) for how in ("auto", False)
    )
    assert auto.tfidf_ is None and same_bits(weights(auto), weights(off)) and capsys.readouterr().err == ""
    auto.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model", device="cpu")
    assert again.tfidf_ is None and again.tfidf == "auto" and (again.predict(x, 5) == auto.predict(x, 5)).all()
    auto.set_params(progress=True, epochs=1).fit(x, corpus.labels)
    assert capsys.readouterr().err.count("X has weights, not counts (one is ") == 1
    with pytest.raises(ValueError, match="X must contain counts.*, got .*; "):
        auto.set_params(tfidf=True).fit(x, corpus.labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool])
def test_features_that_are_counts_are_weighed(corpus, tmp_path, dtype):
    x = corpus.features.astype(dtype)
    auto, on = (train.Classifier(**SMALL | {"epochs": 1, "tfidf": how}).fit(x, corpus.labels) for how in ("auto", True))
    assert auto.tfidf_ is not None and same_bits(weights(auto), weights(on))
    auto.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model", device="cpu")
    assert (again.tfidf_.idf_ == auto.tfidf_.idf_).all() and (again.predict(x, 5) == auto.predict(x, 5)).all()
    for model in auto, again:
        with pytest.raises(ValueError, match="X must contain counts \\(whole numbers\\), got 0"):
            model.predict(as_weights(corpus.features))


def test_counts_are_looked_for_in_the_whole_matrix(corpus):
    x = corpus.features.astype(np.float32)
    x.data[-1] = 1.5
    assert fitted(corpus, epochs=1).tfidf_ is not None
    assert train.Classifier(**SMALL | {"epochs": 1}).fit(x, corpus.labels).tfidf_ is None
    model = fitted(corpus, epochs=1)
    before = model.network_
    with pytest.raises(ValueError, match=r"validation X must have counts like X, got 1\.5; use tfidf=False"):
        model.fit(corpus.features, corpus.labels, validation=(x, corpus.labels))
    assert model.network_ is before


UNSEEN = [0, 3, 4, 24]
LAST = [
    *(
        {"output": output, "loss": loss}
        for output in ("dense", "unstructured", "fixed-fan-in")
        for loss in ("squared-hinge", "bce")
    ),
    *({"output": "group-shared", "group_size": 4, "grouping": by} for by in GROUPINGS),
    {"output": "group-shared", "group_size": 4, "weight_dtype": "bfloat16"},
    *(SOFTMAX | {"sampler": sampler} for sampler in ("none", "uniform", "unigram", "midx-rq")),
]


@pytest.mark.parametrize("more", LAST, ids=lambda more: "-".join(map(str, more.values())))
def test_labels_without_a_point_come_last(corpus, tmp_path, more):
    """After every label that has points, by id; also when the model comes back from a file, and after a rewiring."""
    labels = corpus.labels.tolil()
    labels[:, UNSEEN] = 0
    labels = labels.tocsr()
    params = {"epochs": 6, "learning_rate": 1e-2, "rewire_every": 10, "rewire_until": 1.0}
    model = train.Classifier(**SMALL | params | more).fit(corpus.features, labels)
    assert (np.flatnonzero(model.label_counts_ == 0) == UNSEEN).all()
    scores, ids = model.top_k(corpus.features, 25)
    assert (
        (ids[:, -4:] == UNSEEN).all() and (scores[:, -4:] == np.float32(-1e30)).all() and (scores[:, :-4] > -1e3).all()
    )
    assert (model.top_k(corpus.features, 22)[1] == ids[:, :22]).all()
    model.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model", device="cpu")
    for got, want in zip(again.top_k(corpus.features, 25), (scores, ids), strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.isfinite(list(model.evaluate(corpus.features, labels).values())).all()


@pytest.mark.parametrize("more", [{}, GROUPED | {"group_size": 2}, SOFTMAX | {"sampler": "uniform", "n_samples": 3}])
@pytest.mark.cuda
def test_labels_without_a_point_come_last_on_cuda(corpus, more):
    small = {"embedding": 4, "intermediate": 6, "fan_in": 3, "batch_size": 6, "epochs": 1, "device": "cuda"}
    labels = corpus.labels[:12, :9].tolil()
    labels[:, [0, 3]] = 0
    scores, ids = (
        train.Classifier(**SMALL | small | more).fit(corpus.features[:12], labels.tocsr()).top_k(corpus.features[:6], 9)
    )
    unseen = np.flatnonzero(labels.tocsr().getnnz(axis=0) == 0)
    assert (
        set(unseen) >= {0, 3}
        and (ids[:, -len(unseen) :] == unseen).all()
        and (scores[:, -1] == np.float32(-1e30)).all()
    )


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # of NumPy
@pytest.mark.parametrize(
    "more",
    [
        {"output": "dense"},
        {"output": "fixed-fan-in"},
        SOFTMAX,
        *(SOFTMAX | {"sampler": s} for s in ("uniform", "midx-rq")),
    ],
    ids=lambda more: more.get("sampler", more.get("loss", more["output"])),
)
def test_overflow_stops_training_and_is_named(corpus, more):
    with pytest.raises(TrainingError, match=r"step \d+: .*(embedding\.|intermediate\.|output\.|output layer)"):
        fitted(corpus, **more, learning_rate=1e30, epochs=2)


@pytest.mark.parametrize("sampler", ["unigram", "midx-pq"])
def test_a_sampler_that_counts_labels_wants_some(corpus, sampler):
    """And what was fitted before stays."""
    model = fitted(corpus, **SOFTMAX, sampler=sampler, epochs=1)
    before = model.network_
    with pytest.raises(
        ValueError, match=f"y must have labels in the training rows: sampler='{sampler}' needs their counts"
    ):
        model.fit(corpus.features, corpus.labels[:, :] * 0)
    assert model.network_ is before


@pytest.mark.cuda
def test_a_model_loads_where_its_sampler_can_not_draw(corpus, tmp_path):
    fitted(corpus, **SOFTMAX, sampler="sphere", epochs=1).save(tmp_path / "model")
    loaded = train.Classifier.load(tmp_path / "model", device="cuda")
    assert loaded.device_ == "cuda"
    with pytest.raises(ValueError, match="sampler='sphere' is a baseline for the CPU alone; use device='cpu'"):
        loaded.fit(corpus.features, corpus.labels)


def test_bad_prediction_requests(corpus):
    with pytest.raises(ValueError, match="not fitted yet"):
        train.Classifier().predict(corpus.features)
    model = fitted(corpus, epochs=1)
    with pytest.raises(ValueError, match="X has 59 features, but Classifier is expecting 60 features as input"):
        model.predict(corpus.features[:, :59])
    with pytest.raises(ValueError, match=r"k must be between 1 and 25 \(n_labels = 25\), got 26"):
        model.predict(corpus.features, 26)
    with pytest.raises(
        TypeError, match=r"a SciPy sparse matrix as in fit, got ndarray; use scipy.sparse.csr_matrix\(X\)"
    ):
        model.predict(corpus.features.toarray())


def test_bad_files_to_save_in(corpus, tmp_path):
    model = fitted(corpus, epochs=1)
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file in it"):
        model.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere/m cannot be written: there is no such folder"):
        model.save(tmp_path / "nowhere" / "m")
    with pytest.raises(ValueError, match="label_names must have one name per label, 25 in all, got 3"):
        model.save(tmp_path / "m", ["a", "b", "c"])
    with pytest.raises(TypeError, match="label_names must be a sequence of names, got the str 'aaa"):
        model.save(tmp_path / "m", "a" * 25)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("params", [{}, {"output": "dense", "tfidf": False}])
def test_save_and_load(corpus, tmp_path, params):
    model, path = fitted(corpus, epochs=1, **params), tmp_path / "model.safetensors"
    names = [f"label {i}" for i in range(25)]
    model.save(path, names)
    again = train.Classifier.load(path, device="cpu")
    assert again.label_names_ == names and again.get_params() == model.get_params()
    for got, want in zip(again.top_k(corpus.features, 3), model.top_k(corpus.features, 3), strict=True):
        assert np.array_equal(got, want)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_bad_model_files(corpus, tmp_path):
    model, path = fitted(corpus, epochs=1), tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no model file"):
        train.Classifier.load(path)
    model.save(path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(checkpoint.ModelFileError, match="truncated or not a safetensors"):
            train.Classifier.load(path)
    arrays, description = {"a": np.zeros(2, np.float32)}, {"params": {}}
    checkpoint.save(path, "language-model", arrays, description)
    with pytest.raises(checkpoint.ModelFileError, match="contains a 'language-model' model, not 'classifier'"):
        train.Classifier.load(path)
    checkpoint.save(path, "classifier", arrays, description)
    with pytest.raises(checkpoint.ModelFileError, match="does not contain a complete Classifier"):
        train.Classifier.load(path)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("output.indices", (3, 2), 32, r"indices must lie in \[0, 32\), got 32"),
        ("output.indices", (3, slice(None)), 5, "indices must not repeat an input"),
        ("output.values", (0, 0), np.nan, r"output.values must be finite, got nan at \[0, 0\]"),
    ],
)
def test_model_file_with_wild_numbers(corpus, tmp_path, name, place, value, message):
    """Kernels trust the indices of a layer: a bad one must not get that far."""
    path = tmp_path / "model.safetensors"
    fitted(corpus, epochs=1).save(path)
    arrays, description = checkpoint.load(path, "classifier")
    arrays = dict(arrays)
    arrays[name][place] = value
    checkpoint.save(path, "classifier", arrays, description)
    with pytest.raises(checkpoint.ModelFileError, match=message):
        train.Classifier.load(path)


def test_save_keeps_the_parameters_of_the_fit(corpus, tmp_path):
    path = tmp_path / "model.safetensors"
    model = fitted(corpus, epochs=np.int64(1))
    model.set_params(embedding=512, tfidf=False).save(path)
    again = train.Classifier.load(path)
    assert again.embedding == SMALL["embedding"] and again.tfidf
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_newer_and_foreign_model_files(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, path)
    with pytest.raises(checkpoint.ModelFileError, match="was not written by sparsemax_nb"):
        checkpoint.load(path, "classifier")
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.save(path, "classifier", {"a": np.zeros(2, np.float32)}, {})
    monkeypatch.undo()
    with pytest.raises(checkpoint.ModelFileError, match="version 99"):
        checkpoint.load(path, "classifier")


def test_failed_save_leaves_the_old_file(corpus, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        fitted(corpus, epochs=1).save(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.safetensors"]


def test_dense_features_train_and_predict(corpus, tmp_path):
    """In memory, memory-mapped, as float64 or as a list: the same model; no embedding is made."""
    x = corpus.features.toarray()
    np.save(tmp_path / "x.npy", x)
    params = SMALL | {"epochs": 20, "learning_rate": 0.02, "dropout": 0.0}
    models = [
        train.Classifier(**params).fit(form, corpus.labels)
        for form in (x, np.load(tmp_path / "x.npy", mmap_mode="r"), x.astype(np.float64))
    ]
    assert set(weights(models[0])) == {
        "intermediate.weights", "intermediate.bias", "output.indices", "output.values", "output.bias",
    }  # fmt: skip
    assert models[0].score(x, corpus.labels) > 0.8
    assert all(same_bits(weights(models[0]), weights(model)) for model in models[1:])
    models[0].save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model", device="cpu")
    assert np.array_equal(again.predict(x, 3), models[0].predict(x, 3))
    with pytest.raises(TypeError, match="X must be a dense array as in fit"):
        again.predict(corpus.features)
    with pytest.raises(TypeError, match="X must be a SciPy sparse matrix as in fit"):
        fitted(corpus, epochs=1).predict(x)


def test_features_are_not_copied(monkeypatch):
    """Neither CSR with many entries nor dense features: the training data may fill most of the memory."""
    import tracemalloc

    monkeypatch.setattr("sparsemax_nb.train.start.MAX_ELEMENTS", 1 << 22)

    n, many = 100_000, 60
    ids = (np.arange(n * many, dtype=np.int32).reshape(n, many) % many + np.arange(n, dtype=np.int32)[:, None]) % 500
    ones, indptr = np.ones(n * many, np.float32), np.arange(0, n * many + 1, many)
    for features in (scipy.sparse.csr_matrix((ones, ids.ravel(), indptr), (n, 500)), ones.reshape(n, many)):
        size = features.nbytes if isinstance(features, np.ndarray) else features.data.nbytes + features.indices.nbytes
        labels = scipy.sparse.csr_matrix((np.ones(n), np.arange(n) % 5, np.arange(n + 1)), (n, 5))
        model = train.Classifier(**SMALL | {"epochs": 1, "batch_size": 4000, "intermediate": 8, "fan_in": 4})
        model.fit(features[:8000], labels[:8000])
        tracemalloc.start()
        model.fit(features, labels).predict(features)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size >= 24e6 and peak < 0.8 * size


def test_validation_by_fraction_sets_rows_aside(corpus):
    model = fitted(corpus, validation_fraction=0.2, epochs=3)
    assert model.n_points_ == 240 and model.history_.steps == 3 * 8
    assert {"P@1", "P@3", "nDCG@5", "R@3", "F1@5", "MAP@3", "PSP@5"} <= set(model.history_.epochs[0]["validation"])
    best = max(record["validation"]["P@3"] for record in model.history_.epochs)
    assert model.history_.epochs[model.history_.best_epoch]["validation"]["P@3"] == best


def test_bad_validation_sets(corpus):
    x, y = corpus.features, corpus.labels
    for bad in ((x[:, :5], y), (x, y[:, :5]), (x[:9], y), (x.toarray(), y)):
        with pytest.raises(
            ValueError, match="validation X and y must have the columns of X and y, and the same number of rows"
        ):
            train.Classifier(**SMALL).fit(x, y, validation=bad)


def test_a_large_fan_in_needs_no_rewiring(corpus):
    assert fitted(corpus, fan_in=17, rewire_fraction=0.0, epochs=1).history_.steps == 10


@pytest.mark.parametrize(("width", "fan_in"), [(33, 16), (200, 64)])
def test_the_default_fan_in_fits_the_layer_below(corpus, width, fan_in):
    model = fitted(corpus, fan_in=None, intermediate=width, epochs=1)
    assert model.network_.output.layer.indices.shape == (25, fan_in)


def test_the_learning_rate_decays_with_and_without_validation(corpus):
    def rates(decay, validation=None):
        model = train.Classifier(**SMALL, decay=decay, epochs=3, min_learning_rate=0)
        model.fit(corpus.features, corpus.labels, validation=validation)
        return [epoch["learning_rate"] for epoch in model.history_.epochs]

    linear = rates("linear")
    assert linear[0] > 1.9 * linear[1] > 3.8 * linear[2] > 0
    assert rates("linear", (corpus.features[:9], corpus.labels[:9])) == linear
    assert rates("plateau") == 3 * [5e-4]  # without validation, nothing stops improving


def test_validation_without_labels_is_refused(corpus):
    x, y = corpus.features, corpus.labels
    for few in (y[:0], y * 0):
        with pytest.raises(ValueError, match="validation must have rows with labels"):
            train.Classifier(**SMALL).fit(x, y, validation=(x[: few.shape[0]], few))


def test_labels_of_another_width_are_refused_before_predicting(corpus, monkeypatch):
    model = fitted(corpus, epochs=1)
    monkeypatch.setattr(model, "predict", None)
    for method in (model.score, model.evaluate):
        with pytest.raises(ValueError, match=r"y must have shape \(300, 25\), got \(300, 24\)"):
            method(corpus.features, corpus.labels[:, :24])


def test_a_fit_that_is_refused_leaves_the_model_alone(corpus):
    model = fitted(corpus, epochs=1)
    before = model.predict(corpus.features, 5)
    with pytest.raises(train.MemoryLimitError):
        model.set_params(memory_limit=1).fit(corpus.features[:, :9], corpus.labels[:, :5])
    assert np.array_equal(model.predict(corpus.features, 5), before)


def test_an_interrupted_fit_can_be_saved_and_loaded(corpus, tmp_path):
    """Also where the parameters were changed between two fits."""
    model = fitted(corpus, epochs=1)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.set_params(fan_in=4).fit(corpus.features, corpus.labels, after_epoch=stop)
    model.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model", device="cpu")
    assert again.fan_in == 4 and np.array_equal(again.predict(corpus.features, 5), model.predict(corpus.features, 5))


def test_two_points_are_enough(corpus):
    x, y = corpus.features[:2], corpus.labels[:2]
    figures = train.Classifier(**SMALL | {"epochs": 1}).fit(x, y, validation=(x, y)).evaluate(x, y)
    assert "P@1" in figures and "PSP@1" not in figures


def test_numbers_too_large_for_float32_are_said(corpus):
    x = corpus.features.toarray().astype(np.float64)
    x[4, 2] = 1e300
    for features in (x, scipy.sparse.csr_matrix(x)):
        with pytest.raises(ValueError, match="X must be finite as float32, got NaN or infinity in row 4"):
            train.Classifier(**SMALL | {"tfidf": False}).fit(features, corpus.labels)


@pytest.mark.parametrize(
    ("rate", "output", "name"),
    [
        ("intermediate_lr_multiplier", "fixed-fan-in", "intermediate.weights"),
        ("intermediate_lr_multiplier", "unstructured", "intermediate.weights"),
        ("embedding_lr_multiplier", "fixed-fan-in", "embedding.table"),
        ("embedding_lr_multiplier", "dense", "embedding.table"),
    ],
)
def test_a_layer_learns_at_its_own_rate(corpus, rate, output, name):
    first = train.Classifier(**SMALL | {"output": output})
    first._check_params()
    params = first._network_params(*(m.shape[1] for m in (corpus.features, corpus.labels)), False, "cpu")
    start = first._new_network(params).parameters[name]

    def moved(value):
        """How far the second step moves the layer (in the first, the zeros of the output pass nothing down)."""
        one, params = (
            (corpus.features[:30], corpus.labels[:30]),
            {"epochs": 2, "rewire_fraction": 0, "initial": "random"},
        )
        model = train.Classifier(**SMALL | params | {"output": output, rate: value}).fit(*one)
        return np.abs(model.network_.parameters[name] - start).max()

    assert moved(1.0) > 1e-5 and np.isclose(moved(0.25), moved(1.0) / 4, rtol=1e-2)


def test_a_bottleneck_learns_at_the_learning_rate(corpus):
    slow, fast = (weights(fitted(corpus, output="bottleneck", intermediate_lr_multiplier=rate)) for rate in (0.1, 1.0))
    assert same_bits(slow, fast)


def test_rewiring_changes_the_connections_and_is_noted(corpus):
    still, moved = (fitted(corpus, epochs=2, rewire_fraction=f, rewire_every=5, rewire_until=1.0) for f in (0.0, 0.2))
    assert not still.history_.rewirings
    assert moved.history_.rewirings == [{"step": step, "share": 0.2} for step in (5, 10, 15, 20)]
    before, after = (weights(model)["output.indices"] for model in (still, moved))
    assert 0.1 < (before != after).mean() < 0.7
