# SPDX-License-Identifier: Apache-2.0
"""A blocked greedy with a launch for each phase, for Triton's interpreter.

The interpreter runs one program after another, so programs cannot wait for each other inside a
launch. Here every barrier is the end of a launch; in between, what a program knows is kept in
memory, and the host checks whether a group has anything left to do, which on a GPU would be a
synchronisation. The phases are those of the single launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ._group import GRAM, STOP

# What a program knows between two launches: int64 words.
STAGE, COUNT, FILLED, FOLDED, BEST, EDGE, PROPOSED, SHIFT = (
    tl.constexpr(word) for word in range(8)
)
WORDS = tl.constexpr(8)

# Of a blocked greedy; "scale" and "chain" are for groups at GRAM only.
BLOCKED = ("products", "scale", "chain", "settle", "choose")


def greedy_in_steps(
    kernel: Any,
    launch: Callable[..., None],
    programs: int,
    device: torch.device,
    *args: Any,
    phases: tuple[str, ...] = BLOCKED,
    once: tuple[str, ...] = ("begin",),
    **options: Any,
) -> int:
    """The launch of a greedy kernel, phase by phase. Returns how often the phases were run.

    Args:
        kernel: one phase of every group, by the name of the phase.
        phases: in a round.
        once: before the first round.
        launch: as in `_common`.
        programs: of the launch.
        device: of the tensors.
        args: arguments of the kernel behind what a program knows.
        options: constants of the kernel.
    """
    known = torch.empty((programs, WORDS.value), dtype=torch.int64, device=device)

    def run(phase: str) -> Tensor:
        launch(kernel, programs, device, known, *args, PHASE=phase, **options)
        return known[:, STAGE.value]

    for phase in once:
        stages = run(phase)
    rounds = 0
    while bool((stages != STOP.value).any()):
        gram = bool((run(phases[0]) == GRAM.value).any())
        for phase in phases[1:]:
            if gram or phase not in ("scale", "chain"):
                stages = run(phase)
        rounds += 1
    return rounds
