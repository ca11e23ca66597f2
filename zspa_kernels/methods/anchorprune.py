# SPDX-License-Identifier: Apache-2.0
"""AnchorPrune: a core by relevance whose size adapts, then novel tokens weighted by importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives import topk
from ..primitives.scores import combined
from ..primitives.similarity import until_novel, valid_rows
from ..types import Selection
from ._compose import ATTENTION, FEATURES, check_options, compared, per_token
from ._registry import IMAGE_EMBEDS, LLM_PROMPT, TEXT_EMBEDS, VISUAL, About, register
from .base import EachByItself
from .cdpruner import SPACES


@register("anchorprune")
@dataclass(frozen=True)
class AnchorPrune(EachByItself):
    """A protected anchor of the most relevant tokens, then the most important of what is new.

    AnchorPrune, arXiv 2607.07033 (ECCV 2026). Tokens are ranked by relevance. The first `least` are
    the anchor's core; it goes on down the ranking until `patience` tokens were novel, that is
    farther than `novelty` (one minus the cosine) from all of the core, or to `cap`. Then each pick
    has the largest importance x distance to everything selected before it. The defaults are the
    paper's; at budgets of 32 to 256 its least anchor is 5 / 32 of them.

    Attributes:
        keep: share of the tokens in (0, 1], or a count K; see `num_keep`.
        space: `"clip"`: relevance is minus the mean cosine of CLIP's embeddings of patches and
            text, and novelty in the anchor is among the former (published for LLaVA). `"llm"`: the
            largest cosine with a prompt token, among the visual tokens (published for Qwen2.5-VL).
        least: share of K, rounded, at least one token.
        cap: share of K that the anchor cannot exceed, rounded down, but for `least`.
        novelty: distance above which a token is novel, in [0, 2].
        patience: how many novel tokens end the anchor; the last of them is part of it.
        rounding: of a share; see `num_keep`.
        sorted: ascending indices, or the anchor by falling relevance before the others.
        compat: True: distances count as at most 1, as in the published code: a token that is
            opposite to what was selected is no farther than one at a right angle.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
        >>> method = AnchorPrune(keep=2, space="llm", sorted=False)
        >>> picked = method.select(
        ...     visual, torch.tensor([[1.0, 0.0]]), attention=torch.tensor([0.1, 0.2, 0.4, 0.1])
        ... )
        >>> picked.indices, picked.core_mask
        (tensor([0, 2]), tensor([ True, False]))
    """

    about: ClassVar[About] = About(
        title="AnchorPrune",
        paper="arXiv 2607.07033, ECCV 2026",
        inputs=(VISUAL, IMAGE_EMBEDS, TEXT_EMBEDS, ATTENTION, FEATURES, LLM_PROMPT),
        primitives=("relevance_topk", "topk", "diversity"),
        cost="N K D",
        against="float64 loops, equal anchors, replay of every pick",
    )

    keep: float
    space: str = "clip"
    least: float = 5 / 32
    cap: float = 0.5
    novelty: float = 0.2
    patience: int = 3
    rounding: str = "round"
    sorted: bool = True
    compat: bool = False

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _values.option("AnchorPrune", "space", self.space, SPACES)
        _rules.number("AnchorPrune", "least", self.least, 0.0, 1.0)
        _rules.number("AnchorPrune", "cap", self.cap, 0.0, 1.0)
        _rules.number("AnchorPrune", "novelty", self.novelty, 0.0, 2.0)
        _values.integer_at_least("AnchorPrune", "patience", self.patience, 1)

    @_values.naming("AnchorPrune")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        image_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        attention: Tensor | None = None,
        features: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` for an instruction.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: `[B, M, D]`; required in the space `"llm"`, ignored otherwise.
            image_embeds: `[B, N, Dc]`; required in the space `"clip"`.
            text_embeds: `[B, S, Dc]`, likewise.
            attention: the importance, `[B, N]`. Required; a token whose attention is negative, NaN
                or infinite is masked out.
            features: `[B, N, C]`, whose cosine is the distance after the anchor; None: the visual
                tokens.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: bool `[B, M]`, of the prompt; in CLIP's space bool `[B, S]`.

        Returns:
            The selection; its core is the anchor, its scores are the relevance, -inf for invalid
            tokens. Without a valid row of text there is no anchor, and the first pick has the
            largest importance.
        """
        if self.space == "llm":
            image, text, pooling = visual, self.about.require("prompt", prompt), "none_max"
        else:
            image = self.about.require("image_embeds", image_embeds)
            text, pooling = self.about.require("text_embeds", text_embeds), "none_mean"
        weights = per_token(self.about, "attention", attention, visual, visual_mask)
        if self.space == "clip":
            _rules.embeddings("AnchorPrune", image, text, visual)
            text = -text  # minus the cosine; a patch without direction stays the last
        space = compared(self.about, "features", features, visual)
        n = visual.shape[-2]
        k = api.num_keep(n, self.keep, self.rounding)
        # Of an image that was asked nothing, the most relevant token is none.
        first, scores = api.relevance_topk(
            image,
            text,
            min(k, 1),
            visual_mask=visual_mask,
            prompt_mask=prompt_mask,
            pooling=pooling,
        )
        valid = (scores > -torch.inf) & (weights >= 0) & (weights < torch.inf)
        for rows in (visual, features):
            if rows is not None and rows is not image:
                valid = valid & valid_rows(rows, visual_mask)
        scores = torch.where(valid, scores, -torch.inf)
        least = min(k, max(1, round(self.least * k)))
        anchor = topk(scores, max(least, int(self.cap * k)))
        anchor = torch.where(first < 0, -1, anchor)
        anchor = until_novel(image, anchor, least, self.novelty, self.patience)
        picks = self._expand(space.detach(), k, anchor, weights, valid)
        return Selection(*combined(anchor, picks, k, self.sorted), scores)

    def _expand(
        self, space: Tensor, k: int, anchor: Tensor, weights: Tensor, valid: Tensor
    ) -> Tensor:
        """int64 `[B, k]`: more than are needed beside an anchor."""
        if self.compat:
            # A seed at a right angle to every token: no token is farther than that.
            n = space.shape[-2]
            space = torch.nn.functional.pad(space, (0, 1, 0, 1))
            space[..., n, -1] = 1.0
            weights = torch.nn.functional.pad(weights, (0, 1), value=1.0)
            valid = torch.nn.functional.pad(valid, (0, 1), value=True)
            anchor = torch.nn.functional.pad(anchor, (0, 1), value=n)
        return api.diversity(space, k, seeds=anchor, weights=weights, visual_mask=valid)
