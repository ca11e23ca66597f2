# SPDX-License-Identifier: Apache-2.0
"""Scores of tokens: how they are scaled, and which tokens they choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._contract import primitives as _rules
from .._contract import values as _values
from ..backends.cpp import _combined
from ..backends.cpp import _topk as _cpp
from ._image import native


def min_max(scores: Tensor, valid: Tensor, flat: float = 1e-3) -> Tensor:
    """Scores scaled to [0, 1] over each image's valid tokens.

    Args:
        scores: `[B, N]` or `[N]`, any floating dtype.
        valid: bool, likewise. A token whose score is NaN or infinite is invalid as well.
        flat: if the range of the scores is at most this share of their largest magnitude, it is
            taken for noise, and all valid tokens get 1.

    Returns:
        float32 `[B, N]`, NaN for invalid tokens.

    Raises:
        TypeError: `scores` are no float tensor, or `valid` no bool tensor.
        ValueError: shapes or devices do not fit, or `flat` is negative.

    Complexity: N.

    Example:
        >>> scores = torch.tensor([1.0, 3.0, 2.0, 9.0])
        >>> min_max(scores, torch.tensor([True, True, True, False]))
        tensor([0.0000, 1.0000, 0.5000,    nan])
    """
    _rules.scores("min_max", scores, 0)
    _rules.flags("min_max", "valid", valid, scores)
    flat = _values.ratio("min_max", "flat", flat)
    if scores.shape[-1] == 0:
        return scores.new_empty(scores.shape, dtype=torch.float32)
    wide = scores.double()  # the range of float32 scores may be more than a float32
    valid = valid & wide.isfinite()
    low = wide.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    high = wide.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    largest = torch.maximum(low.abs(), high.abs())
    weights = torch.where(high - low > flat * largest, (wide - low) / (high - low), 1.0)
    return weights.float().masked_fill(~valid, torch.nan)


def topk(
    scores: Tensor,
    k: int,
    *,
    mask: Tensor | None = None,
    force_keep: Tensor | None = None,
    segments: Tensor | None = None,
    quotas: Sequence[int] | None = None,
    sorted: bool = False,
) -> Tensor:
    """The k tokens of the largest scores, ties to the lowest index.

    Args:
        scores: `[B, N]` or `[N]`, any floating dtype. A token whose score is NaN or infinite counts
            as masked out.
        k: how many, in `[0, N]`.
        mask: bool `[B, N]`, True for real tokens.
        force_keep: bool `[B, N]`: these come first and are part of the k.
        segments: int `[B, N]`, the segment of each token, in `[0, S)`. Tokens with other values
            belong to no segment and are taken only if the segments leave slots free.
        quotas: how many tokens each of the S segments gets, adding up to k. Slots that a segment
            cannot fill go to the best of the remaining tokens.
        sorted: True: indices ascend, which keeps the raster order.

    Returns:
        int64 `[B, k]`, by falling score with forced ones first, or ascending; then -1 where valid
        tokens run out.

    Raises:
        TypeError, ValueError: as in `select`; `segments` without `quotas`, or the reverse.

    Complexity: on a CPU without segments N, and k log k for the order of scores. Otherwise N log N;
    segments take two sorts. No host synchronisation.

    Example:
        >>> scores = torch.tensor([0.1, 0.9, 0.8, 0.7, 0.2])
        >>> topk(scores, 2).tolist()
        [1, 2]
        >>> topk(scores, 2, force_keep=torch.tensor([True, False, False, False, False])).tolist()
        [0, 1]
        >>> topk(scores, 2, segments=torch.tensor([0, 0, 0, 1, 1]), quotas=[1, 1]).tolist()
        [1, 3]
    """
    _rules.scores("topk", scores, k, mask)
    _values.flag("topk", "sorted", sorted)
    return largest(scores, k, mask, force_keep, segments, quotas, sorted)


def chosen(
    scores: Tensor,
    k: int,
    mask: Tensor | None,
    force_keep: Tensor | None,
    segments: Tensor | None,
    quotas: Sequence[int] | None,
    sorted: bool,
) -> tuple[Tensor, Tensor]:
    """`largest`, and bool `[B, k]`, which of them are tokens."""
    plain = force_keep is None and segments is None and quotas is None
    if plain and native(scores, mask, float64=True):
        found = _cpp.slots(scores, k, torch.bool)
        return _cpp.topk(scores, k, mask, None, sorted, found), found
    indices = largest(scores, k, mask, force_keep, segments, quotas, sorted)
    return indices, indices >= 0


def largest(
    scores: Tensor,
    k: int,
    mask: Tensor | None,
    force_keep: Tensor | None = None,
    segments: Tensor | None = None,
    quotas: Sequence[int] | None = None,
    sorted: bool = False,
) -> Tensor:
    """`topk` of scores, a mask and `sorted` that were checked."""
    if force_keep is not None:
        _rules.flags("topk", "force_keep", force_keep, scores)
    whole = segments is None and quotas is None
    if whole and native(scores, mask, force_keep, float64=True):
        return _cpp.topk(scores, k, mask, force_keep, sorted)
    keys = _keys(scores, mask)
    if force_keep is not None:
        keys = keys.masked_fill(force_keep & (keys > -torch.inf), torch.inf)
    order = keys.sort(dim=-1, descending=True, stable=True).indices
    if not whole:
        order = _by_quotas(scores, order, keys, k, segments, quotas)
    return _first(order, keys, k, sorted)


def best_of_segments(
    scores: Tensor, k: int, mask: Tensor, segments: Tensor, quotas: Tensor, sorted: bool
) -> Tensor:
    """`topk` with quotas of each image, int64 `[B, S]` on its device; all arguments checked."""
    keys = _keys(scores, mask)
    order = keys.sort(dim=-1, descending=True, stable=True).indices
    return _first(_admitted_first(order, keys, k, segments, quotas), keys, k, sorted)


def _keys(scores: Tensor, mask: Tensor | None) -> Tensor:
    """What is sorted: float64 `[B, N]`, -inf for tokens that do not count."""
    scores = scores.detach()
    usable = scores.isfinite()
    if mask is not None:
        usable = usable & mask
    # Minus zero would sort before zero where bits are compared.
    return (scores.double() + 0.0).masked_fill(~usable, -torch.inf)


def _first(order: Tensor, keys: Tensor, k: int, sorted: bool) -> Tensor:
    """The first `k` of `order`, ascending if `sorted`; -1 past the tokens that count."""
    # Not order[..., :k]: torch.export would ask whether a symbolic k is below N.
    place = torch.arange(k, device=order.device)
    picks = order.index_select(-1, place)
    picks = torch.where(place < (keys > -torch.inf).sum(-1, keepdim=True), picks, -1)
    return ordered(picks, keys.shape[-1])[0] if sorted else picks


def spaced(
    scores: Tensor, k: int, count: int, mask: Tensor | None, sorted: bool
) -> tuple[Tensor, Tensor]:
    """The `k - count` tokens of the largest scores and, of the others, `count` at equal distances.

    For float32 scores `[B, N]` and a mask that were checked; NaN and infinite ones are masked out.

    Returns:
        int64 `[B, k]`, all ascending or the former before the latter, then -1; and bool `[B, k]`,
        which are the former.
    """
    if native(scores, mask):
        return _cpp.top_k_and_spaced(scores, k, count, mask, sorted)
    n = scores.shape[-1]
    best = members(largest(scores, k - count, mask), n)
    rest = scores.isfinite() & ~best
    if mask is not None:
        rest = rest & mask
    rank = rest.cumsum(-1) - 1
    stride = (rest.sum(-1, keepdim=True) // max(1, count)).clamp_min(1)
    targets = rest & (rank % stride == 0) & (rank // stride < count)
    place = torch.arange(n, device=scores.device)
    first = place if sorted else place - n  # before all others
    order = torch.where(best, first, torch.where(targets, place, n)).sort(dim=-1)
    indices = torch.where(order.values < n, order.indices, -1)[..., :k]
    inside = indices >= 0
    return indices, best.gather(-1, indices.clamp_min(0)) & inside


def combined(core: Tensor, picks: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    """The first `k` tokens of `core` `[B, R]` and then of `picks` `[B, P]`, which share none.

    -1 is no token, wherever it stands; `k <= R + P`.

    Returns:
        int64 `[B, k]`, in this order or ascending, then -1; and bool `[B, k]`, which are of `core`.
    """
    if native(core, picks):
        return _combined.combined(core, picks, k, sorted)
    both = torch.cat((core, picks), -1)
    place = (both < 0).int().sort(dim=-1, stable=True).indices[..., :k]
    indices = both.gather(-1, place)
    in_core = (place < core.shape[-1]) & (indices >= 0)
    if sorted:
        last = torch.iinfo(torch.int64).max
        place = indices.masked_fill(indices < 0, last).sort(dim=-1).indices
        indices, in_core = indices.gather(-1, place), in_core.gather(-1, place)
    return indices, in_core


def members(picks: Tensor, n: int) -> Tensor:
    """Which of `n` tokens are among `picks` `[B, K]`: bool `[B, N]`."""
    found = torch.zeros((*picks.shape[:-1], n + 1), dtype=torch.bool, device=picks.device)
    return found.scatter(-1, torch.where(picks < 0, n, picks), True)[..., :n]


def _by_quotas(
    scores: Tensor,
    order: Tensor,
    keys: Tensor,
    k: int,
    segments: Tensor | None,
    quotas: Sequence[int] | None,
) -> Tensor:
    """`order` with what the quotas admit before everything else."""
    if segments is None or quotas is None:
        missing = "segments" if segments is None else "quotas"
        raise ValueError(f"topk: {missing} must be given, as segments and quotas go together")
    _rules.labels("topk", "segments", segments, scores)
    counts = _rules.quotas("topk", quotas, k)
    limits = torch.tensor(counts, dtype=torch.int64, device=scores.device)
    return _admitted_first(order, keys, k, segments, limits.expand(*scores.shape[:-1], -1))


def _admitted_first(
    order: Tensor, keys: Tensor, k: int, segments: Tensor, limits: Tensor
) -> Tensor:
    """`order` with the tokens that `limits` `[B, S]` of the segments admit before the others."""
    groups = limits.shape[-1]
    inside = (segments >= 0) & (segments < groups) & (keys > -torch.inf)
    label = torch.where(inside, segments.long(), groups).gather(-1, order)
    by_segment = label.sort(dim=-1, stable=True)
    place = torch.arange(label.shape[-1], device=label.device).expand_as(label)
    bounds = torch.arange(groups + 1, device=label.device).expand(*label.shape[:-1], -1)
    starts = torch.searchsorted(by_segment.values.contiguous(), bounds.contiguous())
    rank = place - starts.gather(-1, by_segment.values)
    limits = torch.nn.functional.pad(limits, (0, 1))  # none of those in no segment
    admitted = torch.zeros_like(inside).scatter(
        -1, by_segment.indices, rank < limits.gather(-1, by_segment.values)
    )
    forced = keys.gather(-1, order) == torch.inf
    # 0: forced, 1: within its quota, 2: the rest; stable, so by score inside each.
    rest = torch.where(forced, 0, torch.where(admitted, 1, 2))
    chosen = order.gather(-1, rest.sort(dim=-1, stable=True).indices)
    # The first k are the selection; its order is again that of the scores.
    first = chosen.index_select(-1, torch.arange(k, device=order.device))
    kept = torch.zeros_like(inside).scatter(-1, first, True)
    return order.gather(-1, (~kept.gather(-1, order)).int().sort(dim=-1, stable=True).indices)


def quotas(k: int, sizes: Sequence[int]) -> list[int]:
    """`k` tokens spread over segments as evenly as their sizes allow; the first ones get more.

    Args:
        k: how many, at least 0.
        sizes: how many tokens each segment has; ints on the host.

    Returns:
        A count for each segment, at most its size; together `k`, or all tokens if these are fewer.

    Raises:
        TypeError, ValueError: `k` or a size is not an int, or is negative.

    Example:
        >>> quotas(10, [2, 9, 9])
        [2, 4, 4]
    """
    k = _values.integer_at_least("quotas", "k", k, 0)
    sizes = _values.integers("quotas", "sizes", sizes)
    counts = list(sizes)  # of segments that give all they have
    left = min(k, sum(sizes))
    larger = list(range(len(sizes)))
    while larger:
        share, extra = divmod(left, len(larger))
        small = [i for i in larger if sizes[i] <= share]
        if not small:
            for rank, i in enumerate(larger):
                counts[i] = share + (rank < extra)
            break
        left -= sum(sizes[i] for i in small)
        larger = [i for i in larger if sizes[i] > share]
    return counts


def ascending(indices: Tensor, n: int) -> Tensor:
    """Indices below `n` in ascending order, the -1s behind them.

    Raises:
        TypeError: `indices` are no int tensor, or `n` is not an int.

    Example:
        >>> ascending(torch.tensor([4, -1, 2]), 5).tolist()
        [2, 4, -1]
    """
    _rules.ints("ascending", "indices", indices)
    n = _values.integer("ascending", "n", n)
    return ordered(indices, n)[0]


def ordered(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`ascending`, and bool `[B, K]`: which of them are tokens."""
    if indices.ndim in (1, 2) and indices.dtype is torch.int64 and native(indices):
        return _cpp.ascending(indices, n)
    values = indices.masked_fill((indices < 0) | (indices > n), n).sort(dim=-1).values
    values = values.masked_fill(values == n, -1)
    return values, values >= 0
