"""Does DS-Softmax find a hierarchy that it is not told? ``python -m bench.hierarchy 10x10`` (README.md says how).

Points of classes that lie in super-classes (`data.hierarchy`); trained are a full softmax and DS-Softmax, on the same
points.
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

#: The tasks, super-classes x classes in each: sizes, and what the constructor is told; "smoke" is that of --smoke.
TASKS = {
    "10x10": {"n_super": 10, "n_sub": 10, "points": 100, "full_epochs": 30},
    "100x100": {"n_super": 100, "n_sub": 100, "points": 100, "full_epochs": 1},
    "smoke": {"n_super": 4, "n_sub": 5, "points": 400, "full_epochs": 1},
}
SETTINGS = {
    "10x10": {"first_experts": 10, "n_experts": 10, "epochs": 30, "prune_after": 3, "batch_size": 100},
    "100x100": {
        "first_experts": 16, "n_experts": 64, "epochs": 1, "prune_after": 0, "batch_size": 100, "class_lasso": 0.001,
        "expert_lasso": 0.001, "balance": 2.0,
    },
    "smoke": {"first_experts": 2, "n_experts": 4, "epochs": 10, "prune_after": 2, "batch_size": 20},
}  # fmt: skip
#: Of all tasks, but for what differs above.
COMMON = {
    "learning_rate": 3e-3, "class_lasso": 0.002, "expert_lasso": 0.002, "balance": 10.0, "threshold": 0.03, "noise": 1.0,
}  # fmt: skip
WIDTH = 100
HELD_OUT = 10  # points of each class
AT_ONCE = 4096
LEAST = 0.01  # DS-Softmax may be less accurate than the full softmax by so much
#: Okabe and Ito's colours: of classes whose super-class is whole in one expert, of others.
WHOLE, PART = "#0072B2", "#D55E00"
COLUMNS = 500  # of the picture


# ---------------------------------------------------------------- training


def train_full(contexts, targets, n_classes, epochs, batch_size, seed, device):
    """Weights (n_classes, d) of a full softmax without bias; every batch gives one step of Adam."""
    random, n = np.random.default_rng(seed), len(contexts)
    w = random.standard_normal((n_classes, contexts.shape[1]), np.float32) / np.float32(np.sqrt(contexts.shape[1]))
    w, rate, n_steps = asarray(w, device), COMMON["learning_rate"], -(-n // batch_size)
    optimizer = Adam(rate)
    for epoch in range(epochs):
        order = random.permutation(n)
        for i in range(n_steps):
            rows = order[i * batch_size : (i + 1) * batch_size]
            optimizer.learning_rate = rate * (1 - 0.9 * (epoch * n_steps + i) / (epochs * n_steps))
            h, t = (asarray(a[rows], device) for a in (contexts, targets))
            optimizer.step(w, softmax_cross_entropy(h, w, t)[2])
    return w


def full_answers(w, contexts):
    """The best class of each context."""
    parts = np.split(contexts, range(AT_ONCE, len(contexts), AT_ONCE))
    w = to_numpy(w)
    return np.concatenate([(part @ w.T).argmax(1) for part in parts])


def answers(packed, contexts):
    """The best class of each context."""
    parts = np.split(contexts, range(AT_ONCE, len(contexts), AT_ONCE))
    found = [packed.top_k(asarray(part, packed.device), 1)[1] for part in parts]
    return np.concatenate([to_numpy(ids)[:, 0] for ids in found])


# ---------------------------------------------------------------- what came out


def held_by(packed):
    """(E, L) bool: which expert holds which class."""
    held = np.zeros((packed.n_experts, packed.n_classes), bool)
    held[np.repeat(np.arange(packed.n_experts), packed.sizes), to_numpy(packed.ids)] = True
    return held


def wholly(held, n_super):
    """(n_super,) bool: does the super-class lie inside exactly one expert, with all of its classes?"""
    held = held.reshape(len(held), n_super, -1)
    return (held.any(2).sum(0) == 1) & (held.all(2).sum(0) == 1)


def ideals(n_super, n_sub, n_experts):
    """Speed-ups by FLOPs: of equal experts, and the best of experts that hold whole super-classes.

    With n_k of the super-classes expert k gets a share n_k / n_super of the queries and holds n_k n_sub classes.
    """
    n_classes, (least, more) = n_super * n_sub, divmod(n_super, n_experts)
    squares = (n_experts - more) * least**2 + more * (least + 1) ** 2
    return n_classes / (n_experts + n_classes / n_experts), n_classes / (n_experts + squares * n_sub / n_super)


def figures_of(packed, contexts, targets, n_super):
    """What a row of the table says of an expert mixture."""
    held = held_by(packed)
    return {
        "accuracy": float((answers(packed, contexts) == targets).mean()),
        "whole": int(wholly(held, n_super).sum()),
        "speed-up": packed.speed_up(asarray(contexts, packed.device)),
        "rows": int(held.sum()),
        "smallest": int(held.sum(1).min()),
        "largest": int(held.sum(1).max()),
    }


def exact_answers(packed, contexts):
    """The best class of each context and its expert, from the weights in float64; -1 where the expert is empty."""
    gate, rows, ids, starts = (to_numpy(a) for a in (packed.gate, packed.weights, packed.ids, packed.starts))
    chosen, best = (contexts.astype(np.float64) @ gate.T).argmax(1), np.full(len(contexts), -1)
    for k in np.flatnonzero(np.diff(starts)):
        of_expert, mine = slice(*starts[k : k + 2]), chosen == k
        best[mine] = ids[of_expert][(contexts[mine].astype(np.float64) @ rows[of_expert].T).argmax(1)]
    return best, chosen


def check(packed, contexts, targets, figures, full_accuracy):
    """Stop where the figures are not those of the weights, or the accuracy is not that of the full softmax."""
    best, chosen = exact_answers(packed, contexts)
    accuracy, cost = (best == targets).mean(), packed.n_experts + packed.sizes[chosen].mean()
    timing.require_close("accuracy", figures["accuracy"], accuracy, 1e-3)
    timing.require_close("speed-up", figures["speed-up"], packed.n_classes / cost, 1e-3)
    apart = full_accuracy - accuracy
    timing.require(apart <= LEAST, f"DS-Softmax is {apart:.2%} less accurate than the full softmax")


# ---------------------------------------------------------------- a task


def points_of(task, seed):
    """Contexts and targets to train, and those that are held out."""
    n = task["points"] * task["n_super"] * task["n_sub"]
    contexts, targets = data.hierarchy(task["n_super"], task["n_sub"], task["points"] + HELD_OUT, WIDTH, seed)
    return contexts[:n], targets[:n], contexts[n:], targets[n:]


def model_of(name, seed, device, **changed):
    settings = COMMON | SETTINGS[name] | changed
    return DSSoftmax(**settings, seed=seed, device=device, progress=False)


def warm_up(device):
    """Compile all that training calls."""
    contexts, targets, *_ = points_of(TASKS["smoke"], 0)
    model_of("smoke", 0, device, epochs=1, prune_after=0).fit(contexts, targets).evaluate(contexts, targets)
    train_full(contexts, targets, int(targets.max()) + 1, 1, 100, 0, device)


def repeated(name, runs, device):
    """``{noise: (runs with every super-class wholly in one expert, of these with no expert empty, lowest accuracy)}``."""
    task, found = TASKS[name], {}
    for noise in (COMMON["noise"], 0.0):
        whole, spread, accuracy = 0, 0, 1.0
        for seed in range(runs):
            contexts, targets, *held_out = points_of(task, seed)
            packed = model_of(name, seed, device, noise=noise).fit(contexts, targets).pack()
            figures = figures_of(packed, *held_out, task["n_super"])
            is_whole = figures["whole"] == task["n_super"]
            whole, spread = whole + is_whole, spread + (is_whole and figures["smallest"] > 0)
            accuracy = min(accuracy, figures["accuracy"])
        found[noise] = whole, spread, accuracy
    return found


def run(name, args):
    """Train both models; returns the row of results and which expert holds which class."""
    task, device = TASKS[name] | {"points": args.points}, args.device
    contexts, targets, *held_out = points_of(task, args.seed)
    n_super, n_classes = task["n_super"], task["n_super"] * task["n_sub"]
    checkpoint, log = (
        (args.work / f"hierarchy-{name}.{kind}" for kind in ("safetensors", "json")) if args.work else (None, None)
    )
    resumed = args.work and checkpoint.exists()
    stages = json.loads(log.read_text()) if resumed and log.exists() else []

    def after_stage(n_experts, packed):
        stages.append({"experts": n_experts} | figures_of(packed, *held_out, n_super))
        print(f"{n_experts} experts: {stages[-1]}", flush=True)
        if log:
            log.write_text(json.dumps(stages))

    warm_up(device)
    model = model_of(name, args.seed, device)
    with machine.memory_growth(device) as growth:
        model.fit(
            contexts, targets, n_classes=n_classes, after_stage=after_stage, checkpoint_path=checkpoint, resume=bool(resumed)
        )  # fmt: skip
    for stage in stages:
        stage["seconds"] = sum(r["seconds"] for r in model.history_ if r["n_experts"] == stage["experts"])
    packed, start = model.pack(), time.perf_counter()
    with machine.memory_growth(device) as full_growth:
        w = train_full(contexts, targets, n_classes, task["full_epochs"], model.batch_size, args.seed, device)
    full = {"seconds": time.perf_counter() - start, "growth": full_growth["bytes"]}
    full["accuracy"] = float((full_answers(w, held_out[0]) == held_out[1]).mean())
    check(packed, *held_out, stages[-1], full["accuracy"])
    figures = {"full": full, "stages": stages, "growth": None if resumed else growth["bytes"]}
    if args.runs > 1:
        figures["runs"] = {str(noise): result for noise, result in repeated(name, args.runs, device).items()}
    sizes = {"classes": n_classes, "width": WIDTH, "points": task["points"], "held_out": HELD_OUT, "device": device}
    parameters = sizes | COMMON | SETTINGS[name]
    parameters |= {"full_epochs": task["full_epochs"], "seed": args.seed, "runs": args.runs}
    return row_of(name, task, parameters, figures), held_by(packed)


def mib(n):
    return "unknown" if n is None else f"{n / 2**20:,.1f} MiB"


def row_of(name, task, parameters, figures):
    """The row of results, with its own table."""
    full, stages, last = figures["full"], figures["stages"], figures["stages"][-1]
    n_super, n_experts = task["n_super"], last["experts"]
    n_rows, seconds = f"{parameters['classes']:,}", f"{full['seconds']:,.1f}"
    table = [["full softmax", f"{full['accuracy']:.2%}", "-", n_rows, "-", "1.00", seconds]]
    for s in stages:
        sizes = f"{s['smallest']:,} - {s['largest']:,}"
        table.append(
            [
                f"DS-Softmax, {s['experts']} experts", f"{s['accuracy']:.2%}", f"{s['whole']} of {n_super}", f"{s['rows']:,}",
                sizes, f"{s['speed-up']:.2f}", f"{s['seconds']:,.1f}",
            ]
        )  # fmt: skip
    even, best = ideals(n_super, task["n_sub"], n_experts)
    ideal = f"Speed-up by FLOPs: {last['speed-up']:.2f}; ideal for {n_experts} equal experts {even:.2f}"
    if n_super % n_experts:
        ideal += f", at most {best:.2f} where super-classes stay whole"
    met = "met" if last["whole"] == n_super else "not met"
    notes = [
        f"Target: every super-class wholly inside one expert; {last['whole']} of {n_super}: {met}.",
        f"{ideal}. It counts products: L / (E + sum_k u_k |v_k|).",
        f"Memory, most that training took beyond the data: DS-Softmax {mib(figures['growth'])}, "
        f"full softmax {mib(full['growth'])}.",
    ]
    for noise, (whole, spread, accuracy) in figures.get("runs", {}).items():
        notes.append(
            f"Noise {noise} at the gate: in {whole} of {parameters['runs']} runs, with other seeds for data and model, every "
            f"super-class lies wholly inside one expert, in {spread} of them no expert is empty; lowest accuracy {accuracy:.2%}."
        )
    header = [
        "model", "accuracy", "super-classes wholly in one expert", "rows", "classes of an expert", "speed-up",
        "s of training",
    ]  # fmt: skip
    return {
        "benchmark": f"hierarchy: {name}", "parameters": parameters, "table": {"header": header, "rows": table}, "notes": notes,
        "figures": figures, "environment": machine.environment(parameters["device"]),
    }  # fmt: skip


# ---------------------------------------------------------------- picture


def arranged(held, n_super):
    """The matrix (E, L) with its rows and columns in an order that shows the structure, and whether columns are whole.

    A super-class belongs to the expert that holds most of it. The experts with the most super-classes come first, then
    the super-classes in the order of their experts; inside one, the classes in the order of the first expert that holds
    them.
    """
    counts = held.reshape(len(held), n_super, -1).sum(2)
    home = counts.argmax(0)
    rank = np.empty(len(held), int)
    rank[np.lexsort((-counts.sum(1), -np.bincount(home, minlength=len(held))))] = np.arange(len(held))
    held = held[np.argsort(rank)]
    supers = np.argsort(rank[home], kind="stable")
    blocks = held.reshape(len(held), n_super, -1)[:, supers]
    first = np.where(blocks.any(0), blocks.argmax(0), len(held))
    blocks = np.take_along_axis(blocks, np.argsort(first, axis=1, kind="stable")[None], axis=2)
    whole = np.repeat(wholly(held, n_super)[supers], blocks.shape[2])
    return blocks.reshape(held.shape), whole


def picture(held, n_super, name, path):
    """Which expert holds which class: experts down, classes across."""
    plt = plotting.pyplot()
    from matplotlib.colors import ListedColormap

    n_experts, n_classes = held.shape
    shown, whole = arranged(held, n_super)
    n_sub, number = n_classes // n_super, int(wholly(held, n_super).sum())
    image = np.where(shown, np.where(whole, 1, 2), 0)
    pool = max(1, n_classes // COLUMNS)  # a mark is as wide as a column of the picture at least
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
    axes.set_xlabel(f"classes, {n_sub} of each super-class side by side", fontsize=16)
    axes.set_ylabel("experts", fontsize=16)
    axes.set_title(f"Which expert holds which class: {name}", fontsize=17, loc="left", pad=34)
    label = {"fontsize": 15, "transform": axes.transAxes}
    axes.text(0, 1.02, f"{number} of {n_super} super-classes wholly in one expert", color=WHOLE, **label)
    if number < n_super:
        axes.text(1, 1.02, f"{n_super - number} others", color=PART, ha="right", **label)
    axes.tick_params(labelsize=14)
    plotting.write_picture(figure, path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.hierarchy", description=__doc__.partition("\n")[0])
    tasks = [name for name in TASKS if name != "smoke"]
    parser.add_argument("task", nargs="?", choices=tasks, default=tasks[0], help=f"default: {tasks[0]}")
    parser.add_argument("--points", type=int, help="to train, of each class (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of data and models (default: 0)")
    parser.add_argument("--runs", type=int, default=1, help="seeds to try, with noise and without (default: 1, none)")
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument("--threads", type=int, default=min(2, cores), help="Numba's threads (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--work", type=Path, help="folder of a checkpoint, from which the command goes on when given again"
    )
    parser.add_argument(
        "--json", type=Path, help="file to add the row to (default: bench/results/hierarchy-DEVICE.json)"
    )
    parser.add_argument("--picture", type=Path, help="default: bench/hierarchy-TASK.png, none with --json or --smoke")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny task: shows that it runs, the figures mean nothing"
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
    row, held = run(name, args)
    harness.publish(args, row)
    if args.picture:
        picture(held, TASKS[name]["n_super"], name, args.picture)
    return row


if __name__ == "__main__":
    sys.exit(not main())
