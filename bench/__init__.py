"""Benchmarks, one script a question; run them from the repository root: ``python -m bench.forward``."""
