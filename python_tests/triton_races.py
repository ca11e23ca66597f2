# SPDX-License-Identifier: Apache-2.0
"""Accesses of one program that nothing orders, found in its PTX.

Between two barriers the warps of a program run as they like, and where a tensor is smaller than the
program several warps hold copies of it that each has read for itself. So a read and a write of one
tensor with a way from one to the other on which no barrier stands are a race, unless they are of
different places or of one thread. The interpreter runs no warps and cannot show this.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ACCESS = re.compile(r"(ld|st)\.global[.\w]*|cp\.async\.c[ag]\.shared\.global")
_JUMP = re.compile(r"bra(?:\.uni)?\s+(\$\w+)")
_PARAM = re.compile(r"ld\.param\.b64\s+(%rd\d+), \[\w+_param_(\d+)\]")


class Step(NamedTuple):
    """One instruction, and the place in the source it was made from."""

    text: str
    file: str
    line: int


def races(ptx: str, tensors: list[str]) -> list[str]:
    """Unordered pairs as `tensor: function reads, function writes`, in the order of the program.

    Args:
        ptx: of one kernel.
        tensors: the names of its arguments that are not constants, in order.
    """
    steps, onward = _flow(ptx)
    origins = _origins(steps)
    accesses: dict[int, tuple[str, set[int]]] = {}
    for at, step in enumerate(steps):
        found = _ACCESS.search(step.text)
        # Those of a barrier order the others.
        if found and ".acquire" not in found[0]:
            kind = "writes" if found[1] == "st" else "reads"
            accesses[at] = kind, origins[_address(step.text)]
    pairs = set()
    for at, (kind, origin) in accesses.items():
        for then in _before_a_barrier(at, steps, onward):
            other, place = accesses.get(then, ("", set()))
            same_statement = steps[at][1:] == steps[then][1:]
            if (kind, other) == ("reads", "reads") or (kind == other and same_statement):
                continue
            first, second = (function_at(steps[s].file, steps[s].line) for s in (at, then))
            pairs |= {f"{tensors[o]}: {first} {kind}, {second} {other}" for o in origin & place}
    return sorted(pairs)


def _flow(ptx: str) -> tuple[list[Step], list[list[int]]]:
    """The instructions, and which may follow each."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+) "([^"]+)"', ptx, re.MULTILINE))
    steps: list[Step] = []
    labels: dict[str, int] = {}
    file, line = "", 0
    start = ptx.index("\n{\n")
    # Assembly in braces ends with such a line as well.
    end = ptx.rindex("\n}\n", start, ptx.index(".file", start))
    for text in ptx[start:end].splitlines():
        code = text.split("//")[0].strip()
        if found := re.match(r"\.loc\s+(\d+)\s+(\d+)", code):
            file, line = files[found[1]], int(found[2])
        elif found := re.match(r"(\$\w+):", code):
            labels[found[1]] = len(steps)
        elif re.match(r"[@\w]", code):
            steps.append(Step(code, file, line))
    onward: list[list[int]] = []
    for at, step in enumerate(steps):
        jump = _JUMP.search(step.text)
        then = [labels[jump[1]]] if jump else []
        if step.text.startswith("@") or not (jump or step.text.startswith("ret")):
            then.append(at + 1)
        onward.append([s for s in then if s < len(steps)])
    return steps, onward


def _address(text: str) -> str:
    """The register with the address in global memory."""
    found = re.findall(r"\[\s*(%rd\d+)", text)
    return found[-1] if found else ""


def _origins(steps: list[Step]) -> dict[str, set[int]]:
    """Of each 64-bit register the arguments it may be an address in."""
    origins: dict[str, set[int]] = defaultdict(set)
    made_of: dict[str, set[str]] = defaultdict(set)
    for step in steps:
        if found := _PARAM.search(step.text):
            origins[found[1]].add(int(found[2]))
        elif not re.search(r"\bld\.|\bst\.|\bbra\b", step.text):
            registers = re.findall(r"%rd\d+", step.text)
            if registers:
                made_of[registers[0]].update(registers[1:])
    grows = True
    while grows:
        grows = False
        for register, sources in made_of.items():
            reached = set().union(*(origins[s] for s in sources)) - origins[register]
            origins[register] |= reached
            grows |= bool(reached)
    return origins


def _before_a_barrier(at: int, steps: list[Step], onward: list[list[int]]) -> Iterator[int]:
    """The instructions that can be reached from one without passing a barrier."""
    seen: set[int] = set()
    ahead = list(onward[at])
    while ahead:
        step = ahead.pop()
        if step in seen or "bar.sync" in steps[step].text:
            continue
        seen.add(step)
        yield step
        ahead += onward[step]


@functools.cache
def _functions(file: str) -> list[tuple[int, int, str]]:
    nodes = ast.walk(ast.parse(Path(file).read_text()))
    return [
        (node.lineno, node.end_lineno or 0, node.name)
        for node in nodes
        if isinstance(node, ast.FunctionDef)
    ]


def function_at(file: str, line: int) -> str:
    """The function a line of source is in."""
    names = [name for first, last, name in _functions(file) if first <= line <= last]
    return names[-1] if names else f"line {line}"
