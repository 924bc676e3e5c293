"""Losses of a linear layer whose logits are never stored, from their packages: Cut Cross-Entropy and Liger, Triton on CUDA.

`run()` gives the loss and its gradients by h, w and bias, rounded to the numbers that are computed with.
"""

import importlib

from sparsemax_nb.internals import SIMULATOR, device_of

from . import Peer, Unavailable
from .pytorch import differentiated


def _package(module, package, device):
    if device != "cuda" or SIMULATOR:
        raise Unavailable("its Triton kernels need a GPU")
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise Unavailable(f"no {module}: {problem} (pip install {package})") from None


def _peer(run, note):
    """The peer, once its kernels have been compiled: what a package can raise then is its own affair."""
    try:
        run()
    except Exception as problem:
        raise Unavailable(f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}") from problem
    return Peer(run, note)


def cut_cross_entropy(h, w, targets):
    """Its `linear_cross_entropy` by default: bfloat16; gradients of blocks whose probabilities are all below 2^-12 are left out.

    Without a bias, which the package does not take; the gradient by it is None.
    """
    device = device_of(h)
    loss = _package("cut_cross_entropy", "cut-cross-entropy", device).linear_cross_entropy
    run = differentiated(lambda h, w, classes: loss(h, w, classes), (h, w), targets, "bfloat16")
    return _peer(lambda: (*run(), None), "bfloat16, linear_cross_entropy; it takes no bias")


def liger(h, w, bias, targets, dtype):
    """`LigerFusedLinearCrossEntropyLoss` by default: some rows at a time, all gradients computed in the forward pass."""
    device = device_of(h)
    loss = _package("liger_kernel.transformers", "liger-kernel", device).LigerFusedLinearCrossEntropyLoss()
    run = differentiated(lambda h, w, bias, classes: loss(w, h, classes, bias), (h, w, bias), targets, dtype)
    return _peer(run, f"{dtype}, LigerFusedLinearCrossEntropyLoss")
