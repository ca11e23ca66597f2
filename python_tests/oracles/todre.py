# SPDX-License-Identifier: Apache-2.0
"""ToDRE, first stage: each pick has the smallest summed cosine to the picks before it."""

from __future__ import annotations

from torch import Tensor

from .common import cosines, directed, padded, valid_tokens

#: How far a float32 cosine may be from the exact one.
_COSINE = 1e-6


def check_todre(
    visual: Tensor,
    picks: list[int],
    k: int,
    mask: Tensor | None = None,
    seeds: tuple[int, ...] = (),
    cosine: float = _COSINE,
) -> int:
    """Replay the picks; returns how many of them had only one right answer.

    A sum of t cosines may be off by t times the error of one. Equal rows have equal sums.
    """
    tokens = valid_tokens(visual, mask)
    has_direction = directed(visual)
    rows = visual.nan_to_num(0.0, 0.0, 0.0)
    c = cosines(rows)
    selected = [i for i in dict.fromkeys(seeds) if i in tokens]
    assert picks == padded([i for i in picks if i >= 0], k)
    picks = picks[: min(k, len(tokens) - len(selected))]
    decided = 0
    for pick in picks:
        left = [i for i in tokens if i not in selected]
        assert pick in left
        among = [s for s in selected or tokens if has_direction[s]]
        slack = {i: cosine * len(among) * has_direction[i] for i in left}
        cost = {i: sum(c[i][s] for s in among) if has_direction[i] else 1e9 for i in left}
        least = min(cost[i] + slack[i] for i in left)
        assert cost[pick] - slack[pick] <= least + 1e-9
        for i in left:
            same = bool((rows[i] == rows[pick]).all()) or slack[i] == slack[pick] == 0
            assert i >= pick or not same or abs(cost[i] - cost[pick]) > 1e-9
        decided += sum(cost[i] - slack[i] <= least + 1e-9 for i in left) == 1
        selected.append(pick)
    return decided
