# SPDX-License-Identifier: Apache-2.0
"""TrimTokenator: tokens aligned with the text, then diverse ones of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives import alignment, topk
from ..primitives.scores import members
from ..types import Selection
from ._compose import check_options, selection
from ._registry import PROMPT, VISUAL, About, register
from .base import EachByItself


@register("trimtokenator")
@dataclass(frozen=True)
class TrimTokenator(EachByItself):
    """The tokens nearest to the text, thinned to those least similar on average.

    TrimTokenator, arXiv 2509.00320. First `align` of the tokens stay, those of the smallest mean
    squared distance to the text tokens; then K of these are picked, each of the smallest mean
    cosine to the picks before it, the first of the smallest to all that stayed. Whether the paper
    squares the distances is not certain.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        align: share of an image's valid tokens that the first stage keeps, or a count; never fewer
            than K stay.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-9.0, 0.0]])
        >>> prompt = torch.tensor([[1.0, 1.0]])
        >>> TrimTokenator(keep=2, sorted=False).select(visual, prompt).indices
        tensor([2, 0])
    """

    about: ClassVar[About] = About(
        title="TrimTokenator",
        paper="arXiv 2509.00320",
        inputs=(VISUAL, PROMPT),
        primitives=("alignment", "topk", "min_sum"),
        cost="(N + M) D + align N K D",
        against="float64 loops, replay of every pick",
    )

    keep: float
    align: float = 0.8
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _values.share_or_count("TrimTokenator", "align", self.align)

    @_values.naming("TrimTokenator")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` `[B, N, D]` for `prompt` `[B, M, D]`, which is required.

        Returns:
            The selection, without core; its scores are the alignments, minus a mean squared
            distance, -inf for invalid tokens. Where no prompt token is valid all tokens stay.
        """
        _rules.visual("TrimTokenator", visual, visual_mask)
        prompt = self.about.require("prompt", prompt)
        scores = alignment(visual, prompt, visual_mask=visual_mask, prompt_mask=prompt_mask)
        n = visual.shape[-2]
        k = api.num_keep(n, self.keep)
        valid = scores > -torch.inf
        order = topk(scores, n)
        stay = members(order.masked_fill(self._rank_out(valid, k), -1), n)
        # Without a prompt nobody is less aligned than another.
        stay = torch.where(((scores == 0) | ~valid).all(-1, keepdim=True), valid, stay)
        picks = api.min_sum(visual, k, visual_mask=stay)
        return selection(picks, visual, self.sorted, scores=scores.to(torch.float32))

    def _rank_out(self, valid: Tensor, k: int) -> Tensor:
        """Which ranks of an image's tokens do not stay: a share is one of its valid tokens."""
        count = valid.sum(-1, keepdim=True)
        if isinstance(self.align, float):
            count = (self.align * count.double()).round().long()
        else:
            count = torch.full_like(count, self.align)
        ranks = torch.arange(valid.shape[-1], device=valid.device)
        return ranks >= count.clamp_min(max(k, 1))
