"""Output layers for 100,000s of classes: hand-written kernels in Numba and numba.cuda, with a NumPy reference.

The modules number three methods: 1 is fixed fan-in layers, 2 is MIDX, 3 is DS-Softmax.
"""

from . import data, metrics, train
from .baselines import DSoftmax, LSHSampler, RFFSampler, SphereSampler, SVDSoftmax
from .co_occurrence import CoOccurrence, rerank
from .core.sparse import Labels
from .dense_linear import dense_linear_step
from .ds_softmax import PackedDSSoftmax
from .fixed_fan_in import (
    FixedFanIn,
    fixed_fan_in_backward,
    fixed_fan_in_forward,
    fixed_fan_in_step,
    fixed_fan_in_top_k,
)
from .full_softmax import FullSoftmax, softmax_cross_entropy, target_ranks
from .group_shared import GroupSharedFanIn
from .grouping import group_labels
from .linear import SparseLinear, sparse_linear_forward, sparse_linear_step, sparse_linear_top_k
from .midx import InvertedMultiIndex
from .neighbor_kernel import (
    NeighborKernel,
    nearest_neighbors,
    neighbor_kernel_forward,
    neighbor_kernel_step,
    neighbor_kernel_top_k,
)
from .optimizers import SGD, Adam
from .rewiring import rewire
from .sampled_softmax import sampled_softmax
from .samplers import LogUniformSampler, UniformSampler, UnigramSampler
from .sparse_experts import SparseExperts
from .train import DSSoftmax

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "CoOccurrence",
    "DSoftmax",
    "DSSoftmax",
    "FixedFanIn",
    "FullSoftmax",
    "GroupSharedFanIn",
    "InvertedMultiIndex",
    "LSHSampler",
    "Labels",
    "LogUniformSampler",
    "NeighborKernel",
    "PackedDSSoftmax",
    "RFFSampler",
    "SVDSoftmax",
    "SparseExperts",
    "SparseLinear",
    "SphereSampler",
    "UniformSampler",
    "UnigramSampler",
    "data",
    "dense_linear_step",
    "fixed_fan_in_backward",
    "fixed_fan_in_forward",
    "fixed_fan_in_step",
    "fixed_fan_in_top_k",
    "group_labels",
    "metrics",
    "nearest_neighbors",
    "neighbor_kernel_forward",
    "neighbor_kernel_step",
    "neighbor_kernel_top_k",
    "rerank",
    "rewire",
    "sampled_softmax",
    "softmax_cross_entropy",
    "sparse_linear_forward",
    "sparse_linear_step",
    "sparse_linear_top_k",
    "target_ranks",
    "train",
]
