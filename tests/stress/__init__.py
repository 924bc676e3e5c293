"""Threads, forks and processes give the bits of a single thread. ``python -m tests.stress`` is the long form."""
