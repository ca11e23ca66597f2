# SPDX-License-Identifier: Apache-2.0
"""Tokens of one segment, their cosines, and the order in which ties are decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..._segments import FIRST_ROW, FIRST_SLOT, K_DIVERSE, LENGTH

# Squared lengths outside these bounds have no usable inverse square root in float32.
_ZERO_BELOW = 2.0**-80
_VALID_UP_TO = 2.0**80


def row_sum(x: Tensor) -> Tensor:
    """Sum of the last axis, `[..., D] -> [...]`, by adding its upper half to its lower half.

    `sum(-1)` may split a long row over threads when there are few rows; elementwise additions give
    each row the same bits wherever it stands.
    """
    width = x.shape[-1]
    half = 1 << (width - 1).bit_length()
    x = torch.nn.functional.pad(x, (0, half - width))
    while half > 1:
        half //= 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def on_grid(x: Tensor) -> Tensor:
    """float64 values rounded to multiples of 2**-40, so that its own error breaks no ties."""
    return (x * 2.0**40).round() * 2.0**-40


def inverse_length(square: Tensor) -> Tensor:
    """1 / sqrt of squared lengths, all float32; 0 for a zero row, which has no direction."""
    return torch.where(square < _ZERO_BELOW, 0.0, 1.0 / square.sqrt())


class Rows(NamedTuple):
    """The tokens of one segment."""

    values: Tensor  # float64 [N, D]
    length: Tensor  # float64 [N], infinite for a zero row
    inverse: Tensor  # float32 [N]: 1 / length, 0 for a zero row
    valid: Tensor  # bool [N]: not masked out, finite, not huge
    zero: Tensor  # bool [N]: a zero row

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None) -> Rows:
        """Measure tokens `[N, D]`; `mask` `[N]` is True for real tokens."""
        values = tokens.double()
        exact = row_sum(values * values)
        square = exact.float()
        valid = square <= _VALID_UP_TO  # False for NaN
        if mask is not None:
            valid = valid & mask
        zero = square < _ZERO_BELOW
        length = exact.sqrt().masked_fill(zero, torch.inf)
        return cls(values, length, inverse_length(square), valid, zero)

    def cosine(self, other: Tensor, inverse: Tensor) -> Tensor:
        """Cosine of each token with `other` `[D]` of inverse length `inverse`: float32 `[N]`."""
        return row_sum(self.values * other).float() * (self.inverse * inverse)

    def exact_cosine(self, i: int) -> Tensor:
        """Cosine of each token with token `i`: float64 `[N]` on the grid, 0 with a zero row."""
        return on_grid(row_sum(self.values * self.values[i]) / (self.length * self.length[i]))


def optional_row(x: Tensor | None, b: int | slice) -> Tensor | None:
    """Row `b` of an argument that may be absent, or a segment's part of one that is packed."""
    return None if x is None else x[b]


def lowest(keys: Tensor, allowed: Tensor) -> int | None:
    """Index of the smallest key `[N]` where `allowed` `[N]`; at a tie the lowest index."""
    if not allowed.any():
        return None
    best = keys[allowed].min()
    return int((allowed & (keys == best)).nonzero()[0])


def write(slots: Tensor, picks: list[int]) -> None:
    """Write picks into the slots `[K]` of the output, -1 into the rest."""
    slots.fill_(-1)
    slots[: len(picks)] = torch.tensor(picks, dtype=torch.int64, device=slots.device)


def in_segments(
    visual: Tensor, table: Tensor, total_k: int, pick: Callable[[Rows, int, slice], list[int]]
) -> Tensor:
    """Indices int64 `[total_k]` into packed tokens: of each segment what `pick` takes of its rows.

    It is given their tokens, how many to pick and where they are.
    """
    indices = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    for segment in table.tolist():
        first, k, slot = segment[FIRST_ROW], segment[K_DIVERSE], segment[FIRST_SLOT]
        span = slice(first, first + segment[LENGTH])
        picks = pick(Rows.of(visual[span], None), k, span)
        write(indices[slot : slot + k], [first + i for i in picks])
    return indices
