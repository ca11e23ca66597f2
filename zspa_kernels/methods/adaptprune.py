# SPDX-License-Identifier: Apache-2.0
"""AdaptPrune: attention, suppressed around each pick by place and similarity."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from ..primitives import soft_suppress
from ..primitives.similarity import valid_rows
from ..types import Selection
from ._compose import KEYS, check_options, compared, per_token, selection
from ._registry import VISUAL, About, Input, register
from .base import EachByItself


@register("adaptprune")
@dataclass(frozen=True)
class AdaptPrune(EachByItself):
    """The most attended token at each turn; what is near it and like it is attended less.

    AdaptPrune, arXiv 2503.08019. Attention is first multiplied by a Gaussian around the middle of
    the image, against the bias of its positions. Then each pick i multiplies the score of every
    token j that is no farther than `distance_limit` in the grid by `1 - exp(-d_ij^2 / (2
    distance_sigma^2)) exp(-(1 - cos(i, j))^2 / (2 similarity_sigma^2))`. The defaults are those of
    the published code for 24 x 24 tokens, as far as they are known; distances are in tokens. Where
    all scores have fallen to 0, which it leaves to chance, the lowest index comes first.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`. A share is rounded, where
            the published code takes the integer part.
        similarity_sigma: of the cosine distance of keys.
        distance_sigma: of the distance in the grid.
        distance_limit: beyond which nothing is suppressed.
        center_sigma: of the Gaussian around the middle, in halves of the image's height and width;
            infinite: none.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.0]])
        >>> attention = torch.tensor([0.9, 0.8, 0.1, 0.2])
        >>> place = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> method = AdaptPrune(keep=2, sorted=False)
        >>> method.select(visual, attention=attention, positions=place).indices
        tensor([0, 1])
    """

    about: ClassVar[About] = About(
        title="AdaptPrune",
        paper="arXiv 2503.08019",
        inputs=(
            VISUAL,
            Input(
                "attention",
                "[B, N]",
                "attention from the last token to the visual ones, mean over heads, in the "
                "language model's layer before the one that drops them (its second)",
            ),
            Input(
                "positions",
                "[B, N, 2]",
                "row and column of each token in the grid of its image: torch.cartesian_prod("
                "torch.arange(height), torch.arange(width))",
            ),
            replace(
                KEYS,
                tensor="",
                source="keys of the visual tokens in the language model's layer that drops them "
                "(published), all heads; by default the visual tokens",
                required=False,
            ),
        ),
        primitives=("soft_suppress",),
        cost="up to N K C",
        against="float64 loops, equal picks",
    )

    keep: float
    similarity_sigma: float = 0.05
    distance_sigma: float = 1.5
    distance_limit: float = 5.0
    center_sigma: float = 1.0
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _rules.number("AdaptPrune", "similarity_sigma", self.similarity_sigma, 1e-6, 1e6)
        for name in ("distance_sigma", "center_sigma"):
            _rules.number("AdaptPrune", name, getattr(self, name), 1e-6, math.inf)
        _rules.number("AdaptPrune", "distance_limit", self.distance_limit, 0.0, math.inf)

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        positions: Tensor | None = None,
        keys: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            attention: `[B, N]`. Required; a token whose attention is negative, NaN or infinite is
                masked out.
            positions: `[B, N, 2]`. Required; a token whose position is not finite is masked out.
            keys: `[B, N, C]`, whose cosine is the similarity; None: the visual tokens.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection, without core; its scores are the attention times the Gaussian.
        """
        places = self.about.require("positions", positions)
        scores = per_token(self.about, "attention", attention, visual, visual_mask)
        _rules.positions("AdaptPrune", "positions", places, visual)
        space = compared(self.about, "keys", keys, visual)
        valid = (scores >= 0) & scores.isfinite() & valid_rows(visual, visual_mask)
        valid = valid & places.isfinite().all(-1)
        if keys is not None:
            valid = valid_rows(space, valid)
        rated = scores.double() * self._around_the_middle(places.detach().double(), valid)
        picks = soft_suppress(
            space,
            rated,
            api.num_keep(visual.shape[-2], self.keep),
            sharpness=0.5 / self.similarity_sigma**2,
            rule="scale",
            positions=places,
            spread=self.distance_sigma,
            reach=self.distance_limit,
            visual_mask=valid,
        )
        return selection(picks, visual, self.sorted, scores=rated.float())

    def _around_the_middle(self, places: Tensor, valid: Tensor) -> Tensor:
        """float64 `[B, N]`: the Gaussian, 1 in the middle of the valid tokens."""
        if places.shape[-2] == 0 or self.center_sigma == math.inf:
            return torch.ones_like(places[..., 0])
        outside = ~valid.unsqueeze(-1)
        low = places.masked_fill(outside, math.inf).amin(-2, keepdim=True)
        high = places.masked_fill(outside, -math.inf).amax(-2, keepdim=True)
        half = (high - low) / 2
        apart = torch.where(half > 0, (places - (high + low) / 2) / half, 0.0)
        return (apart.square().sum(-1) / (-2.0 * self.center_sigma * self.center_sigma)).exp()
