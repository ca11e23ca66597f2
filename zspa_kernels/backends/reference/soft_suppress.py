# SPDX-License-Identifier: Apache-2.0
"""Soft suppression: tokens in the order of scores that fall where tokens like them were taken.

ID-Selection (arXiv 2604.05601) and AdaptPrune (arXiv 2503.08019). One token at a time, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Rows, lowest, optional_row, write

_GRID = 2.0**40  # steps of a score of 1: coarser than the rounding of float64
_NOTHING = -1e300  # the logarithm of 0


def soft_suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    sharpness: float,
    rule: str,
    positions: Tensor | None,
    spread: float,
    reach: float,
    visual_mask: Tensor | None,
) -> Tensor:
    """Indices int64 `[B, k]` in the order of taking."""
    indices = torch.empty((visual.shape[0], k), dtype=torch.int64, device=visual.device)
    for b in range(visual.shape[0]):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        near = _Nearness(optional_row(positions, b), spread, reach)
        write(indices[b], _take(rows, scores[b].double(), k, sharpness, rule, near))
    return indices


class _Nearness:
    """How much of a suppression is left at a distance in the image."""

    def __init__(self, positions: Tensor | None, spread: float, reach: float) -> None:
        self.positions = None if positions is None else positions.double()
        self.spread = spread
        self.reach = reach

    def known(self) -> Tensor | bool:
        """Bool `[N]`: whether a token has a place; without positions none needs one."""
        return True if self.positions is None else self.positions.isfinite().all(-1)

    def to(self, i: int) -> Tensor | float:
        """float64 `[N]`, the factor of the suppression by token `i`."""
        if self.positions is None:
            return 1.0
        square = (self.positions - self.positions[i]).square().sum(-1)
        factor = (square / (-2.0 * self.spread * self.spread)).exp()
        return factor.masked_fill(square > self.reach * self.reach, 0.0)


def _take(
    rows: Rows, scores: Tensor, k: int, sharpness: float, rule: str, near: _Nearness
) -> list[int]:
    """At most k tokens of one image: the highest score, what is like it falls, and so on."""
    free = rows.valid & scores.isfinite() & near.known()
    if rule == "scale":
        free &= scores >= 0
    start = _start(scores.masked_fill(~free, 0.0), rule)
    lost = torch.zeros_like(start)
    picks: list[int] = []
    while len(picks) < k:
        now = (start - lost).round().clamp_min(_NOTHING)
        pick = lowest(-now, free)
        if pick is None:
            break
        picks.append(pick)
        free[pick] = False
        if rows.zero[pick]:
            continue
        apart = 1.0 - rows.exact_cosine(pick).clamp_max(1.0)
        weight = (-sharpness * apart.square()).exp() * near.to(pick) * ~rows.zero
        if rule == "scale":
            lost -= (-weight).log1p() * _GRID
        else:
            lost += weight * now[pick].clamp_min(0.0)
    return picks


def _start(scores: Tensor, rule: str) -> Tensor:
    """Scores of which something can be subtracted: relative to the largest, or logarithms.

    In steps of the grid.
    """
    if rule == "scale":
        return (scores.log() * _GRID).round()
    largest = scores.abs().amax() if len(scores) else 1.0
    return (scores / (largest + (largest == 0)) * _GRID).round()
