# SPDX-License-Identifier: Apache-2.0
"""Cen-Prune: distinctiveness times distance between centred tokens, replayed pick by pick."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import cosines, directed, valid_tokens


def scaled(values: dict[int, float], flat: float = 0.0) -> dict[int, float]:
    low, high = min(values.values()), max(values.values())
    if high - low <= flat:
        return dict.fromkeys(values, 1.0)
    return {i: (v - low) / (high - low) for i, v in values.items()}


def check_cenprune(
    visual: Tensor,
    picks: list[int],
    mask: Tensor | None = None,
    importance: Tensor | None = None,
) -> int:
    """Replay the picks; returns how many of them had only one right answer.

    A pick may be as much worse than the best at its turn as float32 can be wrong about both.
    """
    tokens = valid_tokens(visual, mask)
    has_direction = directed(visual)
    rows = visual.double()
    c = cosines(visual.nan_to_num(0.0, 0.0, 0.0))
    distinct = {
        i: -sum(c[i][j] for j in tokens if j != i) / max(1, len(tokens) - 1)
        for i in tokens
        if has_direction[i]
    }
    weights = dict.fromkeys(tokens, 0.0) | scaled(distinct, 4e-6)
    spread = max(distinct.values()) - min(distinct.values())
    error = 1e-6 / spread if spread > 4e-6 else 0.0
    if importance is not None:
        host = scaled({i: float(importance[i]) for i in distinct})
        weights = {i: w * host.get(i, 0.0) for i, w in weights.items()}
    mean = rows[tokens].mean(0)
    middle = torch.where(torch.isfinite(rows), rows, 0.0) - mean
    s = cosines(middle)
    shortest = min(float(middle[i].norm()) for i in tokens)
    slack = 2 * (2 * error + 1e-6 + 4 * 2.0**-24 * float(mean.norm()) / shortest)
    decided = 0
    assert len(set(picks)) == len(picks)
    for turn, pick in enumerate(picks):
        before = picks[:turn]
        assert pick in tokens
        assert pick not in before
        score = {
            i: weights[i] * (1.0 - max(s[i][j] for j in before)) if before else weights[i]
            for i in tokens
            if i not in before
        }
        best = max(score.values())
        assert score[pick] >= best - slack, f"pick {turn}: {score[pick]} instead of {best}"
        decided += sum(v >= best - slack for v in score.values()) == 1
    return decided
