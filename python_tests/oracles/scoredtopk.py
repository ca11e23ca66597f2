# SPDX-License-Identifier: Apache-2.0
"""The largest scores, with quotas of segments and tokens that are kept anyway."""

from __future__ import annotations

import math

from torch import Tensor

from .common import padded


def scoredtopk(
    scores: Tensor,
    k: int,
    mask: Tensor | None = None,
    force_keep: Tensor | None = None,
    segments: Tensor | None = None,
    quotas: list[int] | None = None,
) -> list[int]:
    values = scores.double().tolist()
    tokens = [i for i, v in enumerate(values) if math.isfinite(v) and (mask is None or mask[i])]
    forced = [i for i in tokens if force_keep is not None and force_keep[i]]

    def rank(i: int) -> tuple[bool, float, int]:
        return (i not in forced, 0.0 if i in forced else -values[i], i)

    order = sorted(tokens, key=rank)
    if segments is None or quotas is None:
        return padded(order[:k], k)
    label = segments.tolist()
    admitted: list[int] = []
    for segment, quota in enumerate(quotas):
        admitted += [i for i in order if label[i] == segment][:quota]
    kept = [i for i in order if i in forced]
    kept += [i for i in order if i in admitted and i not in kept]
    kept += [i for i in order if i not in kept]
    return padded([i for i in order if i in kept[:k]], k)
