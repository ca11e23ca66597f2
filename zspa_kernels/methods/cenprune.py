# SPDX-License-Identifier: Apache-2.0
"""Cen-Prune: distinctive tokens, diverse around the mean of their image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives import centred, distinctiveness, min_max
from ..primitives._image import SHORTEST, lengths
from ..primitives.similarity import NOISE
from ..types import Selection
from ._compose import check_options, kept_of_each, of_each, per_token, selection, selections
from ._registry import VISUAL, About, Input, register
from .base import MethodBase


@register("cenprune")
@dataclass(frozen=True)
class CenPrune(MethodBase):
    """DivPrune and ZOO-Prune on centred tokens, weighted by how distinctive each token is.

    Cen-Prune, arXiv 2608.30263. Projected tokens share a large mean, which makes all their cosines
    alike; without it they differ. The weight is minus a token's mean cosine (of the tokens as they
    are) to the others, scaled to [0, 1] over its image, times the host's own importance where there
    is one; each pick has the largest weight x distance (of centred tokens) to the picks before it,
    the first the largest weight. With `process="dpp"` these weights and centred tokens make the
    kernel of CDPruner's determinantal point process instead, the paper's strongest combination.
    Nothing to tune.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        process: `"distance"`, or `"dpp"`; see `zspa_kernels.dpp` for where that runs.
        rounding: of a share; see `num_keep`.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> visual = torch.tensor([[9.0, 1.0], [9.0, 0.9], [9.0, -1.0], [8.0, -6.0]])
        >>> CenPrune(keep=2, sorted=False).select(visual).indices
        tensor([3, 0])
    """

    about: ClassVar[About] = About(
        title="CenPrune",
        paper="arXiv 2608.30263",
        inputs=(
            VISUAL,
            Input(
                "importance",
                "[B, N]",
                "the host method's score: ZOO-Prune's sensitivity, CDPruner's relevance",
                False,
            ),
        ),
        primitives=("centred", "distinctiveness", "min_max", "diversity"),
        cost="N K D",
        against="float64 loops, replay of every pick",
    )

    keep: float
    process: str = "distance"
    rounding: str = "round"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _values.option("CenPrune", "process", self.process, ("distance", "dpp"))

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        importance: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` `[B, N, D]`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            importance: of every token `[B, N]`, scaled to [0, 1] like the distinctiveness and
                multiplied with it. A token whose importance is NaN or infinite is masked out.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection, without core; its scores are the weights, NaN for invalid tokens.
        """
        middle, weights = self._weighed(visual, importance, visual_mask)
        k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
        pick = api.diversity if self.process == "distance" else api.dpp
        picks = pick(middle, k, weights=weights)  # those of masked tokens are NaN
        return selection(picks, visual, self.sorted, scores=weights)

    def select_varlen(
        self,
        visual: Sequence[Tensor],
        prompt: Sequence[Tensor] | None = None,
        *,
        importance: Sequence[Tensor] | None = None,
    ) -> list[Selection]:
        """One ragged call for all images; `importance` `[n]` of each. See `MethodBase`."""
        hosts = of_each(self.about, "importance", importance, visual)
        weighed = [self._weighed(x, host, None) for x, host in zip(visual, hosts, strict=True)]
        weights = [own for _, own in weighed]
        kept = kept_of_each(self.about, visual, self.keep, self.rounding)
        pick: Any = api.diversity_varlen if self.process == "distance" else api.dpp_varlen
        picks = pick([middle for middle, _ in weighed], kept, weights=weights)
        return selections(picks, visual, self.sorted, weights)

    def _weighed(
        self, visual: Tensor, importance: Tensor | None, visual_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The centred tokens and the weight of each, both NaN for invalid ones."""
        _rules.visual("CenPrune", visual, visual_mask)
        if importance is not None:
            importance = per_token(self.about, "importance", importance, visual)
            known = importance.isfinite()
            visual_mask = known if visual_mask is None else known & visual_mask
        rating = distinctiveness(visual, visual_mask=visual_mask)
        valid = rating.isfinite()
        directed = lengths(visual.detach()) >= SHORTEST
        weights = min_max(rating, valid & directed, NOISE)
        if importance is not None:
            weights = weights * min_max(importance, valid & directed)
        weights = torch.where(directed, weights, 0.0).masked_fill(~valid, torch.nan)
        return centred(visual, visual_mask=visual_mask), weights
