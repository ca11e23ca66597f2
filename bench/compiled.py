# SPDX-License-Identifier: Apache-2.0
"""The incremental loops with their step compiled by torch.compile.

Compiling the whole loop unrolls it: minutes of compilation for a few hundred picks. A step is
compiled once for all sizes, keeps the pick on the device, and fuses what a pick does besides the
matrix-vector product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from zspa_kernels.testing.baselines import Baseline, _isolated, _isolated_blockwise, _start, _unit

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _incremental_step(unit: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    pick = largest.argmin().view(1)
    seen = unit @ unit.index_select(0, pick).view(-1)
    return pick, torch.maximum(largest, seen).index_fill(0, pick, torch.inf)


def _gram_step(similarity: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    pick = largest.argmin().view(1)
    seen = similarity.index_select(0, pick).view(-1)
    return pick, torch.maximum(largest, seen).index_fill(0, pick, torch.inf)


_STEPS: dict[str, Step] = {"incremental": _incremental_step, "gram_incremental": _gram_step}
NAMES = tuple(_STEPS)


@functools.cache
def compiled(name: str, backend: str = "inductor") -> Baseline:
    """The loop `name` with a compiled step; same signature and picks as the loop.

    Args:
        name: One of `NAMES`.
        backend: Of torch.compile.

    Raises:
        Exception: Whatever the compiler throws; the step is compiled here and not when timed.
    """
    step: Step = torch.compile(_STEPS[name], dynamic=True, fullgraph=True, backend=backend)
    for n in (16, 24):  # the second size shows that one compilation serves all
        step(torch.eye(n), torch.zeros(n))
    return _loop(name, step)


def sync_free(name: str) -> Baseline:
    """The loop `name` without reading a pick on the host, so that it can be captured in a graph."""
    return _loop(name, _STEPS[name])


def _loop(name: str, step: Step) -> Baseline:
    def run(visual: Tensor, prompt: Tensor | None, k_core: int, k_diverse: int) -> Tensor:
        unit = _unit(visual)
        table = unit if name == "incremental" else unit @ unit.T
        isolated = _isolated_blockwise if name == "incremental" else _isolated
        picks = torch.empty(k_core + k_diverse, dtype=torch.int64, device=visual.device)
        start = _start(picks, unit, prompt, k_core, lambda: isolated(table))
        chosen = picks[:start]
        if name == "incremental":
            largest = (unit @ unit[chosen].T).amax(-1)
        else:
            largest = table.index_select(0, chosen).amax(0)
        largest.index_fill_(0, chosen, torch.inf)  # an assignment could not be captured
        for t in range(start, k_core + k_diverse):
            picks[t : t + 1], largest = step(table, largest)
        return picks

    return run
