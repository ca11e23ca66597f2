# SPDX-License-Identifier: Apache-2.0
"""Greedy facility location: each pick adds most to how well tokens and given rows are covered.

SCOPE (arXiv 2510.24214): tokens cover each other by their cosines, gains are weighted. MMTok (arXiv
2508.18264): by the softmax of their cosines, beside rows that say how well a token answers a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import Rows, in_segments, lowest, optional_row, row_sum, write

_LARGEST = torch.finfo(torch.float32).max


def facility_location(
    visual: Tensor,
    k: int,
    benefits: Tensor | None,
    weights: Tensor | None,
    visual_mask: Tensor | None,
    temperature: float,
    scale: float,
) -> Tensor:
    """Indices int64 `[B, k]` in the order of picking."""
    indices = torch.empty((visual.shape[0], k), dtype=torch.int64, device=visual.device)
    for b in range(visual.shape[0]):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        given = optional_row(benefits, b), optional_row(weights, b)
        write(indices[b], greedy(rows, k, *given, temperature, scale))
    return indices


def facility_location_varlen(
    visual: Tensor,
    table: Tensor,
    total_k: int,
    max_seqlen: int,
    benefits: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    scale: float,
) -> Tensor:
    """Indices int64 `[total_k]` into the packed tokens; benefits `[M, T]`."""

    def pick(rows: Rows, k: int, span: slice) -> list[int]:
        given = None if benefits is None else benefits[:, span]
        return greedy(rows, k, given, optional_row(weights, span), temperature, scale)

    return in_segments(visual, table, total_k, pick)


def greedy(
    rows: Rows,
    k: int,
    benefits: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    scale: float,
) -> list[int]:
    """At most k picks of one segment, in order."""
    free = rows.valid
    if weights is not None:
        free = free & weights.isfinite() & (weights >= 0)
    free = free.clone()
    cover, count = coverage(rows, free & ~rows.zero, temperature)  # [N, V]
    share = 0.5 ** (count - 1).bit_length()  # a power of two, so that equal products stay equal
    if benefits is not None and len(benefits):
        useful = benefits.isfinite() & (benefits > 0)
        words = torch.where(useful, benefits, 0.0).T.double()  # [N, M]
        cover, share = torch.cat((words, cover * (scale / count)), dim=1), 1.0
    best = cover.new_zeros(cover.shape[1])
    picks: list[int] = []
    while len(picks) < k:
        gain = row_sum((cover - best).clamp_min(0.0)) * share if len(best) else best.sum()
        gain = gain.clamp_max(_LARGEST).float()  # infinity times a weight of 0 is no number
        pick = lowest(-(gain if weights is None else weights * gain).expand(len(free)), free)
        if pick is None:
            break
        picks.append(pick)
        free[pick] = False
        best = torch.maximum(best, cover[pick])
    return picks


def coverage(rows: Rows, directed: Tensor, temperature: float) -> tuple[Tensor, int]:
    """How well each token covers every directed one, float64 `[N, V]`, and V or 1."""
    places = directed.nonzero().flatten().tolist()
    cover = rows.inverse.new_zeros((len(directed), len(places)), dtype=torch.float64)
    for column, i in enumerate(places):
        cosine = rows.cosine(rows.values[i], rows.inverse[i]).double()
        if temperature == 0.0:
            cover[:, column] = cosine.clamp_min(0.0)
        else:
            own = ((cosine - 1.0) / temperature).exp().masked_fill(~directed, 0.0)
            cover[:, column] = own / row_sum(own[directed])
    return cover.masked_fill(~directed[:, None], 0.0), max(1, len(places))
