# SPDX-License-Identifier: Apache-2.0
"""GreedyPrune: salient tokens, none too similar to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives import suppress
from ..types import Selection
from ._compose import check_options, per_token, selection
from ._registry import VISUAL, About, Input, register
from .base import EachByItself


@register("greedyprune")
@dataclass(frozen=True)
class GreedyPrune(EachByItself):
    """The most salient tokens of which no two are more similar than a threshold.

    GreedyPrune, arXiv 2506.13166: maximise the sum of saliencies under a bound of the pairwise
    cosine, greedily by falling saliency. The paper has no published code; the value of the bound,
    and what fills the budget when too few tokens satisfy it, are options here.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        threshold: the largest cosine of two kept tokens, in [-1, 1]; the default is ours.
        fill: whether the most salient of the tokens left out take the slots that remain; otherwise
            they stay empty (-1).
        sorted: ascending indices, or the order of taking.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> GreedyPrune(keep=2).select(visual, saliency=torch.tensor([0.9, 0.8, 0.1])).indices
        tensor([0, 2])
    """

    about: ClassVar[About] = About(
        title="GreedyPrune",
        paper="arXiv 2506.13166",
        inputs=(
            VISUAL,
            Input(
                "saliency",
                "[B, N]",
                "attention the token receives: from [CLS] in the vision tower, or from the text in "
                "a layer of the language model",
                tensor="attention",
            ),
        ),
        primitives=("suppress",),
        cost="up to N K D",
        against="float64 loops, equal picks",
    )

    keep: float
    threshold: float = 0.9
    fill: bool = True
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _rules.number("GreedyPrune", "threshold", self.threshold, -1.0, 1.0)

    @_values.naming("GreedyPrune")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        saliency: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            saliency: `[B, N]`. Required; a token whose saliency is NaN or infinite is masked out.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection, without core; its scores are the saliency.
        """
        scores = per_token(self.about, "saliency", saliency, visual)
        k = api.num_keep(visual.shape[-2], self.keep)
        picks = suppress(
            visual, scores, k, threshold=self.threshold, fill=self.fill, visual_mask=visual_mask
        )
        return selection(picks, visual, self.sorted, scores=scores)
