"""Training with gradients written by hand: layers, the loop, metrics, estimators."""

from ..core.checkpoint import ModelFileError
from .classifier import Classifier
from .ds_trainer import DSSoftmax
from .language_model import LanguageModel
from .loop import TrainingError
from .memory import MemoryLimitError
from .metrics import (
    figures_of_ranks,
    ndcg_at_k,
    precision_at_k,
    propensities,
    psp_at_k,
    ranks_by_popularity,
    recall_at_k,
    unigram_perplexity,
)

__all__ = [
    "Classifier",
    "DSSoftmax",
    "LanguageModel",
    "MemoryLimitError",
    "ModelFileError",
    "TrainingError",
    "figures_of_ranks",
    "ndcg_at_k",
    "precision_at_k",
    "propensities",
    "psp_at_k",
    "ranks_by_popularity",
    "recall_at_k",
    "unigram_perplexity",
]
