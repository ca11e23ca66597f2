# SPDX-License-Identifier: Apache-2.0
"""MMTok: tokens that cover the words of the prompt and the image together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from ..primitives.similarity import valid_rows, word_cosines
from ..types import Selection
from ._compose import (
    FEATURES,
    check_options,
    compared,
    kept_of_each,
    of_each,
    selection,
    selections,
)
from ._registry import PROMPT, VISUAL, About, register
from .base import MethodBase


@register("mmtok")
@dataclass(frozen=True)
class MMTok(MethodBase):
    """Each pick adds most to the coverage of the prompt's words and of the image's own tokens.

    MMTok, arXiv 2508.18264 (ICLR 2026). A word is covered by a token to the softmax, over tokens,
    of their cosine (projected token, word embedding) over `text_temperature`; a token by another to
    the softmax of their features' cosine over `vision_temperature`. The objective is the mean
    coverage of words plus `balance` times the mean coverage of tokens, by its greedy maximum.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        text_temperature: 0.02 in the paper; the published function's own default is 0.01.
        vision_temperature: 0.2 in the paper.
        balance: 0.5 in the paper. 0 covers the words alone.
        rounding: of a share, `"floor"` as published; see `num_keep`.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 0.6], [0.0, 1.0]])
        >>> method = MMTok(keep=2, sorted=False)
        >>> method.select(visual, prompt=torch.tensor([[0.0, 2.0]])).indices
        tensor([3, 1])
    """

    about: ClassVar[About] = About(
        title="MMTok",
        paper="arXiv 2508.18264, ICLR 2026",
        inputs=(VISUAL, PROMPT, FEATURES),
        primitives=("relevance_topk", "facility_location"),
        cost="N^2 C + N^2 K + M N D",
        against="float64 loops, replay of every pick",
    )

    keep: float
    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    balance: float = 0.5
    rounding: str = "floor"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        for name in ("text_temperature", "vision_temperature"):
            _rules.number("MMTok", name, getattr(self, name), 1e-4, math.inf)
        _rules.number("MMTok", "balance", self.balance, 0.0, math.inf)

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        features: Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual` for `prompt`.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: `[B, M, D]`. Required; an image without a valid word is selected by the
                coverage of its own tokens, or by index where `balance` is 0.
            features: `[B, N, C]`, whose cosines say what covers what; None: the visual tokens.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: bool `[B, M]`, True for real words.

        Returns:
            The selection, without core; its scores are the mean softmax of words over each token,
            0 for invalid ones.
        """
        space, benefits, valid = self._benefits(visual, prompt, features, visual_mask, prompt_mask)
        k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
        picks = api.facility_location(
            space,
            k,
            benefits=benefits,
            visual_mask=valid,
            temperature=self.vision_temperature,
            scale=self.balance,
        )
        return selection(picks, visual, self.sorted, scores=benefits.sum(-2))

    def select_varlen(
        self,
        visual: Sequence[Tensor],
        prompt: Sequence[Tensor] | None = None,
        *,
        features: Sequence[Tensor] | None = None,
    ) -> list[Selection]:
        """One ragged call for all images; `features` are those of each.

        See `MethodBase.select_varlen`.
        """
        words = of_each(self.about, "prompt", prompt, visual)
        spaces = of_each(self.about, "features", features, visual)
        each = zip(visual, words, spaces, strict=True)
        given = [self._benefits(*own, None, None) for own in each]
        most = max([0, *(len(benefits) for _, benefits, _ in given)])
        picks = api.facility_location_varlen(
            [space for space, _, _ in given],
            kept_of_each(self.about, visual, self.keep, self.rounding),
            benefits=[_with_rows(benefits, most) for _, benefits, _ in given],
            # A weight of 1 changes no gain, one of NaN masks a token out.
            weights=[valid.float().masked_fill(~valid, torch.nan) for _, _, valid in given],
            temperature=self.vision_temperature,
            scale=self.balance,
        )
        return selections(picks, visual, self.sorted, [b.sum(-2) for _, b, _ in given])

    def _benefits(
        self,
        visual: Tensor,
        prompt: Tensor | None,
        features: Tensor | None,
        visual_mask: Tensor | None,
        prompt_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is covered, what each token gives to each word, and which tokens are valid."""
        prompt = self.about.require("prompt", prompt)
        _rules.visual_and_prompt("MMTok", visual, prompt, visual_mask, prompt_mask)
        space = compared(self.about, "features", features, visual)
        if features is not None:
            # A token that cannot be chosen takes no share of a word either.
            visual_mask = valid_rows(space, visual_mask)
        share, valid = self._words(visual, prompt, visual_mask, prompt_mask)
        # No word at all is a row of zeros, as masked words are: the balance counts in either case.
        return space, _with_rows(share, 1), valid

    def _words(
        self,
        visual: Tensor,
        prompt: Tensor,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What each token gives to each word, float32 `[B, M, N]`, and which tokens are valid.

        What an image gives adds up to 1.
        """
        cosine, valid, real = word_cosines(visual, prompt, visual_mask, prompt_mask)
        share = torch.softmax(cosine.double() / self.text_temperature, -1).nan_to_num(0.0)
        share = share / real.sum(-1).clamp_min(1)[..., None, None]
        return torch.where(real.unsqueeze(-1), share, 0.0).float(), valid


def _with_rows(benefits: Tensor, count: int) -> Tensor:
    """At least `count` rows: `benefits` `[..., M, N]`, then zeros, which ask for nothing."""
    missing = max(0, count - benefits.shape[-2])
    return torch.nn.functional.pad(benefits, (0, 0, 0, missing))
