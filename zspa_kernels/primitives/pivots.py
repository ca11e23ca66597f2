# SPDX-License-Identifier: Apache-2.0
"""What pivots are chosen by, and the cosines of all tokens to them, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.cpp import _pivots as _cpp
from ._image import ROWS, SHORTEST, native, on_grid, plain, undisturbed


@undisturbed
def absolute_sums(x: Tensor) -> Tensor:
    """float32 `[B, N]`: L1 norms of rows, added in float64, so that equal rows have equal ones."""
    if native(x):
        return _cpp.absolute_sums(plain(x))
    parts = x.tensor_split(1 + x.shape[-2] // ROWS, dim=-2)
    return torch.cat([part.double().abs_().sum(-1) for part in parts], dim=-1).float()


@undisturbed
def directions(x: Tensor, index: Tensor) -> Tensor:
    """float64 `[B, P, D]`: the rows `index` `[B, P]` of `x`, of length 1; of -1 any."""
    where = index.clamp_min(0).unsqueeze(-1).expand(*index.shape, x.shape[-1])
    rows = x.gather(-2, where).double()
    return rows / _length(rows).unsqueeze(-1)


@undisturbed
def cosines_to(x: Tensor, pivots: Tensor) -> Tensor:
    """float64 `[B, P, N]` of rows and `directions`, on a grid that is coarser than their error."""
    if native(x, pivots, float64=True):
        return _cpp.cosines_to(plain(x), pivots)
    parts = x.tensor_split(1 + x.shape[-2] // ROWS, dim=-2)
    wide = (part.double() for part in parts)
    cosines = [pivots @ rows.mT / _length(rows).unsqueeze(-2) for rows in wide]
    return on_grid(torch.cat(cosines, dim=-1))


def _length(rows: Tensor) -> Tensor:
    """Of float64 rows; infinite of those without direction."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return length.where(length >= SHORTEST, torch.inf)
