# SPDX-License-Identifier: Apache-2.0
"""SCOPE: salient tokens that cover what is not covered yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from ..primitives.similarity import valid_rows
from ..types import Selection
from ._compose import (
    ATTENTION,
    FEATURES,
    check_options,
    compared,
    kept_of_each,
    of_each,
    per_token,
    selection,
    selections,
)
from ._registry import VISUAL, About, register
from .base import MethodBase


@register("scope")
@dataclass(frozen=True)
class SCOPE(MethodBase):
    """Each pick adds most to how well all tokens are covered, times a power of its attention.

    SCOPE, arXiv 2510.24214 (NeurIPS 2025). A token is covered as well as its largest cosine to a
    pick, at least 0; the gain of token j is `sum_i max(0, cos(i, j) - covered_i) * a_j^alpha`, with
    a the attention that [CLS] pays it.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        alpha: of the attention; 0.5 is the paper's best, the published code's default is 1. 0 is
            coverage alone.
        rounding: of a share; see `num_keep`.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 0.6], [0.0, 1.0]])
        >>> attention = torch.tensor([0.1, 0.4, 0.1, 0.4])
        >>> SCOPE(keep=2, sorted=False).select(visual, attention=attention).indices
        tensor([1, 3])
    """

    about: ClassVar[About] = About(
        title="SCOPE",
        paper="arXiv 2510.24214, NeurIPS 2025",
        inputs=(VISUAL, ATTENTION, FEATURES),
        primitives=("facility_location",),
        cost="N^2 C + N^2 K",
        against="float64 loops, replay of every pick",
    )

    keep: float
    alpha: float = 0.5
    rounding: str = "round"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _rules.number("SCOPE", "alpha", self.alpha, 0.0, math.inf)

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        features: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            attention: `[B, N]`. Required; a token whose attention is negative, NaN or infinite is
                masked out.
            features: `[B, N, C]`, whose cosines say what covers what; None: the visual tokens.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection, without core; its scores are the attention.
        """
        space, weights, scores = self._weighed(visual, attention, features, visual_mask)
        k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
        picks = api.facility_location(space, k, weights=weights)
        return selection(picks, visual, self.sorted, scores=scores)

    def select_varlen(
        self,
        visual: Sequence[Tensor],
        prompt: Sequence[Tensor] | None = None,
        *,
        attention: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> list[Selection]:
        """One ragged call for all images; `attention` and `features` are those of each.

        See `MethodBase.select_varlen`.
        """
        attentions = of_each(self.about, "attention", attention, visual)
        spaces = of_each(self.about, "features", features, visual)
        each = zip(visual, attentions, spaces, strict=True)
        weighed = [self._weighed(*own, None) for own in each]
        kept = kept_of_each(self.about, visual, self.keep, self.rounding)
        picks = api.facility_location_varlen(
            [space for space, _, _ in weighed], kept, weights=[w for _, w, _ in weighed]
        )
        return selections(picks, visual, self.sorted, [scores for _, _, scores in weighed])

    def _weighed(
        self,
        visual: Tensor,
        attention: Tensor | None,
        features: Tensor | None,
        visual_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is covered, the factor of each token's gain, and its attention."""
        scores = per_token(self.about, "attention", attention, visual, visual_mask)
        space = compared(self.about, "features", features, visual)
        valid = (scores >= 0) & scores.isfinite() & valid_rows(visual, visual_mask)
        return space, scores.pow(self.alpha).masked_fill(~valid, torch.nan), scores
