"""Training with gradients written by hand: layers, the loop, metrics, estimators."""

from .checkpoint import ModelFileError
from .classifier import Classifier
from .loop import TrainingError
from .memory import MemoryLimitError
from .metrics import ndcg_at_k, precision_at_k, propensities, psp_at_k, recall_at_k

__all__ = [
    "Classifier",
    "MemoryLimitError",
    "ModelFileError",
    "TrainingError",
    "ndcg_at_k",
    "precision_at_k",
    "propensities",
    "psp_at_k",
    "recall_at_k",
]
