# SPDX-License-Identifier: Apache-2.0
"""PTX as instructions of the machine: registers and constants are slots, labels are places."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from python_tests.triton_races import function_at

SHARED_START = 1 << 10  # kShared of machine.h

_PARAMETER = re.compile(r"\w+_param_(\d+)")
# What is written in two ways.
_SAME = {"barrier.sync": "bar.sync", "ld.shared::cta": "ld.shared", "st.shared::cta": "st.shared"}
_NUMBER = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)U?")


@dataclass
class Instruction:
    """One instruction: a name the machine knows, and slots."""

    name: str
    arguments: list[int]
    predicate: int = -1
    negated: bool = False
    immediate: int = 0
    file: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """The function it was made from, and what it does there."""
        writes = ("st", "cp.async", "tcgen05.st", "tcgen05.mma", "held.tcgen05.mma")
        verb = "writes" if self.name.startswith(writes) else "reads"
        return f"{function_at(self.file, self.line)} {verb}"


@dataclass
class Code:
    """A kernel.

    Attributes:
        instructions: in order.
        initial: the first value of every slot, as 64 bits.
        parameters: the slot of each parameter, by its number.
        special: the slots of what differs between threads and programs.
        threads: of a program.
    """

    instructions: list[Instruction] = field(default_factory=list)
    initial: list[int] = field(default_factory=list)
    parameters: dict[int, int] = field(default_factory=dict)
    special: dict[str, int] = field(default_factory=dict)
    threads: int = 0


class Decoder:
    """Reads the PTX of one kernel."""

    def __init__(self, ptx: str) -> None:
        self.code = Code()
        self.slots: dict[str, int] = {}
        threads = re.search(r"\.reqntid (\d+)", ptx)
        if threads is None:
            raise ValueError("the kernel does not say how many threads it has")
        self.code.threads = int(threads[1])
        self.files = dict(re.findall(r'^\s*\.file\s+(\d+) "([^"]+)"', ptx, re.MULTILINE))
        for name in ("%tid.x", "%ctaid.x", "%nctaid.x"):
            self.code.special[name] = self._slot(name)
        start = ptx.index("\n{\n")
        end = ptx.rindex("\n}\n", start, ptx.index(".file", start))
        self._read(ptx[start + 3 : end])

    def _read(self, body: str) -> None:
        places: dict[str, int] = {}
        jumps: list[tuple[Instruction, str]] = []
        file, line = "", 0
        block = 0  # labels that do not start with $ are those of a block of inline assembly
        for row in body.splitlines():
            text = row.split("//")[0].strip()
            if found := re.match(r"\.loc\s+(\d+)\s+(\d+)", text):
                file, line = self.files[found[1]], int(found[2])
                continue
            block += text == "{"
            if found := re.match(r"(\$?\w+):$", text):
                places[_label(found[1], block)] = len(self.code.instructions)
                continue
            # The scope of a register does not matter: inline assembly has names of its own.
            if re.match(r"^\{\s*\.reg", text):
                text = text.removeprefix("{").removesuffix("}")
            for statement in text.split(";"):
                statement = statement.strip()
                if statement in ("", "{", "}") or statement.startswith("."):
                    continue
                instruction, label = self._instruction(statement)
                instruction.file, instruction.line = file, line
                self.code.instructions.append(instruction)
                if label:
                    jumps.append((instruction, _label(label, block)))
        for instruction, label in jumps:
            instruction.immediate = places[label]
        meetings = where_ways_meet(self.code.instructions)
        for at, instruction in enumerate(self.code.instructions):
            if instruction.name == "bra":
                instruction.arguments = [meetings[at]]

    def _instruction(self, statement: str) -> tuple[Instruction, str]:
        predicate, negated = -1, False
        if found := re.match(r"@(!?)(%p\d+|[a-z]+)\s+", statement):
            predicate, negated = self._slot(found[2]), bool(found[1])
            statement = statement[found.end() :]
        name, *others = statement.split(maxsplit=1)
        rest = others[0] if others else ""
        for form, same in _SAME.items():
            name = name.replace(form, same)
        done = Instruction(name, [], predicate, negated)
        if name in ("bra", "bra.uni"):
            done.name = "bra"
            return done, rest
        if name.startswith("ld.param"):
            done.name = "mov.u64"
            destination, source = rest.split(",")
            number = _PARAMETER.search(source)
            if number is None:
                raise ValueError(f"not understood: {statement}")
            parameter = self.code.parameters.setdefault(int(number[1]), self._slot(number[0]))
            done.arguments = [self._slot(destination.strip()), parameter]
            return done, ""
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)
        if name.startswith("mov.") and operands[0].startswith("{"):
            done.name = "unpack." + name.split(".")[1]
        elif name.startswith("mov.") and operands[1].startswith("{"):
            done.name = "pack." + name.split(".")[1]
        elif name.startswith(("wgmma.mma_async", "tcgen05.mma")) and operands[1][0] in "{[":
            done.name = "held." + name  # not in shared memory
        offsets = []
        for operand in operands:
            if operand.startswith("{"):
                done.arguments += [self._operand(part) for part in operand[1:-1].split(",")]
            elif operand.startswith("["):
                base, _, offset = operand[1:-1].partition("+")
                done.arguments.append(self._operand(base))
                offsets.append(int(offset.strip() or "0", 0))
            else:
                done.arguments += [self._operand(part) for part in operand.split("|")]
        done.immediate = offsets[0] if offsets else 0
        if name.startswith("red."):  # an atomic whose answer nobody wants
            done.name = "atom" + name.removeprefix("red")
            done.arguments.insert(0, self._slot("unwanted"))
        if name in ("min.f32", "max.f32") and len(done.arguments) == 4:
            done.name = "three." + name
        if name.startswith("cp.async.c") and len(offsets) == 2:
            if len(done.arguments) == 3:  # everything is read
                done.arguments.append(done.arguments[2])
            done.arguments.append(offsets[1])
        elif done.name.startswith("held.tcgen05"):
            done.arguments.append(offsets[1])
        return done, ""

    def _operand(self, text: str) -> int:
        text = text.strip()
        if found := re.fullmatch(r"0[fd]([0-9A-F]+)", text):
            return self._constant(int(found[1], 16))
        if _NUMBER.fullmatch(text):
            return self._constant(int(text.removesuffix("U"), 0) & (2**64 - 1))
        if text == "global_smem":
            return self._constant(SHARED_START)
        return self._slot(text)

    def _constant(self, bits: int) -> int:
        slot = self._slot(f"constant {bits}")
        self.code.initial[slot] = bits
        return slot

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            self.slots[name] = len(self.code.initial)
            # What nobody wrote is a value that shows.
            self.code.initial.append(0x7FF7DEAD7FB7DEAD)
        return self.slots[name]


def _label(name: str, block: int) -> str:
    return name if name.startswith("$") else f"{name} {block}"


def where_ways_meet(code: list[Instruction]) -> list[int]:
    """Of each instruction the first one that all ways from it to the end have in common.

    `len(code)` is the end. These are the immediate postdominators, by the algorithm of Cooper,
    Harvey and Kennedy ("A simple, fast dominance algorithm").
    """
    end = len(code)
    onward = []
    for at, i in enumerate(code):
        ways = [i.immediate] if i.name == "bra" else [end] if i.name == "ret" else [at + 1]
        if i.predicate >= 0 and i.name in ("bra", "ret"):
            ways.append(at + 1)
        onward.append(ways)
    order = _postorder(onward, end)  # by which an instruction comes before what leads to it
    rank = {at: n for n, at in enumerate(order)}
    meets = {end: end}
    changed = True
    while changed:
        changed = False
        for at in order:
            if at == end:
                continue
            ways = [way for way in onward[at] if way in meets]
            best = ways[0]
            for way in ways[1:]:
                while best != way:
                    while rank[way] > rank[best]:
                        way = meets[way]
                    while rank[best] > rank[way]:
                        best = meets[best]
            changed |= meets.get(at) != best
            meets[at] = best
    return [meets.get(at, end) for at in range(end)]


def _postorder(onward: list[list[int]], end: int) -> list[int]:
    """Instructions in reverse postorder of the ways back from the end."""
    back: list[list[int]] = [[] for _ in range(end + 1)]
    for at, ways in enumerate(onward):
        for way in ways:
            back[way].append(at)
    seen = {end}
    order: list[int] = []
    stack = [(end, iter(back[end]))]
    while stack:
        at, ways_back = stack[-1]
        way = next((w for w in ways_back if w not in seen), -1)
        if way < 0:
            order.append(at)
            stack.pop()
        else:
            seen.add(way)
            stack.append((way, iter(back[way])))
    return order[::-1]


def decode(ptx: str) -> Code:
    """The instructions of the only kernel in `ptx`.

    Raises:
        ValueError: it has a form that is not understood.
    """
    return Decoder(ptx).code
