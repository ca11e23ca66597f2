# SPDX-License-Identifier: Apache-2.0
"""Rules that keep the tokens of highest score, where only the score is the method's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import _counts
from .._contract import values as _values
from ..primitives.scores import chosen
from ..types import Selection
from ._compose import check_options, per_token
from ._registry import VISUAL, About, Input, register
from .base import EachByItself


@dataclass(frozen=True)
class Preset:
    """A published method whose selection is a top-k of a tensor that the model has.

    Attributes:
        title: the method's own name.
        paper: where it was published.
        scores: which tensor of which layer, reduced to `[B, N]`.
        how: how users of transformers get it.
        tensor: see `Input`.
    """

    title: str
    paper: str
    scores: str
    how: str
    tensor: str = ""

    @property
    def about(self) -> About:
        """Facts, as of any method."""
        scores = Input("scores", "[B, N]", f"{self.scores}; {self.how}", tensor=self.tensor)
        return About(
            title=self.title,
            paper=self.paper,
            inputs=(VISUAL, scores),
            primitives=("topk",),
            cost="N log N",
            against="float64 loops, equal picks",
        )


_EAGER = 'attn_implementation="eager", output_attentions=True: attentions'

PRESETS = {
    "fastervlm": Preset(
        "FasterVLM",
        "arXiv 2412.01818",
        "attention from [CLS] to the patches, mean over heads, of the vision tower's layer whose "
        "output is used (LLaVA: the last but one)",
        f"{_EAGER}[-2][:, :, 0, 1:].mean(1)",
        "cls attention",
    ),
    "fastv": Preset(
        "FastV",
        "arXiv 2403.06764, ECCV 2024",
        "attention from the last token to the visual ones, mean over heads, in the language "
        "model's second layer, after which the others are dropped",
        f"{_EAGER}[1][:, :, -1, visual_positions].mean(1)",
    ),
    "visiondrop": Preset(
        "VisionDrop",
        "arXiv 2506.22283, AAAI 2026",
        "attention that a visual token receives from all visual tokens, mean over heads and "
        "queries, in the layer where tokens are dropped; its merging of the rest is not part",
        f"{_EAGER}[layer][:, :, visual_positions][..., visual_positions].mean((1, 2))",
    ),
    "vflowopt": Preset(
        "VFlowOpt",
        "arXiv 2508.05211",
        "its calibrated importance; its parameters are optimised offline, and the recycling of "
        "dropped tokens is not part",
        "computed by its own code, once a stage",
    ),
    "vitcop": Preset(
        "ViTCoP",
        "arXiv 2601.17818, AAAI 2026",
        "in the vision tower [CLS] attention; in the language model's layers 2 and 22 a score from "
        "the L2 norm of keys, inside each of its clusters (`segments` and `quotas`)",
        f"{_EAGER}[-2][:, :, 0, 1:].mean(1), or the key cache's norm(dim=-1).mean(1)",
    ),
    "topv": Preset(
        "TopV",
        "arXiv 2503.18278, CVPR 2025",
        "contribution of a token by optimal transport over feature similarity and distance in the "
        "image, from the language model's layer 2",
        "computed by its own code from hidden_states[2]; no attention is needed",
    ),
}


@register("scoredtopk")
@dataclass(frozen=True)
class ScoredTopK(EachByItself):
    """The tokens of highest score: the selection of every method that only brings a score.

    `PRESETS` says for published ones which tensor of which layer the score is, and how to get it;
    `get("fastv", keep=0.1)` makes one. A method that learns its score (GlimpsePrune, CoViPAL, ...)
    fits as well.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        preset: name in `PRESETS`, which the error of a missing score quotes; None for your own.
        rounding: of a share; see `num_keep`.
        sorted: ascending indices, or by falling score.

    Example:
        >>> import torch
        >>> method = ScoredTopK(keep=2, preset="fastv")
        >>> method.select(torch.eye(4), scores=torch.tensor([0.1, 0.4, 0.2, 0.3])).indices
        tensor([1, 3])
    """

    about: ClassVar[About] = About(
        title="ScoredTopK",
        paper="the presets' papers",
        inputs=(VISUAL, Input("scores", "[B, N]", "any score, larger is kept")),
        primitives=("topk",),
        cost="N log N",
        against="float64 loops, equal picks",
    )

    keep: float
    preset: str | None = None
    rounding: str = "round"
    sorted: bool = True

    def __post_init__(self) -> None:
        if self.preset is not None:
            _values.option("ScoredTopK", "preset", self.preset, tuple(PRESETS))
        check_options(self._facts, self)

    @property
    def model_inputs(self) -> tuple[Input, ...]:
        """The preset's."""
        return self._facts.inputs

    @property
    def _facts(self) -> About:
        return self.about if self.preset is None else PRESETS[self.preset].about

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        scores: Tensor | None = None,
        force_keep: Tensor | None = None,
        segments: Tensor | None = None,
        quotas: list[int] | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`; only their number counts.
            prompt: ignored.
            scores: `[B, N]`, any floating dtype. Required; a token whose score is NaN or infinite
                is masked out.
            force_keep: bool `[B, N]`: kept whatever their score, as part of K; see `topk`.
            segments: int `[B, N]`, the segment (crop, frame, cluster) of every token; see `topk`.
            quotas: how many tokens each segment gets, adding up to K.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection; all of it is core, and its scores are those given.
        """
        rating = per_token(self._facts, "scores", scores, visual, visual_mask)
        k = _counts.counted(visual.shape[-2], self.keep, self.rounding)
        picked = chosen(rating, k, visual_mask, force_keep, segments, quotas, self.sorted)
        return Selection(*picked, rating)


def _named(preset: str) -> Callable[..., ScoredTopK]:
    """Makes a preset's method; unlike with a partial of the class, no option names another."""

    def make(keep: float, *, rounding: str = "round", sorted: bool = True) -> ScoredTopK:
        return ScoredTopK(keep, preset=preset, rounding=rounding, sorted=sorted)

    return make


for _name, _preset in PRESETS.items():
    register(_name, _named(_name), _preset.about)
