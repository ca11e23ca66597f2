# SPDX-License-Identifier: Apache-2.0
"""Three ways to keep the same number of tokens: chosen by the op, measured, timed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from zspa_kernels.testing.baselines import Baseline, gram_incremental, incremental
from zspa_kernels.types import Selection

# Rounds of timing, and the seconds after which no further one starts.
ROUNDS, BUDGET = 9, 1.0


@dataclass(frozen=True)
class Choice:
    """What one method keeps, and what that cost.

    Attributes:
        name: the method.
        selection: core first, then diversity, in pick order.
        k_core: number of core tokens.
        k_diverse: number of diversity tokens.
        core_inside: how many core tokens lie in the prompt's region.
        mean_cosine: mean over all pairs of kept tokens; None for fewer than two.
        op_seconds: median time of `torch.ops.zspa.select`.
        loop_seconds: median time of the plain PyTorch loop.
        fastest_seconds: median time of the fastest PyTorch implementation we know of.
        fastest_name: its name.
        first_difference: place of the first pick in which op and loop differ; None if none does.
    """

    name: str
    selection: Selection
    k_core: int
    k_diverse: int
    core_inside: int
    mean_cosine: float | None
    op_seconds: float
    loop_seconds: float
    fastest_seconds: float
    fastest_name: str
    first_difference: int | None


def choose(
    name: str,
    visual: torch.Tensor,
    prompt: torch.Tensor | None,
    k_core: int,
    k_diverse: int,
    inside: torch.Tensor,
    loop: Baseline,
) -> Choice:
    """Selects through the op, and measures the choice against PyTorch loops on the same tokens.

    Args:
        name: what to call it.
        visual: `[N, D]`.
        prompt: `[M, D]`; None only with `k_core = 0`.
        k_core: tokens kept for relevance.
        k_diverse: tokens kept for diversity.
        inside: bool `[N]`, which patches are in the prompt's region.
        loop: the plain PyTorch loop to compare with, from `testing.baselines`.
    """
    calls: dict[str, Baseline] = {
        "op": _op,
        "the plain loop": loop,
        "incremental": incremental,
        "Gram matrix": gram_incremental,
    }
    picks, seconds = _race(calls, (visual, prompt, k_core, k_diverse))
    indices = picks["op"]
    op_seconds = seconds.pop("op")
    fastest = min(seconds, key=lambda rival: seconds[rival])
    differing = torch.nonzero(indices != picks["the plain loop"])
    return Choice(
        name=name,
        selection=Selection(indices, torch.arange(len(indices)) < k_core, None),
        k_core=k_core,
        k_diverse=k_diverse,
        core_inside=int(inside[indices[:k_core]].sum()),
        mean_cosine=mean_pairwise_cosine(visual[indices]),
        op_seconds=op_seconds,
        loop_seconds=seconds["the plain loop"],
        fastest_seconds=seconds[fastest],
        fastest_name=fastest,
        first_difference=int(differing[0]) + 1 if len(differing) else None,
    )


def mean_pairwise_cosine(tokens: torch.Tensor) -> float | None:
    """Mean cosine over all pairs of different rows of `[K, D]`; None when K < 2."""
    count = len(tokens)
    if count < 2:
        return None
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    total = unit.sum(0).square().sum() - unit.square().sum()
    return float(total) / (count * (count - 1))


def _op(
    visual: torch.Tensor, prompt: torch.Tensor | None, k_core: int, k_diverse: int
) -> torch.Tensor:
    picks: torch.Tensor = torch.ops.zspa.select(visual, prompt, k_core, k_diverse, sorted=False)
    return picks


def _race(
    calls: dict[str, Baseline], arguments: tuple[torch.Tensor, torch.Tensor | None, int, int]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What each call returns, and the median of its times.

    The calls take turns, so that a busy moment of the machine does not hit one of them alone; the
    first round warms up and counts only if there is no time for another.
    """
    results: dict[str, torch.Tensor] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for _ in range(1 + ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call(*arguments)
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() - begin > BUDGET:
            break
    return results, {name: statistics.median(each[1:] or each) for name, each in times.items()}
