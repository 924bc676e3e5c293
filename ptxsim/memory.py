"""Memory spaces, their traffic counters, and the memory and race checkers.

Race detection keeps, for each granule of memory, a 63-bit key of the last access:
thread, warp epoch (bumped by bar.warp.sync), block epoch (bumped by bar.sync) and block.
Two accesses are unordered when they come from different threads of one block in the same
block epoch, unless they share a warp and their warp epochs differ.
"""

import ctypes

import numpy as np

from . import ops
from .translate import GLOBAL_SHIFT, GLOBAL_START, LOCAL_BASE, NP, RED_ZONE, SHARED_BASE

THREAD, WARP = 0x3FF, 0x3E0
MANY_THREADS, MANY_WARPS, ATOMIC = 1 << 10, 1 << 11, 1 << 12
WARP_EPOCH_SHIFT, BLOCK_EPOCH_SHIFT, BLOCK_SHIFT = 13, 25, 42
WARP_EPOCH, BLOCK_EPOCH = 0xFFF << WARP_EPOCH_SHIFT, 0x1FFFF << BLOCK_EPOCH_SHIFT
NEVER = -(1 << 62)
GROUP = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8, 32: 4}  # lanes per shared-memory wavefront
UFUNCS = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def unordered(old, new):
    """Where the recorded access `old` and the access `new` have no barrier between them."""
    x = old ^ new
    same_epoch = (old != 0) & ((x >> BLOCK_EPOCH_SHIFT) == 0)
    if not same_epoch.any():
        return same_epoch
    different = (x & THREAD != 0) | (old & MANY_THREADS != 0)
    same_warp = (x & WARP == 0) & (old & MANY_WARPS == 0)
    return same_epoch & different & ~(same_warp & (x & WARP_EPOCH != 0))


class Allocation:
    """A range of global memory: a byte view of the host array plus its shadow state.

    The `skew` bytes before the range keep its alignment and may not be accessed.
    """

    def __init__(self, name, index, data, writeable=True, skew=0):
        self.name, self.data, self.writeable = name, data, writeable
        self.base = (index << GLOBAL_SHIFT) + GLOBAL_START
        self.low, self.size = self.base + skew, len(data)
        self.views = {}
        self.writer = None  # key of the last plain store, per granule
        self.read_mask = self.write_mask = None
        self.l2_time = self.dirty = None

    def view(self, dtype):
        if dtype not in self.views:
            whole = self.size // dtype.itemsize * dtype.itemsize
            self.views[dtype] = self.data[:whole].view(dtype)
        return self.views[dtype]

    def prepare(self, granule):
        if self.read_mask is None:
            n = self.size // granule + 1
            self.read_mask, self.write_mask = np.zeros(n, bool), np.zeros(n, bool)
            sectors = self.size // 32 + 1
            self.l2_time, self.dirty = np.full(sectors, NEVER, np.int64), np.zeros(sectors, bool)


def host_bytes(low, size):
    """A writable uint8 view of host memory; the caller keeps the owner alive."""
    if size == 0:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(low))


class Memory:
    """The memory half of the machine (mixed into `Machine`)."""

    def setup_memory(self, program, dynamic_shared, check, l2_bytes):
        self.program, self.check = program, check
        self.l2_sectors, self.l2_clock = l2_bytes // 32, 0
        self.gshift = program.global_granule.bit_length() - 1
        self.sshift = program.shared_granule.bit_length() - 1
        self.shared_vars = list(program.shared_vars)
        if dynamic_shared:
            self.shared_vars.append(("dynamic shared memory", program.dynamic_offset, dynamic_shared))
        end = program.dynamic_offset + dynamic_shared + RED_ZONE
        self.shared_stride = -(-end // 16) * 16
        self.shared_valid = np.zeros(self.shared_stride, bool)
        for _, offset, size in self.shared_vars:
            self.shared_valid[offset : offset + size] = True
        self.local_stride = -(-program.local_size // 16) * 16
        self.allocations = [None]
        self.pattern_cache = {}
        for var in program.module_vars:
            data = np.frombuffer(var.init or bytes(var.size), np.uint8).copy()
            self.allocations.append(Allocation(var.name, len(self.allocations), data, var.space != "const"))

    def add_host_memory(self, name, low, size, writeable, skew):
        alloc = Allocation(name, len(self.allocations), host_bytes(low - skew, size + skew), writeable, skew)
        self.allocations.append(alloc)
        return alloc

    def start_batch_memory(self, blocks, padded):
        """Fresh shared and local memory (poisoned with 0xFF) for a batch of blocks."""
        self.smem = np.full(blocks * self.shared_stride, 0xFF, np.uint8)
        self.smem_views = {s: self.smem.view(f"u{s}") for s in (1, 2, 4, 8)}
        if self.check and self.program.shared_granule and self.shared_vars:
            n = len(self.smem) >> self.sshift
            self.shared_writer, self.shared_reader = np.zeros(n, np.int64), np.zeros(n, np.int64)
        local = np.full(blocks * padded * self.local_stride, 0xFF, np.uint8)
        self.local_views = {s: local.view(f"u{s}") for s in (1, 2, 4, 8)}

    # ------------------------------------------------------------ entry points

    def spaces(self, F, A, addr):
        """Split an access by address space: yields (space, lanes or None, address)."""
        if A.space != "generic":
            yield A.space, None, addr
            return
        window = addr >> np.uint64(60)
        for w in np.unique(window).tolist():
            name, base = {1: ("shared", SHARED_BASE), 2: ("local", LOCAL_BASE)}.get(w, ("global", 0))
            where = window == w
            idx = None if where.all() else np.flatnonzero(np.broadcast_to(where, F.n))
            yield name, idx, (addr if idx is None else addr[idx]) - np.uint64(base)

    def load(self, F, A, addr):
        out = None
        for space, idx, a in self.spaces(F, A, addr):
            sub = F if idx is None else F.take(idx)
            if space == "shared":
                values = self.load_shared(sub, A, a)
            elif space == "local":
                values = self.load_local(sub, A, a)
            else:
                values = self.load_global(sub, A, a)
            if idx is None:
                out = values
            else:
                if out is None:
                    out = [np.zeros(F.n, A.dtype) for _ in range(A.count)]
                for o, v in zip(out, values, strict=True):
                    o[idx] = v
        return out[0] if A.count == 1 else out

    def store(self, F, A, addr, values):
        for space, idx, a in self.spaces(F, A, addr):
            sub, vals = F, values
            if idx is not None:
                sub, vals = F.take(idx), [v if len(v) == 1 else v[idx] for v in values]
            if space == "shared":
                self.store_shared(sub, A, a, vals)
            elif space == "local":
                self.store_local(sub, A, a, vals)
            else:
                self.store_global(sub, A, a, vals)

    # ------------------------------------------------------------ global memory

    def targets(self, F, A, addr, write):
        """Check bounds and alignment; yield (fragment, allocation, offset, lanes or None)."""
        a = addr.view(np.int64)
        low, high = int(a.min()), int(a.max())
        index = low >> GLOBAL_SHIFT
        alloc = self.allocations[index] if 0 < index < len(self.allocations) else None
        aligned = not int(np.bitwise_or.reduce(a)) & (A.size - 1)
        if (
            alloc
            and aligned
            and low >= alloc.low
            and high + A.size <= alloc.base + alloc.size
            and (alloc.writeable or not write)
        ):
            yield F, alloc, a - alloc.base, None
            return
        a = np.broadcast_to(a, F.n)
        owner = np.clip(a >> GLOBAL_SHIFT, 0, len(self.allocations))
        base, end = (np.zeros(len(self.allocations) + 1, np.int64) for _ in range(2))
        for i, al in enumerate(self.allocations):
            if al is not None:
                base[i], end[i] = al.low, al.base + al.size
        inside = (a >= base[owner]) & (a + A.size <= end[owner])
        bad = ~inside | ((a & (A.size - 1)) != 0)
        if write:
            fixed = np.array([al is not None and not al.writeable for al in self.allocations] + [False])
            bad |= fixed[owner] & inside
        if bad.any():
            for wrong, kind, what in (
                (~inside, "out-of-bounds", "out of bounds"),
                (inside & ((a & (A.size - 1)) != 0), "misaligned", "misaligned"),
                (inside & bad & ((a & (A.size - 1)) == 0), "read-only", "to read-only memory"),
            ):
                lanes = np.flatnonzero(wrong)
                if len(lanes):
                    where = self.describe(int(a[lanes[0]]), int(owner[lanes[0]]))
                    verb = {"ld": "read", "st": "write", "atom": "atomic"}[A.kind]
                    text = f"{A.size}-byte global {verb} {what}: {where}"
                    self.report(kind, A.instr, F.lanes[lanes], text, address=int(a[lanes[0]]))
        good = np.flatnonzero(~bad)
        for i in np.unique(owner[good]).tolist():
            idx = good[owner[good] == i]
            yield F.take(idx), self.allocations[i], a[idx] - self.allocations[i].base, idx

    def describe(self, address, index):
        """Where an address lies relative to the nearest allocation's name."""
        alloc = self.allocations[index] if 0 < index < len(self.allocations) else None
        if alloc is None:
            return f"address {address:#x} belongs to no array"
        return f"byte offset {address - alloc.low} of '{alloc.name}' ({alloc.base + alloc.size - alloc.low} bytes)"

    @staticmethod
    def is_run(off, size):
        """True when the lanes access consecutive elements in order."""
        n = len(off)
        return n > 1 and off[-1] - off[0] == (n - 1) * size and bool((off[1:] - off[:-1] == size).all())

    def load_global(self, F, A, addr):
        out = None
        for sub, alloc, off, idx in self.targets(F, A, addr, False):
            view, run, n = alloc.view(A.dtype), self.is_run(off, A.size), len(off)
            if run:
                start = int(off[0]) // A.esize
                block = view[start : start + n * A.count].reshape(n, A.count)
                values = [block[:, k].copy() for k in range(A.count)]
            else:
                first = off // A.esize
                values = [view[first + k if k else first] for k in range(A.count)]
            if A.space != "const":
                self.traffic(sub, A, alloc, off, run, self.counters.global_load, False)
            if idx is None:
                return values
            if out is None:
                out = [np.zeros(F.n, A.dtype) for _ in range(A.count)]
            for o, v in zip(out, values, strict=True):
                o[idx] = v
        return out or [np.zeros(F.n, A.dtype) for _ in range(A.count)]

    def store_global(self, F, A, addr, values):
        for sub, alloc, off, idx in self.targets(F, A, addr, True):
            vals = values if idx is None else [v if len(v) == 1 else v[idx] for v in values]
            off = np.broadcast_to(off, sub.n)
            view, run, n = alloc.view(A.dtype), self.is_run(off, A.size), sub.n
            first = off // A.esize
            doubt = self.global_writes(sub, A, alloc, first, run, vals) if self.check and A.plain else None
            if run:
                start = int(first[0])
                block = view[start : start + n * A.count].reshape(n, A.count)
                for k, v in enumerate(vals):
                    block[:, k] = v
            else:
                for k, v in enumerate(vals):
                    view[first + k] = v
            if doubt is not None:
                self.different_values(sub, A, alloc, first, vals, *doubt)
            self.traffic(sub, A, alloc, off, run, self.counters.global_store, True)

    def global_writes(self, F, A, alloc, first, run, values):
        """Record plain stores; report unordered ones with different values."""
        per = A.size >> self.gshift
        if alloc.writer is None:
            alloc.writer = np.zeros((alloc.size >> self.gshift) + 1, np.int64)
        new = np.repeat(F.keys(), per) if per > 1 else F.keys()
        granule = first * A.esize >> self.gshift
        if run:
            where = slice(int(granule[0]), int(granule[0]) + F.n * per)
        else:
            where = (granule[:, None] + np.arange(per)).ravel() if per > 1 else granule
        old = alloc.writer[where]
        if old.any():
            bad = ((old != 0) & ((old ^ new) >> BLOCK_SHIFT != 0)) | unordered(old, new)
            if bad.any():
                lanes = np.flatnonzero(bad)
                self.different_values(F, A, alloc, first, values, lanes // per, old[lanes])
        alloc.writer[where] = new
        if run:
            return None
        seen = alloc.writer[where]
        lanes = np.flatnonzero(seen != new)
        return (lanes // per, seen[lanes]) if len(lanes) else None

    def different_values(self, F, A, alloc, first, values, lanes, others):
        """Report the lanes whose stored value differs from what memory holds."""
        view, differ = alloc.view(A.dtype), np.zeros(len(lanes), bool)
        for k, v in enumerate(values):
            differ |= view[first[lanes] + k] != np.broadcast_to(v, F.n)[lanes]
        if differ.any():
            lanes, others = lanes[differ], others[differ]
            offset = int(first[lanes[0]]) * A.esize
            text = (
                f"plain stores of different values to byte offset {offset + alloc.base - alloc.low} of '{alloc.name}'; "
                f"also written by {self.name_key(int(others[0]))}"
            )
            self.report("global-race", A.instr, F.lanes[lanes], text, address=alloc.base + offset)

    def traffic(self, F, A, alloc, off, run, totals, write):
        """Count requests, sectors, unique bytes and modelled DRAM traffic."""
        size, n = A.size, F.n
        alloc.prepare(self.program.global_granule)
        if len(off) == 1:
            sectors = F.nwarps
        elif run and F.full:
            sectors = F.nwarps * (((int(off[0]) & 31) + 32 * size + 31) >> 5)
        else:
            sectors = self.distinct_sectors(F.rows(off))
        totals.requests += F.nwarps
        totals.sectors += sectors
        totals.bytes += n * size
        A.requests += F.nwarps
        A.sectors += sectors
        A.lanes += n
        per = max(1, size >> self.gshift)
        mask = alloc.write_mask if write else alloc.read_mask
        granule = off >> self.gshift
        if run:
            start = int(granule[0])
            mask[start : start + n * per] = True
            sec = slice(int(off[0]) >> 5, (int(off[0]) + n * size - 1 >> 5) + 1)
        else:
            for k in range(per):
                mask[granule + k] = True
            sec = off >> 5
            if len(sec) > 1:
                keep = np.empty(len(sec), bool)
                keep[0] = True
                np.not_equal(sec[1:], sec[:-1], out=keep[1:])
                sec = sec[keep]
        self.cache(alloc, sec, write)

    def cache(self, alloc, sec, write):
        """Pass sectors through the L2 model and add the DRAM traffic.

        A sector stays resident until as many fills as the cache holds have happened since
        its last use; dirty sectors are written back once per residency.
        """

        def distinct(where):
            if isinstance(sec, slice):
                return int(np.count_nonzero(where))
            chosen = sec[where]
            token = np.arange(len(chosen))
            alloc.l2_time[chosen] = token
            return int(np.count_nonzero(alloc.l2_time[chosen] == token))

        stale = alloc.l2_time[sec] < self.l2_clock - self.l2_sectors
        dirty = alloc.dirty[sec]
        any_stale = stale.any()
        if write:
            fresh = ~dirty | stale if any_stale else ~dirty
            if fresh.any():
                self.counters.dram_write_bytes += 32 * distinct(fresh)
                alloc.dirty[sec] = True
            if any_stale:
                self.l2_clock += distinct(stale)
        elif any_stale:
            fills = distinct(stale)
            self.l2_clock += fills
            self.counters.dram_read_bytes += 32 * fills
            alloc.dirty[sec] = dirty & ~stale
        alloc.l2_time[sec] = self.l2_clock

    def distinct_sectors(self, rows):
        """Total over warps of the distinct 32-byte sectors."""
        rel = rows - (rows[:, :1] & ~31)
        if (rel[-1] == rel[0]).all() and (rel == rel[0]).all():
            key = rel[0].tobytes()
            if key not in self.pattern_cache:
                self.pattern_cache[key] = len(set((rel[0] >> 5).tolist()))
            return len(rows) * self.pattern_cache[key]
        sec = np.sort(rows >> 5, axis=1)
        return len(rows) + int(np.count_nonzero(sec[:, 1:] != sec[:, :-1]))

    # ------------------------------------------------------------ shared memory

    def shared_targets(self, F, A, addr):
        """Check bounds; return (fragment, address, lanes or None) of the valid lanes."""
        a = np.broadcast_to(addr.view(np.int64), F.n)
        low, high = int(a.min()), int(a.max())
        aligned = not int(np.bitwise_or.reduce(a)) & (A.size - 1)
        if aligned and any(o <= low and high + A.size <= o + s for _, o, s in self.shared_vars):
            return F, a, None
        inside = (a >= 0) & (a + A.size <= self.shared_stride)
        safe = np.where(inside, a, 0)
        inside &= self.shared_valid[safe] & self.shared_valid[safe + A.size - 1]
        skewed = (a & (A.size - 1)) != 0
        for wrong, kind, what in (
            (~inside, "out-of-bounds", "out of bounds"),
            (inside & skewed, "misaligned", "misaligned"),
        ):
            lanes = np.flatnonzero(wrong)
            if len(lanes):
                at = int(a[lanes[0]])
                near = [v for v in self.shared_vars if v[1] <= at] or self.shared_vars[:1]
                where = (
                    f"byte offset {at - near[-1][1]} of {near[-1][0]} ({near[-1][2]} bytes)" if near else f"offset {at}"
                )
                verb = {"ld": "read", "st": "write", "atom": "atomic"}[A.kind]
                self.report(kind, A.instr, F.lanes[lanes], f"{A.size}-byte shared {verb} {what}: {where}", address=at)
        idx = np.flatnonzero(inside & ~skewed)
        if len(idx) == F.n:
            return F, a, None
        return F.take(idx), a[idx], idx

    def load_shared(self, F, A, addr):
        sub, a, idx = self.shared_targets(F, A, addr)
        values = [np.zeros(0, A.dtype)] * A.count
        if sub.n:
            flat = sub.slots() * self.shared_stride + a
            self.bank_conflicts(sub, A, a, self.counters.shared_load)
            if self.check:
                self.shared_reads(sub, A, flat)
            view, first = self.smem_views[A.esize], flat // A.esize
            values = [view[first + k] for k in range(A.count)]
        if idx is None:
            return values
        out = [np.zeros(F.n, A.dtype) for _ in range(A.count)]
        for o, v in zip(out, values, strict=True):
            o[idx] = v
        return out

    def store_shared(self, F, A, addr, values):
        sub, a, idx = self.shared_targets(F, A, addr)
        if not sub.n:
            return
        vals = values if idx is None else [v if len(v) == 1 else v[idx] for v in values]
        flat = sub.slots() * self.shared_stride + a
        self.bank_conflicts(sub, A, a, self.counters.shared_store)
        view, first = self.smem_views[A.esize], flat // A.esize
        doubt = self.shared_writes(sub, A, flat, vals) if self.check else None
        for k, v in enumerate(vals):
            view[first + k] = v
        if doubt is not None:
            self.shared_clash(sub, A, flat, vals, "write-write", *doubt)

    def bank_conflicts(self, F, A, a, totals):
        rows = F.rows(a, GROUP[A.size])
        waves = self.wavefronts(rows, A.size)
        extra = waves - len(rows)
        totals.requests += F.nwarps
        totals.bytes += F.n * A.size
        totals.wavefronts += waves
        totals.extra_wavefronts += extra
        A.requests += F.nwarps
        A.lanes += F.n
        A.wavefronts += waves
        A.extra += extra

    def wavefronts(self, rows, size):
        """Shared-memory passes: per group of lanes, the fullest bank's distinct words."""
        rel = rows - (rows[:, :1] & ~3)
        uniform = (rel[-1] == rel[0]).all() and (rel == rel[0]).all()
        key = (size, rel[0].tobytes())
        if uniform and key in self.pattern_cache:
            return len(rows) * self.pattern_cache[key]
        words = (rel[:1] if uniform else rows) >> 2
        if size > 4:
            words = (words[:, :, None] + np.arange(size // 4)).reshape(len(words), -1)
        words = np.sort(words, axis=1)
        first = np.ones(words.shape, bool)
        first[:, 1:] = words[:, 1:] != words[:, :-1]
        bank = (words & 31) + 32 * np.arange(len(words))[:, None]
        counts = np.bincount(bank[first], minlength=32 * len(words)).reshape(-1, 32).max(axis=1)
        if uniform:
            self.pattern_cache[key] = int(counts[0])
            return len(rows) * int(counts[0])
        return int(counts.sum())

    def granules(self, F, A, flat):
        per = A.size >> self.sshift
        where = flat >> self.sshift
        if per <= 1:
            return where, F.keys(), 1
        return (where[:, None] + np.arange(per)).ravel(), np.repeat(F.keys(), per), per

    def shared_reads(self, F, A, flat):
        """Check reads against unordered writes and record the readers."""
        where, new, per = self.granules(F, A, flat)
        writer = self.shared_writer[where]
        empty = writer == 0
        if empty.any():
            lanes = np.flatnonzero(empty) // per
            offset, text = self.shared_place(F, flat, lanes[0])
            self.report(
                "uninitialised", A.instr, F.lanes[np.unique(lanes)], f"read of uninitialised {text}", address=offset
            )
        bad = unordered(writer, new)
        if not A.plain:
            bad &= writer & ATOMIC == 0
        if bad.any():
            lanes = np.flatnonzero(bad)
            self.shared_report(F, A, flat, lanes // per, writer[lanes], "read-after-write")
        if not A.plain:
            return
        old = self.shared_reader[where]
        current = (old ^ new) >> BLOCK_EPOCH_SHIFT == 0
        if current.any():
            x = old ^ new
            other_warp = current & ((x & WARP != 0) | (old & MANY_WARPS != 0))
            same_time = current & (x & (WARP | WARP_EPOCH) == 0)
            shared = same_time & ((x & THREAD != 0) | (old & MANY_THREADS != 0))
            new = new | np.where(other_warp | shared, MANY_THREADS, 0) | np.where(other_warp, MANY_WARPS, 0)
        self.shared_reader[where] = new
        seen = self.shared_reader[where]
        twice = np.flatnonzero(seen != new)
        if len(twice):
            x = seen[twice] ^ new[twice]
            many = new[twice] | seen[twice] & (MANY_THREADS | MANY_WARPS) | np.where(x & THREAD != 0, MANY_THREADS, 0)
            self.shared_reader[where[twice]] = many
            wide = twice[x & WARP != 0]
            self.shared_reader[where[wide]] |= MANY_WARPS

    def shared_writes(self, F, A, flat, values):
        """Check writes against unordered accesses and record the writers."""
        where, new, per = self.granules(F, A, flat)
        atomic = A.kind == "atom"
        new = new | ATOMIC if atomic else new
        writer, reader = self.shared_writer[where], self.shared_reader[where]
        bad = unordered(writer, new)
        if atomic:
            bad &= writer & ATOMIC == 0
        if bad.any():
            lanes = np.flatnonzero(bad)
            self.shared_clash(F, A, flat, values, "write-after-write", lanes // per, writer[lanes])
        bad = unordered(reader, new)
        if bad.any():
            lanes = np.flatnonzero(bad)
            self.shared_report(F, A, flat, lanes // per, reader[lanes], "write-after-read")
        self.shared_writer[where] = new
        if atomic:
            return None
        seen = self.shared_writer[where]
        lanes = np.flatnonzero(seen != new)
        return (lanes // per, seen[lanes]) if len(lanes) else None

    def shared_clash(self, F, A, flat, values, what, lanes, others):
        """A write-write race: an error when values differ, otherwise a warning."""
        first, view = flat // A.esize, self.smem_views[A.esize]
        differ = np.full(len(lanes), A.kind == "atom")
        for k, v in enumerate(values):
            differ |= view[first[lanes] + k] != np.broadcast_to(v, F.n)[lanes]
        for part, severity in ((differ, "error"), (~differ, "warning")):
            if part.any():
                self.shared_report(F, A, flat, lanes[part], others[part], what, severity)

    def shared_place(self, F, flat, lane):
        offset = int(flat[lane]) % self.shared_stride
        near = [v for v in self.shared_vars if v[1] <= offset][-1]
        return offset, f"shared byte offset {offset - near[1]} of {near[0]}"

    def shared_report(self, F, A, flat, lanes, others, what, severity="error"):
        offset, text = self.shared_place(F, flat, lanes[0])
        text = f"{what} without a barrier on {text}; other access by {self.name_key(int(others[0]))}"
        self.report("shared-race", A.instr, F.lanes[np.unique(lanes)], text, severity, offset)

    # ------------------------------------------------------------ local memory

    def local_index(self, F, A, addr):
        a = np.broadcast_to(addr.view(np.int64), F.n)
        bad = (a < 0) | (a + A.size > self.local_stride) | (a & (A.size - 1) != 0)
        if bad.any():
            lanes = np.flatnonzero(bad)
            text = f"{A.size}-byte local access at stack offset {int(a[lanes[0]])} of {self.local_stride}"
            self.report("out-of-bounds", A.instr, F.lanes[lanes], text, address=int(a[lanes[0]]))
            a = np.where(bad, 0, a)
        return (F.lanes * self.local_stride + a) // A.esize, bad

    def load_local(self, F, A, addr):
        first, _ = self.local_index(F, A, addr)
        self.counters.local_load_bytes += F.n * A.size
        return [self.local_views[A.esize][first + k] for k in range(A.count)]

    def store_local(self, F, A, addr, values):
        first, bad = self.local_index(F, A, addr)
        self.counters.local_store_bytes += F.n * A.size
        if bad.any():
            keep = np.flatnonzero(~bad)
            first, values = first[keep], [v if len(v) == 1 else v[keep] for v in values]
        for k, v in enumerate(values):
            self.local_views[A.esize][first + k] = v

    # ------------------------------------------------------------ atomics and copies

    def atomic(self, F, A, op, ty, addr, operands, used):
        out = np.zeros(F.n, A.dtype)
        addr = np.broadcast_to(addr, F.n)
        operands = [np.broadcast_to(v, F.n) for v in operands]
        for space, idx, a in self.spaces(F, A, addr):
            sub = F if idx is None else F.take(idx)
            if space == "shared":
                fine, where, inner = self.shared_targets(sub, A, a)
                parts = [(fine, None, where, inner)] if fine.n else []
            else:
                parts = self.targets(sub, A, a, True)
            for frag, alloc, off, inner in parts:
                pick = np.arange(sub.n) if inner is None else inner
                pick = pick if idx is None else idx[pick]
                off = np.broadcast_to(off, frag.n)
                self.count_atomic(frag, A, off)
                if alloc is None:
                    flat = frag.slots() * self.shared_stride + off
                    if self.check:
                        self.shared_writes(frag, A, flat, ())
                    view, index = self.smem_views[A.esize], flat // A.esize
                else:
                    view, index = alloc.view(A.dtype), off // A.esize
                    self.traffic(frag, A, alloc, off, False, self.counters.global_atomic, True)
                args = [v[pick] for v in operands]
                out[pick] = apply_atomic(view, index, op, ty, args, used)
        return out

    def count_atomic(self, F, A, off):
        rows = np.sort(F.rows(off), axis=1)
        distinct = len(rows) + int(np.count_nonzero(rows[:, 1:] != rows[:, :-1]))
        total = self.counters.atomics.setdefault(A.op, {"requests": 0, "lanes": 0, "conflicts": 0})
        total["requests"] += F.nwarps
        total["lanes"] += F.n
        total["conflicts"] += F.n - distinct
        A.conflicts += F.n - distinct

    def cp_async(self, F, load, store, dst, src, limit):
        """cp.async performed at once; bytes beyond the source size are zero."""
        if limit is None:
            return self.store(F, store, dst, list(self.as_list(self.load(F, load, src))))
        limit = np.broadcast_to(limit, F.n)
        idx = np.flatnonzero(limit > 0)
        values = [np.zeros(F.n, np.uint32) for _ in range(load.count)]
        if len(idx):
            loaded = self.as_list(self.load(F.take(idx), load, np.broadcast_to(src, F.n)[idx]))
            for k, v in enumerate(loaded):
                values[k][idx] = np.where(limit[idx] > 4 * k, v, np.uint32(0))
        return self.store(F, store, dst, values)

    @staticmethod
    def as_list(values):
        return values if isinstance(values, list) else [values]

    def ldmatrix(self, F, A, addr, count, trans):
        """Load 8x8 matrices of 16-bit elements into mma fragments."""
        if not F.full:
            raise NotImplementedError("ldmatrix in a partial warp")
        lane = np.arange(32)
        idx = np.flatnonzero((F.lanes & 31) < 8 * count)
        rows = self.load_shared(F.take(idx), A, np.broadcast_to(addr, F.n)[idx])
        m = np.stack([np.broadcast_to(r, len(idx)) for r in rows], 1).reshape(F.nwarps, count, 8, 4)
        if trans:
            halves = np.ascontiguousarray(np.ascontiguousarray(m).view(np.uint16).swapaxes(2, 3))
            m = halves.view(np.uint32)
        return [np.ascontiguousarray(m[:, j, lane >> 2, lane & 3]).reshape(-1) for j in range(count)]


def apply_atomic(view, index, op, ty, operands, used):
    """Perform the lanes' atomics in lane order; returns the old values if they are used."""
    dtype = view.dtype if "f16" in ty else np.dtype(NP[ty])
    typed, b = view.view(dtype), operands[0].view(dtype)
    ufunc = UFUNCS.get(op) if "f16" not in ty else None
    if ufunc and not used:
        ufunc.at(typed, index, b)
        return np.zeros(1, view.dtype)
    if "f16" in ty:
        kind, fn = ("bf16" if ty.startswith("bf16") else "f16"), {"add": np.add, "min": np.fmin, "max": np.fmax}[op]

        def update(old, x, _):
            return ops.half_op(fn, kind, ty.endswith("x2"), old, x)
    else:
        update = {
            "exch": lambda old, x, _: x,
            "inc": lambda old, x, _: np.where(old >= x, dtype.type(0), old + dtype.type(1)),
            "dec": lambda old, x, _: np.where((old == 0) | (old > x), x, old - dtype.type(1)),
        }.get(op, lambda old, x, _: ufunc(old, x))
    c = operands[1].view(dtype) if len(operands) > 1 else b
    n, old = len(index), np.empty(len(index), dtype)
    order = np.argsort(index, kind="stable")
    s = index[order]
    starts = np.flatnonzero(np.concatenate([[True], s[1:] != s[:-1]]))
    lengths = np.diff(np.append(starts, n))
    depth = int(lengths.max())
    if op == "cas":
        compare_and_swap(typed, index, order, b, c, old)
    elif ufunc and depth > 32 and len(starts) < depth:
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            sel = order[start : start + length]
            at = s[start]
            chain = ufunc.accumulate(np.concatenate([typed[at : at + 1], b[sel]]))
            old[sel], typed[at] = chain[:-1], chain[-1]
    else:
        rank = np.arange(n) - np.repeat(starts, lengths)
        by_rank = np.argsort(rank, kind="stable")
        cuts = np.searchsorted(rank[by_rank], np.arange(depth + 1))
        for r in range(depth):
            sel = order[by_rank[cuts[r] : cuts[r + 1]]]
            at = index[sel]
            old[sel] = typed[at]
            typed[at] = update(old[sel], b[sel], c[sel])
    return old.view(view.dtype)


def compare_and_swap(typed, index, left, b, c, old):
    """CAS by the lanes `left` (sorted by address): each round settles all up to a success."""
    while len(left):
        at = index[left]
        current = typed[at]
        place = np.arange(len(left))
        hit = np.where(current == b[left], place, len(left))
        starts = np.flatnonzero(np.concatenate([[True], at[1:] != at[:-1]]))
        first = np.minimum.reduceat(hit, starts)
        settled = place <= np.repeat(first, np.diff(np.append(starts, len(left))))
        old[left[settled]] = current[settled]
        won = first[first < len(left)]
        typed[at[won]] = c[left[won]]
        left = left[~settled]
