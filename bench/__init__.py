"""Benchmarks: each script answers one question. Run one from the repository root: ``python -m bench.forward``."""
