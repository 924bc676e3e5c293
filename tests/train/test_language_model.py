"""`LanguageModel` as its users call it: fit, evaluate, generate, save, resume with the same bits, refuse bad input."""

import math

import numba
import numpy as np
import pytest

from sparsemax_nb import data, train
from sparsemax_nb.core import checkpoint
from sparsemax_nb.core.device import to_numpy
from tests.helpers import ForeignArray, assert_close, threads


class Items:
    """Has what a pandas Series has, too."""

    def items(self):
        """Not the items of `Sequences`."""


SMALL = {
    "width": 8, "n_layers": 2, "sampler": "none", "n_samples": 5, "n_codewords": 3, "index_every": 3, "dropout": 0.1,
    "learning_rate": 0.02, "batch_size": 4, "unroll": 6, "epochs": 3, "seed": 2, "device": "cpu", "progress": False,
}  # fmt: skip
CYCLE = (np.arange(400) % 7).astype(np.int32)
TEXT = np.random.default_rng(0).zipf(1.5, 300).clip(1, 20).astype(np.int32) - 1
VOCABULARY = data.Vocabulary(["the", "cat", "sat", "on", "a", "mat", "<unk>", "<eos>"])


class Stop(Exception):
    """What ends a run early in these tests."""


def fit(tokens=TEXT, stop_after_epoch=None, changes=(), **more):
    def after(epoch, _):
        if epoch == stop_after_epoch:
            raise Stop

    return train.LanguageModel(**SMALL | dict(changes)).fit(tokens, after_epoch=after, **more)


def lines(*sequences, n_words=9):
    vocabulary = data.Vocabulary([f"item{i}" for i in range(n_words)])
    indptr = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    return data.Sequences("lines", vocabulary, indptr, np.array(sum(map(list, sequences), []), np.int32))


def broken(indptr):
    """Six items, and an indptr that does not fit them."""
    sequences = lines([1, 2, 3, 4, 5, 6])
    return data.Sequences("broken", sequences.vocabulary, np.array(indptr, np.int64), sequences.items)


def bits(model):
    return {name: to_numpy(a).tobytes() for name, a in model.network_.parameters.items()}


@pytest.fixture(scope="module")
def cycle_model():
    """A model that knows what follows what."""
    return fit(CYCLE, changes={"epochs": 8, "dropout": 0.0, "sampler": "uniform"})


# ---------------------------------------------------------------- learning and measuring


@pytest.mark.parametrize("sampler", ["none", "log-uniform", "midx-rq", "midx-pq"])
@pytest.mark.parametrize("tied", [True, False])
def test_learns_a_cycle(sampler, tied):
    model = fit(CYCLE, changes={"epochs": 8, "dropout": 0.0, "sampler": sampler, "tied": tied}, validation=CYCLE[:90])
    figures = model.evaluate(CYCLE)
    assert figures["perplexity"] < 1.5 and figures["top-1"] > 0.95 and figures["tokens"] == 399
    assert figures["log-likelihood"] == pytest.approx(-math.log(figures["perplexity"]))
    history = model.history_
    assert history.epochs[-1]["validation"]["perplexity"] < history.epochs[0]["validation"]["perplexity"]
    assert 0 < history.output_seconds < history.seconds
    assert len(history.index_updates) == (8 * 17 // 3 + 1 if sampler.startswith("midx") else 0)


def test_learns_the_next_item():
    cycles = lines(*[[(start + i) % 9 for i in range(length)] for start in range(9) for length in (2, 4, 7)] * 3)
    parts = data.leave_last_out(cycles)
    model = fit(parts[0], changes={"epochs": 30, "dropout": 0.0}, validation=parts[1])
    figures = model.evaluate(parts[2])
    assert figures["tokens"] == 81 and figures["top-1"] > 0.9 and figures["Recall@10"] == 1.0
    assert figures["NDCG@10"] > 0.9 and model.vocabulary_ is cycles.vocabulary
    h, targets = model.encode(parts[2])
    assert h.shape == (81, 8) and (targets == parts[2].items[parts[2].indptr[1:] - 1]).all()


def test_evaluation_is_that_of_the_definition(cycle_model):
    """One stream: the context of a token is everything before it."""
    h, targets = cycle_model.encode(TEXT[:60] % 7)
    assert (targets == (TEXT[1:60] % 7)).all()
    scores = h.astype(np.float64) @ cycle_model.network_.output.weights.astype(np.float64).T
    log_p = (scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))[np.arange(59), targets]
    assert cycle_model.perplexity(TEXT[:60] % 7) == pytest.approx(np.exp(-log_p.mean()), rel=1e-4)


def test_measuring_between_two_steps_changes_nothing():
    seen = fit(validation=TEXT[:100], changes={"stop_after": 9, "decay": "linear"})
    last = dict(bits(fit(changes={"decay": "linear"})).items())
    if seen.history_.best_epoch == 2:
        assert bits(seen) == last
    state = seen.network_.state
    seen.perplexity(TEXT)
    seen.generate(TEXT[:3], 2)
    assert seen.network_.state is state
    assert [e["loss"] for e in seen.history_.epochs] == [e["loss"] for e in fit().history_.epochs]


def test_linear_decay():
    rates = [epoch["learning_rate"] for epoch in fit(changes={"min_learning_rate": 1e-3}).history_.epochs]
    steps = 13  # an epoch: 75 positions of 4 streams, 6 at a time
    wanted = [max(0.02 * (1 - (steps * (epoch + 1) - 1) / (3 * steps)), 1e-3) for epoch in range(3)]
    assert rates == pytest.approx(wanted)


def test_contexts_into_a_file(cycle_model, tmp_path):
    whole, targets = cycle_model.encode(CYCLE)
    h, same = cycle_model.encode(CYCLE, out=tmp_path / "h.npy")
    assert isinstance(h, np.memmap) and h.dtype == np.float16 and (same == targets).all()
    np.testing.assert_array_equal(h, whole.astype(np.float16))
    assert [p.name for p in tmp_path.iterdir()] == ["h.npy"]
    out = np.empty(whole.shape, np.float16)
    assert cycle_model.encode(CYCLE, out=out)[0] is out and (out == h).all()
    with pytest.raises(ValueError, match=r"out must have shape \(399, 8\)"):
        cycle_model.encode(CYCLE, out=out[:5])


def test_contexts_of_every_item():
    """Those that training predicts, at most `unroll` = 6 a line; the last of each line as without `every`."""
    some = lines([1, 2, 3], [4], [5, 6, 7, 8, 0, 1, 2, 3, 4], [0, 1])
    model = fit(some, changes={"epochs": 1})
    h, targets = model.encode(some, every=True)
    assert targets.tolist() == [2, 3, 8, 0, 1, 2, 3, 4, 1]
    assert (model.targets(some, every=True) == targets).all() and h.shape == (9, 8)
    last, of_last = model.encode(some)
    assert of_last.tolist() == [3, 4, 1] == model.targets(some).tolist()
    np.testing.assert_allclose(h[[1, 7, 8]], last, atol=1e-6)
    shorter, _ = model.encode(lines([1, 2], [0, 1]))
    np.testing.assert_allclose(h[[0, 8]], shorter, atol=1e-6)
    for tokens in (TEXT[:30] % 7, CYCLE):
        got, want = model.encode(tokens, every=True), model.encode(tokens)
        assert (got[0] == want[0]).all() and (got[1] == want[1]).all() and (model.targets(tokens) == want[1]).all()


# ---------------------------------------------------------------- generation


def test_generate(cycle_model):
    prompt = np.array([5, 6, 0, 1], np.int32)
    assert cycle_model.generate(prompt, 9, temperature=0).tolist() == [2, 3, 4, 5, 6, 0, 1, 2, 3]
    assert (cycle_model.generate(prompt, 9, top_k=1) == cycle_model.generate(prompt, 9, temperature=0)).all()
    hot = {seed: cycle_model.generate(prompt, 40, temperature=50.0, seed=seed).tolist() for seed in (1, 2)}
    assert hot[1] != hot[2] and len(set(hot[1])) == 7
    assert hot[1] == cycle_model.generate(prompt, 40, temperature=50.0, seed=1).tolist()
    assert len({*cycle_model.generate(prompt, 40, temperature=50.0, top_k=2).tolist()}) <= 7
    assert cycle_model.generate(prompt, 0).shape == (0,)


def test_drawn_words_follow_their_probabilities(cycle_model):
    prompt = np.array([0], np.int32)
    h = cycle_model.encode(np.array([0, 0], np.int32))[0].astype(np.float64)
    scores = (h @ cycle_model.network_.output.weights.T)[0] / 2.5
    p = np.exp(scores - np.logaddexp.reduce(scores))
    drawn = [cycle_model.generate(prompt, 1, temperature=2.5, seed=seed)[0] for seed in range(2000)]
    counts = np.bincount(drawn, minlength=7)
    assert ((counts - 2000 * p) ** 2 / (2000 * p)).sum() < 22.5  # chi-square, 6 degrees of freedom: 0.1 %


def test_generate_words(capsys):
    text, _ = VOCABULARY.encode([["the", "cat", "sat", "on", "a", "mat"]] * 30)
    model = fit(text, changes={"epochs": 30, "dropout": 0.0}, vocabulary=VOCABULARY)
    assert model.generate("the cat", 5, temperature=0) == "sat on a mat \n"
    assert model.generate("the dog cat", 1, temperature=0) and "not in the vocabulary: dog" in capsys.readouterr().err
    words = " ".join(model.generate("the", 300, temperature=99.0, seed=3).split())
    assert "<unk>" not in words and "mat" in words
    with pytest.raises(
        ValueError, match="prompt must have a word of the vocabulary .8 words., got only unknown words: .'dog', 'ran'."
    ):
        model.generate("dog ran")
    with pytest.raises(ValueError, match="prompt must have at least one word"):
        model.generate("")
    with pytest.raises(ValueError, match=r"prompt must lie in \[0, 8\), got 9"):
        model.generate(np.array([9], np.int32))
    only = fit(TEXT * 0, changes={"epochs": 1, "sampler": "none"}, vocabulary=data.Vocabulary(["<unk>"]))
    with pytest.raises(ValueError, match="no word can be generated: the vocabulary has only '<unk>'"):
        only.generate("<unk>")
    with pytest.raises(TypeError, match="fitted without a vocabulary"):
        fit(changes={"epochs": 1}).generate("the cat")


# ---------------------------------------------------------------- files


def test_a_prompt_is_split_as_the_text_was(tmp_path):
    vocabulary = data.Vocabulary(["ab", ",", "c", "<eos>", "<unk>"], raw=True)
    text, _ = vocabulary.encode([["ab", ",", "c"]] * 40)
    model = fit(text, changes={"epochs": 20, "dropout": 0.0}, vocabulary=vocabulary)
    model.save(tmp_path / "m")
    again = train.LanguageModel.load(tmp_path / "m", device="cpu")
    words = vocabulary.decode(model.generate(np.array([0, 1, 2], np.int32), 4, temperature=0))
    assert again.vocabulary_.raw and again.generate("ab,c", 4, temperature=0) == " ".join(words).replace("<eos>", "\n")


def test_padding_leaves_other_rows_alone():
    """Lazy Adam moves the rows that a step touches: those of the items in it, whatever the lines' lengths."""
    model = fit(lines([1, 2, 3], [4, 5, 6, 7, 8], n_words=12), changes={"sampler": "unigram", "epochs": 4})
    start = train.LanguageModel(**SMALL)._new_network(12, "cpu").embedding.table
    moved = (model.network_.embedding.table != start)[:, 1:].any(1)  # the first coordinate is the bias
    assert moved[1:9].all() and not moved[[0, 9, 10, 11]].any()


def test_save_and_load(tmp_path):
    text = TEXT % 8
    model, path = fit(text, vocabulary=VOCABULARY, changes={"tied": False, "epochs": 1}), tmp_path / "m.safetensors"
    model.save(path)
    again = train.LanguageModel.load(path, device="cpu")
    assert bits(again) == bits(model) and again.vocabulary_.words == VOCABULARY.words
    assert again.perplexity(text) == model.perplexity(text) and again.get_params() == model.get_params()
    with pytest.raises(train.ModelFileError, match="contains a 'language model' model, not 'classifier'"):
        train.Classifier.load(path)
    arrays, description = checkpoint.load(path, "language model")
    checkpoint.save(path, "language model", dict(arrays), description | {"words": ["the", "cat"]})
    with pytest.raises(train.ModelFileError, match="words must have n_words = 8 words, got 2"):
        train.LanguageModel.load(path)
    with pytest.raises(ValueError, match="not fitted yet; call fit.tokens. first"):
        train.LanguageModel().save(path)


@pytest.mark.parametrize(
    "changes", [{"sampler": "midx-rq"}, {"decay": "plateau", "tied": False}, {"sampler": "sphere"}]
)
def test_resumed_run_ends_in_the_same_bits(tmp_path, changes):
    more = {"validation": TEXT[:80], "changes": changes}
    whole, path = fit(**more), tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(stop_after_epoch=1, checkpoint_path=path, checkpoint_seconds=0, **more)
    again = fit(checkpoint_path=path, resume=True, **more)
    assert bits(again) == bits(whole) and again.history_.losses == whole.history_.losses


def test_resumed_inside_an_epoch(tmp_path, ticking):
    """The checkpoint holds the state of the streams, not only the weights."""
    changes = {"sampler": "unigram", "budget_seconds": 0.25}
    short = fit(checkpoint_path=tmp_path / "c", changes=changes)
    assert short.history_.stopped == "budget" and short.history_.steps == 2
    again = fit(checkpoint_path=tmp_path / "c", resume=True, changes={"sampler": "unigram"})
    assert again.history_.steps == 39 and bits(again) == bits(fit(changes={"sampler": "unigram"}))


def test_checkpoints_of_another_run(tmp_path):
    path = tmp_path / "c"
    with pytest.raises(Stop):
        fit(stop_after_epoch=0, checkpoint_path=path, checkpoint_seconds=0)
    other = TEXT.copy()
    other[7] = (other[7] + 1) % 20
    with pytest.raises(train.ModelFileError, match="written for different data"):
        fit(other, checkpoint_path=path, resume=True)
    with pytest.raises(train.ModelFileError, match="epochs was 3, not 4"):
        fit(checkpoint_path=path, resume=True, changes={"epochs": 4})
    with pytest.raises(train.ModelFileError, match="embedding.table must have shape"):  # of another vocabulary
        fit(checkpoint_path=path, resume=True, n_words=25)
    with pytest.raises(ValueError, match="already exists; continue from it"):
        fit(checkpoint_path=path)


def test_a_checkpoint_that_is_refused_leaves_the_model(tmp_path):
    model = fit(changes={"epochs": 1})
    before = bits(model)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(train.ModelFileError):
        model.fit(TEXT[:200], checkpoint_path=tmp_path / "junk", resume=True)
    assert bits(model) == before and model.n_words_ == 20


def test_same_seed_same_bits_with_any_number_of_threads():
    changes = {"sampler": "midx-rq"}
    with threads(numba.config.NUMBA_NUM_THREADS):
        first = bits(fit(changes=changes))
    with threads(1):
        assert bits(fit(changes=changes)) == first
    assert bits(fit(changes=changes | {"seed": 3})) != first


@pytest.mark.parametrize("changes", [{"sampler": "midx-rq"}, {"sampler": "none", "tied": False, "n_layers": 1}])
@pytest.mark.cuda
def test_three_steps_on_cuda(changes):
    few, small = TEXT[:36], {"width": 4, "batch_size": 2, "unroll": 6, "epochs": 1, "clip": 0.1}
    models = [fit(few, changes=small | changes | {"device": device}) for device in ("cpu", "cuda")]
    assert models[1].history_.steps == 3 and models[1].device_ == "cuda"
    assert models[1].history_.losses == pytest.approx(models[0].history_.losses, rel=1e-5)
    start = fit(few, changes=small | changes | {"learning_rate": 1e-30, "min_learning_rate": 0.0})
    for name, array in models[0].network_.parameters.items():
        moved = array.astype(np.float64) - start.network_.parameters[name]
        on_cuda = to_numpy(models[1].network_.parameters[name])
        assert np.abs(moved).max() > 1e-3 and np.abs(on_cuda - array).max() < 1e-3 * np.abs(moved).max() + 1e-6, name
    assert models[1].perplexity(few) == pytest.approx(models[0].perplexity(few), rel=1e-4)
    prompt = few[:3]
    assert (models[1].generate(prompt, 4, temperature=0) == models[0].generate(prompt, 4, temperature=0)).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("tokens", "more", "error", "message"),
    [
        (TEXT.astype(float), {}, TypeError, "tokens must hold integers, got float64"),
        (TEXT.reshape(2, -1), {}, ValueError, r"tokens must have shape \(n,\)"),
        (TEXT[:1], {}, ValueError, "tokens must have at least two tokens, got 1"),
        (TEXT[:4], {}, ValueError, "more than batch_size = 4 tokens, got 4; use a smaller batch_size"),
        (TEXT[:0], {"n_words": 5}, ValueError, "at least two tokens, got 0"),
        (TEXT - 1, {}, ValueError, r"tokens must lie in \[0, 19\), got -1"),
        (TEXT, {"n_words": 9}, ValueError, r"tokens must lie in \[0, 9\), got 19"),
        (TEXT, {"vocabulary": VOCABULARY}, ValueError, r"tokens must lie in \[0, 8\), got 19"),
        (TEXT, {"vocabulary": ["the"]}, TypeError, "vocabulary must be a Vocabulary, got list"),
        (
            TEXT % 8,
            {"vocabulary": VOCABULARY, "n_words": 9},
            ValueError,
            "n_words must be the length of the vocabulary, 8",
        ),
        (TEXT, {"validation": TEXT + 1}, ValueError, r"validation must lie in \[0, 20\), got 20"),
        (TEXT, {"validation": lines([1, 2])}, TypeError, "both be continuous text, or both Sequences"),
        (ForeignArray(TEXT), {"n_words": 20}, TypeError, "tokens must be a NumPy array, got one on cuda"),
        (Items(), {}, TypeError, "tokens must be a NumPy or CUDA array, got Items"),
        ([1, 2, 3], {}, TypeError, "tokens must be a NumPy or CUDA array, got list"),
        (broken([0, 5, 2, 6]), {}, ValueError, r"tokens.indptr must rise from 0 to len.tokens.items. = 6"),
        (broken([0, 3, 99]), {}, ValueError, "tokens.indptr must rise from 0"),
        (broken([1, 6]), {}, ValueError, "tokens.indptr must rise from 0"),
        (lines([1], [], [2]), {}, ValueError, "a sequence of at least two items, else nothing can be predicted"),
        (TEXT, {"changes": {"width": 0}}, ValueError, "width must be between 2 and 2147483647, got 0"),
        (TEXT, {"changes": {"tied": 1}}, TypeError, "tied must be True or False"),
        (TEXT, {"changes": {"decay": "cosine"}}, ValueError, "decay must be one of 'linear', 'plateau'"),
        (TEXT, {"changes": {"clip": 0}}, ValueError, "clip must lie in"),
        (TEXT, {"changes": {"width": 10**11}}, ValueError, "width must be between 2 and 2147483647"),
        (TEXT, {"changes": {"n_layers": 10**11}}, ValueError, "n_layers must be between 1 and 1000"),
        (TEXT, {"changes": {"sampler": "midx-pq", "width": 7}}, ValueError, "width must be even, got 7"),
        (TEXT, {"changes": {"sampler": "midx-rq", "n_codewords": 30}}, ValueError, "there are 20 words"),
        (TEXT, {"resume": True}, ValueError, "resume needs checkpoint_path"),
        (TEXT, {"checkpoint_seconds": -1}, ValueError, "checkpoint_seconds must lie in"),
        (TEXT, {"checkpoint_seconds": "5"}, TypeError, "checkpoint_seconds must be a number"),
    ],
)
def test_bad_input(tokens, more, error, message):
    with pytest.raises(error, match=message):
        fit(tokens, **more)


def test_tokens_that_the_model_does_not_know(cycle_model):
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 7\), got 19"):
        cycle_model.perplexity(TEXT)


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_nan_names_the_step_and_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "checkpoint"

    def spoil(epoch, _):
        if epoch == 1:
            model.network_.lstms[1].weights[0, 0] = np.nan

    model = train.LanguageModel(**SMALL)
    with pytest.raises(train.TrainingError, match="step 25: lstm1.weights holds NaN or infinity"):
        model.fit(TEXT, checkpoint_path=path, checkpoint_seconds=1e9, after_epoch=spoil)
    kept = checkpoint.load(path, "language model checkpoint")[0]
    assert "parameters/lstm1.weights" in kept


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_activations_that_overflow_are_named():
    def spoil(epoch, _):
        """Finite weights, but the inputs add infinity to a gate, and the previous step adds minus infinity."""
        lstm = model.network_.lstms[0]
        model.network_.embedding.table[:] = 10
        lstm.weights[:], lstm.recurrent[:] = 3e38, -3e38

    model = train.LanguageModel(**SMALL)
    with pytest.raises(train.TrainingError, match="step 13: lstm0.cells holds NaN or infinity"):
        model.fit(TEXT, after_epoch=spoil)


def test_gradients_of_float32_and_float64_agree_after_training(cycle_model):
    """Trained weights, not only random ones: contexts of the float32 network against the definition."""
    from tests.test_lstm import Layer, layer_forward

    p = {name: a.astype(np.float64) for name, a in cycle_model.network_.parameters.items()}
    x, zero = p["embedding.table"][CYCLE[:20, None]], np.zeros((1, 8))
    x[..., 0] = 0  # a word's bias
    for number in range(2):
        weights = (p[f"lstm{number}.{name}"] for name in ("weights", "recurrent", "bias"))
        x = layer_forward(Layer(x, *weights, zero, zero))[0]
    x[..., 0] = 1
    assert_close(cycle_model.encode(CYCLE[:21])[0], x[:, 0], 500)


def test_tokens_in_a_series():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    small = {
        "width": 8,
        "sampler": "none",
        "batch_size": 4,
        "unroll": 5,
        "epochs": 1,
        "device": "cpu",
        "progress": False,
    }
    tokens = np.arange(200, dtype=np.int32) % 7
    one, other = (train.LanguageModel(**small).fit(some, validation=some) for some in (tokens, pandas.Series(tokens)))
    assert one.history_.losses == other.history_.losses
    assert one.perplexity(tokens) == other.perplexity(pandas.Series(tokens))
    assert (one.generate(tokens[:5], 3) == other.generate(pandas.Series(tokens[:5]), 3)).all()
    with pytest.raises(TypeError, match="tokens must .*, got float64"):
        one.perplexity(pandas.Series([0.5, 1.0]))
