# SPDX-License-Identifier: Apache-2.0
"""VisPruner: important tokens by attention, and of the others those without a double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives import thin
from ..primitives.scores import combined, largest
from ..primitives.similarity import valid_rows
from ..types import Selection
from ._compose import ATTENTION, FEATURES, check_options, compared, per_token
from ._registry import VISUAL, About, register
from .base import EachByItself


@register("vispruner")
@dataclass(frozen=True)
class VisPruner(EachByItself):
    """The tokens of highest attention, and of the others those that are unlike each other.

    VisPruner, arXiv 2412.01818 (ICCV 2025; the method that its first version calls FasterVLM).
    Half of the budget goes to the important tokens. The others are thinned out: every second one of
    them is compared with the rest, and the eight most similar ones go, again and again until the
    budget is met; see `zspa_kernels.primitives.thin`.

    The published code leaves the order of equal tokens to a sort and fails where an odd number of
    tokens is compared; here the first of equal ones goes, and odd numbers are fine.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        important: share of the kept tokens that are important, in [0, 1], rounded down.
        step: how many tokens go at a time, at least 1.
        rounding: of `keep`; see `num_keep`.
        sorted: ascending indices; or the important ones by falling attention, then the others as
            `thin` leaves them.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 0.5]])
        >>> attention = torch.tensor([0.1, 0.4, 0.2, 0.3])
        >>> picked = VisPruner(keep=3).select(visual, attention=attention)
        >>> picked.indices, picked.core_mask
        (tensor([0, 1, 2]), tensor([False,  True, False]))
    """

    about: ClassVar[About] = About(
        title="VisPruner",
        paper="arXiv 2412.01818, ICCV 2025",
        inputs=(VISUAL, ATTENTION, FEATURES),
        primitives=("topk", "thin"),
        cost="N^2 C + N^2 log N / step",
        against="float64 loops, equal picks",
    )

    keep: float
    important: float = 0.5
    step: int = 8
    rounding: str = "round"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _rules.number("VisPruner", "important", self.important, 0.0, 1.0)
        _values.integer_at_least("VisPruner", "step", self.step, 1)

    @_values.naming("VisPruner")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        features: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            attention: `[B, N]`. Required; a token whose attention is NaN or infinite is masked out.
            features: `[B, N, C]`, whose cosine says what is double; None: the visual tokens.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection; its core are the important tokens, its scores the attention.
        """
        scores = per_token(self.about, "attention", attention, visual, visual_mask)
        space = compared(self.about, "features", features, visual)
        valid = valid_rows(visual, visual_mask)
        if features is not None:
            valid = valid & valid_rows(space, visual_mask)
        k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
        core = largest(scores, int(k * self.important), valid)
        # -1 stands for the first token: where tokens run out for the core, none is left of them.
        left = valid.scatter(-1, core.clamp_min(0), False)
        others = thin(space, scores, k - core.shape[-1], step=self.step, mask=left)
        return Selection(*combined(core, others, k, self.sorted), scores)
