# SPDX-License-Identifier: Apache-2.0
"""`python -m python_tests.ptx.phases TARGET OP...`: what `bench.gpu_phases` finds on the machine.

Prints a JSON object an op: the launches of phases, and the first of which memory is not that of
Triton's interpreter. There must be none, or on a GPU the phases would be blamed for nothing.
"""

from __future__ import annotations

import json
import sys

import torch

from bench import gpu_phases
from zspa_kernels.backends.triton import _common, _scratch

from .__main__ import use
from .machine import Launcher


def main(target: str, *ops: str) -> int:
    """Compare each op."""
    allocate = _scratch.allocate  # as in the interpreter: what nothing was written to is 0
    for op in ops:
        want, right = gpu_phases.interpreted(op)
        launcher = Launcher(int(target))
        use(launcher)
        _scratch.allocate = allocate
        _common.launch = launcher  # type: ignore[assignment]
        picks, memory = gpu_phases.trace(op, "cpu", most=len(right))
        wrong = gpu_phases.difference(memory, right)
        if wrong is None and not torch.equal(picks, want):
            wrong = "picks"
        print(json.dumps({"op": op, "launches": len(memory), "difference": wrong}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
