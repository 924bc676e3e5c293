"""Training with gradients written by hand: layers, the loop, metrics, estimators."""

from .classifier import Classifier
from .loop import TrainingError
from .metrics import ndcg_at_k, precision_at_k, propensities, psp_at_k, recall_at_k

__all__ = [
    "Classifier",
    "TrainingError",
    "ndcg_at_k",
    "precision_at_k",
    "propensities",
    "psp_at_k",
    "recall_at_k",
]
