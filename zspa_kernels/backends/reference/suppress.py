# SPDX-License-Identifier: Apache-2.0
"""Tokens by falling score, without those too similar to one taken before.

GreedyPrune (arXiv 2506.13166).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._blas import full_float32
from ._image import Image, images, padded

_SCAN = 62  # tokens looked at together, as many as an int64 has bits


def suppress(
    visual: Tensor, scores: Tensor, k: int, threshold: float, fill: bool, visual_mask: Tensor | None
) -> Tensor:
    """Indices int64 `[B, k]` in the order of taking. Waits for the device once per block."""
    usable = scores.isfinite() if visual_mask is None else scores.isfinite() & visual_mask
    picks = []
    with full_float32(visual.device):
        for image, own in zip(images(visual, usable), scores, strict=True):
            keys = own[image.index].double() + 0.0
            order = keys.sort(descending=True, stable=True).indices
            taken, left = _unsuppressed(image, order, k, threshold)
            if fill:
                taken = torch.cat((taken, left[: k - len(taken)]))
            picks.append(image.index[taken])
    return padded(picks, k, visual)


def _unsuppressed(image: Image, order: Tensor, k: int, threshold: float) -> tuple[Tensor, Tensor]:
    """The tokens of `order` that none taken before suppresses, at most k, and those suppressed."""
    taken = order[:0]
    size = (min(k, len(order)) + _SCAN, image.tokens.shape[-1])
    kept = torch.empty(size, dtype=torch.float32, device=order.device)
    left = []
    bits = 1 << torch.arange(_SCAN, device=order.device)
    for block in order.split(_SCAN):
        if len(taken) >= k:
            break
        rows = image.tokens[block].float()
        free = ~_above(image, block, taken, rows @ kept[: len(taken)].T, threshold).any(-1)
        among = _above(image, block, block, rows @ rows.T, threshold)
        alive = 0
        close = (among * bits[: len(block)]).sum(-1).tolist()
        for i, (is_free, suppressors) in enumerate(zip(free.tolist(), close, strict=True)):
            if is_free and not suppressors & alive:
                alive |= 1 << i
        lives = (bits[: len(block)] & alive) != 0
        left.append(block[~lives])
        kept[len(taken) : len(taken) + int(lives.sum())] = rows[lives]
        taken = torch.cat((taken, block[lives]))
    return taken[:k], torch.cat(left) if left else order[:0]


def _above(
    image: Image, rows: Tensor, columns: Tensor, products: Tensor, threshold: float
) -> Tensor:
    """Whether each of `[R, C]` cosines is above the threshold; never with a zero row."""
    cosines = products * (image.inverse[rows, None] * image.inverse[columns])
    above = cosines > threshold
    r, c = ((cosines - threshold).abs() <= image.slack).nonzero(as_tuple=True)
    if len(r):
        above[r, c] = image.exact(rows[r], columns[c]) > threshold
    return above & image.directed[rows, None] & image.directed[columns]
