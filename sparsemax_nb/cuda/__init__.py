"""Every operation for CUDA: Numba kernels, the same names and arguments as ``cpu/``."""
