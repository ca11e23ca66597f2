# SPDX-License-Identifier: Apache-2.0
"""VisionZip: dominant tokens, evenly spaced targets among the rest, assignment by keys."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .common import by_score, cosines, directed


class Zipped(NamedTuple):
    dominant: list[int]  # ascending
    targets: list[int]  # ascending
    assigned: dict[int, list[int]]  # to each target

    def merged(self, x: Tensor) -> dict[int, Tensor]:
        """The rows of the kept tokens."""
        rows = {i: x[i].double() for i in (*self.dominant, *self.targets)}
        for target, others in self.assigned.items():
            if others:
                rows[target] = rows[target] + torch.stack([x[j].double() for j in others]).mean(0)
        return rows


def visionzip(
    attention: Tensor, keys: Tensor, k: int, contextual: int, mask: Tensor | None = None
) -> Zipped:
    values = attention.double().tolist()
    n = range(len(values))
    tokens = [i for i in n if math.isfinite(values[i]) and (mask is None or bool(mask[i]))]
    dominant = by_score((values[i], i) for i in tokens)[: k - contextual]
    rest = [i for i in tokens if i not in dominant]
    step = max(1, len(rest) // max(1, contextual))
    targets = rest[::step][:contextual]
    has_direction = directed(keys)
    c = cosines(keys)
    assigned: dict[int, list[int]] = {t: [] for t in targets}
    for i in rest:
        if targets and i not in targets:
            both = [
                (c[i][t] if has_direction[i] and has_direction[t] else -2.0, t) for t in targets
            ]
            assigned[by_score(both)[0]].append(i)
    return Zipped(sorted(dominant), targets, assigned)
