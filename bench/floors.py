"""What can an H200 gain by sampling, by experts, by products in parts? ``python -m bench.floors``: by formula, nothing is run.

For operations whose bars are set for a GPU: bytes of memory, each read or written once for every pass over it, and
FLOPs, of ours and of what PyTorch does in float32 without tensor cores; the floor is the longer of the two times at the
rates of an H200. Caches, launches, occupancy and the updates of an index are left out. A ratio of floors is that of the
times if both reached their floors: no forecast, and no bound.
"""

from . import harness, machine

SIZES = {
    "answer_classes": (33_278, 33_278), "answer_width": (200, 200), "experts": (64, 64), "share": (32, 32),
    "step_classes": (505_403, 505_403), "step_width": (200, 200), "rows": (1_024, 1_024), "samples": (100, 100),
    "codewords": (64, 64), "loss_classes": (128_000, 128_000), "loss_width": (256, 256), "loss_rows": (8_192, 8_192),
}  # fmt: skip
#: Bytes a second (a copy, measured elsewhere), FLOPs a second of float32 and of bfloat16 on tensor cores (data sheet).
BANDWIDTH, FLOAT32, TENSOR = 4.3e12, 67e12, 989e12
#: A product of float32 numbers on tensor cores is six of bfloat16 ones (cuda/tensor_cores.py).
PARTS = 6


def _floor(n_bytes, flops, rate=FLOAT32):
    """(seconds, what holds it up)."""
    memory, arithmetic = n_bytes / BANDWIDTH, flops / rate
    return max(memory, arithmetic), "memory" if memory > arithmetic else "FLOPs"


def answer(args, q):
    """Top-k of q queries: gate and one expert each, against all classes; no array of scores is counted for either."""
    n, d, experts = args.answer_classes, args.answer_width, args.experts
    asked = experts * (1 - (1 - 1 / experts) ** q)  # different experts, where the gate spreads the queries evenly
    of_one = n / args.share
    ours = 4 * d * (experts + asked * of_one + q), 2 * q * d * (experts + of_one)
    return ours, (4 * d * (n + q), 2 * q * d * n)


def sampled_step(args):
    """Loss, gradients, Adam: of the drawn rows, as if all were different, against all rows."""
    b, n, d, k = args.rows, args.step_classes, args.step_width, args.codewords
    drawn = b * (args.samples + 1)
    # rows read for scores and for dqueries; gradients written and read; weights and moments read and written
    ours = 4 * d * drawn * (2 + 2 + 6), 6 * d * drawn + 4 * b * k * d + 4 * b * k * k  # two codebooks of full width
    # weights read forward and back, gradient written and read, weights and moments; logits and their slopes, twice each
    theirs = 4 * d * n * (2 + 2 + 6) + 4 * b * n * 4, 6 * b * n * d
    return ours, theirs


def loss(args):
    """Scores, twice for ours which stores none; gradients by both factors."""
    b, n, d = args.loss_rows, args.loss_classes, args.loss_width
    return (4 * d * (3 * n + 3 * b), 8 * b * n * d * PARTS), (4 * d * (3 * n + 3 * b) + 4 * b * n * 4, 6 * b * n * d)


def main(argv=None):
    args = harness.arguments("floors", __doc__.partition("\n")[0], SIZES, argv)
    cases = {
        "DS-Softmax, top-k of 1 query": (answer(args, 1), FLOAT32),
        "DS-Softmax, top-k of 64 queries": (answer(args, 64), FLOAT32),
        "sampled softmax, step": (sampled_step(args), FLOAT32),
        "softmax_cross_entropy, loss and gradients": (loss(args), TENSOR),
    }
    lines = []
    for name, ((ours, theirs), rate) in cases.items():
        (mine, of), (other, of_other) = _floor(*ours, rate), _floor(*theirs)
        lines.append(
            [
                name, f"{ours[0] / 1e6:,.1f}", f"{ours[1] / 1e9:,.2f}", f"{1e3 * mine:,.4f} ({of})", f"{theirs[0] / 1e6:,.1f}",
                f"{theirs[1] / 1e9:,.2f}", f"{1e3 * other:,.4f} ({of_other})", f"{other / mine:,.1f}",
            ]
        )  # fmt: skip
    row = {
        "benchmark": "floors", "parameters": args.parameters | {"device": "cpu"},
        "table": {
            "header": [
                "operation", "ours: MB", "GFLOP", "floor ms (of)", "PyTorch, float32: MB", "GFLOP", "floor ms (of)", "ratio",
            ],
            "rows": lines,
        },
        "notes": [
            "Computed by formula, not measured and not counted: bytes of memory and FLOPs at the rates of an H200 "
            f"({BANDWIDTH / 1e12:.1f} TB/s, {FLOAT32 / 1e12:.0f} TFLOP/s of float32, {TENSOR / 1e12:.0f} on tensor cores).",
            "64 queries ask most of the experts, whose rows together are more than all classes: then it is FLOPs alone that an "
            "expert saves. All floors of an answer are of the order of a launch, or below it.",
            f"softmax_cross_entropy: {PARTS} bfloat16 products for each of float32, to float32's precision; scores twice.",
        ],
        "environment": machine.environment("cpu"),
    }  # fmt: skip
    return [harness.publish(args, row)]


if __name__ == "__main__":
    main()
