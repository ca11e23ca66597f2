# SPDX-License-Identifier: Apache-2.0
"""ToMe: token merging by bipartite soft matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from ..primitives import Merging, match
from ..primitives.merging import shares
from ..types import Selection
from ._compose import KEYS, check_options
from ._registry import VISUAL, About, register
from .base import EachByItself


@register("tome")
@dataclass(frozen=True)
class ToMe(EachByItself):
    """The most similar neighbours merge until K tokens are left; a merged token is their mean.

    ToMe, arXiv 2210.09461, section 3. Tokens alternate between two sets; each of the first finds
    its most similar one of the second, by cosine of keys, and the most similar pairs merge. The
    paper does this in every layer with that layer's keys; here all of it happens at once, so where
    less than half is kept a merged token goes on with the mean of its keys.

    `select` says into which tokens the others are merged, `assign` also what becomes of each.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0], [9.0, 3.0]])
        >>> merging = ToMe(keep=3).assign(visual, keys=visual)
        >>> merging.selection.indices, merging.owner
        (tensor([0, 1, 3]), tensor([0, 1, 1, 2]))
        >>> merging.merge(visual).tolist()
        [[1.0, 0.0], [0.0, 2.0], [9.0, 3.0]]
    """

    about: ClassVar[About] = About(
        title="ToMe",
        paper="arXiv 2210.09461, ICLR 2023",
        inputs=(VISUAL, KEYS),
        primitives=("match", "merge"),
        cost="N^2 C / 4, a third more for K < N / 2",
        against="float64 loops, equal picks and groups",
    )

    keep: float

    def __post_init__(self) -> None:
        check_options(self.about, self)

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """The tokens of `visual` `[B, N, D]` that the others are merged into, ascending.

        See `assign`, which also merges. A selection alone drops what it does not keep.
        """
        return self.assign(
            visual, prompt, keys=keys, visual_mask=visual_mask, prompt_mask=prompt_mask
        ).selection

    def assign(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Merging:
        """Which token becomes part of which.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`; only their number counts here.
            prompt: ignored.
            keys: `[B, N, C]`, whose cosine is the similarity. Required.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection (without core and scores) and the groups; `merging.merge(visual)` is
            `[B, K, D]`. Every token of a group has the same weight.
        """
        keys = self.about.require("keys", keys)
        _rules.visual("ToMe", visual, visual_mask)
        _rules.features("ToMe", "keys", keys, visual)
        k = api.num_keep(visual.shape[-2], self.keep)
        indices, owner = match(keys, k, mask=visual_mask)
        picked = Selection(indices, torch.zeros_like(indices, dtype=torch.bool))
        return Merging(picked, owner, shares(owner, k))
