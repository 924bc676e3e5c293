"""DS-Softmax, a sparse mixture of sparse experts (S. Liao, T. Chen, T. Lin, D. Zhou, C. Wang, arXiv 1901.10668).

``g = softmax(gate h);  k = argmax g;  logits = g_k rows h`` for the classes that expert k holds. `Experts`, `Groups` and
`ByClass` are those of ``core/experts.py``. What is called (B,) lies in the order of the batch, h (B, d) and the flat scores
in that of the groups.
"""

import numpy as np

from .full_softmax import log_softmax


def gate(logits):
    """softmax(logits) (B, E), the expert with the largest one of each row, the first of equal ones, and that value."""
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities = e / e.sum(1, keepdims=True)
    chosen = logits.argmax(1).astype(np.int32)
    return probabilities, chosen, probabilities[np.arange(len(chosen)), chosen]


def slices(groups, experts):
    """For each expert: its rows of the batch, in their order, and its classes."""
    for k in range(len(experts.starts) - 1):
        yield slice(*groups.starts[k : k + 2]), slice(*experts.starts[k : k + 2])


def scores(h, groups, experts):
    """The products of each row of h with all rows of its expert, flat."""
    parts = [
        (h[batch].astype(np.float64) @ experts.weights[classes].T).reshape(-1)
        for batch, classes in slices(groups, experts)
    ]
    return np.concatenate(parts)


def _best(scores, value, held, k):
    """The k best of one row's scores: their softmax, times the gate value inside, and their classes."""
    probabilities, ids, z = np.zeros(k), np.full(k, -1, np.int32), value * scores.astype(np.float64)
    best = np.argsort(-z, kind="stable")[:k]
    if len(z):
        probabilities[: len(best)] = np.exp(log_softmax(z[None])[0, best])
    ids[: len(best)] = held[best]
    return probabilities, ids


def _stacked(answers, k):
    """Probabilities and ids, (B, k) each."""
    probabilities, ids = zip(*answers, strict=True) if answers else ((), ())
    return np.reshape(probabilities, (-1, k)), np.reshape(ids, (-1, k)).astype(np.int32)


def answer(h, gate_rows, experts, k):
    """The k best classes of the expert that the gate picks: their probabilities in its softmax, and ids, (B, k).

    Score descending, then class ascending; missing ones have id -1 and probability 0.
    """
    _, chosen, values = gate(h.astype(np.float64) @ gate_rows.T)
    held = [slice(*experts.starts[expert : expert + 2]) for expert in chosen]
    scores = [experts.weights[rows].astype(np.float64) @ query for rows, query in zip(held, h, strict=True)]
    return _stacked([_best(*row, experts.ids[rows], k) for *row, rows in zip(scores, values, held, strict=True)], k)


def select(scores, values, groups, experts, k):
    """The same, (B, k), from the scores (flat) of a batch that is sorted by expert, and the gate's values (B,)."""
    answers = [None] * len(values)
    for place, (b, expert) in enumerate(zip(groups.order, groups.experts, strict=True)):
        held = experts.ids[slice(*experts.starts[expert : expert + 2])]
        answers[b] = _best(scores[slice(*groups.offsets[place : place + 2])], values[b], held, k)
    return _stacked(answers, k)
