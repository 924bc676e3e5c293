"""Every operation for the CPU: Numba, all cores, the same names and arguments as ``cuda/``."""
