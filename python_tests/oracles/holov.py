# SPDX-License-Identifier: Apache-2.0
"""HoloV: crops of equal size, a share of the budget for each, the best tokens of each."""

from __future__ import annotations

import math
import struct

from torch import Tensor

from .common import by_score, cosines, padded, valid_tokens


def parts(tokens: list[int], count: int) -> list[list[int]]:
    """Tokens one after another in `count` crops, the first ones a token larger."""
    size, larger = divmod(len(tokens), count)
    sizes = [size + (c < larger) for c in range(count)]
    return [tokens[sum(sizes[:c]) : sum(sizes[: c + 1])] for c in range(count)]


def varied(crop: list[int], c: list[list[float]]) -> list[float]:
    """The variance of each token's similarities to its crop; its own to itself is 0."""
    if len(crop) < 2:
        return [0.0] * len(crop)
    found = []
    for i in crop:
        similar = [0.0 if j == i else c[i][j] for j in crop]
        mean = math.fsum(similar) / (len(crop) - 1)
        found.append(math.fsum((x - mean) ** 2 for x in similar) / (len(crop) - 1))
    return found


def holov(
    visual: Tensor,
    attention: Tensor,
    k: int,
    crops: int = 16,
    variance: float = 0.0,
    sharpness: float = 1.0,
    mask: Tensor | None = None,
) -> list[int]:
    values = attention.double().tolist()
    if variance:
        tokens = valid_tokens(visual, mask)
    else:
        tokens = [i for i in range(len(values)) if mask is None or mask[i]]
    tokens = [i for i in tokens if math.isfinite(values[i])]
    each = parts(tokens, crops)
    attended = [math.fsum(max(values[i], 0.0) for i in crop) / max(len(crop), 1) for crop in each]
    weights = [(m / max(attended)) ** sharpness if max(attended) else 1.0 for m in attended]
    weights = [w if crop else 0.0 for w, crop in zip(weights, each, strict=True)]
    shares = [round(k * w / (math.fsum(weights) or 1.0), 12) for w in weights]
    quotas = [math.floor(share) for share in shares]
    for c in by_score(zip(shares, range(crops), strict=True))[: k - sum(quotas)]:
        quotas[c] += 1
    score = dict(zip(range(len(values)), values, strict=True))
    if variance:
        similar = cosines(visual.nan_to_num(0.0, 0.0, 0.0))
        for crop, mean in zip(each, attended, strict=True):
            spread = varied(crop, similar)
            unit = math.fsum(spread) / max(len(crop), 1)
            for i, v in zip(crop, spread, strict=True):
                more = variance * mean / unit * v if unit else 0.0
                score[i] = struct.unpack("f", struct.pack("f", values[i] + more))[0]
    best = [by_score((score[i], i) for i in crop) for crop in each]
    kept = [i for crop, quota in zip(best, quotas, strict=True) for i in crop[:quota]]
    rest = by_score((score[i], i) for i in tokens if i not in kept)
    kept += rest[: max(0, k - len(kept))]
    return padded(by_score((score[i], i) for i in kept), k)
