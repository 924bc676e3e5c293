"""Every operation for the CPU, compiled by Numba for all cores; the same names and arguments as in ``cuda/``."""
