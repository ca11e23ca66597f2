# SPDX-License-Identifier: Apache-2.0
"""ZOO-Prune: sensitivity-aware diverse token pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from .._sensitivity import SCORES, Scorer, row_lengths
from ..primitives import min_max, quotas
from ..primitives.similarity import valid_rows
from ..projectors import Projector
from ..sensitivity_plan import SensitivityPlan
from ..types import Selection
from ._compose import check_options, kept_of_each, of_each, selection, selections
from ._registry import VISUAL, About, Input, register
from .base import MethodBase


@register("zooprune")
@dataclass(frozen=True, eq=False)
class ZOOPrune(MethodBase):
    """Diverse tokens to which the projector responds: each pick maximises sensitivity x distance.

    ZOO-Prune, arXiv 2509.24837. A token's sensitivity says how far the projector's output moves
    under small perturbations of its input. Scaled to [0, 1] over the valid tokens of its image it
    weighs the distance `1 - largest similarity` to the tokens picked before; the first pick is the
    most sensitive token. Where all sensitivities are equal up to 0.1 % (a linear projector) they
    weigh nothing. The published code draws other directions at every run; here a seed fixes them,
    and by default there are none: the closed form is their limit.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        projector: the module between vision tower and language model, or what was made of it: a
            `Projector` or a `SensitivityPlan`. Prepared once, here. None: `select` is given the
            sensitivities, or score is `"norm"`.
        score: `"closed_form"`, `"zeroth_order"` (the published estimate), `"linearised"` or
            `"norm"` (length of the visual tokens, free); see `sensitivity`.
        rank: of the closed form's factor; see `SensitivityPlan`.
        directions: `[m, D]`, used as given, or how many random unit vectors.
        seed: of those.
        radius: of the perturbation.
        rounding: of a share, `"floor"` as published or `"round"`; see `num_keep`.
        sorted: ascending indices, or the order of picking.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]])
        >>> method = ZOOPrune(keep=2)
        >>> method.select(visual, sensitivity=torch.tensor([0.2, 0.9, 0.1, 0.5])).indices
        tensor([1, 3])
    """

    about: ClassVar[About] = About(
        title="ZOOPrune",
        paper="arXiv 2509.24837, CVPR 2026",
        inputs=(
            VISUAL,
            Input(
                "features", "[B, N, C]", "the projector's input, the vision tower's output", False
            ),
            Input("sensitivity", "[B, N]", "a score per token, instead of features", False),
        ),
        primitives=("sensitivity", "diversity"),
        cost="N H^2 (closed form) + N K D",
        against="float64 oracle, published formula",
    )

    keep: float
    projector: nn.Module | Projector | SensitivityPlan | None = field(default=None, repr=False)
    score: str = "closed_form"
    rank: int | None = None
    directions: Tensor | int = 64
    seed: int = 0
    radius: float = 0.01
    rounding: str = "floor"
    sorted: bool = True
    _scorer: Scorer | None = field(init=False, default=None, repr=False)

    @_values.naming("ZOOPrune")
    def __post_init__(self) -> None:
        check_options(self.about, self)
        _values.option("ZOOPrune", "score", self.score, SCORES)
        if self.projector is not None and self.score != "norm":
            scorer = Scorer.of(
                "ZOOPrune",
                self.projector,
                self.score,
                self.rank,
                self.directions,
                self.seed,
                self.radius,
                reuse=True,
            )
            object.__setattr__(self, "_scorer", scorer)

    @_values.naming("ZOOPrune")
    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None = None,
        *,
        features: Tensor | None = None,
        sensitivity: Tensor | None = None,
        tiles: Sequence[int] | Tensor | None = None,
        visual_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Selection:
        """Choose tokens of `visual`; the prompt is accepted and plays no part.

        Args:
            visual: projected tokens `[B, N, D]` or `[N, D]`.
            prompt: ignored.
            features: what the projector made them of, `[B, N, C]`; see `sensitivity`.
            sensitivity: instead, one score per token, `[B, N]`: larger is more sensitive.
            tiles: for one image `[N, D]` of several tiles (LLaVA-NeXT): the tile of every token, on
                the host. Each tile is scaled and selected by itself and gets an equal share of the
                budget, what is left over going to the first ones; a tile with too few tokens leaves
                its rest to the others. Tokens of no tile (-1: newline embeddings) are all kept, in
                addition; masked and invalid ones are -1.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection, without core; its scores are the sensitivities, NaN for invalid tokens.
        """
        _rules.visual("ZOOPrune", visual, visual_mask)
        scores = self._scores(visual, features, sensitivity)
        if scores.shape != visual.shape[:-1]:
            rule = f"make one score per token, {list(visual.shape[:-1])}"
            raise ValueError(f"ZOOPrune: features must {rule}, got {list(scores.shape)}")
        # What cannot be selected must not scale the others either.
        valid = valid_rows(visual, visual_mask)
        if tiles is None:
            k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
            weights = min_max(scores, valid)
            picks = api.diversity(visual, k, weights=weights, visual_mask=visual_mask)
        else:
            picks = self._select_tiles(visual, scores, valid, _labels(tiles, visual))
        return selection(picks, visual, self.sorted, scores=scores)

    @property
    def model_inputs(self) -> tuple[Input, ...]:
        """Tokens alone: `rate` is asked for the rest."""
        return (VISUAL,)

    @property
    def needs_features(self) -> bool:
        """Whether sensitivities come from what the projector is given."""
        return self.score != "norm"

    @_values.naming("ZOOPrune")
    def rate(self, features: Tensor | None) -> Tensor:
        """Sensitivities float32 `[B, N]` from the projector's inputs `[B, T, C]`."""
        if self._scorer is None:
            rule = 'be given, or sensitivity, or score="norm"'
            raise TypeError(f"ZOOPrune: projector must {rule}, got None")
        if features is None:
            raise TypeError("ZOOPrune: features must be given, or sensitivity, got None")
        return self._scorer(features)

    @_values.naming("ZOOPrune")
    def select_varlen(
        self,
        visual: Sequence[Tensor],
        prompt: Sequence[Tensor] | None = None,
        *,
        sensitivity: Sequence[Tensor] | None = None,
    ) -> list[Selection]:
        """One ragged call for all images; `sensitivity` is `[n]` of each.

        See `MethodBase.select_varlen`. Tiles that are to be scaled and selected each by itself are
        images of their own here.
        """
        kept = kept_of_each(self.about, visual, self.keep, self.rounding)
        for tokens in visual:
            _rules.visual("ZOOPrune", tokens)
        given = of_each(self.about, "sensitivity", sensitivity, visual)
        scores = [self._scores(v, None, s) for v, s in zip(visual, given, strict=True)]
        weights = [min_max(s, valid_rows(v, None)) for v, s in zip(visual, scores, strict=True)]
        picks = api.diversity_varlen(list(visual), kept, weights=weights)
        return selections(picks, visual, self.sorted, scores)

    def _scores(
        self, visual: Tensor, features: Tensor | None, sensitivity: Tensor | None
    ) -> Tensor:
        if sensitivity is not None:
            _rules.per_token("ZOOPrune", "sensitivity", sensitivity, visual)
            return sensitivity.detach().float()
        if self.score == "norm":
            return row_lengths(visual.detach())
        return self.rate(features)

    def _select_tiles(
        self, visual: Tensor, scores: Tensor, valid: Tensor, labels: list[int]
    ) -> Tensor:
        """The picks of every tile, tile after tile, then the tokens of none."""
        members: dict[int, list[int]] = {}
        for token, tile in enumerate(labels):
            members.setdefault(tile, []).append(token)
        outside = torch.tensor(members.pop(-1, []), dtype=torch.int64, device=visual.device)
        groups = [members[tile] for tile in sorted(members)]
        sizes = [len(group) for group in groups]
        k = api.num_keep(sum(sizes), self.keep, self.rounding)
        order = torch.tensor(
            [i for group in groups for i in group], dtype=torch.int64, device=visual.device
        )
        weights = [min_max(scores[g], valid[g]) for g in order.split(sizes)]
        picks = api.diversity_varlen(
            visual[order],
            quotas(k, sizes),
            lengths=sizes,
            weights=torch.cat([*weights, scores[:0]]),
        )
        outside = outside.masked_fill(~valid[outside], -1)
        return torch.cat((api.gather(order + 1, picks) - 1, outside))


def _labels(tiles: Sequence[int] | Tensor, visual: Tensor) -> list[int]:
    """The tile of every token as ints."""
    if visual.ndim != 2:
        raise ValueError(f"ZOOPrune: tiles must be None for a batch, got {list(visual.shape)}")
    labels = tiles.tolist() if isinstance(tiles, Tensor) else list(tiles)
    if len(labels) != len(visual) or not all(type(label) is int for label in labels):
        raise ValueError(
            f"ZOOPrune: tiles must be one int per token, {len(visual)}, got {len(labels)} values"
        )
    if any(label < -1 for label in labels):
        raise ValueError(f"ZOOPrune: tiles must be at least -1, got {min(labels)}")
    return labels
