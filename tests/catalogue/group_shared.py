"""The fixed fan-in layer whose labels share inputs in groups, with float32 or bfloat16 weights."""

from ..helpers import STEP_LOSSES
from . import Budget, operation
from .fixed_fan_in import make_backward, make_forward, make_layer_top_k, make_softmax_sums, make_step
from .optimizers import KINDS

#: (B, H, L, K, G): groups of one label, of all labels, a last group with fewer; more labels than the CPU takes at once.
SMALL_GROUPS = (1, 1, 1, 1, 1), (3, 7, 5, 7, 2), (9, 5, 7, 3, 7), (0, 5, 3, 2, 2)
LARGE_GROUPS = (33, 19, 17, 3, 8), (65, 31, 1100, 9, 16), (140, 40, 34, 33, 32), (20, 31, 65, 16, 5)


def _operations():
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        for function, make in (
            ("forward", make_forward),
            ("backward", make_backward),
            ("softmax_sums", make_softmax_sums),
        ):
            yield operation(f"group_shared.{function} {name}", make, SMALL_GROUPS, LARGE_GROUPS, bfloat16=bfloat16)
        yield operation(
            f"group_shared.top_k {name}",
            make_layer_top_k,
            ((1, 1, 1, 1, 1, 1), (3, 7, 5, 7, 5, 2), (5, 9, 67, 3, 3, 8), (0, 5, 3, 2, 1, 3)),
            ((33, 19, 331, 5, 4, 16), (5, 9, 300, 2, 150, 8), (65, 9, 40, 2, 40, 32)),
            bfloat16=bfloat16,
        )
        for loss, code in STEP_LOSSES.items():
            for optimizer, kind in KINDS.items():
                if bfloat16 and (loss == "bce") == (optimizer == "adam"):
                    continue  # rounding is the same for all of them: half of the pairs are enough
                # each loss and each optimizer once with the shape that takes long
                large = LARGE_GROUPS
                if (loss == "bce") != (optimizer == "sgd"):
                    large = LARGE_GROUPS[:2] + LARGE_GROUPS[3:]
                yield operation(
                    f"group_shared.step {loss} {optimizer} {name}",
                    make_step,
                    SMALL_GROUPS[1:3],
                    (*large, (0, 70, 5, 66, 4)),
                    loss=code,
                    kind=kind,
                    bfloat16=bfloat16,
                )


OPERATIONS = list(_operations())

BUDGETS = {
    "backward_kernel": Budget(96),
    "forward_kernel": Budget(80),
    "step_kernel": Budget(88),
    "top_k_kernel": Budget(80),
}
