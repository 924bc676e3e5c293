"""What does it gain if groups of labels share their inputs? ``python -m bench.group_shared`` (see bench/README.md)."""

import numpy as np

from sparsemax_nb import FixedFanIn, GroupSharedFanIn, fixed_fan_in_forward
from sparsemax_nb.internals import asarray, empty, to_numpy

from . import forward, harness, step, tables, timing
from .peers import pytorch
from .peers.scipy_csr import inputs_of

SIZES = step.SIZES | {"group_size": (16, 8)}
#: Targets on the CPU: {row: {competitor: (minimum ratio, desired ratio)}}.
TARGETS = {
    "forward": {"PyTorch CSR": (5, 8), "PyTorch dense": (5, 8)},
    "top_k": {"PyTorch dense": (10, 12)},
    "step": {"PyTorch dense": (10, 15)},
}


def layers(args):
    """Our layers, {name: layer}; "ours" is the group-shared layer in float32."""
    sizes = args.labels, args.inputs, args.fan_in
    shared = {
        name: GroupSharedFanIn.random(*sizes, args.group_size, seed=0, dtype=dtype, device=args.device)
        for name, dtype in (("ours", "float32"), ("ours, bfloat16", "bfloat16"))
    }
    return shared | {"ours, plain": FixedFanIn.random(*sizes, seed=0, device=args.device)}


def note(args, layer):
    """The note about a layer of ours for the table."""
    group = f", groups of {layer.group_size}" if hasattr(layer, "group_size") else ""
    return f"fan-in {args.fan_in}{group}, {layer.values.dtype.name} weights"


def work(args, rows_of_weights):
    """Bytes and FLOPs of the forward pass: a group reads its inputs once per row; each weight is read once."""
    scores, connections = 4 * args.rows * args.labels, args.labels * args.fan_in
    gathered = 4 * args.rows * rows_of_weights * args.fan_in
    return {
        "memory: scores stored": (scores, "dram_store"),
        "memory: inputs and weights read, scores stored": (
            4 * args.rows * args.inputs + 4 * connections + scores, "dram_copy",
        ),
        "L2: inputs gathered": (gathered, "l2_read"),
        "multiply-adds": (2 * args.rows * connections, "flops"),
    }  # fmt: skip


def wanted_ratios(args, row):
    """The targets of a row; None unless measured at full size on the CPU."""
    return None if args.smoke or args.device != "cpu" else TARGETS[row]


def forward_row(args, ours, h, dense_h):
    """Compare the forward pass into a preallocated array."""
    out, contestants = empty((args.rows, args.labels), np.float32, args.device), {}
    for name, layer in ours.items():
        contestants[name] = timing.Contestant(
            lambda layer=layer: fixed_fan_in_forward(h, layer, out=out), forward.checker(h, layer), note(args, layer)
        )
    shared, check = ours["ours"], contestants["ours"].check
    contestants["PyTorch CSR"] = harness.offer(check, pytorch.csr_forward, h, expanded(shared))
    contestants["PyTorch gather and bmm"] = harness.offer(check, pytorch.gather_forward, h, shared)

    contestants["PyTorch dense"] = dense_forward(dense_h, args.labels, "float32", 1e-4)
    if args.device == "cuda":
        contestants["PyTorch dense, bfloat16"] = dense_forward(dense_h, args.labels, "bfloat16", 1e-2)
    timings, floor = harness.race(contestants, args), harness.floor(args, work(args, len(shared.indices)))
    return tables.make_row(
        "group-shared forward", args.parameters, contestants, timings, floor=floor,
        targets=wanted_ratios(args, "forward"), device=args.device,
    )  # fmt: skip


def dense_forward(dense_h, n_labels, dtype, tolerance):
    """A contestant: PyTorch's dense product; 100 labels are checked, to `tolerance` times the largest score."""

    def check(result, w):
        checked = np.unique(np.linspace(0, n_labels - 1, 100).astype(int))
        got, w = (a.float().cpu().numpy() for a in (result[:, checked], w[checked]))
        timing.require_close("the dense product", got, to_numpy(dense_h) @ w.T.astype(np.float64), tolerance)

    return harness.offer(check, pytorch.dense_forward, dense_h, n_labels, dtype)


def expanded(layer):
    """The same weights as a `FixedFanIn` layer: each label has a copy of the indices of its group."""
    return FixedFanIn(layer.n_inputs, asarray(inputs_of(layer), layer.device), layer.values, layer.bias)


def top_k_row(args, ours, h, dense_h):
    """Compare the search for the k best labels per row."""
    contestants = {name: step.our_top_k(layer, h, args.k, note(args, layer)) for name, layer in ours.items()}
    contestants["PyTorch dense"] = step.dense_top_k(dense_h, args.labels, args.k)
    timings, amounts = harness.race(contestants, args), work(args, len(ours["ours"].indices))
    amounts = {what: amount for what, amount in amounts.items() if not what.startswith("memory")}
    amounts["memory: weights read"] = (4 * args.labels * args.fan_in, "dram_copy")
    return tables.make_row(
        "group-shared top_k", args.parameters, contestants, timings, floor=harness.floor(args, amounts),
        targets=wanted_ratios(args, "top_k"), device=args.device,
    )  # fmt: skip


def step_row(args, h, dense_h, labels, loss, margin):
    """Compare the step for one loss and one share of active scores."""
    contestants, share = {}, None
    for name, layer in layers(args).items():
        contestants[name], found = step.our_step(layer, h, labels, loss, margin, note(args, layer), args.smoke)
        share = found if share is None else share
    contestants["PyTorch dense"] = step.dense_step(dense_h, labels, args.labels, loss)
    timings = harness.race(contestants, args)
    parameters = args.parameters | {"loss": loss, "inside_margin": margin}
    parameters |= {f"active_{what}_percent": round(100 * value, 1) for what, value in share.items()}
    connections = args.labels * args.fan_in
    products = 2 * args.rows * connections * (1 + 2 * share["scores"])
    floor = harness.floor(
        args,
        {
            "memory: weights and moments read and written": (24 * connections, "dram_copy"),
            "multiply-adds": (products + 12 * connections, "flops"),
        },
    )
    targets = wanted_ratios(args, "step") if margin == "1 %" else None
    return tables.make_row(
        "group-shared step", parameters, contestants, timings, floor=floor, targets=targets, device=args.device
    )


def main(argv=None):
    args = harness.arguments("group_shared", __doc__, SIZES, argv)
    h = forward.inputs(args.rows, args.inputs, args.device)
    dense_h = forward.inputs(args.rows, args.dense_width, args.device)
    labels = step.random_labels(args.rows, args.labels, args.label_rows, args.device)
    ours = layers(args)
    rows = [harness.publish(args, row(args, ours, h, dense_h)) for row in (forward_row, top_k_row)]
    for loss, margin in (("squared-hinge", "1 %"), ("squared-hinge", "all"), ("bce", "all")):
        rows.append(harness.publish(args, step_row(args, h, dense_h, labels, loss, margin)))
    return rows


if __name__ == "__main__":
    main()
