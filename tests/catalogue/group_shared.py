"""The fixed fan-in layer whose labels share their inputs in groups, with weights in float32 or bfloat16."""

from sparsemax_nb.core import formulas

from . import Budget, operation
from .fixed_fan_in import make_backward, make_forward, make_layer_top_k, make_step
from .optimizers import KINDS

#: (B, H, L, K, G): groups of one, of all labels, with fewer in the last; as many as the CPU takes at a time, and more.
SMALL_GROUPS = (1, 1, 1, 1, 1), (3, 7, 5, 7, 2), (9, 5, 7, 3, 7), (0, 5, 3, 2, 2)
LARGE_GROUPS = (33, 19, 17, 3, 8), (65, 31, 1100, 9, 16), (140, 40, 70, 33, 32), (20, 31, 65, 16, 5)


def _operations():
    for name, low in (("float32", False), ("bfloat16", True)):
        for function, make in (("forward", make_forward), ("backward", make_backward)):
            yield operation(f"group_shared.{function} {name}", make, SMALL_GROUPS, LARGE_GROUPS, bfloat16=low)
        yield operation(
            f"group_shared.top_k {name}",
            make_layer_top_k,
            ((1, 1, 1, 1, 1, 1), (3, 7, 5, 7, 5, 2), (5, 9, 67, 3, 3, 8), (0, 5, 3, 2, 1, 3)),
            ((33, 19, 331, 5, 4, 16), (5, 9, 300, 2, 150, 8), (65, 9, 40, 2, 40, 32)),
            bfloat16=low,
        )
        for loss, code in formulas.LOSSES.items():
            for optimizer, kind in KINDS.items():
                if low and (loss == "bce") == (optimizer == "adam"):
                    continue  # rounding comes after both, whatever they are
                # each loss and each optimizer once with the shape that takes long
                large = LARGE_GROUPS if (loss == "bce") == (optimizer == "sgd") else LARGE_GROUPS[::3]
                yield operation(
                    f"group_shared.step {loss} {optimizer} {name}",
                    make_step,
                    SMALL_GROUPS[1:3],
                    (*large, (0, 70, 5, 66, 4)),
                    loss=code,
                    kind=kind,
                    bfloat16=low,
                )


OPERATIONS = list(_operations())

BUDGETS = {
    "backward_kernel": Budget(96),
    "forward_kernel": Budget(80),
    "step_kernel": Budget(88),
    "top_k_kernel": Budget(80),
}
