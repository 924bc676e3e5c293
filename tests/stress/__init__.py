"""Threads, forks and processes: the same bits as alone. ``python -m tests.stress``; test_stress.py is the short form."""
