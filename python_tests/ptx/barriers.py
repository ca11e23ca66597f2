# SPDX-License-Identifier: Apache-2.0
"""`python -m python_tests.ptx.barriers TARGET OPS [EVERY]`: PTX without one barrier or another.

Of each op the one launch is run without one of the barriers of a program, or with an arrival or a
poll of a group that orders nothing. It must show: as a race, as other picks, or as a launch that
does not end. Prints a JSON object an op: how many there are, and the functions whose barriers can
be spared or are not reached. EVERY: only each so many-th is taken out.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import zspa_kernels as zk
from python_tests.triton_races import function_at
from zspa_kernels.testing import tokens

from .__main__ import STEMS, use
from .faults import BARRIER, HARMLESS
from .machine import Launcher, MachineError

_ORDER = re.compile(rf"{BARRIER}|(?:atom|red)\.global\.gpu\.release\.add|ld\.global\.gpu\.acquire")
PROGRAMS = 5  # of the one group: few rows each, as a further tile brings barriers of its own
_WEAK = {
    "atom": "atom.global.gpu.relaxed.add",
    "red": "red.global.gpu.relaxed.add",
    "ld": "ld.global",
}


# Of the ops with the most barriers each second or third is taken out: an op takes minutes.
EVERY = {"diversity": 3, "dpp": 2, "min_sum": 3}
# How many of those of a function can be spared as they are compiled for sm_90, and why.
_MEETING = "one thread has written, or a barrier stands before; all get a poll's answer behind one"
_MADE = "the compiler's, for shared memory that another barrier has freed"
SPARED: dict[str, dict[str, tuple[int, str]]] = {
    "diversity": {"meet": (8, _MEETING)},
    "dpp": {
        "meet": (3, _MEETING),
        "substitute": (2, "each thread overwrites what it has read itself"),
    },
    "min_sum": {"meet": (2, _MEETING)},
    "facility_location": {
        "meet": (1, _MEETING),
        "min": (1, _MADE),
        "raised": (1, "as many tokens as threads: none is held twice"),
    },
    "suppress": {
        "meet": (3, _MEETING),
        "settle": (1, "the next list waits for a sum over all threads"),
        "take": (1, "a sum over all threads stands between"),
    },
    "soft_suppress": {
        "meet": (1, _MEETING),
        "begin": (1, "threads read what they have written, and a meeting follows"),
        "max": (2, _MADE),
    },
}


def image(n: int, d: int = 200) -> Tensor:
    """One image; its channels fill more tiles than are copied before the first is used."""
    return tokens("exact", n, d, 1, torch.bfloat16)[None]


def images() -> Tensor:
    """Two images, for one group of programs."""
    visual = torch.cat([image(20), image(20).flip(1)], 1).view(2, 20, 200)
    visual[0, 5], visual[1, 7] = 0.0, torch.nan
    return visual


# More than are added at a time; many name nothing.
SEEDS = torch.arange(140).view(2, 70)
MORE_SEEDS = torch.arange(280).view(2, 140)


def diversity(**given: str) -> list[Tensor]:
    return [
        zk.diversity(image(280), 12, **given),
        zk.diversity(images(), 3, seeds=MORE_SEEDS, **given),
    ]


def dpp(**given: str) -> list[Tensor]:
    few = functional.pad(image(160, 40), (0, 160))  # directions, so a pass picks few
    return [zk.dpp(x, k, **given) for x, k in ((few, 24), (image(160), 48), (images(), 3))]


def min_sum(**given: str) -> list[Tensor]:
    return [
        zk.min_sum(image(140), 4, **given),
        zk.min_sum(images(), 2, seeds=SEEDS, **given),
    ]


def facility_location(**given: str) -> list[Tensor]:
    words = torch.rand(1, 40, 140, generator=torch.Generator().manual_seed(1))
    return [zk.facility_location(image(140), 6, benefits=words, **given)]


def suppress(**given: str) -> list[Tensor]:
    def one(visual: Tensor, k: int) -> Tensor:
        scores = torch.arange(visual[..., 0].numel()).view(visual.shape[:2]).remainder(7) / 4
        return zk.suppress(visual, scores, k, threshold=0.125, **given)

    return [one(image(150), 40), one(image(150), 140), one(images(), 15)]


def soft_suppress(**given: str) -> list[Tensor]:
    visual = image(140)
    scores = torch.arange(140)[None].remainder(7) / 4
    return [zk.soft_suppress(visual, scores, 6, sharpness=20.0, **given)]


class Barrier(NamedTuple):
    """A piece of PTX that orders accesses, and the function it was made from."""

    start: int
    end: int
    weak: str
    place: str


def barriers(ptx: str) -> Iterator[Barrier]:
    """Those of a kernel, in order."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+) "([^"]+)"', ptx, re.MULTILINE))
    places = [(m.start(), m[1], int(m[2])) for m in re.finditer(r"\.loc\s+(\d+)\s+(\d+)", ptx)]
    for found in _ORDER.finditer(ptx):
        _, file, line = [place for place in places if place[0] < found.start()][-1]
        weak = _WEAK.get(found[0].split(".")[0], "")
        yield Barrier(*found.span(), weak, function_at(files[file], line))


def sweep(op: str, target: int, every: int = 1) -> dict[str, object]:
    """What is not noticed where one barrier is missing."""
    call: Callable[..., list[Tensor]] = globals()[op]
    want = call(backend="reference")
    greedy = f"_{op}_greedy_kernel"
    text = ""

    def keep(kernel: str, ptx: str) -> str:
        nonlocal text
        if kernel == greedy and text not in ("", ptx):
            raise ValueError(f"the calls of {op} are of several kernels")
        text = ptx if kernel == greedy else text
        return ptx

    def shows(ptx: str | None) -> bool:
        change = keep if ptx is None else lambda kernel, old: ptx if kernel == greedy else old
        launcher = Launcher(target, change=change, limit=50_000_000)
        use(launcher)
        try:
            same = all(map(torch.equal, call(), want))
        except MachineError:
            return True
        races = {race.split(": ", 1)[1] for race in launcher.races}
        return not same or not races <= HARMLESS

    if shows(None):
        raise MachineError(f"{op} fails with all its barriers")
    spared: Counter[str] = Counter()
    unreached: Counter[str] = Counter()
    found = list(barriers(text))[::every]
    for start, end, weak, place in found:
        if not shows(text[:start] + weak + text[end:]):
            reached = shows(f"{text[:start]}trap; {text[start:]}")
            (spared if reached else unreached)[place] += 1
    return {"op": op, "barriers": len(found), "spared": spared, "unreached": unreached}


def main(target: str, ops: str, every: str = "1") -> int:
    """Sweep ops, separated by commas."""
    modules: list[Any] = [
        importlib.import_module(f"zspa_kernels.backends.triton.{stem}") for stem in STEMS
    ]
    for module in modules:
        if hasattr(module, "group_grid"):
            module.group_grid = lambda cfg, segments, device: (1, PROGRAMS)
        if hasattr(module, "few_tokens"):
            module.few_tokens = lambda *_: False
    for op in ops.split(","):
        print(json.dumps(sweep(op, int(target), int(every))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
