# SPDX-License-Identifier: Apache-2.0
"""All-in relevance: the baseline that keeps the tokens most relevant to the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import api
from .._contract import tensors as _tensors
from .._contract import values as _values
from ..primitives._image import readable
from ..primitives.scores import ordered
from ..types import Selection
from ._compose import check_options, kept_of_each
from ._registry import PROMPT, VISUAL, About, register
from .base import MethodBase, select_by_counts


@register("allinrelevance")
@dataclass(frozen=True)
class AllInRelevance(MethodBase):
    """The most relevant tokens and nothing for diversity: a baseline, poor by design.

    "All-in Task-Relevance" of ZSPAPrune, arXiv 2510.17197.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        pooling: how the prompt tokens become one relevance; see `select`.
        sorted: ascending indices, or by falling relevance.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[0.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
        >>> AllInRelevance(keep=2).select(visual, torch.tensor([[1.0, 0.0]])).indices
        tensor([1, 2])
    """

    about: ClassVar[About] = About(
        title="AllInRelevance",
        paper="baseline of arXiv 2510.17197",
        inputs=(VISUAL, PROMPT),
        primitives=("select", "relevance_topk"),
        cost="(N + M) D",
        against="float64 oracle, replay of every pick",
    )

    keep: float
    pooling: str = "mean"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)

    @_values.naming("AllInRelevance")
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
            The selection: all core, but for rows without a valid prompt token, which are selected
            by diversity; its scores are the relevance of every token.
        """
        prompt = self.about.require("prompt", prompt)
        n = _tensors.num_tokens("AllInRelevance", visual)
        core, scores = api.relevance_topk(
            visual,
            prompt,
            api.num_keep(n, self.keep),
            visual_mask=visual_mask,
            prompt_mask=prompt_mask,
            pooling=self.pooling,
        )
        # Where looking at values costs nothing: with a prompt each row has a core, and is done.
        if readable(core) and _each_has_one(core):
            picked = ordered(core, n) if self.sorted else (core, core >= 0)
            return Selection(*picked, scores)
        indices = api.select(
            visual,
            prompt,
            k_core=core.shape[-1],
            k_diverse=0,
            visual_mask=visual_mask,
            prompt_mask=prompt_mask,
            pooling=self.pooling,
            sorted=self.sorted,
        )
        # Both end in the same number of -1, except that `core` is all -1 without a prompt.
        return Selection(indices, core >= 0, scores)

    @_values.naming("AllInRelevance")
    def select_varlen(
        self, visual: Sequence[Tensor], prompt: Sequence[Tensor] | None = None
    ) -> list[Selection]:
        """One ragged call for all images; without scores. See `MethodBase.select_varlen`."""
        if prompt is None:
            raise TypeError("AllInRelevance: prompt must be a sequence of tensors, got None")
        kept = kept_of_each(self.about, visual, self.keep)
        return select_by_counts(visual, prompt, kept, [0] * len(kept), self.pooling, self.sorted)


def _each_has_one(core: Tensor) -> bool:
    """Whether each row of `core` `[B, K]`, -1 at its end, begins with a token, if K > 0."""
    # As a rule there are no -1, and the least of all is found in half the time.
    return core.numel() == 0 or int(core.min()) >= 0 or int(core[..., 0].min()) >= 0
