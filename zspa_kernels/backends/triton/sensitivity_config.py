# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the sensitivity kernels, with reasons. Standard library only, no autotuner.

The reasons are counts (registers, bytes in flight, instructions); no figure here was timed yet.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One launch configuration of the sensitivity kernels."""

    # Quadratic form: tokens by rows of the factor, block_h hidden units at a time.
    form_n: int
    form_r: int
    form_warps: int
    # Responses: response_n tokens times response_m directions are the rows of a tile.
    response_n: int
    response_m: int
    response_o: int
    response_warps: int
    block_h: int
    stages: int
    # Scores: a stream over the tokens and their partial sums.
    score_n: int
    score_m: int
    score_k: int
    score_warps: int
    # Tokens whose pre-activations exist at a time when they are not given: 32 MB at H = 4096.
    rows: int = 2048
    reverse: bool = False  # run the grid back to front; for tests of program order


def config(h: int, d: int, m: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for H hidden units, D channels, m directions.

    `itemsize` is that of the weights a tile is multiplied with.
    """
    half = itemsize == 2
    directions = min(16, 1 << (m - 1).bit_length())
    return Config(
        # 64 x 128 float32 sums are 64 registers a thread of 128. A derivative (some 30
        # instructions) is used for 128 products; 64 rows are what a warpgroup multiplies at once.
        form_n=64,
        form_r=128 if half else 64,
        form_warps=4,
        # A token's derivatives are shared by its 16 directions, so they cost little beside the
        # tile; 64 rows in all, for the same reason as above.
        response_n=64 // directions,
        response_m=directions,
        response_o=128 if half else 64,
        response_warps=4,
        # A row of 64 half-precision weights is one 128-byte line; float32 runs without matrix
        # units, where half the depth keeps operands in registers.
        block_h=min(max(16, 1 << (h - 1).bit_length()), 64 if half else 32),
        # (128 + 64) x 128 bytes a stage; AMD has 64 KiB.
        stages=2 if hip else 3,
        score_n=16,
        score_m=directions,
        score_k=min(max(16, 1 << (d - 1).bit_length()), 256),
        score_warps=4,
    )
