"""Translate flattened PTX into Python functions, one per basic block.

Every register becomes a NumPy array with one element per lane of the fragment that is
executing (or a single element when all its lanes agree). Instruction decoding happens
once, here; running a block is straight-line NumPy code.
"""

from collections import Counter

import numpy as np

from . import ops
from .parse import TYPE_BYTES, Addr, Imm, Instr, Label, Pair, Reg, Special, Sym, Vec

GLOBAL_SHIFT = 36  # every global allocation has its own 64 GiB window ...
GLOBAL_START = 1 << 35  # ... and starts in the middle of it
SHARED_BASE = 1 << 60  # generic-address windows
LOCAL_BASE = 1 << 61
RED_ZONE = 128  # bytes between shared variables; a multiple of 128 keeps their banks

NP = {
    "pred": "?", "u8": "u1", "b8": "u1", "s8": "i1", "u16": "u2", "b16": "u2", "f16": "u2",
    "bf16": "u2", "s16": "i2", "u32": "u4", "b32": "u4", "f16x2": "u4", "bf16x2": "u4",
    "tf32": "u4", "s32": "i4", "u64": "u8", "b64": "u8", "s64": "i8", "f32": "f4", "f64": "f8",
}  # fmt: skip
STORAGE = {t: n.replace("i", "u") for t, n in NP.items()}
ROUNDINGS = {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna"}
SPECIAL_FUNCTIONS = {"rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh"}
ATOMIC_OPS = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"}
COMPARE = {
    "eq": "{a} == {b}", "ne": "{a} != {b}", "lt": "{a} < {b}", "le": "{a} <= {b}",
    "gt": "{a} > {b}", "ge": "{a} >= {b}", "lo": "{a} < {b}", "ls": "{a} <= {b}",
    "hi": "{a} > {b}", "hs": "{a} >= {b}", "equ": "~(({a} < {b}) | ({a} > {b}))",
    "neu": "{a} != {b}", "ltu": "~({a} >= {b})", "leu": "~({a} > {b})", "gtu": "~({a} <= {b})",
    "geu": "~({a} < {b})", "num": "~(np.isnan({a}) | np.isnan({b}))",
    "nan": "np.isnan({a}) | np.isnan({b})",
}  # fmt: skip
BOOLEAN = {"and": "&", "or": "|", "xor": "^"}
# Plain operations: (template, source types, result type); t: instruction type, u: u32, p: pred.
SIMPLE = {
    "and": ("{0} & {1}", "tt", "t"),
    "or": ("{0} | {1}", "tt", "t"),
    "xor": ("{0} ^ {1}", "tt", "t"),
    "not": ("~{0}", "t", "t"),
    "cnot": ("({0} == 0).astype({0}.dtype)", "t", "t"),
    "rem": ("irem({0}, {1})", "tt", "t"),
    "sad": ("{2} + (np.maximum({0}, {1}) - np.minimum({0}, {1}))", "ttt", "t"),
    "popc": ("np.bitwise_count({0}).astype(u4)", "t", "u"),
    "clz": ("clz({0})", "t", "u"),
    "brev": ("brev({0})", "t", "t"),
    "bfe": ("bfe({0}, {1}, {2})", "tuu", "t"),
    "bfi": ("bfi({0}, {1}, {2}, {3})", "ttuu", "t"),
    "shl": ("shl({0}, {1})", "tu", "t"),
    "shr": ("shr({0}, {1})", "tu", "t"),
    "selp": ("np.where({2}, {0}, {1})", "ttp", "t"),
    "copysign": ("np.copysign({1}, {0})", "tt", "t"),
    "activemask": ("M.activemask(F)", "", "u"),
}
UNARY = {  # (function, function on half precision)
    "abs": ("np.abs", "np.abs"), "neg": ("np.negative", "np.negative"), "sqrt": ("np.sqrt", None),
    "rsqrt": ("rsqrt", None), "sin": ("sin", "np.sin"), "cos": ("cos", "np.cos"), "lg2": ("lg2", "np.log2"),
    "ex2": ("ex2", "np.exp2"), "tanh": ("tanh", "np.tanh"),
}  # fmt: skip
SUMS = {"add": ("add", False), "addc": ("add", True), "sub": ("sub", False), "subc": ("sub", True)}
TESTP = {
    "finite": "np.isfinite({x})", "infinite": "np.isinf({x})", "notanumber": "np.isnan({x})",
    "number": "~np.isnan({x})", "normal": "np.isfinite({x}) & (np.abs({x}) >= {t})",
    "subnormal": "(np.abs({x}) < {t}) & ({x} != 0)",
}  # fmt: skip
ALL_LANES = Imm("int", 0xFFFFFFFF)
NO_OPS = {"membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "discard"}


class Access:
    """Static description of one memory instruction plus its dynamic totals."""

    def __init__(self, kind, space, esize, count, instr, op=""):
        self.kind, self.space, self.esize, self.count = kind, space, esize, count
        self.size, self.instr, self.op = esize * count, instr, op
        self.dtype = np.dtype(f"u{esize}")
        self.plain = not {"volatile", "relaxed", "acquire", "release", "mmio"} & set(instr.parts)
        self.reset()

    def reset(self):
        self.requests = self.lanes = self.sectors = self.wavefronts = self.extra = self.conflicts = 0


class Block:
    """A basic block: its instructions, how it ends, and its static statistics."""

    def __init__(self, index):
        self.index, self.instrs = index, []
        self.term, self.target, self.pred = "fall", None, None
        self.sync = None  # membermask operand when the block starts with a warp-synchronous op
        self.uses, self.defs, self.live_in = set(), set(), ()
        self.classes, self.flops = Counter(), Counter()
        self.count = 0


def classify(ins):
    """(class, flop kind, flops per thread) of an instruction."""
    parts = ins.parts
    base = parts[0]
    types = [p for p in parts[1:] if p in TYPE_BYTES]
    ty = types[-1] if types else ""
    if base in ("ld", "ldu", "st"):
        space = next((p.split("::")[0] for p in parts if p.split("::")[0] in SPACES), "generic")
        return f"{'store' if base == 'st' else 'load'}_{space}", None, 0
    if base in ("bra", "ret", "exit", "call", "call_inlined", "brx"):
        return "branch", None, 0
    if base in ("bar", "barrier"):
        return ("warp_sync" if "warp" in parts else "barrier"), None, 0
    if base == "mma":
        m, n, k = mma_shape(ins)
        return "mma", "mma", 2 * m * n * k / 32
    fixed = {
        "atom": "atomic", "red": "atomic", "shfl": "shuffle", "vote": "vote", "match": "vote",
        "activemask": "vote", "redux": "vote", "elect": "vote", "cp": "cp_async", "fence": "fence",
        "membar": "fence", "ldmatrix": "load_shared", "cvt": "conversion", "mov": "move",
        "cvta": "move",
    }  # fmt: skip
    if base in fixed:
        return fixed[base], None, 0
    kind = {"f64": "fp64", "f32": "fp32"}.get(ty, "fp16" if ty[:1] == "f" or ty[:2] == "bf" else None)
    width = 2 if ty.endswith("x2") else 1
    counted = {"fma": 2, "mad": 2, "add": 1, "sub": 1, "mul": 1, "div": 1}
    if base in SPECIAL_FUNCTIONS:
        return "special", kind, width
    flops = counted.get(base, 0) * width if kind else 0
    if kind == "fp32":
        name = {"fma": "fma", "mad": "fma", "add": "add", "sub": "add", "mul": "mul"}.get(base, "other")
        return f"fp32_{name}", "fp32", flops
    if kind and base not in ("selp", "slct"):
        return kind, kind, flops
    if base in ("selp", "slct"):
        return "move", None, 0
    return ("other" if base in NO_OPS or base == "trap" else "int"), None, 0


SPACES = {"global", "shared", "local", "param", "const"}


def mma_shape(ins):
    text = next(p for p in ins.parts if p[0] == "m" and p[1:2].isdigit())
    m, rest = text[1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


class Program:
    """A translated kernel: blocks, register storage, memory layout and accesses."""

    def __init__(self, flat):
        self.flat, self.name = flat, flat.name
        self.reg_index, self.storage = {}, []
        for name, type_ in flat.regs.items():
            if type_ not in STORAGE:
                raise NotImplementedError(f"register {name} of type .{type_}")
            self.add_reg(name, STORAGE[type_])
        self.accesses, self.constants, self.const_names = [], {}, {}
        self.layout()
        self.count_uses()
        self.make_blocks()
        self.translate()

    def add_reg(self, name, storage):
        if name not in self.reg_index:
            self.reg_index[name] = len(self.storage)
            self.storage.append(storage)
        return self.reg_index[name]

    # ------------------------------------------------------------ memory layout

    def layout(self):
        """Assign shared and local offsets, global windows and parameter offsets."""
        self.symbols, self.module_vars, self.shared_vars = {}, [], []
        self.shared_size = self.local_size = 0
        self.shared_static, dynamic = 0, []
        for name, var in self.flat.variables.items():
            if var.space == "shared":
                if var.size == 0:
                    dynamic.append(name)
                    continue
                compact = -(-self.shared_static // var.align) * var.align
                offset = compact + RED_ZONE * len(self.shared_vars)
                self.shared_static = compact + var.size
                self.symbols[name] = offset
                self.shared_vars.append((name, offset, var.size))
            elif var.space == "local":
                self.local_size = -(-self.local_size // 16) * 16
                self.symbols[name] = self.local_size
                self.local_size += var.size
            else:
                self.module_vars.append(var)
                self.symbols[name] = (len(self.module_vars) << GLOBAL_SHIFT) + GLOBAL_START
        compact = -(-self.shared_static // 16) * 16
        self.dynamic_offset = compact + RED_ZONE * len(self.shared_vars)
        for name in dynamic:
            self.symbols[name] = self.dynamic_offset
        self.param_offsets, offset = {}, 0
        for var in self.flat.params:
            offset = -(-offset // var.align) * var.align
            self.param_offsets[var.name] = offset
            offset += var.size
        self.param_size = offset
        self.param_slots = {}  # (offset, dtype) -> index into the launch's parameter arrays

    def count_uses(self):
        self.uses = Counter()

        def visit(x):
            if isinstance(x, Reg):
                self.uses[x.name] += 1
            for child in getattr(x, "items", ()) if isinstance(x, Vec) else ():
                visit(child)
            if isinstance(x, Pair):
                visit(x.first), visit(x.second)
            if isinstance(x, Addr):
                visit(x.base)

        for item in self.flat.body:
            if isinstance(item, Instr):
                for arg in item.args:
                    visit(arg)
                if item.pred:
                    visit(item.pred)

    # ------------------------------------------------------------ control flow

    def make_blocks(self):
        self.blocks, self.labels = [Block(0)], {}

        def fresh():
            if self.blocks[-1].instrs or self.blocks[-1].term != "fall":
                self.blocks.append(Block(len(self.blocks)))
            return self.blocks[-1]

        def end(term, target=None, pred=None):
            block = self.blocks[-1]
            block.term, block.target, block.pred = term, target, pred
            self.blocks.append(Block(len(self.blocks)))

        for number, item in enumerate(self.flat.body):
            if isinstance(item, Label):
                self.labels[item.name] = fresh().index
                continue
            base = item.parts[0]
            if base == "bra":
                self.blocks[-1].instrs.append(item)
                end("cbra" if item.pred else "bra", item.args[0].name, item.pred)
                continue
            if base in ("ret", "exit"):
                self.blocks[-1].instrs.append(item)
                end("cexit" if item.pred else "exit", None, item.pred)
                continue
            block_barrier = base in ("bar", "barrier") and "warp" not in item.parts
            warp_sync = "sync" in item.parts and base in (
                "bar", "shfl", "vote", "match", "redux", "mma", "ldmatrix", "elect"
            ) and not block_barrier  # fmt: skip
            skip = None
            if item.pred and (block_barrier or warp_sync or base in (
                "ld", "ldu", "st", "atom", "red", "cp", "call", "trap", "ldmatrix"
            )):  # fmt: skip
                skip = f"skip@{number}"
                end("skip", skip, Reg(item.pred.name, not item.pred.neg))
                item.pred = None
            if warp_sync:
                block = fresh()
                mask = ALL_LANES if base in ("mma", "ldmatrix") else item.args[-1]
                block.sync = Imm("int", mask.value & 0xFFFFFFFF) if isinstance(mask, Imm) else mask
            self.blocks[-1].instrs.append(item)
            if block_barrier:
                end("bar")
            if skip:
                self.labels[skip] = fresh().index
        if not self.blocks[-1].instrs:
            self.blocks[-1].term = "exit"

    def translate(self):
        for block in self.blocks:
            gen = BlockCode(self, block)
            for ins in block.instrs:
                try:
                    gen.instruction(ins)
                except (KeyError, ValueError, IndexError, TypeError, AttributeError, StopIteration) as error:
                    raise NotImplementedError(f"{ins.op} at PTX line {ins.line}: {ins.text}") from error
            gen.terminator()
            if isinstance(block.sync, Reg):
                gen.read(block.sync)
            block.code, block.uses, block.defs = gen, gen.uses, gen.defs
            block.target = self.labels[block.target] if block.target is not None else None
        live = [set(b.uses) for b in self.blocks]
        changed = True
        while changed:
            changed = False
            for b in reversed(self.blocks):
                out = set()
                for s in self.successors(b):
                    out |= live[s]
                new = b.uses | (out - b.defs)
                b.live_out = out
                if new != live[b.index]:
                    live[b.index], changed = new, True
        source = []
        for b in self.blocks:
            b.live_in = tuple(sorted(live[b.index]))
            source.append(b.code.render(b.live_out))
        scope = {"np": np, **self.constants}
        scope.update({k: getattr(ops, k) for k in dir(ops) if not k.startswith("_")})
        self.source = "\n".join(source)
        exec(compile(self.source, f"<ptxsim {self.name}>", "exec"), scope)  # noqa: S102
        for b in self.blocks:
            b.fn = scope[f"block{b.index}"]
        sizes = [a.esize for a in self.accesses if a.space in ("global", "generic")]
        self.global_granule = min([8, *sizes])
        sizes = [a.esize for a in self.accesses if a.space in ("shared", "generic")]
        self.shared_granule = min([8, *sizes])

    def successors(self, b):
        nxt = [b.index + 1] if b.index + 1 < len(self.blocks) else []
        return {
            "fall": nxt, "bar": nxt, "bra": [b.target], "cbra": [b.target, *nxt],
            "skip": [b.target, *nxt], "exit": [], "cexit": nxt,
        }[b.term]  # fmt: skip

    def access(self, *args):
        self.accesses.append(Access(*args))
        name = f"A{len(self.accesses)}"
        self.constants[name] = self.accesses[-1]
        return name

    def const(self, value, dtype):
        """Name of a one-element constant array."""
        array = np.array([value], dtype) if not isinstance(value, np.ndarray) else value
        key = (dtype, array.tobytes())
        if key not in self.const_names:
            self.const_names[key] = f"K{len(self.const_names)}"
            self.constants[self.const_names[key]] = array
        return self.const_names[key]


class BlockCode:
    """Generates the Python source of one basic block."""

    def __init__(self, program, block):
        self.p, self.block = program, block
        self.lines, self.uses, self.defs, self.result = [], set(), set(), "None"
        self.pred, self.ins, self.temps = None, None, 0

    # ------------------------------------------------------------ operands

    def read(self, reg):
        index = self.p.reg_index[reg.name]
        if index not in self.defs:
            self.uses.add(index)
        return f"~v{index}" if reg.neg else f"v{index}"

    def unsupported(self, why=""):
        ins = self.ins
        raise NotImplementedError(f"{ins.op} at PTX line {ins.line}: {ins.text}{' ' + why if why else ''}")

    def src(self, x, ty):
        """Expression for operand x as an array of PTX type ty."""
        want = NP[ty]
        if isinstance(x, Reg):
            name, st = self.read(x), self.p.storage[self.p.reg_index[x.name]]
            if st == want:
                return f"({name})" if x.neg else name
            have, need = np.dtype(st).itemsize, np.dtype(want).itemsize
            if have == need:
                return f"{name}.view({want})"
            if want[0] == "f" or st[0] == "f":
                self.unsupported(f"(reads {x.name} as {ty})")
            text = f"{name}.astype(u{need})"
            return f"{text}.view({want})" if want[0] == "i" else text
        if isinstance(x, Imm):
            return self.p.const(self.immediate(x, want), want)
        if isinstance(x, Special):
            if x.name == "WARP_SZ":
                return self.p.const(32, want)
            cast = "" if want == "u4" and "64" not in x.name else f".astype({want})"
            return f"F.sreg({x.name!r}){cast}"
        if isinstance(x, Sym):
            if x.name not in self.p.symbols:
                self.unsupported(f"(address of {x.name})")
            return self.p.const(self.p.symbols[x.name], want)
        return self.unsupported()

    @staticmethod
    def immediate(x, want):
        bits = {"f32": "u4", "f64": "u8"}.get(x.kind)
        if bits:
            value = np.array([x.value], bits).view("f" + bits[1])
            return value if want[0] == "f" and want[1] == bits[1] else value.view(f"u{bits[1]}").astype(want)
        if want == "?":
            return np.array([x.value != 0])
        if want[0] == "f":
            return np.array([x.value], want)
        size = np.dtype(want).itemsize
        return np.array([x.value & (1 << 8 * size) - 1], f"u{size}").view(want)

    def temp(self, expr):
        self.temps += 1
        self.lines.append(f"t{self.temps} = {expr}")
        return f"t{self.temps}"

    def out(self, x, ty, expr):
        """Assign expr (an array of PTX type ty) to destination x."""
        if isinstance(x, Sym) and x.name == "_":
            self.lines.append(expr)
            return
        index = self.p.reg_index[x.name]
        st, have = self.p.storage[index], NP[ty]
        if st != have:
            size, wanted = np.dtype(have).itemsize, np.dtype(st).itemsize
            if size == wanted:
                expr = f"({expr}).view({st})"
            elif size > wanted:
                self.unsupported(f"({ty} into a {wanted}-byte register)")
            elif have[0] == "i":
                expr = f"({expr}).astype(i{wanted}).view({st})"
            else:
                expr = f"({expr}).astype({st})"
        if self.pred:
            old = self.read(Reg(x.name))
            expr = f"select({self.read(self.pred)}, {expr}, {old})"
        self.defs.add(index)
        self.lines.append(f"v{index} = {expr}")

    def address(self, x):
        if isinstance(x.base, Reg):
            wide = self.p.storage[self.p.reg_index[x.base.name]] == "u8"
            base = self.src(x.base, "u64" if wide else "u32") + ("" if wide else ".astype(u8)")
            return f"{base} + {self.p.const(x.offset & (1 << 64) - 1, 'u8')}" if x.offset else base
        base = self.p.symbols[x.base.name] if isinstance(x.base, Sym) else x.base.value
        return self.p.const(base + x.offset, "u8")

    # ------------------------------------------------------------ driver

    def instruction(self, ins):
        self.ins, self.pred = ins, ins.pred
        base = ins.parts[0]
        cls, kind, flops = classify(ins)
        self.block.classes[cls] += 1
        self.block.count += 1
        if flops:
            self.block.flops[kind] += flops
        if base in ("bra", "ret", "exit", "call_inlined") or base in NO_OPS:
            return
        types = [p for p in ins.parts[1:] if p in TYPE_BYTES]
        mods, ty, args = set(ins.parts[1:]), types[-1] if types else None, ins.args
        if base in SIMPLE:
            template, sources, result = SIMPLE[base]
            kinds = {"t": ty, "u": "u32", "p": "pred"}
            values = [self.src(a, kinds[k]) for a, k in zip(args[1:], sources, strict=True)]
            self.out(args[0], kinds[result], template.format(*values))
        elif base in UNARY:
            if base == "sqrt" and mods & {"rz", "rm", "rp"}:
                self.unsupported()
            self.unary(mods, ty, args, UNARY[base]["f16" in ty])
        elif base in SUMS:
            self.add_or_sub(ins, mods, ty, args, *SUMS[base])
        elif base in ("min", "max"):
            self.minmax(base, mods, ty, args)
        elif hasattr(self, f"op_{base}"):
            getattr(self, f"op_{base}")(ins, mods, ty, args)
        else:
            self.unsupported()

    def terminator(self):
        self.pred = None
        if self.block.pred is not None:
            self.result = self.read(self.block.pred)

    def render(self, live_out):
        body = [f"def block{self.block.index}(F):", "  M, R = F.M, F.R"]
        body += [f"  v{i} = R[{i}]" for i in sorted(self.uses)]
        body += [f"  {line}" for line in self.lines]
        body += [f"  R[{i}] = v{i}" for i in sorted(self.defs & live_out)]
        return "\n".join([*body, f"  return {self.result}"])

    # ------------------------------------------------------------ arithmetic

    def floats(self, args, ty, mods):
        """Float source expressions, flushed when .ftz applies."""
        out = [self.src(a, ty) for a in args]
        return [f"ftz({a})" for a in out] if "ftz" in mods and ty == "f32" else out

    def finish(self, mods, ty, expr):
        if "ftz" in mods and ty == "f32":
            expr = f"ftz({expr})"
        return f"sat({expr})" if "sat" in mods else expr

    def half(self, fn, ty, args, mods=()):
        kind = "bf16" if ty.startswith("bf16") else "f16"
        sources = ", ".join(self.src(a, ty) for a in args)
        return f"half_op({fn}, {kind!r}, {ty.endswith('x2')}, {sources})"

    def binary(self, ins, mods, ty, args, symbol, fn, directed):
        d, a, b = args
        mode = next((m for m in ins.parts if m in ROUNDINGS), "rn")
        if ty in ("f32", "f64"):
            x, y = self.floats((a, b), ty, mods)
            if mode == "rn":
                expr = f"{x} {symbol} {y}"
            elif ty == "f32":
                expr = directed.format(x=x, y=y, mode=mode)
            else:
                self.unsupported()
            self.out(d, ty, self.finish(mods, ty, expr))
        elif "f16" in ty:
            self.out(d, ty, self.half(fn, ty, (a, b)))
        else:
            return False
        return True

    def add_or_sub(self, ins, mods, ty, args, name, chain):
        symbol, fn = ("+", "np.add") if name == "add" else ("-", "np.subtract")
        directed = f"add32({{x}}, {'' if name == 'add' else '-'}{{y}}, {{mode!r}})"
        if self.binary(ins, mods, ty, args, symbol, fn, directed):
            return
        d, a, b = args
        x, y = self.src(a, "u" + ty[1:]), self.src(b, "u" + ty[1:])
        if "cc" in mods or chain:
            self.carry("add_carry" if name == "add" else "sub_borrow", mods, ty, d, x, y, chain)
        elif "sat" in mods:
            x, y = (f"{self.src(s, ty)}.astype(i8)" for s in (a, b))
            self.out(d, ty, f"saturate_int({x} {symbol} {y}, {NP[ty]})")
        else:
            self.out(d, "u" + ty[1:], f"{x} {symbol} {y}")

    def carry(self, fn, mods, ty, d, x, y, chain):
        """Sum or difference with the carry flag read (chain) and/or written (.cc)."""
        flag = Reg("%CC")
        self.p.add_reg("%CC", "?")
        cin = self.read(flag) if chain else self.p.const(0, "?")
        t = self.temp(f"{fn}({x}, {y}, {cin})")
        if "cc" in mods:
            self.out(flag, "pred", f"{t}[1]")
        self.out(d, "u" + ty[1:], f"{t}[0]")

    def product(self, mods, ty, a, b):
        """Integer product expression and its PTX type."""
        if "wide" in mods:
            wide = f"{ty[0]}{TYPE_BYTES[ty] * 16}"
            return f"{self.src(a, ty)}.astype({NP[wide]}) * {self.src(b, ty)}.astype({NP[wide]})", wide
        if "hi" in mods:
            return f"mul_hi({self.src(a, ty)}, {self.src(b, ty)})", ty
        u = "u" + ty[1:]
        return f"{self.src(a, u)} * {self.src(b, u)}", u

    def op_mul(self, ins, mods, ty, args):
        if not self.binary(ins, mods, ty, args, "*", "np.multiply", "mul32({x}, {y}, {mode!r})"):
            expr, wide = self.product(mods, ty, *args[1:])
            self.out(args[0], wide, expr)

    def op_mad(self, ins, mods, ty, args, chain=False):
        if ty[0] == "f":
            return self.op_fma(ins, mods, ty, args)
        expr, wide = self.product(mods, ty, *args[1:3])
        if "cc" in mods or chain:
            unsigned = "u" + wide[1:]
            x = f"({expr}).view({NP[unsigned]})"
            return self.carry("add_carry", mods, wide, args[0], x, self.src(args[3], unsigned), chain)
        return self.out(args[0], wide, f"{expr} + {self.src(args[3], wide)}")

    def op_madc(self, ins, mods, ty, args):
        self.op_mad(ins, mods, ty, args, chain=True)

    def op_fma(self, ins, mods, ty, args):
        if "f16" in ty:
            fn = "half_fma_relu" if "relu" in mods else "half_fma"
            return self.out(args[0], ty, self.half(fn, ty, args[1:]))
        mode = next((m for m in ins.parts if m in ROUNDINGS), "rn")
        a, b, c = self.floats(args[1:], ty, mods)
        if ty == "f64" and mode != "rn":
            self.unsupported()
        expr = f"fma64({a}, {b}, {c})" if ty == "f64" else f"fma32({a}, {b}, {c}, {mode!r})"
        return self.out(args[0], ty, self.finish(mods, ty, expr))

    def op_div(self, ins, mods, ty, args):
        if not self.binary(ins, mods, ty, args, "/", "np.divide", "div32({x}, {y}, {mode!r})"):
            self.out(args[0], ty, f"idiv({self.src(args[1], ty)}, {self.src(args[2], ty)})")

    def minmax(self, name, mods, ty, args):
        if "xorsign" in mods or "relu" in mods:
            self.unsupported()
        if "f" in ty:
            fn = f"np.{name}imum" if "NaN" in mods else f"np.f{name}"
            if "f16" in ty:
                return self.out(args[0], ty, self.half(fn, ty, args[1:]))
            if len(args) > 3:
                self.unsupported()
            return self.out(args[0], ty, f"{fn}({', '.join(self.floats(args[1:], ty, mods))})")
        return self.out(args[0], ty, f"np.{name}imum({self.src(args[1], ty)}, {self.src(args[2], ty)})")

    def unary(self, mods, ty, args, fn):
        if fn is None:
            self.unsupported()
        if "f16" in ty:
            return self.out(args[0], ty, self.half(fn, ty, args[1:]))
        x = self.floats(args[1:], ty, mods)[0] if ty[0] == "f" else self.src(args[1], ty)
        expr = f"{fn}({x})"
        return self.out(args[0], ty, self.finish(mods, ty, expr) if ty[0] == "f" else expr)

    def op_rcp(self, ins, mods, ty, args):
        mode = next((m for m in ins.parts if m in ("rz", "rm", "rp")), None)
        if mode and ty == "f64":
            self.unsupported()
        one = self.p.const(1, NP[ty])
        self.unary(mods, ty, args, f"(lambda x: div32({one}, x, {mode!r}))" if mode else f"(lambda x: {one} / x)")

    def op_testp(self, ins, mods, ty, args):
        x, tiny = self.src(args[1], ty), self.p.const(np.finfo(NP[ty]).tiny, NP[ty])
        self.out(args[0], "pred", TESTP[ins.parts[1]].format(x=x, t=tiny))

    # ------------------------------------------------------------ bits

    def op_shf(self, ins, mods, ty, args):
        a, b, c = (self.src(x, "u32") for x in args[1:])
        self.out(args[0], "u32", f"funnel({a}, {b}, {c}, {'l' in mods}, {'clamp' in mods})")

    def op_bfind(self, ins, mods, ty, args):
        self.out(args[0], "u32", f"bfind({self.src(args[1], ty)}, {'shiftamt' in mods})")

    def op_prmt(self, ins, mods, ty, args):
        if mods - {"b32"}:
            self.unsupported()
        self.out(args[0], "b32", f"prmt({', '.join(self.src(a, 'u32') for a in args[1:4])})")

    def op_lop3(self, ins, mods, ty, args):
        a, b, c = (self.src(x, ty) for x in args[1:4])
        self.out(args[0], ty, f"lop3({a}, {b}, {c}, {args[4].value})")

    # ------------------------------------------------------------ compare, select, move

    def comparison(self, ins, ty, a, b, mods, high=False):
        """Boolean expression; of one half (low or high) for packed types."""
        cmp = ins.parts[1]
        if "f16" in ty:
            load, x, y = f"from_{ty.removesuffix('x2')}", self.src(a, ty), self.src(b, ty)
            if ty.endswith("x2"):
                x, y = (f"({s}{' >> u4(16)' if high else ''}).astype(u2)" for s in (x, y))
            x, y = f"{load}({x})", f"{load}({y})"
        elif ty[0] == "f":
            x, y = self.floats((a, b), ty, mods)
            cmp = "ltgt" if cmp == "ne" else cmp
        else:
            kind = ty if cmp in ("eq", "ne") or ty[0] == "s" else "u" + ty[1:]
            x, y = self.src(a, kind), self.src(b, kind)
        if cmp == "ltgt":
            return f"(({x} < {y}) | ({x} > {y}))"
        return f"({COMPARE[cmp].format(a=x, b=y)})"

    def op_setp(self, ins, mods, ty, args):
        d, a, b, *c = args
        test = self.temp(self.comparison(ins, ty, a, b, mods))
        combine = ""
        if c:
            combine = f" {BOOLEAN[next(m for m in ins.parts[2:] if m in BOOLEAN)]} {self.src(c[0], 'pred')}"
        first, second = (d.first, d.second) if isinstance(d, Pair) else (d, None)
        other = f"~{test}"
        if ty.endswith("x2"):
            other = self.temp(self.comparison(ins, ty, a, b, mods, high=True))
        self.out(first, "pred", test + combine)
        if second is not None:
            self.out(second, "pred", other + combine)

    def op_set(self, ins, mods, ty, args):
        types = [p for p in ins.parts if p in TYPE_BYTES]
        if len(args) > 3:
            self.unsupported()
        to, packed = types[0], types[1].endswith("x2")
        true = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}.get(to.removesuffix("x2"), 0xFFFFFFFF)
        bits = "u2" if packed or to in ("f16", "bf16") else "u4"
        one = self.p.const(true & (0xFFFF if bits == "u2" else true), bits)
        low, high = (
            f"np.where({self.comparison(ins, types[1], args[1], args[2], mods, high)}, {one}, {bits}(0))"
            for high in (False, True)
        )
        self.out(args[0], f"u{8 * TYPE_BYTES[to]}", f"pack2({high}, {low})" if packed else low)

    def op_slct(self, ins, mods, ty, args):
        types = [p for p in ins.parts if p in TYPE_BYTES]
        a, b, c = self.src(args[1], types[0]), self.src(args[2], types[0]), self.src(args[3], types[1])
        self.out(args[0], types[0], f"np.where({c} >= 0, {a}, {b})")

    def op_mov(self, ins, mods, ty, args):
        d, s = args
        if isinstance(d, Vec):
            bits = TYPE_BYTES[ty] * 8 // len(d.items)
            t = self.temp(self.src(s, f"u{TYPE_BYTES[ty] * 8}"))
            for k, item in enumerate(d.items):
                if not (isinstance(item, Sym) and item.name == "_"):
                    shift = self.p.const(bits * k, NP[f"u{TYPE_BYTES[ty] * 8}"])
                    self.out(item, f"u{bits}", f"({t} >> {shift}).astype(u{bits // 8})")
        elif isinstance(s, Vec):
            bits, whole = TYPE_BYTES[ty] * 8 // len(s.items), f"u{TYPE_BYTES[ty]}"
            terms = [
                f"({self.src(item, f'u{bits}')}.astype({whole}) << {self.p.const(bits * k, whole)})"
                for k, item in enumerate(s.items)
            ]
            self.out(d, f"u{TYPE_BYTES[ty] * 8}", " | ".join(terms))
        else:
            self.out(d, ty, self.src(s, ty))

    def op_cvta(self, ins, mods, ty, args):
        bases = {"shared": SHARED_BASE, "local": LOCAL_BASE, "global": 0, "const": 0}
        base = next((b for s, b in bases.items() if s in {m.split("::")[0] for m in mods}), None)
        if base is None:
            self.unsupported()
        x = self.src(args[1], "u64")
        if base:
            x = f"{x} {'-' if 'to' in mods else '+'} {self.p.const(base, 'u8')}"
        self.out(args[0], "u64", x)

    def op_isspacep(self, ins, mods, ty, args):
        window = {"global": 0, "const": 0, "shared": 1, "local": 2}[ins.parts[1].split("::")[0]]
        space = f"{self.src(args[1], 'u64')} >> {self.p.const(60, 'u8')}"
        self.out(args[0], "pred", f"({space}) == {self.p.const(window, 'u8')}")

    def op_cvt(self, ins, mods, ty, args):
        if mods & {"pack", "rs", "satfinite"} or sum(p in TYPE_BYTES for p in ins.parts) != 2:
            self.unsupported()
        to, frm = (p for p in ins.parts if p in TYPE_BYTES)
        mode = next((m for m in ins.parts if m in ROUNDINGS), None)
        d, a = args[0], args[1]
        relu = "np.fmax({0}, f4(0))" if "relu" in mods else "{0}"
        if to in ("f16x2", "bf16x2"):
            if frm != "f32":
                self.unsupported()
            fn = f"to_{to[:-2]}"
            high, low = (relu.format(self.floats([s], frm, mods)[0]) for s in args[1:3])
            return self.out(d, to, f"pack2({fn}({high}, {mode!r}), {fn}({low}, {mode!r}))")
        if to == "tf32":
            return self.out(d, to, f"tf32({relu.format(self.src(a, 'f32'))}, {mode!r})")
        x = self.floats([a], frm, mods)[0] if frm == "f32" else self.src(a, frm)
        frm_float, to_float = "f" in frm, "f" in to
        if frm in ("f16", "bf16"):
            x, frm = f"from_{frm}({x})", "f32"
        if not frm_float and not to_float:
            expr = f"saturate_int({x}, {NP[to]})" if "sat" in mods else f"{x}.astype({NP[to]})"
            return self.out(d, to, expr)
        if not to_float:
            return self.out(d, to, f"float_to_int({x}, {mode!r}, {NP[to]})")
        if to in ("f16", "bf16"):
            if mode in ops.ROUNDERS:
                x, mode = f"np.{ops.ROUNDERS[mode].__name__}({x})", "rn"
            x = relu.format(x) if frm_float else f"int_to_odd({x})"
            return self.out(d, to, f"to_{to}({x}, {mode or 'rn'!r})")
        if not frm_float:
            expr = f"int_to_float({x}, {mode or 'rn'!r}, {NP[to]})"
        elif mode in ops.ROUNDERS:
            expr = f"np.{ops.ROUNDERS[mode].__name__}({x}).astype({NP[to]})"
        elif (frm, to) == ("f64", "f32") and mode in ("rz", "rm", "rp"):
            expr = f"round32({x}, None, {mode!r})"
        else:
            expr = x if frm == to else f"{x}.astype({NP[to]})"
        return self.out(d, to, self.finish(mods, to, expr))

    # ------------------------------------------------------------ memory

    def op_ld(self, ins, mods, ty, args):
        cls, _, _ = classify(ins)
        space = cls.split("_")[1]
        count = next((int(m[1:]) for m in ins.parts if m in ("v2", "v4", "v8")), 1)
        d, address = args[0], args[1]
        items = d.items if isinstance(d, Vec) else (d,)
        bits = TYPE_BYTES[ty] * 8
        if space == "param":
            return self.load_param(address, items, ty)
        access = self.p.access("ld", space, bits // 8, count, ins)
        t = self.temp(f"M.load(F, {access}, {self.address(address)})")
        signed = ty if ty[0] == "s" else f"u{bits}"
        for k, item in enumerate(items):
            value = f"{t}[{k}]" if count > 1 else t
            self.out(item, signed, f"{value}.view({NP[signed]})" if ty[0] == "s" else value)
        return None

    op_ldu = op_ld

    def load_param(self, address, items, ty):
        if not isinstance(address.base, Sym):
            self.unsupported()
        for k, item in enumerate(items):
            offset = address.offset + k * TYPE_BYTES[ty]
            if address.base.name in self.p.param_offsets:
                key = (self.p.param_offsets[address.base.name] + offset, NP[ty])
                slot = self.p.param_slots.setdefault(key, len(self.p.param_slots))
                self.out(item, ty, f"M.params[{slot}]")
            else:
                self.out(item, ty, self.src(self.param_reg(address.base.name, offset, ty), ty))

    def param_reg(self, name, offset, ty):
        """The pseudo-register that stands for a slice of a call parameter."""
        reg, st = f"{name}+{offset}", f"u{TYPE_BYTES[ty]}"
        if self.p.storage[self.p.add_reg(reg, st)] != st:
            self.unsupported("(call parameter accessed with two widths)")
        return Reg(reg)

    def op_st(self, ins, mods, ty, args):
        cls, _, _ = classify(ins)
        space = cls.split("_")[1]
        address, value = args
        items = value.items if isinstance(value, Vec) else (value,)
        unsigned = f"u{TYPE_BYTES[ty] * 8}"
        if space == "param":
            for k, item in enumerate(items):
                reg = self.param_reg(address.base.name, address.offset + k * TYPE_BYTES[ty], ty)
                self.out(reg, unsigned, self.src(item, unsigned))
            return
        access = self.p.access("st", space, TYPE_BYTES[ty], len(items), ins)
        values = ", ".join(self.src(item, unsigned) for item in items)
        self.lines.append(f"M.store(F, {access}, {self.address(address)}, ({values},))")

    def op_atom(self, ins, mods, ty, args):
        spaces = {m.split("::")[0] for m in mods}
        space = next((s for s in ("global", "shared") if s in spaces), "generic")
        op = next(p for p in ins.parts[1:] if p in ATOMIC_OPS)
        dest, address, *operands = (None, *args) if ins.parts[0] == "red" else args
        items = [o.items if isinstance(o, Vec) else (o,) for o in operands if not isinstance(o, Special)]
        used = isinstance(dest, Vec) or (isinstance(dest, Reg) and self.p.uses[dest.name] > 1)
        name = f"{ins.parts[0]}.{op}.{ty}"
        where = self.address(address)
        for k in range(len(items[0])):
            access = self.p.access("atom", space, TYPE_BYTES[ty], 1, ins, name)
            values = ", ".join(self.src(i[k], ty) for i in items[: 2 if op == "cas" else 1])
            at = where if k == 0 else f"{where} + {self.p.const(k * TYPE_BYTES[ty], 'u8')}"
            call = f"M.atomic(F, {access}, {op!r}, {ty!r}, {at}, ({values},), {used})"
            if used:
                target = dest.items[k] if isinstance(dest, Vec) else dest
                self.out(target, f"u{TYPE_BYTES[ty] * 8}", call)
            else:
                self.lines.append(call)

    op_red = op_atom

    def op_cp(self, ins, mods, ty, args):
        if ins.parts[1] != "async" or mods & {"bulk", "reduce", "mbarrier"}:
            self.unsupported()
        if mods & {"commit_group", "wait_group", "wait_all"}:
            return
        size = args[2].value
        load = self.p.access("ld", "global", 4, size // 4, ins)
        store = self.p.access("st", "shared", 4, size // 4, ins)
        limit = self.src(args[3], "u32") if len(args) > 3 and not isinstance(args[3], Sym) else "None"
        self.lines.append(f"M.cp_async(F, {load}, {store}, {self.address(args[0])}, {self.address(args[1])}, {limit})")

    # ------------------------------------------------------------ threads

    def op_bar(self, ins, mods, ty, args):
        if "warp" in mods:
            self.lines.append("M.warp_sync(F)")
            return
        if "arrive" in mods or "cluster" in mods:
            self.unsupported()
        args = list(args)
        dest = pred = kind = None
        if "red" in mods:
            kind = next(m for m in ("popc", "and", "or") if m in mods)
            dest, pred = args.pop(0), self.src(args.pop(), "pred")
        ident = self.src(args[0], "u32") if args else self.p.const(0, "u4")
        count = self.src(args[1], "u32") if len(args) > 1 else "None"
        index = "None"
        if dest is not None:
            index = self.p.reg_index[dest.name]
            self.uses.add(index)
        self.result = f"({ident}, {count}, {pred}, {kind!r}, {index})"

    op_barrier = op_bar

    def op_shfl(self, ins, mods, ty, args):
        d, a, b, c = args[:4]
        t = self.temp(f"M.shfl(F, {ins.parts[2]!r}, {self.src(a, 'u32')}, {self.src(b, 'u32')}, {self.src(c, 'u32')})")
        first, second = (d.first, d.second) if isinstance(d, Pair) else (d, None)
        self.out(first, "u32", f"{t}[0]")
        if second is not None:
            self.out(second, "pred", f"{t}[1]")

    def op_vote(self, ins, mods, ty, args):
        kind = next(m for m in ("ballot", "any", "all", "uni") if m in mods)
        self.out(args[0], "u32" if kind == "ballot" else "pred", f"M.vote(F, {kind!r}, {self.src(args[1], 'pred')})")

    def op_match(self, ins, mods, ty, args):
        t = self.temp(f"M.match(F, {'all' in mods}, {self.src(args[1], ty)})")
        d = args[0]
        self.out(d.first if isinstance(d, Pair) else d, "u32", f"{t}[0]")
        if isinstance(d, Pair):
            self.out(d.second, "pred", f"{t}[1]")

    def op_redux(self, ins, mods, ty, args):
        kind = next(m for m in ("add", "min", "max", "and", "or", "xor") if m in mods)
        self.out(args[0], ty, f"M.redux(F, {kind!r}, {self.src(args[1], ty)})")

    def op_elect(self, ins, mods, ty, args):
        t = self.temp("M.elect(F)")
        self.out(args[0].first, "u32", f"{t}[0]")
        self.out(args[0].second, "pred", f"{t}[1]")

    def op_mma(self, ins, mods, ty, args):
        shape, types = mma_shape(ins), tuple(p for p in ins.parts if p in TYPE_BYTES)
        known = {(16, 8, 16): ("bf16", "f16"), (16, 8, 8): ("bf16", "f16", "tf32")}
        kind = types[1] if len(types) == 4 else ""
        if kind not in known.get(shape, ()) or types != ("f32", kind, kind, "f32"):
            self.unsupported()
        lists = [f"[{', '.join(self.src(i, t) for i in v.items)}]"
                 for v, t in zip(args[1:4], ("u32", "u32", "f32"), strict=True)]  # fmt: skip
        t = self.temp(f"M.mma(F, {kind!r}, {shape[2]}, {', '.join(lists)})")
        for k, item in enumerate(args[0].items):
            self.out(item, "f32", f"{t}[{k}]")

    def op_ldmatrix(self, ins, mods, ty, args):
        count = next((int(m[1:]) for m in ("x1", "x2", "x4") if m in mods), 0)
        if not count or "m8n8" not in mods or ty != "b16":
            self.unsupported()
        access = self.p.access("ld", "shared", 4, 4, ins)
        items = args[0].items if isinstance(args[0], Vec) else (args[0],)
        t = self.temp(f"M.ldmatrix(F, {access}, {self.address(args[1])}, {count}, {'trans' in mods})")
        for k, item in enumerate(items):
            self.out(item, "u32", f"{t}[{k}]")

    def op_call(self, ins, mods, ty, args):
        name = args[0].name
        if name != "vprintf":
            self.lines.append(f"M.missing_function({name!r}, {ins.line})")
            return
        for ret in args[1:]:
            self.out(self.param_reg(ret.name, 0, "b32"), "u32", self.p.const(0, "u4"))

    def op_trap(self, ins, mods, ty, args):
        self.lines.append(f"M.trap(F, {ins.line})")
