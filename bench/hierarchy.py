"""Does DS-Softmax find a hidden hierarchy of classes? ``python -m bench.hierarchy 10x10`` (see bench/README.md).

The data are points of classes that belong to super-classes (`data.hierarchy`). A full softmax and DS-Softmax are
trained on the same points.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numba
import numpy as np

from sparsemax_nb import Adam, DSSoftmax, data, softmax_cross_entropy
from sparsemax_nb.internals import asarray, resolve_device, to_numpy

from . import harness, machine, plotting, tables, timing

#: Tasks, named "super-classes x classes per super-class": sizes of the data. "smoke" is for --smoke.
TASKS = {
    "10x10": {"n_super": 10, "n_sub": 10, "points": 100, "full_epochs": 30},
    "100x100": {"n_super": 100, "n_sub": 100, "points": 100, "full_epochs": 1},
    "smoke": {"n_super": 4, "n_sub": 5, "points": 400, "full_epochs": 1},
}
#: Parameters of DSSoftmax in each task.
SETTINGS = {
    "10x10": {"first_experts": 10, "n_experts": 10, "epochs": 30, "prune_after": 3, "batch_size": 100},
    "100x100": {
        "first_experts": 16, "n_experts": 64, "epochs": 1, "prune_after": 0, "batch_size": 100, "class_lasso": 0.001,
        "expert_lasso": 0.001, "balance": 2.0,
    },
    "smoke": {"first_experts": 2, "n_experts": 4, "epochs": 10, "prune_after": 2, "batch_size": 20},
}  # fmt: skip
#: Parameters of DSSoftmax in all tasks, unless SETTINGS overrides them.
COMMON = {
    "learning_rate": 3e-3,
    "class_lasso": 0.002,
    "expert_lasso": 0.002,
    "balance": 10.0,
    "threshold": 0.03,
    "noise": 1.0,
}
WIDTH = 100
#: Test points per class.
HELD_OUT = 10
#: Rows whose scores are computed at the same time.
ROWS_PER_CHUNK = 4096
#: DS-Softmax may be at most this much less accurate than the full softmax.
MAX_ACCURACY_LOSS = 0.01
#: Colours (Okabe and Ito): classes whose super-class is found, and all others.
WHOLE, PART = "#0072B2", "#D55E00"
#: Maximum number of columns of the figure: neighbouring classes are merged.
MAX_COLUMNS = 500


# ---------------------------------------------------------------- training


def train_full(h, targets, n_classes, epochs, batch_size, seed, device):
    """Train the weights (n_classes, d) of a full softmax without bias, with Adam."""
    random, n = np.random.default_rng(seed), len(h)
    w = random.standard_normal((n_classes, h.shape[1]), np.float32) / np.float32(np.sqrt(h.shape[1]))
    w, rate, n_steps = asarray(w, device), COMMON["learning_rate"], -(-n // batch_size)
    optimizer = Adam(rate)
    for epoch in range(epochs):
        order = random.permutation(n)
        for i in range(n_steps):
            rows = order[i * batch_size : (i + 1) * batch_size]
            optimizer.learning_rate = rate * (1 - 0.9 * (epoch * n_steps + i) / (epochs * n_steps))
            batch, t = (asarray(a[rows], device) for a in (h, targets))
            optimizer.step(w, softmax_cross_entropy(batch, w, t)[2])
    return w


def full_predictions(w, h):
    """The best class of each row of h, by the full softmax."""
    parts = np.split(h, range(ROWS_PER_CHUNK, len(h), ROWS_PER_CHUNK))
    w = to_numpy(w)
    return np.concatenate([(part @ w.T).argmax(1) for part in parts])


def predictions(packed, h):
    """The best class of each row of h, by DS-Softmax."""
    parts = np.split(h, range(ROWS_PER_CHUNK, len(h), ROWS_PER_CHUNK))
    found = [packed.top_k(asarray(part, packed.device), 1)[1] for part in parts]
    return np.concatenate([to_numpy(ids)[:, 0] for ids in found])


# ---------------------------------------------------------------- measurements


def membership(packed):
    """(E, L) bool: which expert contains which class."""
    member = np.zeros((packed.n_experts, packed.n_classes), bool)
    member[np.repeat(np.arange(packed.n_experts), packed.sizes), to_numpy(packed.ids)] = True
    return member


def is_found(member, n_super):
    """(n_super,) bool: whether exactly one expert has all classes of the super-class, and no other expert has any."""
    member = member.reshape(len(member), n_super, -1)
    return (member.any(2).sum(0) == 1) & (member.all(2).sum(0) == 1)


def ideals(n_super, n_sub, n_experts):
    """Ideal speed-ups by FLOPs: for experts of equal size, and for experts that contain whole super-classes.

    An expert with n_k super-classes gets a share n_k / n_super of the queries, and contains n_k n_sub classes.
    """
    n_classes, (least, more) = n_super * n_sub, divmod(n_super, n_experts)
    squares = (n_experts - more) * least**2 + more * (least + 1) ** 2
    return n_classes / (n_experts + n_classes / n_experts), n_classes / (n_experts + squares * n_sub / n_super)


def measure(packed, h, targets, n_super):
    """Accuracy, super-classes that were found, speed-up and sizes of a mixture of experts."""
    member = membership(packed)
    return {
        "accuracy": float((predictions(packed, h) == targets).mean()),
        "whole": int(is_found(member, n_super).sum()),
        "speed-up": packed.speed_up(asarray(h, packed.device)),
        "rows": int(member.sum()),
        "smallest": int(member.sum(1).min()),
        "largest": int(member.sum(1).max()),
    }


def exact_predictions(packed, h):
    """The best class of each row of h, and its expert, in float64; class -1 if the expert is empty."""
    gate, weights, ids, starts = (to_numpy(a) for a in (packed.gate, packed.weights, packed.ids, packed.starts))
    chosen, best = (h.astype(np.float64) @ gate.T).argmax(1), np.full(len(h), -1)
    for k in np.flatnonzero(np.diff(starts)):
        of_expert, mine = slice(*starts[k : k + 2]), chosen == k
        best[mine] = ids[of_expert][(h[mine].astype(np.float64) @ weights[of_expert].T).argmax(1)]
    return best, chosen


def check(packed, h, targets, measured, full_accuracy):
    """Raise if the measurements differ from float64, or if the accuracy is far below that of the full softmax."""
    best, chosen = exact_predictions(packed, h)
    accuracy, cost = (best == targets).mean(), packed.n_experts + packed.sizes[chosen].mean()
    timing.require_close("accuracy", measured["accuracy"], accuracy, 1e-3)
    timing.require_close("speed-up", measured["speed-up"], packed.n_classes / cost, 1e-3)
    apart = full_accuracy - accuracy
    timing.require(apart <= MAX_ACCURACY_LOSS, f"DS-Softmax is {apart:.2%} less accurate than the full softmax")


# ---------------------------------------------------------------- a task


def points_of(task, seed):
    """(h, targets) for training, and (h, targets) of the test points."""
    n = task["points"] * task["n_super"] * task["n_sub"]
    h, targets = data.hierarchy(task["n_super"], task["n_sub"], task["points"] + HELD_OUT, WIDTH, seed)
    return h[:n], targets[:n], h[n:], targets[n:]


def model_of(name, seed, device, **changed):
    settings = COMMON | SETTINGS[name] | changed
    return DSSoftmax(**settings, seed=seed, device=device, progress=False)


def warm_up(device):
    """Compile everything that training calls."""
    h, targets, *_ = points_of(TASKS["smoke"], 0)
    model_of("smoke", 0, device, epochs=1, prune_after=0).fit(h, targets).evaluate(h, targets)
    train_full(h, targets, int(targets.max()) + 1, 1, 100, 0, device)


def repeated(name, runs, device):
    """Train with several seeds, with and without noise.

    Returns ``{noise: (runs that found all super-classes, runs of these without an empty expert, lowest accuracy)}``.
    """
    task, found = TASKS[name], {}
    for noise in (COMMON["noise"], 0.0):
        whole, spread, accuracy = 0, 0, 1.0
        for seed in range(runs):
            h, targets, *held_out = points_of(task, seed)
            packed = model_of(name, seed, device, noise=noise).fit(h, targets).pack()
            measured = measure(packed, *held_out, task["n_super"])
            is_whole = measured["whole"] == task["n_super"]
            whole, spread = whole + is_whole, spread + (is_whole and measured["smallest"] > 0)
            accuracy = min(accuracy, measured["accuracy"])
        found[noise] = whole, spread, accuracy
    return found


def run(name, args):
    """Train both models; returns the row of results and the `membership`."""
    task, device = TASKS[name] | {"points": args.points}, args.device
    h, targets, *held_out = points_of(task, args.seed)
    n_super, n_classes = task["n_super"], task["n_super"] * task["n_sub"]
    checkpoint, log = (
        (args.work / f"hierarchy-{name}.{kind}" for kind in ("safetensors", "json")) if args.work else (None, None)
    )
    resumed = args.work and checkpoint.exists()
    stages = json.loads(log.read_text()) if resumed and log.exists() else []

    def after_stage(n_experts, packed):
        stages.append({"experts": n_experts} | measure(packed, *held_out, n_super))
        print(f"{n_experts} experts: {stages[-1]}", flush=True)
        if log:
            log.write_text(json.dumps(stages))

    warm_up(device)
    model = model_of(name, args.seed, device)
    with machine.memory_growth(device) as growth:
        model.fit(
            h, targets, n_classes=n_classes, after_stage=after_stage, checkpoint_path=checkpoint, resume=bool(resumed)
        )  # fmt: skip
    for stage in stages:
        stage["seconds"] = sum(r["seconds"] for r in model.history_ if r["n_experts"] == stage["experts"])
    packed, start = model.pack(), time.perf_counter()
    with machine.memory_growth(device) as full_growth:
        w = train_full(h, targets, n_classes, task["full_epochs"], model.batch_size, args.seed, device)
    full = {"seconds": time.perf_counter() - start, "growth": full_growth["bytes"]}
    full["accuracy"] = float((full_predictions(w, held_out[0]) == held_out[1]).mean())
    check(packed, *held_out, stages[-1], full["accuracy"])
    figures = {"full": full, "stages": stages, "growth": None if resumed else growth["bytes"]}
    if args.runs > 1:
        figures["runs"] = {str(noise): result for noise, result in repeated(name, args.runs, device).items()}
    sizes = {"classes": n_classes, "width": WIDTH, "points": task["points"], "held_out": HELD_OUT, "device": device}
    parameters = sizes | COMMON | SETTINGS[name]
    parameters |= {"full_epochs": task["full_epochs"], "seed": args.seed, "runs": args.runs}
    return row_of(name, task, parameters, figures), membership(packed)


def mib(n):
    return "unknown" if n is None else f"{n / 2**20:,.1f} MiB"


def row_of(name, task, parameters, figures):
    """The row of results with its table."""
    full, stages, last = figures["full"], figures["stages"], figures["stages"][-1]
    n_super, n_experts = task["n_super"], last["experts"]
    n_rows, seconds = f"{parameters['classes']:,}", f"{full['seconds']:,.1f}"
    table = [["full softmax", f"{full['accuracy']:.2%}", "-", n_rows, "-", "1.00", seconds]]
    for s in stages:
        sizes = f"{s['smallest']:,} - {s['largest']:,}"
        table.append(
            [
                f"DS-Softmax, {s['experts']} experts",
                f"{s['accuracy']:.2%}",
                f"{s['whole']} of {n_super}",
                f"{s['rows']:,}",
                sizes,
                f"{s['speed-up']:.2f}",
                f"{s['seconds']:,.1f}",
            ]
        )
    even, best = ideals(n_super, task["n_sub"], n_experts)
    ideal = f"Speed-up by FLOPs: {last['speed-up']:.2f}; ideal for {n_experts} equal experts {even:.2f}"
    if n_super % n_experts:
        ideal += f", at most {best:.2f} if super-classes are not divided"
    met = "met" if last["whole"] == n_super else "not met"
    notes = [
        f"Target: every super-class in exactly one expert; {last['whole']} of {n_super}: {met}.",
        f"{ideal}. The speed-up counts products: L / (E + sum_k u_k |v_k|).",
        f"Peak memory of training in addition to the data: DS-Softmax {mib(figures['growth'])}, "
        f"full softmax {mib(full['growth'])}.",
    ]
    for noise, (whole, spread, accuracy) in figures.get("runs", {}).items():
        notes.append(
            f"Noise {noise} at the gate, {parameters['runs']} runs with different seeds for data and model: {whole} "
            f"find all super-classes; {spread} of these have no empty expert; lowest accuracy {accuracy:.2%}."
        )
    header = [
        "model", "accuracy", "super-classes found", "rows", "classes per expert", "speed-up",
        "training s",
    ]  # fmt: skip
    return {
        "benchmark": f"hierarchy: {name}",
        "parameters": parameters,
        "table": {"header": header, "rows": table},
        "notes": notes,
        "figures": figures,
        "environment": machine.environment(parameters["device"]),
    }


# ---------------------------------------------------------------- picture


def arranged(member, n_super):
    """Reorder the (E, L) matrix to show its structure; also returns, per column, whether its super-class is found.

    A super-class is assigned to the expert that contains most of it. Experts with the most super-classes come first,
    super-classes follow the order of their experts, and classes inside one follow the first expert that contains them.
    """
    counts = member.reshape(len(member), n_super, -1).sum(2)
    home = counts.argmax(0)
    rank = np.empty(len(member), int)
    rank[np.lexsort((-counts.sum(1), -np.bincount(home, minlength=len(member))))] = np.arange(len(member))
    member = member[np.argsort(rank)]
    supers = np.argsort(rank[home], kind="stable")
    blocks = member.reshape(len(member), n_super, -1)[:, supers]
    first = np.where(blocks.any(0), blocks.argmax(0), len(member))
    blocks = np.take_along_axis(blocks, np.argsort(first, axis=1, kind="stable")[None], axis=2)
    whole = np.repeat(is_found(member, n_super)[supers], blocks.shape[2])
    return blocks.reshape(member.shape), whole


def picture(member, n_super, name, path):
    """Plot which expert contains which class: one row per expert, one column per class."""
    plt = plotting.pyplot()
    from matplotlib.colors import ListedColormap

    n_experts, n_classes = member.shape
    shown, whole = arranged(member, n_super)
    n_sub, number = n_classes // n_super, int(is_found(member, n_super).sum())
    image = np.where(shown, np.where(whole, 1, 2), 0)
    pool = max(1, n_classes // MAX_COLUMNS)  # or the marks would be too narrow to see
    image = image[:, : n_classes // pool * pool].reshape(n_experts, -1, pool).max(2)
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    colours = ListedColormap(["white", WHOLE, PART])
    extent = (0, n_classes, n_experts + 0.5, 0.5)
    axes.imshow(image, cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest", extent=extent)
    axes.set_xticks(np.arange(0, n_classes + 1, n_sub * max(1, n_super // 10)))
    grid = {"color": "#BBBBBB", "linewidth": 0.8}
    if n_super <= 20:
        axes.vlines(np.arange(n_sub, n_classes, n_sub), *extent[:1:-1], **grid)
    if n_experts <= 20:
        axes.set_yticks(range(1, n_experts + 1))
        axes.hlines(np.arange(1.5, n_experts), 0, n_classes, **grid)
    else:
        axes.set_yticks([1, *range(8, n_experts + 1, 8)])
    axes.set_xlabel(f"classes, grouped by super-class ({n_sub} each)", fontsize=16)
    axes.set_ylabel("experts", fontsize=16)
    axes.set_title(f"Which expert contains which class: {name}", fontsize=17, loc="left", pad=34)
    label = {"fontsize": 15, "transform": axes.transAxes}
    axes.text(0, 1.02, f"{number} of {n_super} super-classes in exactly one expert", color=WHOLE, **label)
    if number < n_super:
        axes.text(1, 1.02, f"{n_super - number} others", color=PART, ha="right", **label)
    axes.tick_params(labelsize=14)
    plotting.write_picture(figure, path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.hierarchy", description=__doc__.partition("\n")[0])
    tasks = [name for name in TASKS if name != "smoke"]
    parser.add_argument("task", nargs="?", choices=tasks, default=tasks[0], help=f"default: {tasks[0]}")
    parser.add_argument("--points", type=int, help="training points per class (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and models (default: 0)")
    parser.add_argument(
        "--runs",
        type=int,
        default=1,
        help="number of seeds to compare, with and without noise (default: 1: no comparison)",
    )
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument("--threads", type=int, default=min(2, cores), help="Numba's threads (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--work", type=Path, help="folder for a checkpoint: a repeated command resumes from it")
    parser.add_argument(
        "--json", type=Path, help="file to add the results to (default: bench/results/hierarchy-DEVICE.json)"
    )
    parser.add_argument("--picture", type=Path, help="default: bench/hierarchy-TASK.png; none with --json or --smoke")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny task, to test that the script runs; the results are meaningless"
    )
    args = parser.parse_args(argv)
    numba.set_num_threads(args.threads)
    try:
        args.device = resolve_device(args.device)
    except RuntimeError as error:
        parser.error(str(error))
    name = "smoke" if args.smoke else args.task
    args.points = args.points or TASKS[name]["points"]
    if args.json is None and not args.smoke:
        args.json = tables.RESULTS / f"hierarchy-{args.device}.json"
        args.picture = args.picture or machine.HERE / f"hierarchy-{name}.png"
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    row, member = run(name, args)
    harness.publish(args, row)
    if args.picture:
        picture(member, TASKS[name]["n_super"], name, args.picture)
    return row


if __name__ == "__main__":
    sys.exit(not main())
