# SPDX-License-Identifier: Apache-2.0
"""VisionZip: dominant tokens by attention, and contextual ones that take in the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from ..primitives import Merging
from ..primitives.merging import groups
from ..primitives.scores import spaced
from ..types import Selection
from ._compose import ATTENTION, KEYS, check_options, per_token
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
        >>> import torch
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
        _rules.number("VisionZip", "contextual", self.contextual, 0.0, 1.0)

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
        scores = per_token(self.about, "attention", attention, visual, visual_mask)
        k = api.num_keep(visual.shape[-2], self.keep)
        contextual = api.split_core(k, self.contextual)
        return Selection(*spaced(scores, k, contextual, visual_mask, self.sorted), scores)

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
        _rules.features("VisionZip", "keys", keys, visual)
        valid = per_token(self.about, "attention", attention, visual).isfinite()
        valid = valid if visual_mask is None else valid & visual_mask
        return Merging(picked, *groups(keys, picked.indices, picked.core_mask, valid))
