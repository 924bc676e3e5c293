"""BLAS, where it must not use threads of its own: its bits would depend on their number."""

import scipy.linalg.cython_blas  # noqa: F401  the BLAS that Numba calls must be loaded before threadpoolctl looks
import threadpoolctl

_controller = threadpoolctl.ThreadpoolController()


def one_thread():
    """A context in which BLAS, that of NumPy and that of Numba, uses one thread."""
    return _controller.limit(limits=1, user_api="blas")
