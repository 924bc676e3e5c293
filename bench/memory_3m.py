"""Do 3,000,000 labels train within 1 GiB of output layer? ``python -m bench.memory_3m`` (method: see bench/README.md).

Trains a group-shared layer with bfloat16 weights. As in `memory_670k`, a separate process measures the memory on top of
imports and warm-up. Training takes several epochs, to verify that the loss decreases.
"""

from . import harness, timing
from .memory_670k import in_new_process, measure, row_of

SIZES = {
    "labels": (3_000_000, 3_000),
    "inputs": (768, 16),
    "intermediate": (32_768, 64),
    "fan_in": (32, 8),
    "steps": (200, 8),
    "points": (1_717_899, 1_717_899),
    "limit_mib": (2048, 64),
    "group_size": (16, 8),
    "batch": (128, 32),
    "epochs": (4, 2),
}
STATE_LIMIT = 1 << 30


def main(argv=None):
    args = harness.arguments("memory_3m", __doc__.partition("\n")[0], SIZES, argv)
    more = {
        "output": "group-shared", "group_size": args.group_size, "grouping": "random", "weight_dtype": "bfloat16",
        "epochs": args.epochs,
    }  # fmt: skip
    found = in_new_process(measure, args, args.batch, more)
    row, losses = row_of("memory_3m", args, args.batch, found), found["losses"]
    state = sum(
        a.nbytes for a in found["plan"].arrays if a.phase == "always" and a.name.startswith(("output.", "places"))
    )
    timing.require(
        all(a > b for a, b in zip(losses, losses[1:], strict=False)), f"the loss does not decrease: {losses}"
    )
    verdict = "met" if state <= STATE_LIMIT else "not met"
    row["notes"] += [
        f"Output layer including moments, connections and label order: {state / 2**20:,.0f} MiB; target 1,024 MiB: "
        f"{verdict}.",
        f"{args.steps} steps, {1e3 * found['seconds']:,.0f} ms each; loss per epoch: "
        f"{', '.join(f'{loss:.2f}' for loss in losses)}.",
        "Published results for whole models with 2.8 to 3 million labels: 5.7 GiB (group-shared, HASTE), 6.6 GiB "
        "(dense fp8, ELMO).",
    ]
    row["figures"] |= {"state": state, "seconds_per_step": found["seconds"]}
    return [harness.publish(args, row)]


if __name__ == "__main__":
    main()
