# SPDX-License-Identifier: Apache-2.0
"""`python -m python_tests.ptx TARGET CHECK [DTYPE]`: a check of `bench.gpu_checks` on the machine.

The kernels are compiled for the target (80 or 90) as for a GPU, and their PTX is run. Triton must
not interpret. Prints one JSON object: what was run, how many instructions, what raced.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import torch
from torch import Tensor

from .machine import Launcher

#: Programs that share an image.
PROGRAMS = 3
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
    """Let the Triton backend run on the machine, and `zk` run the Triton backend."""
    import importlib

    from zspa_kernels import _dispatch
    from zspa_kernels.backends.triton import _scratch

    _scratch.allocate = allocate
    _dispatch._AUTO["cpu"] = ("triton",)
    _dispatch._triton_refuses = lambda device: None
    for stem in STEMS:
        module: Any = importlib.import_module(f"zspa_kernels.backends.triton.{stem}")
        module.launch = launcher
        kernel = getattr(module, f"_{stem}_greedy_kernel", None)
        if kernel is None:
            continue

        def at_once(
            step: Any,
            launch: Any,
            programs: int,
            device: Any,
            *args: Any,
            kernel: Any = kernel,
            phases: Any = None,
            once: Any = None,
            **options: Any,
        ) -> int:
            launch(kernel, programs, device, *args, together=True, **options)
            return 0

        module.greedy_in_steps = at_once
    importlib.import_module("zspa_kernels.backends.triton.diversity").INTERPRETED_PROGRAMS = PROGRAMS


def main(target: str, name: str, dtype: str | None = None) -> int:
    """Run one check."""
    from bench import gpu_check, gpu_checks

    launcher = Launcher(int(target))
    use(launcher)
    gpu_check.DEVICE = "cpu"
    torch.cuda.synchronize = lambda device=None: None
    gpu_checks.main(name, dtype)
    print(json.dumps({"check": name, "steps": launcher.steps, "races": sorted(launcher.races)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
