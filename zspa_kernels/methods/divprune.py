# SPDX-License-Identifier: Apache-2.0
"""DivPrune: diversity-based token pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import values as _values
from ..types import Selection
from ._compose import check_options, kept_of_each
from ._registry import VISUAL, About, register
from .base import MethodBase, select_by_counts


@register("divprune")
@dataclass(frozen=True)
class DivPrune(MethodBase):
    """Tokens picked so that the smallest distance between any two of them is large.

    DivPrune, arXiv 2503.02175, section 3: the max-min diversity problem, solved greedily from the
    token whose nearest neighbour is farthest. Two tokens that are equal never cost a pick twice:
    selected tokens are out of the race.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> import torch
        >>> DivPrune(keep=2).select(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])).indices
        tensor([0, 2])
    """

    about: ClassVar[About] = About(
        title="DivPrune",
        paper="arXiv 2503.02175, CVPR 2025",
        inputs=(VISUAL,),
        primitives=("select",),
        cost="N K D; first pick up to N^2 D",
        against="float64 oracle, replay of every pick",
    )

    keep: float
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)

    @_values.naming("DivPrune")
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
        indices = api.select(visual, keep=self.keep, visual_mask=visual_mask, sorted=self.sorted)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))

    @_values.naming("DivPrune")
    def select_varlen(
        self, visual: Sequence[Tensor], prompt: Sequence[Tensor] | None = None
    ) -> list[Selection]:
        """One ragged call for all images. See `MethodBase.select_varlen`."""
        kept = kept_of_each(self.about, visual, self.keep)
        return select_by_counts(visual, None, [0] * len(kept), kept, sort=self.sorted)
