# SPDX-License-Identifier: Apache-2.0
"""ToMe: rounds of bipartite matching between even and odd places."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import by_score, cosines, directed, valid_tokens


def tome(keys: Tensor, k: int, mask: Tensor | None = None) -> dict[int, list[int]]:
    """The tokens of each group, by the token they are merged into."""
    groups = {i: [i] for i in valid_tokens(keys, mask)}
    if k == 0:
        return {}
    while len(groups) > k:
        line = sorted(groups)
        means = torch.stack([keys[groups[i]].double().mean(0) for i in line])
        c = cosines(means)
        has_direction = directed(means)
        best: dict[int, tuple[float, int]] = {}
        for a in range(0, len(line), 2):
            options = [
                (c[a][b] if has_direction[a] and has_direction[b] else -2.0, b)
                for b in range(1, len(line), 2)
            ]
            b = by_score(options)[0]
            best[a] = (c[a][b] if has_direction[a] and has_direction[b] else -2.0, b)
        remove = min(len(line) - k, len(line) // 2)
        for a in by_score((cosine, a) for a, (cosine, _) in best.items())[:remove]:
            groups[line[best[a][1]]] += groups.pop(line[a])
    return groups
