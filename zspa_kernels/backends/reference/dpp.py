# SPDX-License-Identifier: Apache-2.0
"""Greedy MAP of a determinantal point process with kernel `w_i w_j cos(i, j)`.

Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve
Recommendation Diversity" (2018), algorithm 1: each pick is the token with the largest residual of
an incremental Cholesky factorisation. The weights scale the residuals and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Rows, in_segments, lowest, optional_row, row_sum, write

# Below this share of its start a residual counts as 0; csrc/cpu/dpp_config.h says why.
_DEPENDENT = 2.0**-16


def dpp(visual: Tensor, k: int, weights: Tensor | None, visual_mask: Tensor | None) -> Tensor:
    """Indices int64 `[B, k]` in the order of picking."""
    indices = torch.empty((visual.shape[0], k), dtype=torch.int64, device=visual.device)
    for b in range(visual.shape[0]):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        write(indices[b], greedy(rows, k, optional_row(weights, b)))
    return indices


def dpp_varlen(
    visual: Tensor, table: Tensor, total_k: int, max_seqlen: int, weights: Tensor | None
) -> Tensor:
    """Indices int64 `[total_k]` into the packed tokens."""

    def pick(rows: Rows, k: int, span: slice) -> list[int]:
        return greedy(rows, k, optional_row(weights, span))

    return in_segments(visual, table, total_k, pick)


def greedy(rows: Rows, k: int, weights: Tensor | None) -> list[int]:
    """At most k picks of one segment, in order."""
    free = rows.valid
    if weights is not None:
        free = free & weights.isfinite() & (weights >= 0)
    free = free.clone()
    residual = (~rows.zero).double()  # [N], of the kernel without weights
    factor = residual.new_zeros((len(free), 0))  # [N, t]: Cholesky factor, a column per pick
    picks: list[int] = []
    while len(picks) < k:
        value = residual.float() if weights is None else weights * residual.sqrt().float()
        pick = lowest(-value, free)
        if pick is None:
            break
        picks.append(pick)
        free[pick] = False
        if residual[pick] > 0:
            entry = rows.cosine(rows.values[pick], rows.inverse[pick]).double()
            if factor.shape[1]:
                entry = entry - row_sum(factor * factor[pick])
            column = entry / residual[pick].sqrt()
            residual = residual - column * column
            residual = torch.where(residual <= _DEPENDENT, 0.0, residual)
            factor = torch.cat((factor, column[:, None]), dim=1)
    return picks
