"""Reductions over a warp (by shuffles) and over a block (in shared memory), always in the same order.

A block's number of threads must be a power of two. The fixed order makes float sums reproducible.
"""

import numpy as np

from ..core.device import cuda, cuda_device

#: Mask of a shuffle in which every lane of the warp takes part.
ALL_LANES = np.uint32(0xFFFFFFFF)


@cuda_device
def warp_max(value):
    """The maximum of `value` over the lanes of a warp, in every lane.

    Five shuffles: no shared memory and no barrier.
    """
    for distance in (16, 8, 4, 2, 1):
        value = max(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
    return value


@cuda_device
def warp_sum(value):
    """The sum of `value` over the lanes of a warp, in every lane."""
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(ALL_LANES, value, distance)
    return value


@cuda_device
def block_max(shared, value):
    """The maximum of `value` over the threads of a block, in every thread.

    `shared` needs 4 bytes per thread and may be reused at once: the function ends with a barrier.
    """
    thread, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    shared[thread] = value
    cuda.syncthreads()
    while half > 0:
        if thread < half:
            shared[thread] = max(shared[thread], shared[thread + half])
        cuda.syncthreads()
        half //= 2
    largest = shared[0]
    cuda.syncthreads()  # all have read shared[0]: the caller may overwrite it
    return largest


@cuda_device
def block_sum(shared, value):
    """The sum of `value` over the threads of a block, in every thread.

    `shared` needs 4 bytes per thread and may be reused at once: the function ends with a barrier.
    """
    thread, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    shared[thread] = value
    cuda.syncthreads()
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half //= 2
    total = shared[0]
    cuda.syncthreads()  # all have read shared[0]: the caller may overwrite it
    return total


@cuda_device
def block_prefix_sum(shared, value):
    """The sum of `value` over this thread and those before it in the block, and the sum over all threads.

    `shared` needs 4 bytes per thread and may be reused at once: the function ends with a barrier.
    """
    thread, n_threads, distance = cuda.threadIdx.x, cuda.blockDim.x, 1
    shared[thread] = value
    cuda.syncthreads()
    while distance < n_threads:
        if thread >= distance:
            value += shared[thread - distance]
        cuda.syncthreads()  # all have read
        shared[thread] = value
        cuda.syncthreads()
        distance *= 2
    total = shared[n_threads - 1]
    cuda.syncthreads()  # all have read the total: the caller may overwrite it
    return value, total
