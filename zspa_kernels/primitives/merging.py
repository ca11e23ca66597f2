# SPDX-License-Identifier: Apache-2.0
"""Dropped tokens merged into kept ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._contract import primitives as _rules
from .._contract import values as _values
from ..backends.cpp import merging as _cpp
from ..types import Selection
from ._image import Image, contiguous, images, in_full_precision, native, padded, plain
from .scores import members

_CHUNK = 2**20  # elements of a temporary


class Merging(NamedTuple):
    """A selection into whose tokens others are merged; unbatched input gives all of it without B.

    Attributes:
        selection: the kept tokens.
        owner: int64 `[B, N]`: the slot of the selection that a token becomes part of, -1 for a
            token that is dropped.
        weights: float32 `[B, N]`: the token's weight in the sum of its slot, 0 for a dropped one.
    """

    selection: Selection
    owner: Tensor
    weights: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """The merged rows of `x` `[B, N, ...]`, `[B, K, ...]`; see `merge`."""
        return merge(x, self.owner, self.selection.indices.shape[-1], weights=self.weights)


def assign(features: Tensor, kept: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Find, for each token, the kept one that it is most similar to.

    Args:
        features: vectors `[B, N, C]` or `[N, C]` whose cosine is the similarity.
        kept: int64 `[B, K]`; -1 is padding.
        mask: bool `[B, N]`, True for real tokens.

    Returns:
        int64 `[B, N]`, slots of `kept`: a kept token gets its own, and ties go to the lowest slot.
        A kept zero row attracts no token that has a direction, unless nothing else is kept; a zero
        row that is not kept goes to the first slot that holds a valid token. -1 for invalid tokens
        and where no valid token is kept.

    Raises:
        TypeError, ValueError: as in `diversity`.

    Complexity: N K C, one matrix product. Waits for the device once or twice an image.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 0.9]])
        >>> assign(features, torch.tensor([0, 1])).tolist()
        [0, 1, 1]
    """
    _rules.vectors("assign", features, mask)
    _rules.indices("assign", "kept", kept, features)
    if native(features, kept, mask):
        return _cpp.assign(plain(features), kept.contiguous(), contiguous(mask))
    return _assign(features, kept, mask)


@in_full_precision
def _assign(features: Tensor, kept: Tensor, mask: Tensor | None) -> Tensor:
    owner = torch.full(features.shape[:-1], -1, dtype=torch.int64, device=features.device)
    for b, image in enumerate(images(features, mask)):
        own = kept if features.ndim == 2 else kept[b]
        place = own.new_full((features.shape[-2] + 1,), -1)
        place[image.index] = torch.arange(len(image), device=kept.device)
        # Slots of valid tokens, and where these stand in the image.
        inside = (own >= 0) & (own < features.shape[-2])
        at = place[torch.where(inside, own, features.shape[-2])]
        slots = (at >= 0).nonzero()[:, 0]
        if len(slots) == 0:
            continue
        everything = torch.arange(len(image), device=kept.device)
        nearest = slots[image.nearest(everything, at[slots])[0]]
        own_slot = torch.full_like(nearest, len(own)).scatter_reduce(0, at[slots], slots, "amin")
        nearest = torch.where(own_slot < len(own), own_slot, nearest)
        (owner if features.ndim == 2 else owner[b])[image.index] = nearest
    return owner


def groups(features: Tensor, indices: Tensor, core: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """What becomes of every token when the kept ones `indices` `[B, K]` stay.

    Each of these owns its slot; those that are not `core` take in the most similar of the others.

    Returns:
        owner int64 and weights float32 `[B, N]`, see `Merging`: 1 for a kept token, equal shares of
        1 for what its slot takes in.
    """
    if native(features, valid):
        given = indices.contiguous(), core.contiguous(), valid.contiguous()
        return _cpp.groups(plain(features), *given)
    n, k = features.shape[-2], indices.shape[-1]
    kept = members(indices, n)
    owner = assign(features, indices.masked_fill(core, -1), mask=valid)
    # A kept token has the slot it stands in; the last entry takes what is padding.
    slots = torch.arange(k, device=indices.device).expand_as(indices)
    own = owner.new_full((*owner.shape[:-1], n + 1), -1)
    own = own.scatter(-1, torch.where(indices < 0, n, indices), slots)[..., :n]
    owner = torch.where(kept, own, owner)
    return owner, shares(owner.masked_fill(kept, -1), k).masked_fill(kept, 1.0)


def shares(owner: Tensor, k: int) -> Tensor:
    """float32 `[B, N]`: one over the size of each token's group, 0 for a token of none."""
    slot = torch.where(owner < 0, k, owner)
    ones = torch.ones_like(slot, dtype=torch.float32)
    sizes = ones.new_zeros((*slot.shape[:-1], k + 1)).scatter_add(-1, slot, ones)
    return torch.where(owner < 0, 0.0, sizes.reciprocal().gather(-1, slot))


def merge(x: Tensor, owner: Tensor, k: int, *, weights: Tensor | None = None) -> Tensor:
    """The mean of the rows of each slot, or their weighted sum.

    Args:
        x: `[B, N, ...]` or `[N, ...]`, floating point.
        owner: int64 `[B, N]`: the slot of every row, in `[0, k)`; others are left out.
        k: number of slots.
        weights: `[B, N]`, of every row in its slot's sum. None: each slot is the mean of its rows.

    Returns:
        `[B, k, ...]`, the dtype of `x`, summed in float32 or wider; a slot without rows is 0.
        Differentiable in `x` and `weights`.

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit, `k` below 0.

    Complexity: N times the size of a row. No host synchronisation.

    Example:
        >>> merge(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]), 2).tolist()
        [[2.0], [9.0]]
    """
    _rules.rows("merge", x, owner, k, weights)
    traced = x.requires_grad or (weights is not None and weights.requires_grad)
    if native(x, owner, weights) and not (traced and torch.is_grad_enabled()):
        return _merged(x, owner, k, weights)
    batch = owner.shape[:-1]
    total = batch.numel()
    inside = (owner >= 0) & (owner < k)
    first = k * torch.arange(total, device=owner.device).reshape(*batch, 1)
    slot = torch.where(inside, owner + first, total * k).flatten()
    wide = torch.promote_types(x.dtype, torch.float32)
    if weights is None:
        counts = torch.zeros(total * k + 1, dtype=wide, device=x.device)
        # Not in place, which vmap over `owner` alone could not do.
        counts = counts.index_add(0, slot, torch.ones_like(slot, dtype=wide))
        weights = counts.reciprocal()[slot].reshape(owner.shape)
    trailing = x.shape[owner.ndim :]
    factors = weights.to(wide).reshape(-1, 1)
    parts = []
    # A few columns at a time, whose temporaries stay in cache.
    for part in x.reshape(len(slot), trailing.numel()).split(max(1, _CHUNK // (len(slot) + 1)), 1):
        scaled = part.to(wide) * factors
        sums = scaled.new_zeros(total * k + 1, part.shape[1]).index_add(0, slot, scaled)
        parts.append(sums[: total * k].to(x.dtype))
    return torch.cat(parts, dim=1).reshape(*batch, k, *trailing)


def _merged(x: Tensor, owner: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """`merge` without derivatives on a CPU."""
    batch, trailing = owner.shape[:-1], x.shape[owner.ndim :]
    rows = x.detach().reshape(batch.numel(), owner.shape[-1], trailing.numel())
    factors = None if weights is None else weights.detach().float().contiguous()
    sums = _cpp.merge(plain(rows), owner.contiguous(), k, factors)
    return sums.to(x.dtype).view(*batch, k, *trailing)


def match(features: Tensor, k: int, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: merge alternate tokens into their most similar neighbours.

    The valid tokens are numbered in order. Each even one is paired with the most similar odd one,
    and the most similar pairs merge, until k tokens are left. A round merges at most half of the
    tokens. If more have to go, further rounds follow, in which a merged token has the mean of its
    tokens' features and the place of the odd one.

    Args:
        features: vectors `[B, N, C]` or `[N, C]` whose cosine is the similarity.
        k: how many tokens are left, in `[0, N]`.
        mask: bool `[B, N]`, True for real tokens.

    Returns:
        indices: int64 `[B, k]`, ascending: the token that each group is merged into, then -1.
        owner: int64 `[B, N]`: the group of each token; -1 for invalid ones, and for all if k is 0.

    Raises:
        TypeError, ValueError: as in `diversity`.

    Complexity: N^2 C / 4 in the first round, a quarter of that in each further one. Waits for the
    device a few times a round.

    Source: ToMe, arXiv 2210.09461, section 3; rounds here take the place of its layers.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 0.9], [1.0, 0.3]])
        >>> indices, owner = match(features, 3)
        >>> indices.tolist(), owner.tolist()
        ([0, 1, 3], [0, 1, 1, 2])
    """
    k = _values.integer("match", "k", k)
    _rules.vectors("match", features, mask, k)
    if native(features, mask):
        return _cpp.match(plain(features), k, contiguous(mask))
    return _match(features, k, mask)


@in_full_precision
def _match(features: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    owner = torch.full(features.shape[:-1], -1, dtype=torch.int64, device=features.device)
    picks = []
    for b, image in enumerate(images(features, mask)):
        group = _rounds(image, k)
        own = owner if features.ndim == 2 else owner[b]
        heads, slots = group.unique(return_inverse=True)
        if k == 0:
            heads, slots = heads[:0], slots.fill_(-1)
        own[image.index] = slots
        picks.append(image.index[heads])
    return padded(picks, k, features), owner


def _rounds(image: Image, k: int) -> Tensor:
    """int64 `[V]`: for every token the one it is merged into in the end."""
    group = torch.arange(len(image), device=image.index.device)
    heads, current = group, image
    while len(heads) > max(k, 1):
        remove = min(len(heads) - max(k, 1), len(heads) // 2)
        source, target = _pairs(current, remove)
        into = torch.arange(len(heads), device=heads.device)
        into[source] = target
        place = torch.full_like(group, -1)
        place[heads] = into
        group = heads[place[group]]
        heads = heads[into == torch.arange(len(heads), device=heads.device)]
        if len(heads) > max(k, 1):
            slots = torch.full_like(group, -1)
            slots[heads] = torch.arange(len(heads), device=heads.device)
            # Sums, which point where the means do.
            ones = torch.ones_like(group, dtype=torch.float64)
            sums = merge(image.tokens.double(), slots[group], len(heads), weights=ones)
            current = Image(sums, limit=math.inf)
    return group


def _pairs(image: Image, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most similar pairs (even place, its nearest odd place), ties by place."""
    line = torch.arange(len(image), device=image.index.device)
    even, odd = line[::2], line[1::2]
    place, cosine = image.nearest(even, odd)
    target = odd[place]
    keys = cosine.double()
    # Only those about as similar as the last pair that merges need better than float32.
    last = keys.sort(descending=True).values[count - 1]
    near = ((keys - last).abs() <= 2 * image.slack).nonzero()[:, 0]
    directed = image.directed[even] & image.directed[target]
    if len(near) > 1:
        exact = image.exact(even[near], target[near])
        # Above the bound of float32 or below it nothing changes sides.
        keys = torch.where(keys > last, 4.0, -4.0).double().scatter(0, near, exact)
        keys = torch.where(directed, keys, -8.0)
    merged = keys.sort(descending=True, stable=True).indices[:count]
    return even[merged], target[merged]
