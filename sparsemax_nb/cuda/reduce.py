"""Reductions, always in the same order: over a block's threads, a power of two, in shared memory; over a warp's by shuffles."""

import numpy as np

from ..core.device import cuda, cuda_device

ALL_LANES = np.uint32(0xFFFFFFFF)


@cuda_device
def warp_max(value):
    """The largest `value` of a warp's lanes, in all of them."""
    for distance in (16, 8, 4, 2, 1):
        value = max(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
    return value


@cuda_device
def warp_sum(value):
    """The sum of the `value` of a warp's lanes, in all of them."""
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(ALL_LANES, value, distance)
    return value


@cuda_device
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


@cuda_device
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
