"""Reductions over the threads of a block, in shared memory and always in the same order; blocks are a power of two."""

from ..core import backend
from ..core.backend import cuda


@backend.cuda_device
def block_max(shared, value):
    """The largest `value` of the block's threads; shared: 4 bytes a thread. Ends behind a barrier."""
    thread, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    shared[thread] = value
    cuda.syncthreads()
    while half > 0:
        if thread < half:
            shared[thread] = max(shared[thread], shared[thread + half])
        cuda.syncthreads()
        half //= 2
    largest = shared[0]
    cuda.syncthreads()
    return largest


@backend.cuda_device
def block_sum(shared, value):
    """The sum of the `value` of the block's threads; shared: 4 bytes a thread. Ends behind a barrier."""
    thread, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    shared[thread] = value
    cuda.syncthreads()
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half //= 2
    total = shared[0]
    cuda.syncthreads()
    return total
