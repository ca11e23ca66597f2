# SPDX-License-Identifier: Apache-2.0
"""Tokens by falling score, without those too similar to one taken before.

GreedyPrune (arXiv 2506.13166). One token at a time, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Rows, optional_row, write


def suppress(
    visual: Tensor, scores: Tensor, k: int, threshold: float, fill: bool, visual_mask: Tensor | None
) -> Tensor:
    """Indices int64 `[B, k]` in the order of taking."""
    indices = torch.empty((visual.shape[0], k), dtype=torch.int64, device=visual.device)
    for b in range(visual.shape[0]):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        taken, left = _take(rows, scores[b], k, threshold)
        write(indices[b], (taken + left if fill else taken)[:k])
    return indices


def _take(rows: Rows, scores: Tensor, k: int, threshold: float) -> tuple[list[int], list[int]]:
    """At most k tokens of one image, and those before the last of them that are suppressed."""
    usable = rows.valid & scores.isfinite()
    keys = scores.double() + 0.0  # -0.0 is 0.0
    order = keys.sort(descending=True, stable=True).indices
    suppressed = torch.zeros_like(usable)
    taken: list[int] = []
    left: list[int] = []
    for i in order[usable[order]].tolist():
        if len(taken) == k:
            break
        if suppressed[i]:
            left.append(i)
            continue
        taken.append(i)
        if not rows.zero[i]:
            suppressed |= (rows.exact_cosine(i) > threshold) & ~rows.zero
    return taken, left
