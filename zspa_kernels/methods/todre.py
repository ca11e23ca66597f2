# SPDX-License-Identifier: Apache-2.0
"""ToDRE, first stage: max-sum diversification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..types import Selection
from ._compose import check_options, kept_of_each, selection
from ._registry import VISUAL, About, register
from .base import MethodBase


@register("todre")
@dataclass(frozen=True)
class ToDRE(MethodBase):
    """Tokens picked so that the sum of their distances is large.

    ToDRE, arXiv 2505.18757v2, first stage: greedy max-sum diversification, each pick of the
    smallest summed cosine to those before it. The first pick, which we do not know from the paper,
    has the smallest summed cosine to all tokens. The paper's first version picked by k-center:
    that is `DivPrune`. Its second stage drops all visual tokens in a late layer of the language
    model and is no selection.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]])
        >>> ToDRE(keep=2, sorted=False).select(visual).indices
        tensor([3, 0])
    """

    about: ClassVar[About] = About(
        title="ToDRE",
        paper="arXiv 2505.18757",
        inputs=(VISUAL,),
        primitives=("min_sum",),
        cost="N K D",
        against="float64 loops, replay of every pick",
    )

    keep: float
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` `[B, N, D]`; the prompt is accepted and plays no part.

        Returns:
            The selection, without core and without scores.
        """
        _rules.visual("ToDRE", visual, visual_mask)
        k = api.num_keep(visual.shape[-2], self.keep)
        return selection(api.min_sum(visual, k, visual_mask=visual_mask), visual, self.sorted)

    @_values.naming("ToDRE")
    def select_varlen(
        self, visual: Sequence[Tensor], prompt: Sequence[Tensor] | None = None
    ) -> list[Selection]:
        """One ragged call for all images. See `MethodBase.select_varlen`."""
        kept = kept_of_each(self.about, visual, self.keep)
        picks = api.min_sum_varlen(list(visual), kept)
        return [selection(one, x, self.sorted) for one, x in zip(picks, visual, strict=True)]
