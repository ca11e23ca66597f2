# SPDX-License-Identifier: Apache-2.0
"""CDPruner: diversity conditioned on the instruction, by a determinantal point process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives import min_max
from ..primitives.similarity import NOISE, standing, valid_rows
from ..types import Selection
from ._compose import check_options, kept_of_each, of_each, selection, selections
from ._registry import IMAGE_EMBEDS, LLM_PROMPT, PROMPT, TEXT_EMBEDS, VISUAL, About, Input, register
from .base import MethodBase

SPACES = ("clip", "llm")


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner(MethodBase):
    """The tokens that span the largest volume, each scaled by its relevance to the instruction.

    CDPruner, arXiv 2506.10967 (NeurIPS 2025): greedy MAP of a determinantal point process with
    kernel `r_i r_j cos(i, j)` of the projected tokens. The relevance r is the mean cosine with the
    instruction's segments, scaled to [0, 1] over the image. In CLIP's space it is negated first, as
    published: there patches that show what a text names have the lower cosines.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        space: `"clip"`, as published: `select` takes the embeddings of patches and text of a CLIP
            model. `"llm"`: relevance is the mean cosine of projected and prompt tokens, not
            negated; for models whose vision tower has no text tower.
        emphasis: None, as published; or theta in [0, 1): the kernel takes exp(alpha r), alpha =
            theta / (2 (1 - theta)), instead of r. 0 leaves relevance out.
        rounding: of a share; see `num_keep`.
        sorted: ascending indices, or the order of picking.
        compat: True: r is scaled as the published code does, by the extremes over all images of the
            call and as `(r - min + 1e-6) / (max - min)`, so that a result depends on the batch.
            Where that is no number, because all are equal, they are 1.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.2, 1.0]])
        >>> method = CDPruner(keep=2, space="llm")
        >>> method.select(visual, prompt=torch.tensor([[1.0, 0.5]])).indices
        tensor([1, 3])
    """

    about: ClassVar[About] = About(
        title="CDPruner",
        paper="arXiv 2506.10967, NeurIPS 2025",
        inputs=(VISUAL, IMAGE_EMBEDS, TEXT_EMBEDS, LLM_PROMPT),
        primitives=("relevance_topk", "min_max", "dpp"),
        cost="N K D + N K^2",
        against="float64 loops, replay of every pick",
    )

    keep: float
    space: str = "clip"
    emphasis: float | None = None
    rounding: str = "round"
    sorted: bool = True
    compat: bool = False

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _values.option("CDPruner", "space", self.space, SPACES)
        if self.emphasis is not None:
            last = math.nextafter(1.0, 0.0)
            _rules.number("CDPruner", "emphasis", self.emphasis, 0.0, last)

    @property
    def model_inputs(self) -> tuple[Input, ...]:
        """CLIP's embeddings in its space only."""
        return self.about.inputs if self.space == "clip" else (VISUAL, PROMPT)

    @_values.naming("CDPruner")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        image_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` for an instruction.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: `[B, M, D]`; required in the space `"llm"`, ignored otherwise.
            image_embeds: `[B, N, Dc]`; required in the space `"clip"`.
            text_embeds: `[B, S, Dc]`, likewise.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: bool `[B, M]`, of the prompt; in CLIP's space bool `[B, S]`.

        Returns:
            The selection, without core; its scores are the weights, NaN for invalid tokens.
        """
        weights = self._weights(visual, prompt, image_embeds, text_embeds, visual_mask, prompt_mask)
        k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
        picks = api.dpp(visual, k, weights=weights, visual_mask=visual_mask)
        return selection(picks, visual, self.sorted, scores=weights)

    @_values.naming("CDPruner")
    def select_varlen(
        self,
        visual: Sequence[Tensor],
        prompt: Sequence[Tensor] | None = None,
        *,
        image_embeds: Sequence[Tensor] | None = None,
        text_embeds: Sequence[Tensor] | None = None,
    ) -> list[Selection]:
        """One ragged call for all images; the embeddings are those of each.

        See `MethodBase.select_varlen`. Each image is scaled by itself, with `compat` as well.
        """
        given = [
            of_each(self.about, name, x, visual)
            for name, x in (
                ("prompt", prompt),
                ("image_embeds", image_embeds),
                ("text_embeds", text_embeds),
            )
        ]
        weights = [self._weights(*own) for own in zip(visual, *given, strict=True)]
        kept = kept_of_each(self.about, visual, self.keep, self.rounding)
        picks = api.dpp_varlen(list(visual), kept, weights=weights)
        return selections(picks, visual, self.sorted, weights)

    def _weights(
        self,
        visual: Tensor,
        prompt: Tensor | None,
        image_embeds: Tensor | None,
        text_embeds: Tensor | None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Tensor:
        """The relevance of each token, scaled; NaN for invalid ones."""
        _rules.visual("CDPruner", visual, visual_mask)
        if self.space == "llm":
            image, text = visual, self.about.require("prompt", prompt)
        else:
            image = self.about.require("image_embeds", image_embeds)
            text = self.about.require("text_embeds", text_embeds)
            _rules.embeddings("CDPruner", image, text, visual)
        _, scores = api.relevance_topk(
            image, text, 0, visual_mask=visual_mask, prompt_mask=prompt_mask, pooling="none_mean"
        )
        rank = standing(image, None)
        valid = scores.isfinite()
        if self.space == "clip":
            valid &= valid_rows(visual, visual_mask)
        scores = scores.masked_fill(rank == -1.0, 0.0)  # no direction: cosine 0 with everything
        weights = self._scaled(scores if self.space == "llm" else -scores, valid)
        if self.emphasis is not None:
            weights = (self.emphasis / (2 * (1 - self.emphasis)) * weights).exp()
        return weights

    def _scaled(self, relevance: Tensor, valid: Tensor) -> Tensor:
        if not self.compat:
            return min_max(relevance, valid, NOISE)
        if relevance.numel() == 0:
            return relevance
        low = relevance.masked_fill(~valid, torch.inf).amin()
        high = relevance.masked_fill(~valid, -torch.inf).amax()
        scaled = torch.where(high > low, (relevance - low + 1e-6) / (high - low), 1.0)
        return scaled.masked_fill(~valid, torch.nan)
