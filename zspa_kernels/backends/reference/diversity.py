# SPDX-License-Identifier: Apache-2.0
"""Greedy max-min diversity: each pick is the token least similar to everything selected so far.

DivPrune (arXiv 2503.02175) and the second half of ZSPAPrune (arXiv 2510.17197), equations 8 and 9;
with weights the sensitivity-aware selection of ZOO-Prune (arXiv 2509.24837).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Rows, in_segments, lowest, optional_row, write


def diversity(
    visual: Tensor, k: int, seeds: Tensor | None, weights: Tensor | None, visual_mask: Tensor | None
) -> Tensor:
    """Indices int64 `[B, k]` in the order of picking, without the seeds."""
    indices = torch.empty((visual.shape[0], k), dtype=torch.int64, device=visual.device)
    for b in range(visual.shape[0]):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        given = [] if seeds is None else seeds[b].tolist()
        write(indices[b], greedy(rows, k, given, optional_row(weights, b)))
    return indices


def diversity_varlen(visual: Tensor, table: Tensor, total_k: int, weights: Tensor | None) -> Tensor:
    """Indices int64 `[total_k]` into the packed tokens."""

    def pick(rows: Rows, k: int, span: slice) -> list[int]:
        return greedy(rows, k, [], optional_row(weights, span))

    return in_segments(visual, table, total_k, pick)


def greedy(rows: Rows, k: int, seeds: list[int], weights: Tensor | None) -> list[int]:
    """At most k picks of one segment, in order. Valid seeds count as selected before them."""
    valid = rows.valid
    if weights is not None:
        valid = valid & weights.isfinite() & (weights >= 0)
    seeds = [i for i in seeds if 0 <= i < len(valid) and valid[i]]
    free = valid.clone()
    nearest = unseen(rows)
    for i in seeds:
        free[i] = False
        nearest = see(rows, nearest, i)

    picks: list[int] = []
    while len(picks) < k:
        if not seeds and not picks:
            keys = isolation(rows) if weights is None else -weights
        else:
            keys = nearest if weights is None else -(weights * (1.0 - nearest))
        pick = lowest(keys, free)
        if pick is None:
            break
        picks.append(pick)
        free[pick] = False
        nearest = see(rows, nearest, pick)
    return picks


def unseen(rows: Rows) -> Tensor:
    """Largest similarity of each token to nothing: -1 `[N]`, but 1 for zero rows, now and later."""
    return torch.where(rows.zero, 1.0, torch.full_like(rows.inverse, -1.0))


def see(rows: Rows, nearest: Tensor, i: int) -> Tensor:
    """Largest similarity of each token `[N]` once token `i` is selected too."""
    if rows.zero[i]:
        return nearest
    return torch.maximum(nearest, rows.cosine(rows.values[i], rows.inverse[i]))


def isolation(rows: Rows) -> Tensor:
    """Largest similarity of each token `[N]` to any other valid one; the seed is its argmin."""
    nearest = unseen(rows)
    for i in rows.valid.nonzero().flatten().tolist():
        own = nearest[i].clone()
        nearest = see(rows, nearest, i)
        nearest[i] = own
    return nearest
