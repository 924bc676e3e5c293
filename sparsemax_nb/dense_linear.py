"""A linear layer over dense features (sentence embeddings, for example), trained one label against the rest.

`sparse_linear_step` for features of which none is zero: each label has a weight for every feature, and one dense
product finds the labels whose score violates the margin. `FullSoftmax` ranks the labels by their scores.
"""

import math

import numpy as np

from .core import check, sparse
from .core.annotations import Array, SparseMatrix
from .core.device import asarray, backend_of
from .feature_choice import check_squares
from .linear import checked_duals, checked_weights


def dense_linear_step(
    h: Array,
    weights: Array,
    bias: Array,
    labels: SparseMatrix | sparse.Labels,
    duals: SparseMatrix | tuple[Array, Array, Array] | None = None,
    *,
    C: float = 1.0,  # noqa: N803
    slack: float = 0.5,
    search: bool = True,
    sample_weight: Array | None = None,
) -> tuple[float, tuple[Array, Array, Array]]:
    """Dual coordinate descent over a batch, one label against the rest; the weights change in place.

    For every label, it minimizes over its weights w ``|w|^2 / 2 + sum_i C_i max(0, m_i - y_i s_i)^2``. The score of row
    i is ``s_i = h_i . w + bias``, and C_i = C sample_weight[i]; y_i = 1 and m_i = 1 for the row's own labels, else
    y_i = -1 and m_i = 1 - slack. With the dual variable a >= 0 of row i and a label:
    ``G = y s - m + a / (2 C_i);  a <- max(0, a - G / (|h|^2 + 1 / (2 C_i)));  w += (change of a) y h``. If the weight
    of a row is 0, its dual variables become 0, and it has no influence. A step visits a row's own labels, the labels
    with a dual variable, and those whose score before the step is above ``slack - 1``. Each label visits its rows in
    order. Start with weights of 0 and a bias of -1, the target score of negatives without slack. Repeated over all
    rows, with the dual variables of the previous pass, it converges; a few passes are enough.

    Parameters
    ----------
    h : (B, d) float32
        Any features; most often centred and scaled to length 1.
    weights : (L, d) float32
        Overwritten.
    bias : (L,) float32
        Does not change.
    labels : (B, L) SciPy sparse matrix or `Labels`
        The rows' own labels.
    duals : (B, L) SciPy sparse matrix, or a tuple (indptr, labels, values)
        The dual variables of these rows, as an earlier step returned them; None in the first pass.
    C : float
        Above 0: the weight of the errors.
    slack : float
        In [0, 1.999]: negatives only need a score of at most ``slack - 1``.
    search : bool
        False leaves out the search for labels whose score violates the margin, and so the product: the step visits only
        a row's own labels and those with a dual variable, which takes a small part of the time. A few such passes after
        each pass with a search save half of the searches.
    sample_weight : (B,) integers or floats, optional
        At least 0: the weight of each row, 1 if not given. Pass the same weights of a row in every pass.

    Returns
    -------
    loss : float
        The sum of ``sample_weight max(0, m - y s)^2`` over the visited pairs, each before its own change.
    duals : tuple
        The new dual variables that are above zero: ``(indptr (B + 1,) int64, labels (n,) int32, values (n,) float32)``.

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; h, weights, bias, duals or sample weights not finite; duals or sample weights
        negative; C or slack out of range. Nothing has changed.
    FloatingPointError
        The loss is NaN or infinite: scores overflowed. The weights have changed: restore them before you continue.

    Notes
    -----
    At most 64 MiB of scores exist at a time.

    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008, section 3,
    which visits all rows, one at a time; R. Babbar, B. Schoelkopf, "DiSMEC: distributed sparse machines for extreme
    multi-label classification", WSDM 2017. The slack and the choice of rows by the scores before the step are ours. On
    one device, the bits do not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import dense_linear_step
    >>> h, labels = np.eye(2, 3, dtype=np.float32), scipy.sparse.eye(2, format="csr")
    >>> weights, bias, duals = np.zeros((2, 3), np.float32), np.full(2, -1, np.float32), None
    >>> for _ in range(3):
    ...     loss, duals = dense_linear_step(h, weights, bias, labels, duals, C=10, slack=0)
    >>> (h @ weights.T + bias).round(2)
    array([[ 0.9, -1. ],
           [-1. ,  0.9]], dtype=float32)
    """
    device = check.same_device(h=h, weights=weights, bias=bias)
    h = check.array("h", h, np.float32, ("B", "d"), finite=True)
    n_rows, d = h.shape
    weights = check.array("weights", weights, np.float32, ("L", d), writeable=True, finite=True)
    n_labels = check.integer("n_labels (the length of weights)", weights.shape[0], 1, 2**31 - 1)
    bias = check.array("bias", bias, np.float32, (n_labels,), finite=True)
    for name, array in (("h", h), ("bias", bias)):
        if isinstance(array, np.ndarray) and np.may_share_memory(weights, array):
            raise ValueError(f"weights is written to, so it must not share memory with {name}; pass a copy")
    check_squares("h", h.reshape(-1), np.arange(n_rows + 1) * d)
    check.number("C", C, 0, math.inf, open_ends=True)
    check.number("slack", slack, 0, 1.999)
    search = check.flag("search", search)
    labels = sparse.as_labels(labels, n_rows, device, n_labels)
    sparse.sorted_keys(labels, n_labels)
    duals = checked_duals(duals, n_rows, n_labels, device)
    row_weights = asarray(checked_weights(sample_weight, n_rows), device)
    step = backend_of(device, "dense_linear").step
    loss, new = step(h, labels, duals, weights, bias, row_weights, float(C), float(slack), search)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}: the scores overflowed; scale h or the weights down")
    return float(loss), tuple(new)
