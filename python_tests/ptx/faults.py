# SPDX-License-Identifier: Apache-2.0
"""`python -m python_tests.ptx.faults TARGET`: faults planted in PTX, each of which must show.

Prints what the machine says of each, as a JSON object. The target is 90, or 100 for the faults of
its own products.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

import zspa_kernels as zk
from zspa_kernels.testing import tokens

from .__main__ import use
from .machine import Launcher, MachineError

GREEDY = "_diversity_greedy_kernel"
NORM = "_diversity_norm_kernel"
# Triton 3.9 puts a barrier of its own before an arrival.
BARRIER = r"\bbar\.sync\s+0;(?:(?:\s|\.loc[^\n]*\n)*bar\.sync\s+0;)*"
ARRIVAL = BARRIER + r"((?:(?!bar\.sync)[\s\S])*?(?:atom|red)\.global\.gpu\.release)"
LOAD = r"(tcgen05\.ld[^;]*\[%r\d+ \+) 0\]"
STORE = r"(st\.global\.b32 \[ %rd\d+ \+) 0 \]"


# An element is one thread's; what other warps read of it goes nowhere.
HARMLESS = {"global: scale reads, scale writes", "global: scale writes, scale reads"}


class Fault(NamedTuple):
    """A change of a kernel's PTX: `pattern` becomes `to`, everywhere or the first times."""

    kernel: str
    pattern: str
    to: str
    times: int = 0


FAULTS = {
    "none": Fault(GREEDY, "$^", ""),
    # Not everywhere: some of these barriers also order shared memory, and what is read there too
    # early may be an address that ends the run before programs race.
    "an arrival before others have written": Fault(GREEDY, ARRIVAL, r"\1", 3),
    "a poll that orders nothing": Fault(GREEDY, r"ld\.global\.gpu\.acquire", "ld.global"),
    "an arrival that orders nothing": Fault(
        GREEDY, r"(atom|red)\.global\.gpu\.release\.add", r"\1.global.gpu.relaxed.add"
    ),
    "an arrival that does not count": Fault(
        GREEDY,
        r"(?:atom|red)\.global\.gpu\.release\.add\.u32 (?:%r\d+, )?(\[[^]]*\]), %r\d+",
        r"ld.global.b32 %none, \1",
    ),
    "no barrier in a program": Fault(GREEDY, r"\tbar\.sync\s+0;", ""),
    "a store beyond the tensor": Fault(NORM, STORE, r"\1 65536 ]"),
    "a store that is not aligned": Fault(NORM, STORE, r"\1 2 ]"),
    "a copy that is not waited for": Fault(
        GREEDY, r"cp\.async\.wait_group\s+\d+", "mov.b32 %none, 0"
    ),
    "a barrier of half a warp": Fault(
        NORM,
        r"(mov\.u32\s+(%r\d+), %tid\.x;)",
        r"\1 and.b32 %none, \2, 16; setp.eq.b32 %p99999, %none, 0; @%p99999 bar.sync 0;",
        1,
    ),
}


# Products that are handed to a unit, which adds them up in tensor memory.
FAULTS_OF_100 = {
    "none": Fault(GREEDY, "$^", ""),
    "a product that is not waited for": Fault(
        GREEDY, r"mbarrier\.try_wait[^;]*;", "setp.eq.u32 complete, 0, 0;"
    ),
    "no barrier in a program": FAULTS["no barrier in a program"],
    "a product before its copies have come": Fault(
        GREEDY, r"cp\.async\.wait_group\s+\d+", "mov.b32 %none, 0"
    ),
    "a product that several lanes ask for": Fault(
        GREEDY, r"elect\.sync\s+(%r\d+)\|(%p\d+), -1", r"setp.eq.u32 \2, 0, 0"
    ),
    "what another warp added up": Fault(GREEDY, LOAD, r"\1 2097152]"),
    "columns that are not allocated": Fault(GREEDY, LOAD, r"\1 512]"),
    "memory that is not given back": Fault(GREEDY, r"tcgen05\.dealloc[^;]*;", "bar.warp.sync 0;"),
}


def planted(fault: Fault) -> Callable[[str, str], str]:
    """What changes the PTX of a kernel, by its name."""

    def change(kernel: str, ptx: str) -> str:
        if kernel != fault.kernel or fault.pattern == "$^":
            return ptx
        changed, count = re.subn(fault.pattern, fault.to, ptx, count=fault.times)
        if count == 0:
            raise ValueError(f"{kernel} has no {fault.pattern}")
        return changed

    return change


def found(fault: Fault, target: int) -> list[str]:
    """What a selection with the fault shows."""
    launcher = Launcher(target, change=planted(fault), limit=3_000_000)  # four times what it takes
    use(launcher)
    visual = tokens("exact", 300, 64, 1, torch.bfloat16)
    want = zk.diversity(visual, 18, backend="reference")
    try:
        shown = [] if zk.diversity(visual, 18).equal(want) else ["wrong picks"]
    except MachineError as error:
        shown = [str(error).split(":")[0]]
    races = {race.split(": ", 1)[1] for race in launcher.races} - HARMLESS
    return shown + sorted({f"a race in {race.split(':')[0]} memory" for race in races})


def main(target: str) -> int:
    """Plant each fault."""
    faults = FAULTS if target == "90" else FAULTS_OF_100
    print(json.dumps({name: found(fault, int(target)) for name, fault in faults.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
