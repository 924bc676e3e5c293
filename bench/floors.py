"""What can an H200 gain by sampling, experts and split products? ``python -m bench.floors``.

Everything is computed by formula; nothing is run. For operations whose targets are set for a GPU: bytes of memory (each
read or written once per pass) and FLOPs, of ours and of PyTorch in float32 without tensor cores. The floor is the
longer of the two times at the rates of an H200. Caches, kernel launches, occupancy and updates of an index are ignored.
The ratio of two floors is the ratio of the times if both reached their floors; it is neither a prediction nor a bound.
"""

from . import harness, machine

SIZES = {
    "answer_classes": (33_278, 33_278), "answer_width": (200, 200), "experts": (64, 64), "share": (32, 32),
    "step_classes": (505_403, 505_403), "step_width": (200, 200), "rows": (1_024, 1_024), "samples": (100, 100),
    "codewords": (64, 64), "loss_classes": (128_000, 128_000), "loss_width": (256, 256), "loss_rows": (8_192, 8_192),
}  # fmt: skip
#: Bytes per second: a copy, measured on an H200.
BANDWIDTH = 4.3e12
#: FLOPs per second of float32, and of bfloat16 on tensor cores (data sheet).
FLOAT32, TENSOR = 67e12, 989e12
#: A float32 product on tensor cores takes six bfloat16 products (cuda/tensor_cores.py).
PARTS = 6


def _floor(n_bytes, flops, rate=FLOAT32):
    """(seconds, limiting resource)."""
    memory, arithmetic = n_bytes / BANDWIDTH, flops / rate
    return max(memory, arithmetic), "memory" if memory > arithmetic else "FLOPs"


def answer(args, q):
    """Top-k of q queries: gate and one expert per query, or all classes; arrays of scores are not counted."""
    n, d, experts = args.answer_classes, args.answer_width, args.experts
    used = experts * (1 - (1 - 1 / experts) ** q)  # expected number of different experts for an even distribution
    size = n / args.share
    ours = 4 * d * (experts + used * size + q), 2 * q * d * (experts + size)
    return ours, (4 * d * (n + q), 2 * q * d * n)


def sampled_step(args):
    """Loss, gradients and Adam: for the drawn rows, counted as if all were different, or for all rows."""
    b, n, d, k = args.rows, args.step_classes, args.step_width, args.codewords
    drawn = b * (args.samples + 1)
    # rows read for scores and for dh; gradients written and read; weights and moments read and written
    ours = 4 * d * drawn * (2 + 2 + 6), 6 * d * drawn + 4 * b * k * d + 4 * b * k * k  # two codebooks of full width
    # weights read forward and backward, gradient written and read, weights and moments; logits and their gradients,
    # twice each
    theirs = 4 * d * n * (2 + 2 + 6) + 4 * b * n * 4, 6 * b * n * d
    return ours, theirs


def loss(args):
    """Scores (ours computes them twice and stores none), and gradients with respect to both factors."""
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
        (our_floor, our_limit), (their_floor, their_limit) = _floor(*ours, rate), _floor(*theirs)
        lines.append(
            [
                name,
                f"{ours[0] / 1e6:,.1f}",
                f"{ours[1] / 1e9:,.2f}",
                f"{1e3 * our_floor:,.4f} ({our_limit})",
                f"{theirs[0] / 1e6:,.1f}",
                f"{theirs[1] / 1e9:,.2f}",
                f"{1e3 * their_floor:,.4f} ({their_limit})",
                f"{their_floor / our_floor:,.1f}",
            ]
        )
    row = {
        "benchmark": "floors",
        "parameters": args.parameters | {"device": "cpu"},
        "table": {
            "header": [
                "operation",
                "ours: MB",
                "GFLOP",
                "floor ms (limit)",
                "PyTorch, float32: MB",
                "GFLOP",
                "floor ms (limit)",
                "ratio",
            ],
            "rows": lines,
        },
        "notes": [
            "Computed by formula, not measured and not counted: bytes of memory and FLOPs at the rates of an H200 "
            f"({BANDWIDTH / 1e12:.1f} TB/s, {FLOAT32 / 1e12:.0f} TFLOP/s of float32, {TENSOR / 1e12:.0f} on tensor "
            "cores).",
            "64 queries use most of the experts, which have more rows together than there are classes: then experts "
            "save only FLOPs. The floors of all answers are similar to the time of a kernel launch, or shorter.",
            f"softmax_cross_entropy: {PARTS} bfloat16 products per float32 product give float32 precision; scores are "
            "computed twice.",
        ],
        "environment": machine.environment("cpu"),
    }
    return [harness.publish(args, row)]


if __name__ == "__main__":
    main()
