# SPDX-License-Identifier: Apache-2.0
"""Tokens shared out: among crops by their attention, among pivots in equal parts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.cpp import _sharing as _cpp
from ._image import native, on_grid
from .scores import best_of_segments

_UNIT = 2.0**31  # of the upper and the lower half of a sum
_EXPONENT = 0x7FF << 52  # of a float64


def crops(valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """int64 `[B, N]`, the crop of each token, `count` of invalid ones; `[B, count]`, sizes."""
    rank = valid.cumsum(-1) - 1
    total = valid.sum(-1, keepdim=True)
    size, larger = total // count, total % count
    edge = larger * (size + 1)  # behind the larger crops
    behind = larger + (rank - edge) // size.clamp_min(1)
    crop = torch.where(rank < edge, rank // (size + 1), behind)
    sizes = size + (torch.arange(count, device=valid.device) < larger)
    return torch.where(valid, crop, count), sizes


def means(values: Tensor, crop: Tensor, sizes: Tensor) -> Tensor:
    """float64 `[B, C]`: the mean of `values` `[B, N]` over each crop, 0 of an empty one."""
    return _sums(values.double(), crop, sizes.shape[-1]) / sizes.clamp_min(1)


def _sums(values: Tensor, crop: Tensor, count: int) -> Tensor:
    """`[B, C]`: the sum of `values` `[B, N]` over each of `count` crops."""
    inside = crop.unsqueeze(-1) == torch.arange(count, device=crop.device)
    return values.unsqueeze(-1).where(inside, 0.0).sum(-2)


def _attended(attention: Tensor, valid: Tensor, crop: Tensor, sizes: Tensor) -> Tensor:
    """float64 `[B, C]`: mean attention of each crop, in units of a power of two, each image's own.

    The upper halves are whole numbers, and so are the lower ones of what is not below 2^-38 of the
    largest: their sums are exact, in any order.
    """
    part = attention.clamp_min(0.0).double().where(valid, 0.0)
    top = torch.nn.functional.pad(part, (0, 1)).amax(-1, keepdim=True)
    power = (top.view(torch.int64) & _EXPONENT).view(torch.float64)
    part = torch.where(top > 0.0, part / power, 0.0) * _UNIT
    upper = part.floor()
    lower = (part - upper) * _UNIT
    sums = [_sums(half, crop, sizes.shape[-1]) for half in (upper, lower)]
    return (sums[0] * _UNIT + sums[1]) / sizes.clamp_min(1)


def best_of_crops(
    attention: Tensor,
    scores: Tensor,
    valid: Tensor,
    k: int,
    count: int,
    sharpness: float,
    sorted: bool,
) -> Tensor:
    """The `k` tokens of the largest scores, so many of each crop as its mean attention is worth.

    For float32 `attention` and `scores` `[B, N]`; `valid` ones are finite. See `HoloV`.

    Returns:
        int64 `[B, k]`, ascending if `sorted`, else by falling score; then -1.
    """
    if native(attention, scores, valid):
        return _cpp.best_of_crops(attention, scores, valid, k, count, sharpness, sorted)
    crop, sizes = crops(valid, count)
    attended = _attended(attention, valid, crop, sizes)
    return best_of_segments(scores, k, valid, crop, _shares(k, attended, sharpness), sorted)


def _shares(k: int, attended: Tensor, sharpness: float) -> Tensor:
    """int64 `[B, C]`: how many of `k` tokens each crop gets; more than it has, perhaps."""
    most = attended.amax(-1, keepdim=True)
    weights = torch.where(most > 0.0, attended / most, 1.0) ** sharpness
    # On a grid that is coarser than the error of a sum, so that a share that is whole stays whole.
    shares = on_grid(k * weights / weights.sum(-1, keepdim=True))
    whole = shares.floor().long()
    left = k - whole.sum(-1, keepdim=True)
    order = shares.sort(dim=-1, descending=True, stable=True).indices
    return whole + (order.argsort(-1) < left)


def in_turns(similar: Tensor, total: int, live: Tensor, free: Tensor) -> Tensor:
    """`total` tokens, an even share for each pivot: those least similar to it, one after another.

    Args:
        similar: float64 `[B, P, N]`, to each pivot.
        total: how many tokens there are places for; the first pivots get one more.
        live: int64 `[B, 1]`: the first so many pivots take tokens.
        free: bool `[B, N]`: tokens that can be taken.

    Returns:
        int64 `[B, total]`: turn after turn, by index within one; then -1. Of two that are as
        similar the one of the lower index is taken.
    """
    never = similar.shape[-2]
    each = live.clamp_min(1)  # no token is kept of no token
    turn = torch.where(free, never, never + 1)  # of each token, when it is taken
    for j, order in enumerate(similar.sort(dim=-1, stable=True).indices.unbind(-2)):
        count = torch.where(j < live, total // each + (j < total % each), 0)
        now = turn.gather(-1, order)
        left = now == never
        mine = left & (left.cumsum(-1) <= count)
        turn = turn.scatter(-1, order, torch.where(mine, j, now))
    by_turn = turn.sort(dim=-1, stable=True)
    place = torch.arange(total, device=turn.device)
    picks, turns = (x.index_select(-1, place) for x in (by_turn.indices, by_turn.values))
    return torch.where(turns < never, picks, -1)
