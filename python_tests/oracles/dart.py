# SPDX-License-Identifier: Apache-2.0
"""DART: pivots by L1 norm, the others by how little they resemble each pivot, pivot after pivot."""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from .common import by_score, cosines, directed, valid_tokens


def norms(x: Tensor) -> list[float]:
    """L1 norms, as float32; NaN of rows that are not finite."""
    sums = [math.fsum(abs(v) for v in row) for row in x.double().nan_to_num(0.0, 0.0, 0.0).tolist()]
    return [struct.unpack("f", struct.pack("f", s))[0] for s in sums]


def dart(
    visual: Tensor,
    k: int,
    prompt: Tensor | None = None,
    keys: Tensor | None = None,
    pivots: int = 4,
    text_pivots: int = 4,
    mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
) -> tuple[list[int], list[int]]:
    """The pivots, and the others in the order in which they are taken, by index within a turn."""
    tokens = valid_tokens(visual, mask)
    if keys is not None:
        tokens = [i for i in tokens if i in valid_tokens(keys, mask)]
    has_direction = directed(visual)
    rated = norms(visual if keys is None else keys)
    first = by_score((rated[i] if has_direction[i] else -1.0, i) for i in tokens)
    core = first[: min(pivots, k)]
    rows = visual
    asking = list(core)
    if prompt is not None:
        words = [i for i in valid_tokens(prompt, prompt_mask) if directed(prompt)[i]]
        said = norms(prompt)
        chosen = by_score((said[i], i) for i in words)[:text_pivots]
        rows = torch.cat((visual.float(), prompt.float()))
        asking += [len(visual) + i for i in chosen]
    c = cosines(rows.nan_to_num(0.0, 0.0, 0.0))
    left = [i for i in tokens if i not in core]
    others: list[int] = []
    budget = k - min(pivots, k)
    for turn, pivot in enumerate(asking):
        pivots_left = len(asking) - turn
        count = -(-(budget - len(others)) // pivots_left)
        rank = by_score((-c[pivot][i] if has_direction[i] else -2.0, i) for i in left)
        mine = sorted(rank[:count])
        others += mine
        left = [i for i in left if i not in mine]
    return core, others
