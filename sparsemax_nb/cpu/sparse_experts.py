"""Training of a sparse mixture of sparse experts on the CPU; the twin of ``cuda/sparse_experts.py``."""

import math

import numpy as np
from numba import prange

from ..core import formulas, rng, threads
from ..core.device import cpu_formulas, njit, njit_parallel
from .ds_softmax import NAN, ONE, ZERO, largest_score, sum_exp, tile_extent, tiles
from .exp import ACCUMULATORS, exp, exp_nonpositive
from .matmul import FLOAT32, ITEM, NOT_TRANSPOSED, TRANSPOSED, find_blas, gemm
from .simd import inner
from .top_k import WORST

_f, _r = cpu_formulas(formulas), cpu_formulas(rng)
adam, lasso = _f.adam, _f.lasso
random_words, bell = _r.random_words, _r.bell
NOISE = rng.NOISE


@njit_parallel
def add_noise(seed, step, scale, logits):
    """Add scale times nearly normal random numbers to the logits (B, E)."""
    n_rows, n_experts = logits.shape
    for b in prange(n_rows):
        for k in range(n_experts):
            w0, w1, w2, w3 = random_words(seed, NOISE, step, np.uint64(b * n_experts + k))
            logits[b, k] += scale * bell(w0, w1, w2, w3)


@njit_parallel
def _gradient_of_rows(dscores, h, groups, experts, dweights, scalars):
    width = h.shape[1]
    alpha = scalars.ctypes.data
    beta, address_h, address_dweights, address_dscores = (
        alpha + ITEM,
        h.ctypes.data,
        dweights.ctypes.data,
        dscores.ctypes.data,
    )
    find_blas(scalars)
    firsts, tile_experts = tiles(experts.starts)
    for tile in prange(firsts.size):
        first = firsts[tile]
        n, start, size, row, n_rows = tile_extent(first, tile_experts[tile], groups.starts, experts.starts)
        if n_rows > 0:
            b, a = address_dscores + ITEM * (groups.offsets[row] + first - start), address_h + ITEM * row * width
            target = address_dweights + ITEM * first * width
            gemm(FLOAT32, NOT_TRANSPOSED, TRANSPOSED, width, n, n_rows, alpha, a, width, b, size, beta, target, width)
        else:
            dweights[first : first + n] = ZERO


def gradient_of_rows(dscores, h, groups, experts, dweights):
    """The gradient of the experts' rows (R, d): for expert k, its dscores matrix, transposed, times its rows of h."""
    with threads.one_blas_thread():
        _gradient_of_rows(dscores, h, groups, experts, dweights, np.array([1, 0, 0], np.float32))


@njit
def _gradient(scores, value, best, shift, weight, lanes):
    """``dz = weight exp(value (scores - best) + shift)``; returns ``sum((scores - best) dz)``.

    The scores are overwritten by ``value dz``. `lanes` (ACCUMULATORS,) is scratch.
    """
    whole, total = scores.size // ACCUMULATORS * ACCUMULATORS, ZERO
    lanes[:] = ZERO
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            s = scores[start + i] - best
            dz = weight * exp_nonpositive(value * s + shift)
            lanes[i] += dz * s
            scores[start + i] = value * dz
    for j in range(whole, scores.size):
        s = scores[j] - best
        dz = weight * exp_nonpositive(value * s + shift)
        total += dz * s
        scores[j] = value * dz
    for i in range(ACCUMULATORS):
        total += lanes[i]
    return total


@njit
def _find(ids, wanted):
    """The index of `wanted` in ascending ids, or -1."""
    low, high = 0, ids.size
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < ids.size and ids[low] == wanted else -1


@njit
def _row_loss(scores, value, classes, wanted, n_classes, scale):
    """Loss of one row and the gradient of its gate value; the scores are overwritten by their gradient.

    Everything is relative to the best score: a common offset cancels before anything is rounded. The loss of a label
    is ``log(total) + (largest - logit)``; logits are ``value (score - best) + shift + largest``, or 0 for absent
    classes.
    """
    lanes, n_wanted, n_absent = (
        np.empty(ACCUMULATORS, np.float32),
        np.float32(wanted.size),
        np.float32(n_classes - classes.size),
    )
    best = largest_score(scores, lanes) if classes.size > 0 else ZERO
    best = best if best > WORST else NAN
    largest = max(value * best, ZERO) if n_absent > ZERO else value * best
    shift = value * best - largest
    absent = n_absent * exp(-largest) if n_absent > ZERO else ZERO
    total = sum_exp(scores, value, best, shift, lanes) + absent
    log_total, below, n_missing = math.log(total), ZERO, n_wanted
    for i in range(wanted.size):
        index = _find(classes, wanted[i])
        if index >= 0:
            below += best - scores[index]
            n_missing -= ONE
    loss = n_wanted * log_total + value * below - (n_wanted - n_missing) * shift
    if n_missing > ZERO:
        loss += n_missing * largest
    dvalue = _gradient(scores, value, best, shift, n_wanted * scale / total, lanes) + scale * below
    if n_absent > ZERO:
        dvalue += best * (scale * (n_missing - n_wanted * absent / total))
    for i in range(wanted.size):
        index = _find(classes, wanted[i])
        if index >= 0:
            scores[index] -= value * scale
    return loss, dvalue


@njit_parallel
def _cross_entropy(values, labels, groups, experts, n_classes, scale, loss, dvalues, scores):
    indptr, offsets, starts = labels.indptr, groups.offsets, experts.starts
    for position in prange(values.size):
        b, k = groups.order[position], groups.experts[position]
        classes, wanted = experts.ids[starts[k] : starts[k + 1]], labels.indices[indptr[b] : indptr[b + 1]]
        row_scores = scores[offsets[position] : offsets[position + 1]]
        loss[b], dvalues[b] = _row_loss(row_scores, values[b], classes, wanted, n_classes, scale)


def cross_entropy(scores, values, labels, groups, experts, n_classes, scale, loss, dvalues, dscores):
    """``sum_labels(log(sum_c exp(g s_c) + n_absent) - g s_label)`` per row, and its gradients times `scale`.

    `dscores` may be `scores`.
    """
    if dscores is not scores:
        np.copyto(dscores, scores)
    _cross_entropy(values, labels, groups, experts, n_classes, scale, loss, dvalues, dscores)


@njit
def _balance(values, groups, load, dload):
    load[:] = ZERO
    for k in range(load.size):
        for position in range(groups.starts[k], groups.starts[k + 1]):
            load[k] += values[groups.order[position]]
    total, square, n_experts = ZERO, ZERO, np.float32(load.size)
    for k in range(load.size):
        total += load[k]
        square += load[k] * load[k]
    for k in range(load.size):
        dload[k] = np.float32(2) * n_experts * (load[k] * total - square) / (total * total * total)


def balance(values, groups, load, dload):
    """The sum of gate values per expert, (E,), and the gradient of its squared coefficient of variation."""
    _balance(values, groups, load, dload)


@njit_parallel
def gate_backward(probabilities, chosen, dvalues, dload, dlogits):
    """The gradient of the gate's logits (B, E), from that of the kept values (B,) and of the experts' loads (E,)."""
    for b in prange(chosen.size):
        k = chosen[b]
        upstream = (dvalues[b] + dload[k]) * probabilities[b, k]
        for j in range(dload.size):
            dlogits[b, j] = upstream * ((ONE if j == k else ZERO) - probabilities[b, j])


@njit_parallel
def class_sums(squares, by_class, sums):
    """The sum of `squares` (R,) over the rows of each class, (L,)."""
    for c in prange(sums.size):
        total = ZERO
        for i in range(by_class.indptr[c], by_class.indptr[c + 1]):
            total += squares[by_class.rows[i]]
        sums[c] = total


@njit(error_model="numpy")
def _adam_of_row(row, gradient, m, v, factor, rates):
    """A flat loop, compiled to vector code."""
    for i in range(row.size):
        row[i], m[i], v[i] = adam(row[i], gradient[i] + factor * row[i], m[i], v[i], rates)


@njit_parallel
def update(gradient, ids, class_squares, penalties, rates, moments, weights, squares):
    """Adam on the loss and the two group lassos, in place; `squares` (R,) are the sums of squares of the rows."""
    m, v = moments.m, moments.v
    class_lasso, expert_lasso, n_experts, epsilon = penalties
    flat, width = weights.reshape(-1), weights.shape[1]
    n = np.float32(width)
    for r in prange(weights.shape[0]):
        factor = lasso(class_lasso, squares[r], n, epsilon)
        factor += lasso(expert_lasso, class_squares[ids[r]], n_experts * n, epsilon)
        _adam_of_row(weights[r], gradient[r], m[r], v[r], factor, rates)
        squares[r] = inner(flat, r * width, flat, r * width, width)


@njit_parallel
def survivors(squares, by_class, least, keep):
    """Which rows are kept, (R,) uint8: squares >= least, and the largest of each class (ties: the first)."""
    for c in prange(by_class.indptr.size - 1):
        first, stop = by_class.indptr[c], by_class.indptr[c + 1]
        best = first
        for i in range(first, stop):
            row = by_class.rows[i]
            keep[row] = squares[row] >= least
            if squares[row] > squares[by_class.rows[best]]:
                best = i
        if first < stop:
            keep[by_class.rows[best]] = 1
