"""Alias tables give the probabilities they were made from, segment by segment."""

import numpy as np
import pytest

from sparsemax_nb.core.alias import alias_table
from sparsemax_nb.core.rng import Alias
from sparsemax_nb.reference.samplers import alias_probabilities

pytestmark = pytest.mark.quick


def probabilities(alias, first, stop):
    """Of one segment, as if it stood alone."""
    return alias_probabilities(Alias(alias.threshold[first:stop], alias.other[first:stop] - first))


@pytest.mark.parametrize("n", [1, 2, 3, 33, 1000, 65537])
def test_probabilities(n):
    weights = np.random.default_rng(n).pareto(1, n)
    weights[::7] = 0 if n > 1 else 1
    got = probabilities(alias_table(weights, [0, n]), 0, n)
    np.testing.assert_allclose(got, weights / weights.sum(), rtol=0, atol=3 / 2**32)
    assert not got[weights == 0].any(), "what has no weight is never drawn"


def test_segments_are_drawn_from_on_their_own():
    sizes = [3, 0, 1, 70, 5]
    indptr = np.cumsum([0, *sizes])
    weights = np.random.default_rng(1).random(indptr[-1])
    weights[-5:] = 0  # a segment without weight: uniform
    alias = alias_table(weights, indptr)
    for first, stop in zip(indptr[:-1], indptr[1:], strict=True):
        if first < stop:
            total = weights[first:stop].sum()
            want = weights[first:stop] / total if total else np.full(stop - first, 1 / (stop - first))
            assert ((alias.other[first:stop] >= first) & (alias.other[first:stop] < stop)).all()
            np.testing.assert_allclose(probabilities(alias, first, stop), want, rtol=0, atol=3 / 2**32)


def test_equal_weights_keep_their_column():
    alias = alias_table(np.full(8, 0.1), [0, 8])
    np.testing.assert_allclose(probabilities(alias, 0, 8), 1 / 8, rtol=0, atol=3 / 2**32)
