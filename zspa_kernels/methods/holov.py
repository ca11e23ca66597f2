# SPDX-License-Identifier: Apache-2.0
"""HoloV: the tokens of highest attention, so many of each crop as its attention is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from .._contract import values as _values
from ..primitives._image import SHORTEST, undisturbed
from ..primitives.sharing import best_of_crops, crops, means
from ..primitives.similarity import valid_rows
from ..types import Selection
from ._compose import ATTENTION, check_options, per_token
from ._registry import VISUAL, About, register
from .base import EachByItself

_LARGEST = torch.finfo(torch.float32).max


@register("holov")
@dataclass(frozen=True)
class HoloV(EachByItself):
    """The tokens of highest attention in every crop; a crop gets as many as its mean is worth.

    HoloV, arXiv 2510.02912 (NeurIPS 2025). The valid tokens are cut, in raster order, into crops
    of equal size, the first ones a token larger. A crop weighs the mean attention of its tokens, to
    the power of `sharpness`. It gets its share of the budget, rounded down; what is left over goes
    to the crops of largest weight, one token each. Slots that a crop is too small for go to the
    tokens of highest attention elsewhere.

    The paper adds to a token's attention the variance of its similarities to the others of its
    crop, scaled so that the means of both over the crop are equal. The mean of the sum is then in
    every crop the same multiple of the mean attention, so similarity cannot change what a crop
    gets. It could where the tokens of a crop are chosen; the published code chooses them by
    attention alone, and is followed by default.

    What the published code does otherwise: it adds 1e-6 to the variance it divides by, so that a
    crop of zero rows weighs 8 % less; a crop of one token weighs a thousandth; slots that a crop is
    too small for become zero rows; and tokens stand crop after crop, by falling attention.

    Attributes:
        keep: share of the tokens in (0, 1], or a count; see `num_keep`.
        crops: how many there are, at least 1.
        variance: weight of the variance where the tokens of a crop are chosen: 0 as in the
            published code, 1 as in the paper; in [0, 1e6].
        sharpness: how much the crops differ, the paper's tau: 0 gives equal ones, in [0, 100].
        rounding: of `keep`; see `num_keep`.
        sorted: ascending indices, or by falling score.

    Example:
        >>> attention = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.4, 0.6])
        >>> HoloV(keep=3, crops=2).select(torch.eye(6), attention=attention).indices
        tensor([0, 1, 5])
    """

    about: ClassVar[About] = About(
        title="HoloV",
        paper="arXiv 2510.02912, NeurIPS 2025",
        inputs=(VISUAL, ATTENTION),
        primitives=("topk",),
        cost="N log N; with `variance` N^2 D / crops",
        against="float64 loops, equal picks",
    )

    keep: float
    crops: int = 16
    variance: float = 0.0
    sharpness: float = 1.0
    rounding: str = "round"
    sorted: bool = True

    def __post_init__(self) -> None:
        check_options(self.about, self)
        _values.integer_at_least("HoloV", "crops", self.crops, 1)
        _rules.number("HoloV", "variance", self.variance, 0.0, 1e6)
        _rules.number("HoloV", "sharpness", self.sharpness, 0.0, 100.0)

    @_values.naming("HoloV")
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
            visual: projected tokens `[B, N, D]` or `[N, D]`; only their number counts without
                `variance`.
            prompt: ignored.
            attention: `[B, N]`. Required; a token whose attention is NaN or infinite is masked out.
                Where it is negative it counts as 0 in the mean of a crop.
            visual_mask: bool `[B, N]`, True for real tokens.
            prompt_mask: ignored.

        Returns:
            The selection, without core; its scores are the attention, with what `variance` adds.
        """
        attention = per_token(self.about, "attention", attention, visual, visual_mask)
        scores, valid = attention, attention.isfinite()
        if visual_mask is not None:
            valid = valid & visual_mask
        if self.variance:
            valid = valid & valid_rows(visual, visual_mask)
            crop, sizes = crops(valid, self.crops)
            varied = _variance(visual.detach(), valid, sizes)
            unit = means(varied, crop, sizes)
            attended = means(attention.clamp_min(0.0), crop, sizes)
            scale = torch.where(unit > 0.0, self.variance * attended / unit, 0.0)
            own = scale.gather(-1, crop.clamp_max(self.crops - 1))
            scores = (attention.double() + own * varied).clamp_max(_LARGEST).float()
        k = api.num_keep(visual.shape[-2], self.keep, self.rounding)
        picks = best_of_crops(attention, scores, valid, k, self.crops, self.sharpness, self.sorted)
        return Selection(picks, torch.zeros_like(picks, dtype=torch.bool), scores)


@undisturbed
def _variance(visual: Tensor, valid: Tensor, sizes: Tensor) -> Tensor:
    """float64 `[B, N]`: how much a token's similarities to the tokens of its crop vary.

    The paper's similarity of a token to itself is 0 and counts; 0 in a crop of one token.
    """
    if visual.ndim == 2:
        return _variance(visual[None], valid[None], sizes[None])[0]
    n, count = valid.shape[-1], sizes.shape[-1]
    result = torch.zeros(valid.shape, dtype=torch.float64, device=visual.device)
    place = torch.arange(-(-n // count), device=visual.device)  # of the largest crop
    order = (~valid).int().sort(dim=-1, stable=True).indices
    starts = sizes.cumsum(-1) - sizes
    for start, size in zip(starts.split(1, -1), sizes.split(1, -1), strict=True):
        inside = place < size
        token = order.gather(-1, (start + place).clamp_max(n - 1))
        rows = visual.gather(1, token.unsqueeze(-1).expand(-1, -1, visual.shape[-1])).double()
        rows = rows.masked_fill(~inside.unsqueeze(-1), 0.0)
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        rows = rows / length.where(length >= SHORTEST, torch.inf)
        similar = rows @ rows.mT
        similar = similar.masked_fill(
            torch.eye(len(place), dtype=torch.bool, device=rows.device), 0
        )
        others = (size - 1).clamp_min(1)
        mean = similar.sum(-1) / others
        apart = (similar - mean.unsqueeze(-1)).masked_fill(~inside.unsqueeze(-2), 0.0)
        varied = apart.square().sum(-1) / others
        result = result.scatter_add(-1, token, varied.where(inside & (size > 1), 0.0))
    return result
