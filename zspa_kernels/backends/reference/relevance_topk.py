# SPDX-License-Identifier: Apache-2.0
"""Relevance and the core: cosine of each token with the pooled prompt, and the k largest.

ZSPAPrune (arXiv 2510.17197), equations 4 to 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Rows, inverse_length, lowest, optional_row, row_sum, write


def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    pooling: str,
) -> tuple[Tensor, Tensor]:
    """Indices int64 `[B, k]` by falling score, and scores float32 `[B, N]`."""
    batch, n, _ = visual.shape
    indices = torch.empty((batch, k), dtype=torch.int64, device=visual.device)
    scores = torch.empty((batch, n), dtype=torch.float32, device=visual.device)
    for b in range(batch):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        texts = Rows.of(prompt[b], optional_row(prompt_mask, b))
        scores[b] = relevance(rows, texts, pooling)
        write(indices[b], most_relevant(rows, scores[b], k) if texts.valid.any() else [])
    return indices, scores


def relevance(rows: Rows, texts: Rows, pooling: str) -> Tensor:
    """Score of each token: float32 `[N]`; -1 for zero rows, -inf for invalid tokens."""
    values = texts.values[texts.valid]  # [M', D]: compacted, so padding cannot reorder a sum
    inverse = texts.inverse[texts.valid]
    if len(values) == 0:
        score = torch.zeros_like(rows.inverse)
    elif pooling == "none_max":
        score = rows.cosine(values[0], inverse[0])
        for other, scale in zip(values[1:], inverse[1:], strict=True):
            score = torch.maximum(score, rows.cosine(other, scale))
    elif pooling == "none_mean":
        # The mean of cosines is the product with the mean unit vector, whose length counts.
        score = rows.cosine(mean(values * inverse.double()[:, None]), torch.ones_like(inverse[0]))
    else:
        pooled = mean(values) if pooling == "mean" else values.amax(0)
        score = rows.cosine(pooled, inverse_length(row_sum(pooled * pooled).float()))
    score = torch.where(rows.zero, -1.0, score)
    return torch.where(rows.valid, score, -torch.inf)


def mean(values: Tensor) -> Tensor:
    """Mean of rows `[M, D]`, rounded to float32 like every backend's, in float64 `[D]`."""
    return (row_sum(values.T) / len(values)).float().double()


def most_relevant(rows: Rows, scores: Tensor, k: int) -> list[int]:
    """The k valid tokens of largest score, by falling score, then index; fewer if there are."""
    free = rows.valid.clone()
    picks: list[int] = []
    while len(picks) < k and (i := lowest(-scores, free)) is not None:
        picks.append(i)
        free[i] = False
    return picks
