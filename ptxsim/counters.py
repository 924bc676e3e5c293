"""Performance counters of a launch, and the report built from them."""

from dataclasses import dataclass, field, fields

CHIPS = {
    "H200": {
        "bandwidth": 4.3e12, "fp32": 67e12, "fp64": 34e12, "fp16": 134e12, "mma": 989e12,
        "note": "bandwidth: measured copy bandwidth; rates: datasheet values",
    },
    "RTX3050-4GB": {
        "bandwidth": 192e9, "fp32": 5.5e12, "fp64": 5.5e12 / 64, "fp16": 5.5e12, "mma": 22e12,
        "note": "datasheet values (laptop part; clocks vary with the power limit)",
    },
}  # fmt: skip


@dataclass
class Traffic:
    """Totals of one kind of global access."""

    requests: int = 0  # warp instructions
    sectors: int = 0  # 32-byte sectors touched, summed over requests
    bytes: int = 0  # bytes asked for by threads
    unique_bytes: int = 0  # distinct bytes touched in the launch

    @property
    def sectors_per_request(self):
        return self.sectors / self.requests if self.requests else 0.0


@dataclass
class Banks:
    """Totals of one kind of shared-memory access."""

    requests: int = 0
    bytes: int = 0
    wavefronts: int = 0
    extra_wavefronts: int = 0  # wavefronts beyond the conflict-free number


@dataclass
class Counters:
    """Per-launch totals; `estimated` is set when only a sample of blocks was executed."""

    instructions: dict = field(default_factory=dict)  # warp instructions issued, by class
    thread_instructions: int = 0
    flops: dict = field(default_factory=dict)  # by kind: fp32, fp64, fp16, mma
    global_load: Traffic = field(default_factory=Traffic)
    global_store: Traffic = field(default_factory=Traffic)
    global_atomic: Traffic = field(default_factory=Traffic)
    dram_read_bytes: int = 0
    dram_write_bytes: int = 0
    shared_load: Banks = field(default_factory=Banks)
    shared_store: Banks = field(default_factory=Banks)
    local_load_bytes: int = 0
    local_store_bytes: int = 0
    atomics: dict = field(default_factory=dict)  # op -> requests, lanes, conflicts
    blocks_total: int = 0
    blocks_executed: int = 0
    estimated: bool = False

    @property
    def warp_instructions(self):
        return sum(self.instructions.values())

    @property
    def average_active_lanes(self):
        return self.thread_instructions / max(1, self.warp_instructions)

    @property
    def unique_bytes(self):
        """Compulsory traffic: bytes read at least once plus bytes written at least once."""
        return self.global_load.unique_bytes + self.global_store.unique_bytes

    @property
    def dram_bytes(self):
        return self.dram_read_bytes + self.dram_write_bytes

    @property
    def total_flops(self):
        return sum(self.flops.values())

    def add_blocks(self, blocks, warps, lanes):
        """Add the static statistics of basic blocks times how often they ran."""
        for block, w, n in zip(blocks, warps, lanes, strict=True):
            if w:
                for cls, count in block.classes.items():
                    self.instructions[cls] = self.instructions.get(cls, 0) + count * w
                self.thread_instructions += block.count * n
                for kind, count in block.flops.items():
                    self.flops[kind] = self.flops.get(kind, 0) + count * n

    def scale(self, factor):
        """Turn the totals of a sample of blocks into estimates for the grid."""

        def grow(value):
            if isinstance(value, dict):
                return {k: grow(v) for k, v in value.items()}
            if isinstance(value, (Traffic, Banks)):
                return type(value)(**{f.name: grow(getattr(value, f.name)) for f in fields(value)})
            return round(value * factor)

        for f in fields(self):
            if f.name not in ("blocks_total", "blocks_executed", "estimated"):
                setattr(self, f.name, grow(getattr(self, f.name)))
        self.estimated = True


def lower_bound(counters, chip="H200", **overrides):
    """Roofline lower bound in seconds, by resource, for a named chip or given rates."""
    rates = {**CHIPS.get(chip, {}), **overrides}
    out = {"memory (unique bytes)": counters.unique_bytes / rates["bandwidth"]}
    out["memory (modelled DRAM)"] = counters.dram_bytes / rates["bandwidth"]
    for kind, flops in counters.flops.items():
        if kind in rates and flops:
            out[f"{kind} arithmetic"] = flops / rates[kind]
    return out


def si(value, unit=""):
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def report(result, chip="H200", **overrides):
    """A compact table of a launch result."""
    c = result.counters
    lines = [f"kernel {result.name}  grid {result.grid}  block {result.block}"]
    if c.estimated:
        lines.append(f"ESTIMATES scaled from {c.blocks_executed} of {c.blocks_total} blocks")
    if result.resources:
        r = result.resources
        lines.append(
            f"ptxas: {r['registers']} registers, spills {r['spill_store_bytes']}+{r['spill_load_bytes']} B, "
            f"stack {r['stack_bytes']} B, static shared {r['shared_bytes']} B"
        )
    lines.append(
        f"warp instructions {si(c.warp_instructions)}, active lanes {c.average_active_lanes:.2f}/32 per instruction"
    )
    for cls, count in sorted(c.instructions.items(), key=lambda x: -x[1]):
        lines.append(f"    {cls:<16}{count:>16,}  {100 * count / c.warp_instructions:5.1f} %")
    flops = ", ".join(f"{k} {si(v)}" for k, v in c.flops.items() if v) or "none"
    lines.append(f"thread FLOPs: {flops}")
    for name in ("global_load", "global_store", "global_atomic"):
        t = getattr(c, name)
        if t.requests:
            lines.append(
                f"{name:<14}{t.requests:>12,} requests {t.sectors_per_request:6.2f} sectors each, "
                f"asked {si(t.bytes, 'B')}, unique {si(t.unique_bytes, 'B')}"
            )
    lines.append(f"modelled DRAM  read {si(c.dram_read_bytes, 'B')}, write {si(c.dram_write_bytes, 'B')}")
    for name in ("shared_load", "shared_store"):
        b = getattr(c, name)
        if b.requests:
            lines.append(
                f"{name:<14}{b.requests:>12,} requests, {b.extra_wavefronts:,} extra wavefronts (bank conflicts)"
            )
    if c.local_load_bytes or c.local_store_bytes:
        lines.append(f"local memory   load {si(c.local_load_bytes, 'B')}, store {si(c.local_store_bytes, 'B')}")
    for op, t in c.atomics.items():
        lines.append(f"{op:<22}{t['lanes']:>12,} lanes, {t['conflicts']:,} same-address conflicts within warps")
    for a in result.worst_accesses(3):
        lines.append(f"least coalesced: {a}")
    moved = c.dram_bytes or 1
    lines.append(f"arithmetic intensity {c.total_flops / moved:.3f} FLOP per modelled DRAM byte")
    bounds = lower_bound(c, chip, **overrides)
    lines.append(
        f"lower bound on {chip}, computed from counters (NOT a measurement): {max(bounds.values()) * 1e6:.3f} us"
    )
    lines += [f"    {k:<24}{v * 1e6:12.3f} us" for k, v in bounds.items()]
    if chip in CHIPS:
        lines.append(f"    chip rates: {CHIPS[chip]['note']}{'; overridden: ' + str(overrides) if overrides else ''}")
    kinds = ", ".join(f"{e.kind} x{e.count}" for e in result.errors) or "none"
    lines.append(f"errors: {kinds}" + (f"; warnings: {len(result.warnings)}" if result.warnings else ""))
    return "\n".join(lines)
