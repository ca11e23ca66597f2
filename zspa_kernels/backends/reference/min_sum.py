# SPDX-License-Identifier: Apache-2.0
"""Greedy max-sum dispersion: each pick has the smallest sum of cosines to what was selected before.

ToDRE (arXiv 2505.18757) and the second half of TrimTokenator (arXiv 2509.00320).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Rows, in_segments, lowest, optional_row, row_sum, write


def min_sum(visual: Tensor, k: int, seeds: Tensor | None, visual_mask: Tensor | None) -> Tensor:
    """Indices int64 `[B, k]` in the order of picking, without the seeds."""
    indices = torch.empty((visual.shape[0], k), dtype=torch.int64, device=visual.device)
    for b in range(visual.shape[0]):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        write(indices[b], greedy(rows, k, [] if seeds is None else seeds[b].tolist()))
    return indices


def min_sum_varlen(visual: Tensor, table: Tensor, total_k: int, max_seqlen: int) -> Tensor:
    """Indices int64 `[total_k]` into the packed tokens."""
    return in_segments(visual, table, total_k, lambda rows, k, _: greedy(rows, k, []))


def greedy(rows: Rows, k: int, seeds: list[int]) -> list[int]:
    """At most k picks of one segment, in order. Valid seeds count as selected before them."""
    free = rows.valid.clone()
    selected = [i for i in dict.fromkeys(seeds) if 0 <= i < len(free) and free[i]]
    last = torch.where(rows.zero, torch.inf, 0.0).double()  # zero rows come behind all others
    sums = torch.zeros_like(last)
    for i in selected:
        free[i] = False
        sums = sums + rows.cosine(rows.values[i], rows.inverse[i]).double()
    picks: list[int] = []
    while len(picks) < k:
        pick = lowest((sums if selected or picks else sum_over_all(rows)) + last, free)
        if pick is None:
            break
        picks.append(pick)
        free[pick] = False
        sums = sums + rows.cosine(rows.values[pick], rows.inverse[pick]).double()
    return picks


def sum_over_all(rows: Rows) -> Tensor:
    """Summed cosine of each token to all valid ones, its own included: float64 `[N]`.

    One product with the sum of all directions instead of one with each.
    """
    # The valid rows alone, so that their sum does not depend on where masked ones stand.
    units = (rows.values * rows.inverse[:, None])[rows.valid]
    return row_sum(rows.values * row_sum(units.T)) * rows.inverse
