"""Every operation as Numba CUDA kernels, under the same names and with the same arguments as in ``cpu/``."""
