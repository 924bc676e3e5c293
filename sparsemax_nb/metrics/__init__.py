"""Metrics: rankings of labels, sets of labels, calibration, and one true item per row."""

from .calibration import expected_calibration_error, reliability
from .decisions import macro_f1, macro_f1_at_k, micro_f1, per_label, sample_f1
from .next_item import popularity_ranks, ranking_metrics, unigram_perplexity
from .ranking import (
    coverage_at_k,
    f1_at_k,
    hits_at_k,
    map_at_k,
    ndcg_at_k,
    precision_at_k,
    propensities,
    psp_at_k,
    recall_at_k,
)

__all__ = [
    "coverage_at_k",
    "expected_calibration_error",
    "f1_at_k",
    "hits_at_k",
    "macro_f1",
    "macro_f1_at_k",
    "map_at_k",
    "micro_f1",
    "ndcg_at_k",
    "per_label",
    "popularity_ranks",
    "precision_at_k",
    "propensities",
    "psp_at_k",
    "ranking_metrics",
    "recall_at_k",
    "reliability",
    "sample_f1",
    "unigram_perplexity",
]
