"""The metric of the scores: what it measures, and what it does where queries say nothing."""

import numpy as np
import pytest

from sparsemax_nb.core import metric

from ..helpers import normal

pytestmark = pytest.mark.quick


def test_length_in_the_metric_is_the_mean_square_of_the_scores():
    queries, vectors = normal(1, 40, 5) * np.float32(7), normal(2, 9, 5)
    factor, inverse = metric.score_metric(queries)
    np.testing.assert_allclose(factor @ inverse, np.eye(5), atol=1e-12)
    scale = np.square(queries).sum() / len(queries) / 5
    want = np.square(queries @ vectors.T).mean(axis=0) / scale + metric.RIDGE * np.square(vectors).sum(axis=1)
    np.testing.assert_allclose(np.square(vectors @ factor).sum(axis=1), want, rtol=1e-5)


@pytest.mark.parametrize("queries", [np.zeros((3, 4), np.float32), np.eye(1, 4, dtype=np.float32)])
def test_directions_that_no_query_shows_still_count(queries):
    factor, inverse = metric.score_metric(queries)
    assert np.isfinite(inverse).all() and np.linalg.svd(factor, compute_uv=False).min() > 0.9 * np.sqrt(metric.RIDGE)
