# SPDX-License-Identifier: Apache-2.0
"""`min_sum` in float64, one pick at a time, and the judge of its results.

A sum of t cosines, each of which may be off by the bound, may be off by t times the bound: the
kernels add in float64, whose rounding is far below. The sum over all tokens that decides the first
pick is one dot with the sum of all directions; its own rounding, relative to that sum's length of
at most V, is that of one cosine.

Source: greedy max-sum dispersion; ToDRE (arXiv 2505.18757), TrimTokenator (arXiv 2509.00320).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cases import Case
from .judge import Replay, replay
from .oracle import Geometry, greedy64

#: (visual, k, seeds, mask) -> indices, one segment.
MinSum = Callable[[Tensor, int, Tensor | None, Tensor | None], Tensor]


class Dispersion:
    """The min-sum greedy of one segment between two picks; see `oracle.Greedy`."""

    def __init__(self, geometry: Geometry, seeds: Tensor | None, bound: float) -> None:
        self.geometry, self.bound = geometry, bound
        self.eligible = geometry.valid.clone()
        self.sums = torch.zeros(geometry.n, dtype=torch.float64)
        self.terms = 0  # how many cosines a sum has
        self.started = False  # has anything been selected?
        for seed in [] if seeds is None else seeds.tolist():
            if 0 <= seed < geometry.n and bool(self.eligible[seed]):
                self.take(seed)

    def take(self, token: int) -> None:
        """Add a seed or a pick to what is selected."""
        self.started = True
        self.eligible[token] = False
        if bool(self.geometry.directed[token]):
            self.terms += 1
            self.sums = self.sums + self.geometry.cosines(token)

    def costs(self) -> tuple[Tensor, Tensor]:
        """What the next pick minimises, and the allowed error of each cost."""
        geometry, terms, sums = self.geometry, self.terms, self.sums
        if not self.started:
            units = geometry.rows * geometry.inverse[:, None]
            sums = (units @ units.sum(0))[geometry.twin]
            terms = int(geometry.directed.sum())
        cost = torch.where(geometry.zero, torch.inf, sums)
        return cost, torch.where(geometry.directed, terms * self.bound, 0.0).double()

    def ties(self, token: int) -> Tensor:
        """`[N]`: tokens whose sum equals that of `token` whatever the rounding."""
        return self.geometry.twin == self.geometry.twin[token]


def min_sum64(
    visual: Tensor, k: int, *, seeds: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Pick `k` tokens, each with the smallest sum of cosines to what was selected before.

    Args:
        visual: `[N, D]`, any floating dtype.
        k: Number of picks.
        seeds: `[S]` integers, selected already; those that are no valid token are ignored.
        mask: `[N]` bool, True = real token.

    Returns:
        `[k]` int64 in the order of picking, -1 where nothing was eligible.
    """
    return greedy64(Dispersion(Geometry(visual, mask), seeds, 0.0), k)


def check_min_sum(
    visual: Tensor,
    indices: Tensor,
    k: int,
    *,
    bound: float,
    seeds: Tensor | None = None,
    mask: Tensor | None = None,
) -> Replay:
    """Replay the picks of `min_sum` on one segment.

    Args:
        visual: `[N, D]`, as given to the op.
        indices: `[k]`, what the op returned.
        k: Number of picks asked for.
        bound: Largest error of a cosine, from `bounds.bound`; 0 where cosines are exact.
        seeds: As given to the op.
        mask: As given to the op.

    Returns:
        How many picks were replayed and how many had only one right answer.

    Raises:
        AssertionError: At the first pick that is wrong.
    """
    return replay("min_sum", Dispersion(Geometry(visual, mask), seeds, bound), indices, k)


def judge_min_sum(case: Case, run: MinSum, backend: str) -> Replay:
    """Run `case` without its weights and judge the picks."""
    visual, mask, seeds = case.visual, case.mask, case.seed_tensor()
    indices = run(visual, case.k_diverse, seeds, mask)
    # One-entry rows of thresholds have cosines of exactly -1, 0 and 1 with each other.
    error = 0.0 if case.tokens == "thresholds" else case.bound(backend)
    return check_min_sum(visual, indices, case.k_diverse, bound=error, seeds=seeds, mask=mask)
