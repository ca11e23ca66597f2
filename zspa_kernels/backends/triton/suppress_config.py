# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the suppression kernels, each with its reason. Standard library only.

Norms, tiles of tokens and groups of programs are those of diversity_config, for the reasons given
there. No size here decides a pick: what float32 leaves open is settled in float64. The reasons are
counts; no figure here was timed yet.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from . import diversity_config


@dataclass(frozen=True, kw_only=True)
class Config(diversity_config.Config):
    """One launch configuration of the suppression kernels."""

    # Tile of comparisons of scores: own rows, and all rows.
    rank_rows: int
    rank_cols: int
    # Pairs whose cosines are computed in float64 at a time, and their channels at a time.
    pairs: int
    wide: int


@functools.cache
def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    shared = diversity_config.config(d, itemsize, hip)
    return Config(
        **vars(shared),
        # 16 x 128 comparisons of 64 bits are 16 registers per thread of 256.
        rank_rows=16,
        rank_cols=128,
        # Few pairs are open, so it is latency that counts: each step waits for memory. Three sums
        # of 4 x 1024 float64 are 96 registers per thread of 256.
        pairs=4,
        wide=min(1024, max(32, 1 << (d - 1).bit_length())),
    )


def slack(d: int, chunk: int) -> float:
    """How far a float32 cosine may be from the exact one. Too much costs time only.

    A matrix unit of sm_80 adds 8 products a step to what it has, of each of which it cuts off less
    than half a unit in the last place of the largest, and less than a whole one of their sum: 5 at
    most, where later units cut off 5 of 16 products. Each chunk has an accumulator of its own, and
    all of these together are no larger than 1. The rest is as on CPUs (csrc/cpu/exact.h).
    """
    steps = -(-min(d, chunk) // 8)
    return 5 * steps * 2.0**-23 + 4e-6 * max(1.0, math.sqrt(d / 4096))
