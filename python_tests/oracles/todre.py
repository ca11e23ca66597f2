# SPDX-License-Identifier: Apache-2.0
"""ToDRE, first stage: each pick has the smallest summed cosine to the picks before it."""

from __future__ import annotations

from torch import Tensor

from .common import cosines, directed, padded, valid_tokens


def todre(
    visual: Tensor, k: int, mask: Tensor | None = None, seeds: tuple[int, ...] = ()
) -> list[int]:
    tokens = valid_tokens(visual, mask)
    has_direction = directed(visual)
    c = cosines(visual.nan_to_num(0.0, 0.0, 0.0))
    selected = [i for i in dict.fromkeys(seeds) if i in tokens]
    picks: list[int] = []
    while len(picks) < k and len(selected) < len(tokens):
        among = selected or tokens

        def cost(i: int, among: list[int] = among) -> tuple[bool, float, int]:
            return (not has_direction[i], round(sum(c[i][s] for s in among), 9), i)

        pick = min((i for i in tokens if i not in selected), key=cost)
        picks.append(pick)
        selected.append(pick)
    return padded(picks, k)
