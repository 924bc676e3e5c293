"""The group-shared layer on tensor cores; K is a multiple of 16.

No twins: the CPU is compared with the plain kernels.
"""

import functools
import itertools

from sparsemax_nb.cuda import group_shared as cuda

from ..helpers import STEP_LOSSES
from . import Budget, operation
from .fixed_fan_in import make_backward, make_forward, make_layer_top_k, make_softmax_sums, make_step
from .optimizers import KINDS

TENSOR_CORES = "mma.sync.aligned.m16n8k16", "ld.global.v4.f32"


def _operations():
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        for function, make in (
            ("forward", make_forward),
            ("backward", make_backward),
            ("softmax_sums", make_softmax_sums),
        ):
            yield operation(
                f"group_shared.{function} tensor cores {name}",
                make,
                (),
                (
                    (1, 20, 3, 16, 1),
                    (3, 20, 1, 16, 1),
                    (33, 40, 17, 16, 8),
                    (140, 70, 200, 32, 16),
                    (5, 60, 70, 48, 32),
                    (0, 20, 3, 16, 2),
                ),
                functools.partial(getattr(cuda, function), tensor_cores=True),
                None,
                bfloat16=bfloat16,
            )
        yield operation(
            f"group_shared.top_k tensor cores {name}",
            make_layer_top_k,
            (),
            (
                (1, 20, 1, 16, 1, 1),
                (33, 40, 331, 16, 4, 16),
                (70, 40, 40, 32, 40, 32),
                (40, 20, 65, 16, 3, 5),
                (0, 20, 3, 16, 1, 2),
            ),
            functools.partial(cuda.top_k, tensor_cores=True),
            None,
            bfloat16=bfloat16,
        )
        for loss, optimizer in zip(STEP_LOSSES, itertools.cycle(KINDS), strict=False):  # every loss once
            yield operation(
                f"group_shared.step tensor cores {loss} {optimizer} {name}",
                make_step,
                (),
                (
                    (1, 20, 2, 16, 1) if loss == "softmax" else (1, 20, 1, 16, 1),  # of one label: no gradient
                    (33, 40, 17, 16, 8),
                    (140, 70, 100, 32, 16),
                    (70, 60, 70, 16, 32),
                    (0, 20, 3, 16, 2),
                ),
                functools.partial(cuda.step, tensor_cores=True),
                None,
                loss=STEP_LOSSES[loss],
                kind=KINDS[optimizer],
                bfloat16=bfloat16,
            )


OPERATIONS = list(_operations())

BUDGETS = {
    "backward_kernel": Budget(160, holds=TENSOR_CORES, since=(8, 0)),
    "forward_kernel": Budget(112, holds=TENSOR_CORES, since=(8, 0)),
    "step_kernel": Budget(168, holds=TENSOR_CORES, since=(8, 0)),
    "top_k_kernel": Budget(136, holds=TENSOR_CORES, since=(8, 0)),
}
