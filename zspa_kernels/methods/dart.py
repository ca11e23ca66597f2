# SPDX-License-Identifier: Apache-2.0
"""DART: a few pivots, and the tokens that duplicate each of them least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives.pivots import by_pivots
from ..types import Selection
from ._compose import KEYS, check_options
from ._registry import PROMPT, VISUAL, About, Input, register
from .base import EachByItself


@register("dart")
@dataclass(frozen=True)
class DART(EachByItself):
    """The tokens of largest norm as pivots, and for each of them those least similar to it.

    DART, arXiv 2502.11494 (EMNLP 2025), before the language model instead of in its second layer.
    The pivots are the tokens of largest L1 norm, which are kept, and the words of largest L1 norm.
    What is left of the budget is divided evenly among the pivots, the first ones getting one more:
    those among the tokens, then those among the words, each by falling norm. In this order every
    pivot takes the tokens of lowest cosine to it that none before it took.

    TensorRT Edge-LLM prunes by this variant, with these defaults, orders and counts. In the
    published code norms are those of the keys of a layer, cosines those of its normalised output:
    pass these as `keys` and `visual` to choose inside a model. It takes `budget // pivots` tokens a
    pivot, words included, beside the pivots themselves, so that another number is kept, goes
    through the pivots in the order of a Python set, and takes a zero row for a token of cosine 0;
    here zero rows come last.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        pivots: how many tokens are pivots, at least 1; all of a smaller budget.
        text_pivots: how many words are; fewer if the prompt has fewer, none without a prompt.
        by_keys: True: `select` needs keys, and a model that is pruned is asked for its vision
            tower's.
        rounding: of `keep`; see `num_keep`.
        sorted: ascending indices; or the pivots by falling norm, then what each of them took, by
            index.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[4.0, 0.0], [1.0, 0.5], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]])
        >>> picked = DART(keep=3, pivots=1).select(visual)
        >>> picked.indices, picked.core_mask
        (tensor([0, 2, 3]), tensor([ True, False, False]))
    """

    about: ClassVar[About] = About(
        title="DART",
        paper="arXiv 2502.11494, EMNLP 2025",
        inputs=(
            VISUAL,
            replace(PROMPT, required=False),
            replace(
                KEYS,
                required=False,
                source="instead of the tokens' own norms, the keys whose norms choose the pivots "
                f"(published: all heads of a layer of the language model); {KEYS.source}",
            ),
        ),
        primitives=("topk",),
        cost="N D (pivots + text_pivots)",
        against="float64 loops, equal picks",
    )

    keep: float
    pivots: int = 4
    text_pivots: int = 4
    by_keys: bool = False
    rounding: str = "round"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        for name, least in (("pivots", 1), ("text_pivots", 0)):
            _values.integer_at_least("DART", name, getattr(self, name), least)

    @property
    def model_inputs(self) -> tuple[Input, ...]:
        """Keys, which are then required, with `by_keys` only."""
        inputs = self.about.inputs
        return (*inputs[:2], replace(inputs[2], required=True)) if self.by_keys else inputs[:2]

    @_values.naming("DART")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` for `prompt`.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: text embeddings `[B, M, D]`, or None.
            keys: `[B, N, C]`, whose norms choose the pivots among the tokens; None: the tokens.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: bool `[B, M]`, True for real words.

        Returns:
            The selection; its core are the pivots, its scores the L1 norms that chose them, -1 of
            zero rows and NaN of invalid tokens.
        """
        if prompt is None:
            _rules.visual("DART", visual, visual_mask)
        else:
            _rules.visual_and_prompt("DART", visual, prompt, visual_mask, prompt_mask)
        if keys is not None or self.by_keys:
            keys = self.about.require("keys", keys)
            _rules.features("DART", "keys", keys, visual)
        k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
        counts = (k, self.pivots, self.text_pivots, self.sorted)
        return Selection(*by_pivots(visual, *counts, keys, prompt, visual_mask, prompt_mask))
