"""Losses of a linear layer that never store the logits: the packages Cut Cross-Entropy and Liger (Triton, CUDA only).

`run()` returns the loss and its gradients with respect to h, w and bias, rounded to the dtype of the computation.
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
    """Run once to compile the kernels; an exception of the package makes it `Unavailable`."""
    try:
        run()
    except Exception as problem:
        raise Unavailable(f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}") from problem
    return Peer(run, note)


def cut_cross_entropy(h, w, targets):
    """`linear_cross_entropy` in bfloat16; it skips gradients of blocks with all probabilities below 2^-12.

    The package does not support a bias; its gradient is None.
    """
    device = device_of(h)
    loss = _package("cut_cross_entropy", "cut-cross-entropy", device).linear_cross_entropy
    run = differentiated(lambda h, w, classes: loss(h, w, classes), (h, w), targets, "bfloat16")
    return _peer(lambda: (*run(), None), "bfloat16, linear_cross_entropy; without bias")


def liger(h, w, bias, targets, dtype):
    """`LigerFusedLinearCrossEntropyLoss`: chunks of rows, gradients computed in the forward pass."""
    device = device_of(h)
    loss = _package("liger_kernel.transformers", "liger-kernel", device).LigerFusedLinearCrossEntropyLoss()
    run = differentiated(lambda h, w, bias, classes: loss(w, h, classes, bias), (h, w, bias), targets, dtype)
    return _peer(run, f"{dtype}, LigerFusedLinearCrossEntropyLoss")
