# SPDX-License-Identifier: Apache-2.0
"""`python -m python_tests.ptx TARGET CHECKS [DTYPE]`: checks of `bench.gpu_checks` on the machine.

The kernels are compiled for the target (80, 89, 90, 100 or 120) as for a GPU, and their PTX is run.
Triton must not interpret. Prints a JSON object a check: what was run, how many instructions, what
raced.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from typing import Any

import torch
from torch import Tensor

from .machine import Launcher

PROGRAMS = 3  # that share an image
# Tokens of what each op is asked first: more than are candidates at a time, and several tiles of a
# program. The time of a run grows with them.
SIZES = (150, 200)
STEMS = (
    *("diversity", "diversity_whole", "dpp", "facility_location", "facility_location_matrix"),
    *("min_sum", "relevance_topk", "select", "sensitivity", "soft_suppress", "suppress"),
)


def allocate(device: torch.device, plan: dict[str, Any]) -> dict[str, Tensor]:
    """`_scratch.allocate` with memory of its own for each tensor, full of values that show."""
    made = {}
    for name, (dtype, shape) in plan.items():
        memory = torch.full((math.prod(shape) * dtype.itemsize,), 255, dtype=torch.uint8)
        made[name] = memory.view(dtype).view(shape)
    return made


def use(launcher: Launcher) -> None:
    """Let `zk` run the Triton backend, and that the machine, for the rest of this process."""
    from zspa_kernels._ops import dispatch

    dispatch._AUTO["cpu"] = ("triton",)
    dispatch._triton_refuses = lambda device: None
    modules: dict[str, Any] = {
        stem: importlib.import_module(f"zspa_kernels.backends.triton.{stem}")
        for stem in (*STEMS, "_scratch")
    }
    modules["_scratch"].allocate = allocate
    modules["diversity"].INTERPRETED_PROGRAMS = PROGRAMS
    for stem in STEMS:
        modules[stem].launch = launcher
        if hasattr(modules[stem], "greedy_in_steps"):
            kernel = getattr(modules[stem], f"_{stem}_greedy_kernel")
            modules[stem].greedy_in_steps = at_once(kernel)


def at_once(kernel: Any) -> Any:
    """`greedy_in_steps` as the one launch it stands for."""

    def greedy(
        step: Any, launch: Any, programs: int, device: Any, *args: Any, **options: Any
    ) -> int:
        for name in ("phases", "once"):
            options.pop(name, None)
        launch(kernel, programs, device, *args, together=True, **options)
        return 0

    return greedy


def main(target: str, names: str, dtype: str | None = None) -> int:
    """Run checks, separated by commas."""
    from bench import gpu_check

    gpu_check.DEVICE, gpu_check.IMAGES, gpu_check.TURNS = "cpu", 8, 1
    gpu_check.FIRST = tuple(
        dataclasses.replace(case, n=n) for case, n in zip(gpu_check.FIRST, SIZES, strict=True)
    )
    from bench import gpu_checks  # its modules take FIRST as it is now

    torch.cuda.synchronize = lambda device=None: None
    for name in names.split(","):
        launcher = Launcher(int(target))
        use(launcher)
        gpu_checks.main(name, dtype)
        done = {"check": name, "steps": launcher.steps, "races": sorted(launcher.races)}
        print(json.dumps(done), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
