"""The k best of each row of a score matrix."""

import numpy as np


def top_k(scores, k):
    """The k largest scores per row and their columns: score descending, then column ascending."""
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids.astype(np.int32)
