# SPDX-License-Identifier: Apache-2.0
"""Tokens that have a double, taken out a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .._contract import primitives as _rules
from .._contract import values as _values
from ..backends.cpp import thinning as _cpp
from ._image import ROWS, Image, contiguous, images, in_full_precision, native, padded, plain

#: Neighbours that a token remembers: half of them are in the other set, so one is, nearly always.
_NEIGHBOURS = 32
_NONE = -2.0  # below every cosine
_ZERO_ROW = 2.0  # above


def thin(
    features: Tensor, scores: Tensor, k: int, *, step: int = 8, mask: Tensor | None = None
) -> Tensor:
    """Take out tokens that have a double, a few at a time, until k are left.

    Tokens stand in a line, at first by falling score. In every round those at even places of the
    line are compared with those at odd ones; of the even ones the `step` go that are most similar
    to any odd one. Then the other even ones stand in front, the most similar first, and the odd
    ones behind them.

    Args:
        features: vectors `[B, N, C]` or `[N, C]` whose cosine is the similarity.
        scores: `[B, N]` or `[N]`, any floating dtype. A token whose score is NaN or infinite counts
            as masked out.
        k: how many are left, in `[0, N]`.
        step: how many go in a round, at least 1; never more than there are at even places.
        mask: bool `[B, N]`, True for real tokens.

    Returns:
        int64 `[B, k]`, in the order of the last line, then -1 where valid tokens run out. Of two
        that are as similar the one at the earlier place goes. Zero rows go before others, and
        nothing is similar to them.

    Raises:
        TypeError, ValueError: as in `diversity`; `scores` are not floats, `step` is below 1.

    Complexity: N^2 C for the most similar tokens of each, and a third of that again as half of the
    tokens, and half of the rest, are gone; then `(N - k) / step` rounds of N log N. Not on a CPU it
    waits for the device in every round.

    Source: VisPruner, arXiv 2412.01818, the tokens that are not important.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 0.5]])
        >>> thin(features, torch.tensor([0.4, 0.3, 0.2, 0.1]), 3).tolist()
        [2, 1, 3]
    """
    k = _values.integer("thin", "k", k)
    step = _values.integer_at_least("thin", "step", step, 1)
    _rules.vectors("thin", features, mask, k)
    _rules.per_token("thin", "scores", scores, features)
    rated = scores.detach().double().contiguous()
    if native(features, rated, mask, float64=True):
        return _cpp.thin(plain(features), rated, k, step, contiguous(mask))
    return _thin(features, rated, k, step, mask)


@in_full_precision
def _thin(features: Tensor, rated: Tensor, k: int, step: int, mask: Tensor | None) -> Tensor:
    usable = rated.isfinite() if mask is None else rated.isfinite() & mask
    lines = []
    for b, image in enumerate(images(features, usable)):
        own = (rated if features.ndim == 2 else rated[b])[image.index]
        # Minus zero would sort before zero where bits are compared.
        line = (own + 0.0).sort(descending=True, stable=True).indices
        lines.append(image.index[_rounds(image, line, k, step)])
    return padded(lines, k, features)


def _rounds(image: Image, line: Tensor, k: int, step: int) -> Tensor:
    """The last line `[k]` of an image whose first one is `line` `[V]`."""
    if k == 0:
        return line[:0]
    near = None
    while len(line) > k:
        even, odd = line[::2], line[1::2]
        if near is None or 2 * len(line) <= near.size:
            near = _Near(image, line)
        gone = min(step, len(line) - k)
        line = torch.cat((even[near.order(even, odd)[gone:]], odd))
    return line


class _Near:
    """The most similar of the tokens `line` to each of them.

    Attributes:
        size: how many tokens there are.
        token: int64 `[V, m]`, by falling cosine; rows of tokens that are not in the line are 0.
        cosine: float32 `[V, m]`, likewise; `_NONE` with a token that has no direction.
    """

    def __init__(self, image: Image, line: Tensor) -> None:
        self.image, self.size = image, len(line)
        m = min(_NEIGHBOURS, len(line) - 1)
        self.token = line.new_zeros((len(image), m))
        self.cosine = image.inverse.new_full((len(image), m), _NONE)
        every = image.unit(line).T
        for rows in line.split(ROWS):
            cosines = image.unit(rows) @ every
            cosines[:, ~image.directed[line]] = _NONE
            cosines[rows[:, None] == line] = _NONE
            self.cosine[rows], place = cosines.topk(m, dim=-1)
            self.token[rows] = line[place]

    def order(self, even: Tensor, odd: Tensor) -> Tensor:
        """Places in `even`, by falling cosine to the most similar token of `odd`."""
        image = self.image
        other = torch.zeros_like(image.directed).index_fill(0, odd, True)
        cosine = self.cosine[even].masked_fill(~other[self.token[even]], _NONE)
        best = cosine.amax(-1)
        # What is not remembered is at most as similar as the last token that is.
        unsure = best == _NONE
        if self.size - 1 > self.token.shape[1]:
            unsure |= best < self.cosine[even, -1] + 2 * image.slack
        unsure = (unsure & image.directed[even]).nonzero()[:, 0]
        exact = torch.full_like(best, torch.nan, dtype=torch.float64)
        if len(unsure):
            place, found = image.nearest(even[unsure], odd)
            which = odd[place]
            best[unsure] = torch.where(image.directed[which], found, _NONE)
            values = image.exact(even[unsure], which)
            exact[unsure] = torch.where(image.directed[which], values, _NONE)
        best = torch.where(image.directed[even], best, _ZERO_ROW)
        falling = best.sort(descending=True, stable=True)
        close = falling.values.diff().neg() <= 2 * image.slack
        if not bool(close.any()):
            return falling.indices
        pad = torch.nn.functional.pad
        tied = falling.indices[pad(close, (1, 0)) | pad(close, (0, 1))]
        self._decide(even, tied, cosine, best, exact)
        group = torch.empty_like(falling.indices)
        group[falling.indices] = pad((~close).long().cumsum(0), (1, 0))
        by_value = exact.nan_to_num(0.0).sort(descending=True, stable=True).indices
        return by_value[group[by_value].sort(stable=True).indices]

    def _decide(
        self, even: Tensor, tied: Tensor, cosine: Tensor, best: Tensor, exact: Tensor
    ) -> None:
        """Writes what float64 says of the places `tied` into `exact`; NaN stays at zero rows."""
        image = self.image
        which = tied[exact[tied].isnan() & image.directed[even[tied]]]
        tokens = self.token[even[which]]
        rivals = cosine[which] >= best[which, None] - 2 * image.slack
        # Equal rows have cosine 1, and nothing has more.
        equal = (rivals & (image.twin[tokens] == image.twin[even[which], None])).any(-1)
        row, slot = (rivals & ~equal[:, None]).nonzero(as_tuple=True)
        values = image.exact(even[which[row]], tokens[row, slot])
        exact[which] = equal.double().scatter_reduce(0, row, values, "amax", include_self=False)
