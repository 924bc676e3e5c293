"""Parse PTX text into instruction lists, and flatten an entry with its calls inlined.

The grammar covered is what compilers emit: module variables, functions, nested
scopes from inline assembly and call sequences, `.loc` line information.
"""

import re
import struct
from dataclasses import dataclass, field

TYPE_BYTES = {
    "pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4,
    "b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Reg:
    name: str
    neg: bool = False  # `!%p` on predicate operands


@dataclass(frozen=True)
class Imm:
    """An immediate: kind is 'int', 'f32' (bit pattern), 'f64' (bit pattern) or 'float'."""

    kind: str
    value: object


@dataclass(frozen=True)
class Special:
    name: str


@dataclass(frozen=True)
class Sym:
    name: str


@dataclass(frozen=True)
class Addr:
    base: object
    offset: int


@dataclass(frozen=True)
class Vec:
    items: tuple


@dataclass(frozen=True)
class Pair:
    """`a|b` destinations of setp and shfl."""

    first: object
    second: object


@dataclass
class Instr:
    op: str
    args: list
    line: int
    loc: tuple | None = None
    pred: Reg | None = None
    scope: tuple = ()
    text: str = ""

    @property
    def parts(self):
        return self.op.split(".")


@dataclass
class Label:
    name: str


@dataclass
class Variable:
    """A variable in the global, const, shared, local or param space."""

    name: str
    space: str
    type: str
    align: int
    size: int
    init: bytes | None = None


@dataclass
class Function:
    name: str
    entry: bool
    params: list = field(default_factory=list)
    rets: list = field(default_factory=list)
    regs: dict = field(default_factory=dict)
    variables: list = field(default_factory=list)
    body: list = field(default_factory=list)
    defined: bool = False


@dataclass
class Module:
    functions: dict
    variables: dict


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_LABEL = re.compile(r"([$%\w]+)\s*:(?!:)")
_LINE_DIRECTIVE = re.compile(r"\.(loc|file|version|target|address_size)\b([^\n]*)")
_HEADER = re.compile(r"(?:\.(?:visible|extern|weak|common)\s+)*\.(entry|func)\b")
_SPECIAL = re.compile(
    r"%(?:tid|ntid|ctaid|nctaid)\.[xyz]$|%(?:laneid|warpid|nwarpid|smid|nsmid|gridid|clock|clock_hi"
    r"|clock64|globaltimer|globaltimer_lo|globaltimer_hi|dynamic_smem_size|total_smem_size"
    r"|lanemask_(?:eq|lt|le|gt|ge))$|WARP_SZ$"
)
_VARIABLE = re.compile(
    r"\.(global|const|shared|local|param)\s*(?:\.align\s+(\d+)\s*)?((?:\.v\d\s*)?)\.(\w+)\s+"
    r"(?:\.ptr[^,;]*?\s)?([$%\w.]+)\s*((?:\[\s*\w*\s*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_INT = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_FLOAT = re.compile(r"[+-]?\d+\.\d*(?:[eE][+-]?\d+)?$")


def parse_int(text):
    text = text.strip().rstrip("U")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    if re.fullmatch(r"0[0-7]+", digits):
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def split_commas(text):
    """Split at top-level commas, respecting (), [] and {}."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [p for p in parts if p]


class _Parser:
    def __init__(self, text):
        self.text = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
        self.files, self.functions, self.variables = {}, {}, {}
        self.func, self.loc, self.scopes, self.scope_count = None, None, [], 0
        self.line, self.line_pos = 1, 0
        for m in re.finditer(r'\.file\s+(\d+)\s+"([^"]*)"', self.text):
            self.files[int(m[1])] = m[2]

    def line_at(self, pos):
        self.line += self.text.count("\n", self.line_pos, pos)
        self.line_pos = pos
        return self.line

    def rename(self, name):
        """Resolve a name through the open nested scopes."""
        for scope_id, names in reversed(self.scopes):
            if name in names:
                return f"{name}#{scope_id}"
        return name

    def declare(self, name):
        if self.scopes:
            scope_id, names = self.scopes[-1]
            names.add(name)
            return f"{name}#{scope_id}"
        return name

    def operand(self, text):
        text = text.strip()
        if text.startswith("{"):
            return Vec(tuple(self.operand(t) for t in split_commas(text[1:-1])))
        if text.startswith("["):
            inner = split_commas(text[1:-1])
            m = re.match(r"(.*?\S)\s*\+\s*(-?\s*\w+)$", inner[0], re.DOTALL)
            if m:
                return Addr(self.operand(m[1]), parse_int(m[2].replace(" ", "")))
            return Addr(self.operand(inner[0]), 0)
        if text.startswith("("):
            return Vec(tuple(self.operand(t) for t in split_commas(text[1:-1])))
        if "|" in text:
            a, b = text.split("|")
            return Pair(self.operand(a), self.operand(b))
        if text.startswith("!"):
            return Reg(self.rename(text[1:].strip()), True)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return Imm("f32", int.from_bytes(bytes.fromhex(text[2:])))
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return Imm("f64", int.from_bytes(bytes.fromhex(text[2:])))
        if _INT.match(text):
            return Imm("int", parse_int(text))
        if _FLOAT.match(text):
            return Imm("float", float(text))
        if _SPECIAL.match(text):
            return Special(text.lstrip("%"))
        name = self.rename(text)
        if self.func is not None and name in self.func.regs:
            return Reg(name)
        return Sym(name)

    def initial_bytes(self, text, type_, size):
        """Bytes of a variable initializer."""
        text = text.strip()
        out, n = b"", TYPE_BYTES[type_]
        for item in split_commas(text.replace("{", "").replace("}", "")):
            value = self.operand(item)
            if not isinstance(value, Imm):
                raise NotImplementedError(f"initializer {item!r}")
            if value.kind in ("f32", "f64") or value.kind == "int" and type_[0] != "f":
                out += (value.value & (1 << 8 * n) - 1).to_bytes(n, "little")
            else:
                out += struct.pack("<f" if n == 4 else "<d", value.value)
        return out.ljust(size, b"\0")

    def variable(self, text):
        m = _VARIABLE.match(text.strip())
        if not m:
            raise NotImplementedError(f"declaration {text.strip()[:120]!r}")
        space, align, vec, type_, name, dims, init = m.groups()
        count = int(vec.strip()[2:]) if vec.strip() else 1
        for dim in re.findall(r"\[\s*(\w*)\s*\]", dims):
            count *= parse_int(dim) if dim else 0
        size = TYPE_BYTES[type_] * count
        return Variable(
            name, space, type_, int(align or TYPE_BYTES[type_]), size,
            self.initial_bytes(init, type_, size) if init else None,
        )  # fmt: skip

    def header(self, pos):
        """Parse a function header starting at pos; return the position after it."""
        end = pos
        while self.text[end] not in "{;":
            end += 1
        head = self.text[pos:end]
        kind = _HEADER.match(head)[1]
        rest = head[_HEADER.match(head).end() :].strip()
        rets = []
        if rest.startswith("("):
            close = rest.index(")")
            rets = [self.variable(v) for v in split_commas(rest[1:close])]
            rest = rest[close + 1 :].strip()
        name = re.match(r"[$\w%]+", rest)[0]
        params = []
        if "(" in rest:
            inside = rest[rest.index("(") + 1 : rest.rindex(")")]
            params = [self.variable(v) for v in split_commas(inside)]
        func = self.functions.setdefault(name, Function(name, kind == "entry"))
        func.params, func.rets = params, rets
        if self.text[end] == "{":
            self.func, func.defined = func, True
            self.depth = 1
        return end + 1

    def statement(self, text, line):
        """One `;`-terminated statement, at module or function level."""
        text = text.strip()
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            m = re.match(r"\.reg\s*(?:\.v\d\s*)?\.(\w+)\s+(.*)$", text, re.DOTALL)
            for item in m[2].split(","):
                r = re.match(r"\s*([$%\w]+)(?:<(\d+)>)?", item)
                names = [r[1]] if r[2] is None else [f"{r[1]}{i}" for i in range(int(r[2]))]
                for name in names:
                    self.func.regs[self.declare(name)] = m[1]
            return
        if text.startswith("."):
            if not re.match(r"\.(?:visible|extern|weak|common|global|const|shared|local|param)\b", text):
                return  # performance directives such as .maxntid, .minnctapersm
            text = re.sub(r"^(?:\.(?:visible|extern|weak|common)\s+)+", "", text)
            var = self.variable(text)
            if self.func is None:
                self.variables[var.name] = var
            elif var.space == "param":
                self.declare(var.name)
            else:
                self.func.variables.append(var)
            return
        instr = Instr("", [], line, self.loc, scope=tuple(s for s, _ in self.scopes), text=" ".join(text.split()))
        m = re.match(r"@(!?)([$%\w]+)\s+", text)
        if m:
            instr.pred = Reg(self.rename(m[2]), bool(m[1]))
            text = text[m.end() :]
        m = re.match(r"([\w.:]+)\s*(.*)$", text, re.DOTALL)
        instr.op = m[1]
        instr.args = [self.operand(t) for t in split_commas(m[2])]
        self.func.body.append(instr)

    def parse(self):
        text, pos = self.text, 0
        while True:
            while pos < len(text) and (text[pos].isspace() or text[pos] == ";"):
                pos += 1
            if pos >= len(text):
                break
            m = _LINE_DIRECTIVE.match(text, pos)
            if m:
                words = m[2].replace(",", " ").split()
                if m[1] == "loc" and int(words[1]):
                    self.loc = (self.files.get(int(words[0]), words[0]), int(words[1]))
                pos = m.end()
            elif text.startswith(".section", pos):
                pos = text.index("}", pos) + 1
            elif _HEADER.match(text, pos):
                self.loc = None
                pos = self.header(pos)
            elif text[pos] == "{":
                self.scope_count += 1
                self.scopes.append((self.scope_count, set()))
                pos += 1
            elif text[pos] == "}":
                if self.scopes:
                    self.scopes.pop()
                else:
                    self.func = None
                pos += 1
            elif self.func is not None and (m := _LABEL.match(text, pos)):
                self.func.body.append(Label("/".join([m[1], *(str(s) for s, _ in self.scopes)])))
                pos = m.end()
            else:
                end = text.index(";", pos)
                self.statement(text[pos:end], self.line_at(pos))
                pos = end + 1
        return Module(self.functions, self.variables)


def parse(text):
    """Parse one PTX module."""
    return _Parser(text).parse()


def link(modules):
    """Merge modules: definitions win over external declarations."""
    functions, variables = {}, {}
    for module in modules:
        for name, func in module.functions.items():
            if name not in functions or func.defined:
                functions[name] = func
        for name, var in module.variables.items():
            if name not in variables or var.init is not None:
                variables[name] = var
    return Module(functions, variables)


@dataclass
class Flat:
    """An entry with every call inlined: instructions, labels, registers and variables."""

    name: str
    params: list
    regs: dict
    body: list
    variables: dict


def flatten(module, entry=None):
    """Inline all calls reachable from the entry (recursion is not supported)."""
    if entry is None:
        entry = next(f.name for f in module.functions.values() if f.entry and f.defined)
    root = module.functions[entry]
    flat = Flat(entry, root.params, {}, [], dict(module.variables))
    counter = [0]

    def expand(func, prefix, names, end_label, stack):
        if func.name in stack:
            raise NotImplementedError(f"recursive call of {func.name}")
        for name, type_ in func.regs.items():
            flat.regs[prefix + name] = type_
        for var in func.variables:
            flat.variables.setdefault(f"{func.name}::{var.name}", var)
            names[var.name] = f"{func.name}::{var.name}"
        labels = {item.name for item in func.body if isinstance(item, Label)}

        def operand(x):
            if isinstance(x, Reg):
                return Reg(prefix + x.name, x.neg)
            if isinstance(x, Sym):
                return Sym(names.get(x.name, x.name if x.name in flat.variables else prefix + x.name))
            if isinstance(x, Addr):
                return Addr(operand(x.base), x.offset)
            if isinstance(x, Vec):
                return Vec(tuple(map(operand, x.items)))
            if isinstance(x, Pair):
                return Pair(operand(x.first), operand(x.second))
            return x

        def target(name, scope):
            """Find a label from the innermost enclosing scope outwards."""
            for depth in range(len(scope), -1, -1):
                key = "/".join([name, *(str(s) for s in scope[:depth])])
                if key in labels:
                    return Sym(prefix + key)
            raise ValueError(f"unknown label {name}")

        for item in func.body:
            if isinstance(item, Label):
                flat.body.append(Label(prefix + item.name))
                continue
            pred = operand(item.pred) if item.pred else None
            new = Instr(item.op, [], item.line, item.loc, pred, text=item.text)
            base = item.parts[0]
            if base == "call":
                operands = list(item.args)
                rets = operands.pop(0).items if isinstance(operands[0], Vec) else ()
                callee = operands.pop(0)
                args = operands[0].items if operands else ()
                name = callee.name if isinstance(callee, Sym) else None
                new.args = [Sym(str(name)), *map(operand, rets)]
                flat.body.append(new)
                target_func = module.functions.get(name)
                if target_func is None or not target_func.defined:
                    continue  # an external: the translator decides
                if pred is not None:
                    raise NotImplementedError(f"predicated call at PTX line {item.line}")
                counter[0] += 1
                inner = {}
                actual_ret = [operand(r).name for r in rets]
                actual_arg = [operand(a).name for a in args]
                for formal, actual in zip(target_func.rets, actual_ret, strict=False):  # a void callee has none
                    inner[formal.name] = actual
                for formal, actual in zip(target_func.params, actual_arg, strict=True):
                    inner[formal.name] = actual
                end = f"return@{counter[0]}"
                expand(target_func, f"c{counter[0]}:", inner, end, (*stack, func.name))
                flat.body.append(Label(end))
                new.op = "call_inlined"
                continue
            if base in ("ret",) and end_label:
                new.op, new.args = "bra", [Sym(end_label)]
            elif base == "bra":
                new.args = [target(item.args[0].name, item.scope)]
            elif base == "brx":
                raise NotImplementedError(f"{item.op} at PTX line {item.line}")
            else:
                new.args = list(map(operand, item.args))
            flat.body.append(new)

    expand(root, "", {}, None, ())
    return flat
