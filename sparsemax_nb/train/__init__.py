"""Training with gradients written by hand: layers, the loop, estimators."""

from ..core.checkpoint import ModelFileError
from .classifier import Classifier
from .ds_softmax import DSSoftmax
from .explanation import Explanation
from .language_model import LanguageModel
from .loop import TrainingError
from .memory import MemoryLimitError

__all__ = [
    "Classifier",
    "DSSoftmax",
    "Explanation",
    "LanguageModel",
    "MemoryLimitError",
    "ModelFileError",
    "TrainingError",
]
