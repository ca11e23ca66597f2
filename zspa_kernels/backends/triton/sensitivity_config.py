# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the sensitivity kernels, with reasons. Standard library only, no autotuner.

The reasons are counts (registers, bytes in flight, instructions); no figure here was timed yet.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One launch configuration of the sensitivity kernels."""

    # Quadratic form: tokens by rows of the factor, form_h hidden units at a time.
    form_n: int
    form_r: int
    form_h: int
    form_warps: int
    form_stages: int
    # Responses: response_n tokens times response_m directions are the rows of a tile.
    response_n: int
    response_m: int
    response_o: int
    response_h: int
    response_warps: int
    response_stages: int
    # Scores: a stream over the tokens and their partial sums.
    score_n: int
    score_m: int
    score_k: int
    score_warps: int
    # Tokens whose pre-activations exist at a time when they are not given: 32 MB at H = 4096.
    rows: int = 2048
    reverse: bool = False  # run the grid back to front; for tests of program order


def config(
    h: int, d: int, m: int, itemsize: int, hidden_itemsize: int, hip: bool = False
) -> Config:
    """The configuration for H hidden units, D channels, m directions.

    `itemsize` is that of the weights a tile is multiplied with, `hidden_itemsize` that of the
    pre-activations.
    """
    half, wide = itemsize == 2, hidden_itemsize == 4
    width = max(16, 1 << (h - 1).bit_length())  # tl.dot needs 16
    directions = min(16, 1 << (m - 1).bit_length())
    return Config(
        # Half precision: 128 x 128 float32 sums are 64 registers per thread of 256, two warpgroups
        # of 64 rows; a derivative (some 30 instructions) is used for 128 products; 64 weights are
        # one 128-byte line. float32 does without matrix units: 32 x 64, as 64 rows spill on sm_100.
        form_n=128 if half else 32,
        form_r=128 if half else 64,
        form_h=min(width, 64 if half and not wide else 32),
        form_warps=8 if half else 4,
        # (128 + 128) x 128 bytes per stage; AMD has 64 KiB. Derivatives cost more than the products
        # of their block, so two programs a multiprocessor, one at each, are worth more than loads
        # far ahead: pre-activations of float32 leave both 128 registers with 32 units a time and 2
        # stages (with 3 some kernels take more, or spill; 64 units, 112 KiB, are too much for many
        # a GPU).
        form_stages=2 if hip or (half and wide) else 3,
        # The same tile; a token's derivatives are shared by its 16 directions. 64 hidden units at a
        # time, or 256 outputs, would spill the quotients.
        response_n=(128 if half else 32) // directions,
        response_m=directions,
        response_o=128 if half else 64,
        response_h=min(width, 32),
        response_warps=8 if half else 4,
        response_stages=2 if hip else 3,
        score_n=16,
        score_m=directions,
        score_k=min(max(16, 1 << (d - 1).bit_length()), 256),
        score_warps=4,
    )
