"""Reading a fitted model writes nothing to it: that is why any number of threads may do it at once."""

import numpy as np
import pytest

from tests.stress import entries


def snapshot(value, path="model"):
    """{path: object} of everything that hangs on an object, and {path: copy} of its arrays."""
    found, arrays = {path: value}, {}
    if isinstance(value, np.ndarray):
        return found, {path: value.copy()}
    if isinstance(value, dict):
        parts = [(f"{path}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{number}]", part) for number, part in enumerate(value)]
    else:
        parts = [(f"{path}.{name}", part) for name, part in getattr(value, "__dict__", {}).items()]
    for where, part in parts:
        more, copies = snapshot(part, where)
        found, arrays = found | more, arrays | copies
    return found, arrays


def assert_only_read(model, *calls):
    before, arrays = snapshot(model)
    assert arrays
    for call in calls:
        call()
    after, _ = snapshot(model)
    assert before.keys() == after.keys()
    assert not [path for path, value in before.items() if after[path] is not value]
    assert not [path for path, copy in arrays.items() if copy.tobytes() != after[path].tobytes()]


@pytest.mark.parametrize("number", range(len(entries.CLASSIFIERS)), ids=list(entries.CLASSIFIERS))
def test_classifier(number):
    model, x, y = entries.fitted_classifiers(0)[number]
    calls = [lambda: model.predict(x[:9], 3), lambda: model.evaluate(x, y)]
    if model.architecture_ == "network":
        calls.append(lambda: model.encode(x))
    assert_only_read(
        model, *calls, lambda: model.score(x[:7], y[:7]), lambda: entries.reloaded(model, type(model).load)
    )


@pytest.mark.parametrize("number", [0, 1])
def test_language_model(number):
    model, text = entries.fitted_language_models(0)[number]
    calls = [lambda: model.perplexity(text[:50]), lambda: model.encode(text), lambda: model.generate(text[:5], 4)]
    assert_only_read(model, *calls, lambda: model.targets(text), lambda: entries.reloaded(model, type(model).load))


def test_ds_softmax():
    model, contexts, targets = entries.fitted_ds_softmax(0)
    packed = model.pack()
    assert_only_read(model, lambda: model.evaluate(contexts, targets), model.pack)
    assert_only_read(packed, lambda: packed.top_k(contexts, 3), lambda: packed.top_k(contexts[:1], 3))
