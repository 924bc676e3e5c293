"""Types of the public signatures. They state the kind of an argument; `check` checks dtype, shape and device."""

from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse

#: A NumPy array, or a CUDA array: any object with ``__cuda_array_interface__`` (CuPy, Numba, PyTorch).
#: CUDA arrays have no common static type: hence `Any`. Functions return arrays on the device of their inputs.
Array: TypeAlias = np.ndarray | Any

#: A SciPy sparse matrix or sparse array, in any format.
SparseMatrix: TypeAlias = scipy.sparse.spmatrix | scipy.sparse.sparray

Device: TypeAlias = Literal["cpu", "cuda"]
