# SPDX-License-Identifier: Apache-2.0
"""VisionZip: dominant tokens by attention, and contextual ones that take in the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .. import _contract_primitives as _contract
from .. import api
from ..primitives import Merging, assign, topk
from ..types import Selection
from ._compose import ATTENTION, KEYS, check_options, members, per_token
from ._registry import VISUAL, About, register
from .base import EachByItself


@register("visionzip")
@dataclass(frozen=True)
class VisionZip(EachByItself):
    """The tokens of highest attention, and evenly spaced ones of the rest that merge what is left.

    VisionZip, arXiv 2412.04467 (CVPR 2025). Of the tokens that are not dominant every s-th is a
    contextual target, s as large as their number allows; each other one is assigned to the target
    with the most similar key, and a contextual token is its target plus the mean of what was
    assigned to it. The published model also keeps the [CLS] token, which is no visual token here.

    `select` says which tokens are kept, `assign` also what becomes of the others.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        contextual: share of the kept tokens that are contextual, rounded; published are 10 of 64,
            20 of 128 and 30 of 192.
        sorted: ascending indices; or, as published, dominant before contextual ones, each so.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.2, 0.8]])
        >>> attention = torch.tensor([0.1, 0.2, 0.9, 0.3])
        >>> method = VisionZip(keep=2, contextual=0.5)
        >>> merging = method.assign(visual, attention=attention, keys=visual)
        >>> merging.selection.indices, merging.selection.core_mask, merging.owner
        (tensor([0, 2]), tensor([False,  True]), tensor([0, 0, 1, 0]))
    """

    about: ClassVar[About] = About(
        title="VisionZip",
        paper="arXiv 2412.04467, CVPR 2025",
        inputs=(VISUAL, ATTENTION, replace(KEYS, required=False)),
        primitives=("topk", "assign", "merge"),
        cost="N log N; merging N C per contextual token",
        against="float64 loops, equal picks and groups",
    )

    keep: float
    contextual: float = 10 / 64
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _contract.number("VisionZip", "contextual", self.contextual, 0.0, 1.0)

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        keys: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; prompt and keys are accepted and play no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            attention: `[B, N]`. Required; a token whose attention is NaN or infinite is masked out.
            keys: ignored; see `assign`.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection; its core are the dominant tokens, its scores the attention.
        """
        scores, dominant, targets = self._choose(visual, attention, visual_mask)
        n = visual.shape[-2]
        k = api.num_keep(n, self.keep)
        place = torch.arange(n, device=visual.device)
        keys_of = torch.where(targets, place, place.new_full((), 3 * n))
        first = place if self.sorted else place - n  # dominant tokens before all others
        order = torch.where(dominant, first, keys_of).sort(dim=-1)
        indices = torch.where(order.values < n, order.indices, -1)[..., :k]
        inside = indices >= 0
        core = dominant.gather(-1, indices.clamp_min(0)) & inside if n else inside
        return Selection(indices, core, scores)

    def assign(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        keys: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Merging:
        """Which token becomes part of which; arguments as in `select`.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            attention: `[B, N]`. Required.
            keys: `[B, N, C]`, whose cosine assigns tokens to contextual ones. Required.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection and the groups; `merging.merge(visual)` is `[B, K, D]`. Dominant and
            target tokens have weight 1, the others of a group together 1. Without contextual
            tokens the rest is dropped, as is a token whose keys are not finite.
        """
        picked = self.select(visual, attention=attention, visual_mask=visual_mask)
        keys = self.about.require("keys", keys)
        _contract.features("VisionZip", "keys", keys, visual)
        indices = picked.indices
        kept = members(indices, visual.shape[-2])
        valid = per_token(self.about, "attention", attention, visual).isfinite()
        valid = valid if visual_mask is None else valid & visual_mask
        targets = indices.masked_fill(picked.core_mask, -1)
        dominant = members(indices.masked_fill(~picked.core_mask, -1), visual.shape[-2])
        owner = assign(keys, targets, mask=valid & ~dominant)
        # A kept token has the slot it stands in; the last entry takes what is padding.
        n, k = visual.shape[-2], indices.shape[-1]
        slots = torch.arange(k, device=indices.device).expand_as(indices)
        own = owner.new_full((*owner.shape[:-1], n + 1), -1)
        own = own.scatter(-1, torch.where(indices < 0, n, indices), slots)[..., :n]
        owner = torch.where(kept, own, owner)
        slot = torch.where(kept | (owner < 0), k, owner)
        ones = torch.ones_like(slot, dtype=torch.float32)
        counts = ones.new_zeros((*slot.shape[:-1], k + 1)).scatter_add(-1, slot, ones)
        weights = torch.where(owner < 0, 0.0, counts.reciprocal().gather(-1, slot))
        return Merging(picked, owner, weights.masked_fill(kept, 1.0))

    def _choose(
        self, visual: Tensor, attention: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention as float32, and which tokens are dominant and which are targets: `[B, N]`."""
        scores = per_token(self.about, "attention", attention, visual, mask)
        n = visual.shape[-2]
        k = api.num_keep(n, self.keep)
        contextual = api.split_core(k, self.contextual)
        dominant = members(topk(scores, k - contextual, mask=mask), n)
        rest = scores.isfinite() & ~dominant
        if mask is not None:
            rest = rest & mask
        rank = rest.cumsum(-1) - 1
        stride = (rest.sum(-1, keepdim=True) // max(1, contextual)).clamp_min(1)
        targets = rest & (rank % stride == 0) & (rank // stride < contextual)
        return scores, dominant, targets
