"""DS-Softmax, a sparse mixture of sparse experts (S. Liao, T. Chen, T. Lin, D. Zhou, C. Wang, arXiv 1901.10668).

``g = softmax(gate h);  k = argmax g;  logits = g_k rows h`` for the classes of expert k. `Experts`, `Groups` and
`ByClass` are defined in ``core/experts.py``. Arrays (B,) are in the order of the batch; h (B, d) and the flat scores
are sorted by expert, in the order of the groups.
"""

import numpy as np

from .full_softmax import log_softmax


def gate(logits):
    """softmax(logits) (B, E), the most probable expert of each row (ties: the first), and its probability."""
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities = e / e.sum(1, keepdims=True)
    chosen = logits.argmax(1).astype(np.int32)
    return probabilities, chosen, probabilities[np.arange(len(chosen)), chosen]


def slices(groups, experts):
    """For each expert: its rows of the batch, in order, and its classes."""
    for k in range(len(experts.starts) - 1):
        yield slice(*groups.starts[k : k + 2]), slice(*experts.starts[k : k + 2])


def scores(h, groups, experts):
    """The products of each row of h with all rows of its expert, flat."""
    parts = [
        (h[batch].astype(np.float64) @ experts.weights[classes].T).reshape(-1)
        for batch, classes in slices(groups, experts)
    ]
    return np.concatenate(parts)


def _best(scores, value, classes, k):
    """The k best classes of one row: their probabilities ``softmax(value scores)`` and their ids."""
    probabilities, ids = np.zeros(k), np.full(k, -1, np.int32)
    z = value * scores.astype(np.float64)
    best = np.argsort(-z, kind="stable")[:k]
    if len(z):
        probabilities[: len(best)] = np.exp(log_softmax(z[None])[0, best])
    ids[: len(best)] = classes[best]
    return probabilities, ids


def _stacked(answers, k):
    """Probabilities and ids of all rows, (B, k) each."""
    probabilities, ids = zip(*answers, strict=True) if answers else ((), ())
    return np.reshape(probabilities, (-1, k)), np.reshape(ids, (-1, k)).astype(np.int32)


def answer(h, gate_rows, experts, k):
    """The k best classes of the expert that the gate picks: their probabilities in its softmax, and ids, (B, k).

    Score descending, then class ascending; missing results have id -1 and probability 0.
    """
    _, chosen, values = gate(h.astype(np.float64) @ gate_rows.T)
    classes = [slice(*experts.starts[expert : expert + 2]) for expert in chosen]
    scores = [experts.weights[part].astype(np.float64) @ row for part, row in zip(classes, h, strict=True)]
    return _stacked([_best(*row, experts.ids[part], k) for *row, part in zip(scores, values, classes, strict=True)], k)


def select(scores, values, groups, experts, k):
    """`answer` from the flat scores of a batch sorted by expert and the gate's values (B,)."""
    answers = [None] * len(values)
    for position, (b, expert) in enumerate(zip(groups.order, groups.experts, strict=True)):
        classes = experts.ids[slice(*experts.starts[expert : expert + 2])]
        answers[b] = _best(scores[slice(*groups.offsets[position : position + 2])], values[b], classes, k)
    return _stacked(answers, k)
