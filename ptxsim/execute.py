"""The machine: fragments of converged lanes, the scheduler, barriers and warp operations.

A batch of blocks runs together. Lanes that sit at the same program counter form a
fragment; the scheduler always runs the fragment with the lowest block index (in PTX
order), merging all fragments there, so lanes reconverge at the earliest common point.
"""

from dataclasses import dataclass

import numpy as np

from . import ops
from .memory import (
    BLOCK_EPOCH,
    BLOCK_EPOCH_SHIFT,
    BLOCK_SHIFT,
    WARP_EPOCH,
    WARP_EPOCH_SHIFT,
    Memory,
)
from .translate import ALL_LANES

RUN, AT_BARRIER, AT_WARP_SYNC = range(3)
SPIN_STEPS, LONG_STEPS = 256, 100_000  # scheduler steps before another fragment gets a turn
u4 = np.uint32


@dataclass
class Finding:
    """One problem; `count` lanes hit it, the first is described."""

    kind: str
    message: str
    severity: str
    ptx_line: int | None
    instruction: str
    source: tuple | None
    block: tuple
    thread: tuple
    address: int | None = None
    count: int = 1

    def __str__(self):
        at = f" at {self.source[0]}:{self.source[1]}" if self.source else ""
        return (
            f"[{self.kind}] {self.message}{at} (PTX line {self.ptx_line}: {self.instruction}) "
            f"block {self.block} thread {self.thread}, {self.count} lane(s)"
        )


class Fragment:
    """A set of lanes (sorted batch-wide lane numbers) executing the same code."""

    def __init__(self, machine, lanes, regs, pc):
        self.M, self.lanes, self.R, self.pc = machine, lanes, regs, pc
        self.n, self.state, self.forced = len(lanes), RUN, False
        self.cached = {}
        if self.n == machine.lane_count:
            self.nwarps, self.full = self.n >> 5, True
        else:
            warp = lanes >> 5
            self.nwarps = int(np.count_nonzero(warp[1:] != warp[:-1])) + 1
            self.full = self.n == 32 * self.nwarps

    def cache(self, key, make):
        if key not in self.cached:
            self.cached[key] = make()
        return self.cached[key]

    def groups(self, size):
        """(first lane of each group, padded slot of each lane) for groups of `size` lanes."""

        def make():
            group = self.lanes // size
            new = np.concatenate([[True], group[1:] != group[:-1]])
            return np.flatnonzero(new), (np.cumsum(new) - 1) * size + self.lanes % size

        return self.cache(("groups", size), make)

    def rows(self, values, size=32):
        """Values as (groups, size); inactive lanes repeat their group's first value."""
        if len(values) == 1:
            values = np.broadcast_to(values, self.n)
        if self.full:
            return values.reshape(-1, size)
        starts, slots = self.groups(size)
        out = np.repeat(values[starts], size)
        out[slots] = values
        return out.reshape(-1, size)

    def warps(self):
        return self.cache("warps", lambda: self.lanes[self.groups(32)[0]] >> 5)

    def slots(self):
        return self.cache("slots", lambda: self.lanes // self.M.padded)

    def bits(self):
        """Mask of active lanes, per warp."""

        def make():
            return np.bitwise_or.reduceat(u4(1) << (self.lanes & 31).astype(u4), self.groups(32)[0])

        return self.cache("bits", make)

    def per_lane(self, per_warp):
        """Spread one value per warp to the lanes."""
        if self.full:
            return np.repeat(per_warp, 32)
        return per_warp[self.groups(32)[1] >> 5]

    def position(self):
        """Index inside the fragment of each lane of the batch (-1: not here)."""

        def make():
            where = np.full(self.M.lane_count, -1)
            where[self.lanes] = np.arange(self.n)
            return where

        return self.cache("position", make)

    def keys(self):
        version, keys = self.cached.get("keys", (None, None))
        if version != self.M.epoch:
            keys = self.M.keys[self.lanes]
            self.cached["keys"] = (self.M.epoch, keys)
        return keys

    def sreg(self, name):
        if name not in self.cached:
            values = self.M.special(name)
            self.cached[name] = values if len(values) == 1 else values[self.lanes]
        if name.startswith(("clock", "globaltimer")):
            return self.M.special(name)
        return self.cached[name]

    def take(self, idx):
        """A register-less sub-fragment, for memory accesses by some of the lanes."""
        return Fragment(self.M, self.lanes[idx], None, self.pc)

    def split(self, idx, live, pc):
        regs = list(self.M.zeros)
        for r in live:
            v = self.R[r]
            regs[r] = v if len(v) == 1 else v[idx]
        return Fragment(self.M, self.lanes[idx], regs, pc)


class Machine(Memory):
    """Executes one launch of a translated program."""

    def __init__(self, program, grid, block, dynamic_shared, check, l2_bytes, counters, max_steps):
        self.grid, self.block, self.counters, self.max_steps = grid, block, counters, max_steps
        self.setup_memory(program, dynamic_shared, check, l2_bytes)
        self.dynamic_shared, self.params, self.findings = dynamic_shared, [], {}
        self.zeros = [np.zeros(1, s) for s in program.storage]
        self.threads = block[0] * block[1] * block[2]
        self.padded = -(-self.threads // 32) * 32
        n = len(program.blocks)
        self.exec_warps, self.exec_lanes = [0] * n, [0] * n
        spins = any(
            (a.kind == "atom" and a.op.split(".")[1] in ("cas", "exch")) or not a.plain for a in program.accesses
        )
        self.quantum = SPIN_STEPS if spins else LONG_STEPS
        self.epoch = self.steps = 0
        for access in program.accesses:
            access.reset()

    # ------------------------------------------------------------ findings

    def name_key(self, key):
        return f"block {self.block_index((key >> BLOCK_SHIFT) - 1)} thread {self.thread_index(key & 0x3FF)}"

    def block_index(self, linear):
        gx, gy, _ = self.grid
        return linear % gx, linear // gx % gy, linear // (gx * gy)

    def thread_index(self, linear):
        bx, by, _ = self.block
        return linear % bx, linear // bx % by, linear // (bx * by)

    def report(self, kind, ins, lanes, message, severity="error", address=None):
        """Record a finding, merging repeats at the same instruction."""
        if not self.check:
            if kind in ("out-of-bounds", "misaligned", "read-only"):
                raise IndexError(f"{message} (PTX line {ins.line}: {ins.text})")
            return
        key = (kind, severity, ins.line if ins else None)
        if key in self.findings:
            self.findings[key].count += len(lanes)
            return
        lane = int(lanes[0])
        self.findings[key] = Finding(
            kind, message, severity, ins.line if ins else None, ins.text if ins else "", ins.loc if ins else None,
            self.block_index(int(self.batch[lane // self.padded])), self.thread_index(lane % self.padded),
            address, len(lanes),
        )  # fmt: skip

    def missing_function(self, name, line):
        raise NotImplementedError(f"call of external function {name} at PTX line {line}")

    def trap(self, F, line):
        raise RuntimeError(
            f"trap executed at PTX line {line} by block {self.block_index(int(self.batch[F.slots()[0]]))}"
        )

    # ------------------------------------------------------------ batches

    def start_batch(self, block_ids):
        """Prepare the lanes of these blocks (linear block numbers)."""
        self.batch = np.asarray(block_ids)
        blocks = len(self.batch)
        self.lane_count = blocks * self.padded
        self.start_batch_memory(blocks, self.padded)
        thread = np.arange(self.lane_count) % self.padded
        bx, by, _ = self.block
        gx, gy, _ = self.grid
        per_lane = np.repeat(self.batch, self.padded)
        self.lane_values = {
            "tid.x": thread % bx, "tid.y": thread // bx % by, "tid.z": thread // (bx * by),
            "ctaid.x": per_lane % gx, "ctaid.y": per_lane // gx % gy, "ctaid.z": per_lane // (gx * gy),
            "laneid": thread & 31, "warpid": thread >> 5, "smid": per_lane % 132,
        }  # fmt: skip
        self.special_cache = {}
        self.keys = ((per_lane + 1) & 0x1FFFFF) << BLOCK_SHIFT | thread
        self.epoch += 1
        valid = thread < self.threads
        self.alive = np.add.reduceat(valid.astype(np.int64), np.arange(0, self.lane_count, self.padded))
        self.alive_bits = np.bitwise_or.reduce(
            np.where(valid, u4(1) << (thread & 31).astype(u4), u4(0)).reshape(-1, 32), axis=1
        )
        self.fragments = [Fragment(self, np.flatnonzero(valid), list(self.zeros), 0)]

    def special(self, name):
        """A special register for all lanes of the batch, or one element when uniform."""
        if name in ("clock", "clock_hi", "globaltimer_lo", "globaltimer_hi"):
            return np.array([self.steps], u4)
        if name in ("clock64", "globaltimer"):
            return np.array([self.steps], np.uint64)
        if name not in self.special_cache:
            axis = "xyz".find(name[-1])
            if name in self.lane_values:
                values = self.lane_values[name].astype(u4)
                values = values[:1] if (values == values[0]).all() else values
            elif name.startswith(("ntid.", "nctaid.")):
                values = np.array([(self.block if name[1] == "t" else self.grid)[axis]], u4)
            elif name.startswith("lanemask_"):
                lane = self.lane_values["laneid"].astype(np.uint64)
                one = np.uint64(1)
                masks = {"eq": one << lane, "lt": (one << lane) - one, "le": (one << lane + one) - one}
                masks["gt"], masks["ge"] = ~masks["le"], ~masks["lt"]
                values = masks[name[9:]].astype(u4)
            else:
                total = self.program.shared_static + self.dynamic_shared
                known = {"nwarpid": self.padded >> 5, "nsmid": 132, "gridid": 0,
                         "dynamic_smem_size": self.dynamic_shared, "total_smem_size": total}  # fmt: skip
                values = np.array([known[name]], u4)
            self.special_cache[name] = values
        return self.special_cache[name]

    # ------------------------------------------------------------ scheduler

    def run_batch(self):
        blocks, since_turn, turn = self.program.blocks, 0, 0
        while True:
            running = [f for f in self.fragments if f.state == RUN]
            if not running:
                if not self.fragments:
                    return
                self.release()
                continue
            pc = min(f.pc for f in running)
            if len(self.fragments) > 1:
                since_turn += 1
                if since_turn >= self.quantum:  # let threads that others may spin on make progress
                    self.release()
                    pcs = sorted({f.pc for f in self.fragments if f.state == RUN})
                    pc, turn, since_turn = pcs[turn % len(pcs)], turn + 1, 0
            else:
                since_turn = 0
            block = blocks[pc]
            F = self.gather(pc, block)
            if block.sync is not None and not F.forced and not (F.full and block.sync == ALL_LANES):
                F = self.wait_for_warp(F, block)
                if F is None:
                    continue
            F.forced = False
            self.steps += 1
            if self.steps > self.max_steps:
                raise TimeoutError(f"more than {self.max_steps} basic blocks executed; raise max_steps")
            result = block.fn(F)
            self.exec_warps[pc] += F.nwarps
            self.exec_lanes[pc] += F.n
            self.finish(F, block, result)

    def gather(self, pc, block):
        """The fragment of all lanes at pc, merged."""
        here = [f for f in self.fragments if f.pc == pc and f.state != AT_BARRIER]
        if len(here) == 1:
            here[0].state = RUN
            return here[0]
        lanes = np.concatenate([f.lanes for f in here])
        order = np.argsort(lanes, kind="stable")
        regs = list(self.zeros)
        for r in block.live_in:
            parts = [f.R[r] for f in here]
            if all(len(p) == 1 for p in parts) and len({p.tobytes() for p in parts}) == 1:
                regs[r] = parts[0]
            else:
                whole = [np.broadcast_to(p, f.n) for p, f in zip(parts, here, strict=True)]
                regs[r] = np.concatenate(whole)[order]
        F = Fragment(self, lanes[order], regs, pc)
        F.forced = any(f.forced for f in here)
        self.fragments = [f for f in self.fragments if f.pc != pc or f.state == AT_BARRIER]
        self.fragments.append(F)
        return F

    def finish(self, F, block, result):
        """Move the fragment on according to how its block ended."""
        term = block.term
        if term in ("fall", "bra"):
            F.pc = block.target if term == "bra" else block.index + 1
        elif term in ("cbra", "skip", "cexit"):
            taken = result
            count = int(np.count_nonzero(taken)) if len(taken) > 1 else F.n * bool(taken[0])
            if count == 0:
                F.pc = block.index + 1
            elif count == F.n:
                self.leave(F) if term == "cexit" else setattr(F, "pc", block.target)
            else:
                self.fragments.remove(F)
                yes, no = np.flatnonzero(taken), np.flatnonzero(~taken)
                blocks = self.program.blocks
                self.fragments.append(F.split(no, blocks[block.index + 1].live_in, block.index + 1))
                if term == "cexit":
                    self.leave(F.take(yes))
                else:
                    self.fragments.append(F.split(yes, blocks[block.target].live_in, block.target))
        elif term == "exit":
            self.leave(F)
        else:
            F.pc, F.state, F.barrier = block.index + 1, AT_BARRIER, result
            F.at = block.instrs[-1]

    def leave(self, F):
        """The lanes exit."""
        if F in self.fragments:
            self.fragments.remove(F)
        self.alive -= np.bincount(F.slots(), minlength=len(self.alive))
        self.alive_bits[F.warps()] &= ~F.bits()

    # ------------------------------------------------------------ synchronisation

    def wait_for_warp(self, F, block):
        """The lanes whose membermask has fully arrived; the others are parked.

        Lanes of a warp that pass different masks form separate groups, which go on one by one.
        """
        mask, warp = self.sync_mask(F, block.sync), F.lanes >> 5
        bit = u4(1) << (F.lanes & 31).astype(u4)
        mixed = bool((mask != F.per_lane(mask[F.groups(32)[0]])).any())
        if mixed:
            _, group = np.unique(warp << 32 | mask, return_inverse=True)
            present = np.zeros(F.n, u4)
            np.bitwise_or.at(present, group, bit)
            present = present[group]
        else:
            present = F.per_lane(F.bits())
        ready = mask & self.alive_bits[warp] & ~present == 0
        go = ready
        if mixed and ready.any():
            _, first = np.unique(warp[ready], return_index=True)
            go = ready & np.isin(group, group[ready][first])
        outside = np.flatnonzero(go & (mask & bit == 0))
        if len(outside):
            self.report("warp-sync", block.instrs[0], F.lanes[outside], "the membermask does not name the lane itself")
        if go.all():
            return F
        self.fragments.remove(F)
        parts = []
        for where, state in ((~ready, AT_WARP_SYNC), (ready & ~go, RUN), (go, RUN)):
            if where.any():
                part = F.split(np.flatnonzero(where), block.live_in, F.pc)
                part.state = state
                parts.append(part)
        self.fragments += parts
        return parts[-1] if go.any() else None

    def sync_mask(self, F, operand):
        """The membermask of every lane."""
        if hasattr(operand, "value"):
            return np.full(F.n, operand.value & 0xFFFFFFFF, u4)
        return np.broadcast_to(F.R[self.program.reg_index[operand.name]].view(u4), F.n)

    def release(self):
        """Open the barriers whose threads have all arrived; break deadlocks with a finding."""
        waiting = [f for f in self.fragments if f.state == AT_BARRIER]
        opened = False
        for ident in sorted({int(f.barrier[0][0]) for f in waiting}):
            group = [f for f in waiting if int(f.barrier[0][0]) == ident]
            arrived = sum(np.bincount(f.slots(), minlength=len(self.alive)) for f in group)
            count = group[0].barrier[1]
            expected = self.alive if count is None else np.minimum(self.alive, int(count[0]))
            done = (arrived > 0) & (arrived >= expected)
            if done.any():
                opened = True
                self.check_convergence(group, done, count)
                self.open_barrier(group, done)
        if opened or any(f.state == RUN for f in self.fragments):
            return
        parked = [f for f in self.fragments if f.state == AT_WARP_SYNC]
        for f in parked:
            ins = self.program.blocks[f.pc].instrs[0]
            self.report("warp-sync", ins, f.lanes, "the membermask names lanes that never arrive here")
            f.state, f.forced = RUN, True
        if not parked:
            for f in waiting:
                self.report(
                    "barrier-divergence", f.at, f.lanes, "deadlock: the other threads wait elsewhere; threads dropped"
                )
                self.leave(f)

    def check_convergence(self, group, done, count):
        """Report threads of one block that meet at different barriers, or have exited."""
        low = np.full(len(done), 1 << 30)
        high = np.full(len(done), -1)
        for f in group:
            slots = f.slots()
            np.minimum.at(low, slots, f.pc)
            np.maximum.at(high, slots, f.pc)
        differ = done & (low != high)
        gone = done & (self.alive < self.threads) & (count is None)
        for bad, text in (
            (differ, "threads of the block wait at different barriers"),
            (gone, "some threads exited before it"),
        ):
            if bad.any():
                for f in group:
                    lanes = f.lanes[bad[f.slots()]]
                    if len(lanes):
                        self.report("barrier-divergence", f.at, lanes, f"divergent barrier: {text}")

    def open_barrier(self, group, done):
        """Let the threads of the blocks `done` go on; a block's threads wait at one kind of barrier, with or without a
        reduction, other blocks' perhaps at another.
        """
        preds = [np.broadcast_to(f.barrier[2], f.n) if f.barrier[3] else np.zeros(f.n, bool) for f in group]
        total = sum(np.bincount(f.slots(), p, len(done)) for f, p in zip(group, preds, strict=True))
        size = sum(np.bincount(f.slots(), minlength=len(done)) for f in group)
        for f in group:
            if f.barrier[3]:
                value = {"popc": total.astype(u4), "or": total > 0, "and": total == size}[f.barrier[3]]
                f.R[f.barrier[4]] = value[f.slots()]
            free = done[f.slots()]
            if free.all():
                f.state = RUN
            else:
                self.fragments.remove(f)
                live = self.program.blocks[f.pc].live_in
                stay, go = f.split(np.flatnonzero(~free), live, f.pc), f.split(np.flatnonzero(free), live, f.pc)
                stay.state, stay.barrier, stay.at = AT_BARRIER, f.barrier, f.at
                if f.barrier[2] is not None and len(f.barrier[2]) > 1:
                    stay.barrier = (*f.barrier[:2], f.barrier[2][~free], *f.barrier[3:])
                self.fragments += [stay, go]
        keys = self.keys.reshape(len(done), self.padded)
        keys[done] = self.bump(keys[done], BLOCK_EPOCH, BLOCK_EPOCH_SHIFT)
        self.epoch += 1

    @staticmethod
    def bump(keys, mask, shift):
        return keys & ~mask | (keys + (1 << shift)) & mask

    def warp_sync(self, F):
        """bar.warp.sync orders the warp's earlier and later accesses."""
        keys, warps = self.keys.reshape(-1, 32), F.warps()
        keys[warps] = self.bump(keys[warps], WARP_EPOCH, WARP_EPOCH_SHIFT)
        self.epoch += 1

    # ------------------------------------------------------------ warp operations

    def shfl(self, F, mode, a, b, c):
        """Warp shuffle: (value, predicate)."""
        a = np.broadcast_to(a, F.n)
        lane = F.lanes & 31
        b, c = b.astype(np.int64) & 31, c.astype(np.int64)
        clamp, segment = c & 31, (c >> 8) & 31
        max_lane = (lane & segment) | (clamp & ~segment)
        min_lane = lane & segment
        if mode == "up":
            j, ok = lane - b, lane - b >= max_lane
        elif mode == "down":
            j = lane + b
            ok = j <= max_lane
        elif mode == "bfly":
            j = lane ^ b
            ok = j <= max_lane
        else:
            j = min_lane | (b & ~segment)
            ok = j <= max_lane
        source = F.lanes - lane + np.where(ok, j, lane)
        if F.n != self.lane_count:
            source = F.position()[source]
            source = np.where(source < 0, np.arange(F.n), source)
        return a[source], ok

    def ballot(self, F, pred):
        bits = np.where(np.broadcast_to(pred, F.n), u4(1) << (F.lanes & 31).astype(u4), u4(0))
        return np.bitwise_or.reduceat(bits, F.groups(32)[0])

    def vote(self, F, kind, pred):
        votes = self.ballot(F, pred)
        if kind == "ballot":
            return F.per_lane(votes)
        all_, none = votes == F.bits(), votes == 0
        return F.per_lane({"all": all_, "any": ~none, "uni": all_ | none}[kind])

    def activemask(self, F):
        return F.per_lane(F.bits())

    def match(self, F, whole, a):
        a = np.broadcast_to(a, F.n)
        _, slots = F.groups(32)
        rows, here = F.rows(a), np.zeros(F.nwarps * 32, bool)
        here[slots] = True
        here = here.reshape(-1, 32)
        weights = u4(1) << np.arange(32, dtype=u4)
        if whole:
            same = (rows == rows[:, :1]).all(axis=1)
            return F.per_lane(np.where(same, F.bits(), u4(0))), F.per_lane(same)
        equal = (rows[:, :, None] == rows[:, None, :]) & here[:, None, :]
        masks = (equal * weights).sum(axis=2, dtype=u4)
        return masks.reshape(-1)[slots], None

    def redux(self, F, kind, a):
        ufunc = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
                 "or": np.bitwise_or, "xor": np.bitwise_xor}[kind]  # fmt: skip
        return F.per_lane(ufunc.reduceat(np.broadcast_to(a, F.n), F.groups(32)[0], dtype=a.dtype))

    def elect(self, F):
        leader = F.lanes[F.groups(32)[0]]
        return F.per_lane((leader & 31).astype(u4)), F.lanes == F.per_lane(leader)

    def mma(self, F, kind, k, a, b, c):
        """m16n8k{8,16} with float32 accumulation: products summed in float64, rounded once."""
        if not F.full:
            raise NotImplementedError("mma.sync in a partial warp")
        lane = np.arange(32)
        group, quad = lane >> 2, lane & 3

        def rows(x):
            return np.broadcast_to(x, F.n).reshape(-1, 32)

        def elements(x):
            """(value, column offset) pairs held in one 32-bit register."""
            x = rows(x)
            if kind == "tf32":
                return [(((x & u4(0xFFFFE000)).view(np.float32)), quad)]
            load = ops.HALF[kind][0]
            low, high = (x & u4(0xFFFF)).astype(np.uint16), (x >> u4(16)).astype(np.uint16)
            return [(load(low), quad * 2), (load(high), quad * 2 + 1)]

        A, B = np.zeros((F.nwarps, 16, k)), np.zeros((F.nwarps, k, 8))
        C = np.zeros((F.nwarps, 16, 8))
        step = 4 if kind == "tf32" else 8
        for i, reg in enumerate(a):
            for value, col in elements(reg):
                A[:, group + 8 * (i & 1), col + step * (i >> 1)] = value
        for i, reg in enumerate(b):
            for value, row in elements(reg):
                B[:, row + step * i, group] = value
        for i, reg in enumerate(c):
            C[:, group + 8 * (i >> 1), quad * 2 + (i & 1)] = rows(reg)
        D = (A @ B + C).astype(np.float32)
        return [D[:, group + 8 * (i >> 1), quad * 2 + (i & 1)].reshape(-1) for i in range(4)]
