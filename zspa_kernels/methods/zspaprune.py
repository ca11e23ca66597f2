# SPDX-License-Identifier: Apache-2.0
"""ZSPAPrune: zero-shot prompt-aware token pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import values as _values
from .._counts import DEFAULT_CORE_RATIO
from ..primitives.scores import members
from ..types import Selection
from ._compose import check_options, kept_of_each
from ._registry import PROMPT, VISUAL, About, register
from .base import MethodBase, select_by_counts


@register("zspaprune")
@dataclass(frozen=True)
class ZSPAPrune(MethodBase):
    """A core of the tokens most relevant to the prompt, completed by diverse tokens.

    ZSPAPrune, arXiv 2510.17197, equations 4 to 9. The paper tunes the share of the core for each
    benchmark: 0.1 for GQA, 0.2 for POPE, 0.4 for MMMU (Table 2). Where it is silent: ties go to the
    lowest index, and without a prompt the selection is DivPrune's.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        core_ratio: share of the kept tokens chosen by relevance; see `split_core`.
        pooling: how the prompt tokens become one relevance (Table 4); see `select`.
        sorted: ascending indices, or the core before the diversity picks; see `select`.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.2]])
        >>> method = ZSPAPrune(keep=0.5, core_ratio=0.5)
        >>> picked = method.select(visual, prompt=torch.tensor([[2.0, 0.1]]))
        >>> picked.indices, picked.core_mask
        (tensor([0, 3]), tensor([ True, False]))
        >>> picked.gather(visual).shape
        torch.Size([2, 2])
    """

    about: ClassVar[About] = About(
        title="ZSPAPrune",
        paper="arXiv 2510.17197",
        inputs=(VISUAL, replace(PROMPT, required=False)),
        primitives=("select", "relevance_topk"),
        cost="N K D",
        against="float64 oracle, replay of every pick",
    )

    keep: float
    core_ratio: float = DEFAULT_CORE_RATIO
    pooling: str = "mean"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _values.ratio("ZSPAPrune", "core_ratio", self.core_ratio)

    @_values.naming("ZSPAPrune")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` `[B, N, D]` for `prompt` `[B, M, D]`; arguments as in `select`.

        Returns:
            The selection; its scores are the relevance of every token, None without a prompt.
        """
        indices = api.select(
            visual,
            prompt,
            keep=self.keep,
            core_ratio=None if prompt is None else self.core_ratio,
            visual_mask=visual_mask,
            prompt_mask=prompt_mask,
            pooling=self.pooling,
            sorted=self.sorted,
        )
        if prompt is None:
            return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))
        core, scores = api.relevance_topk(
            visual,
            prompt,
            api.split_core(indices.shape[-1], self.core_ratio),
            visual_mask=visual_mask,
            prompt_mask=prompt_mask,
            pooling=self.pooling,
        )
        in_core = members(core, visual.shape[-2]).gather(-1, indices.clamp_min(0))
        return Selection(indices, in_core & (indices >= 0), scores)

    @_values.naming("ZSPAPrune")
    def select_varlen(
        self, visual: Sequence[Tensor], prompt: Sequence[Tensor] | None = None
    ) -> list[Selection]:
        """One ragged call for all images; without scores. See `MethodBase.select_varlen`."""
        kept = kept_of_each(self.about, visual, self.keep)
        core = [0 if prompt is None else api.split_core(k, self.core_ratio) for k in kept]
        diverse = [k - c for k, c in zip(kept, core, strict=True)]
        return select_by_counts(visual, prompt, core, diverse, self.pooling, self.sorted)
