# SPDX-License-Identifier: Apache-2.0
"""ID-Selection: important tokens, each of which lowers the scores of those like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from ..primitives import min_max, soft_suppress
from ..primitives.similarity import valid_rows
from ..types import Selection
from ._compose import check_options, per_token, selection
from ._registry import VISUAL, About, Input, register
from .base import EachByItself


@register("idselection")
@dataclass(frozen=True)
class IDSelection(EachByItself):
    """The most important token at each turn, whose score is taken off those of similar tokens.

    ID-Selection, arXiv 2604.05601: importance scaled to [0, 1] over the image, then picks by score;
    a pick i takes `exp(-gamma (1 - cos(i, j))^2) s_i` off the score of token j. The paper has no
    published code, and we know its equations 7 to 9 from readings by others. They stop at a score
    of 0 and take what is left by index; here scores go on below 0, where a pick takes nothing off.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        gamma: how fast suppression falls with the distance; 20 in the paper.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> IDSelection(keep=2).select(visual, attention=torch.tensor([0.9, 0.8, 0.1])).indices
        tensor([0, 2])
    """

    about: ClassVar[About] = About(
        title="IDSelection",
        paper="arXiv 2604.05601",
        inputs=(
            VISUAL,
            Input(
                "attention",
                "[B, N]",
                "attention from [CLS] to each patch in the vision tower; without [CLS], from the "
                "last text token to each visual one in an early layer of the language model",
                tensor="cls attention",
            ),
        ),
        primitives=("min_max", "soft_suppress"),
        cost="up to N K D",
        against="float64 loops, equal picks",
    )

    keep: float
    gamma: float = 20.0
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _rules.number("IDSelection", "gamma", self.gamma, 1e-6, 1e6)

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            attention: the importance, `[B, N]`. Required; a token whose attention is NaN or
                infinite is masked out.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection, without core; its scores are the importance, scaled, NaN for invalid
            tokens.
        """
        scores = per_token(self.about, "attention", attention, visual, visual_mask)
        importance = min_max(scores, valid_rows(visual, visual_mask), 0.0)
        k = api.num_keep(visual.shape[-2], self.keep)
        picks = soft_suppress(visual, importance, k, sharpness=self.gamma)
        return selection(picks, visual, self.sorted, scores=importance)
