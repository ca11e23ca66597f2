# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the min-sum kernels, each with its reason. Standard library only.

Norms, tiles of tokens, groups of programs and candidates are those of diversity_config, for the
reasons given there. No size here decides a bit: a sum is one chain of additions in the order of
selection, and the sum of all directions is one of integers. The reasons are counts; no figure here
was timed yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from . import diversity_config


@dataclass(frozen=True, kw_only=True)
class Config(diversity_config.Config):
    """One launch configuration of the min-sum kernels."""

    # Picks foreseen a pass, and seeds added at a time: at most `block`.
    forecast: int
    # Own rows whose sums are compared with the forecast at a time.
    own_rows: int
    # Columns that are read before the first is added.
    ahead: int
    # Tile of the sum of all directions: own rows, and channels.
    sum_rows: int
    channels: int


@functools.cache
def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    shared = diversity_config.config(d, itemsize, hip)
    return Config(
        **vars(shared),
        # In half precision a tile of products has so many columns: to foresee fewer picks would
        # save nothing. With 128 candidates 288 of 2880 tokens take 5 passes (vlm) to 34 (clusters).
        forecast=64,
        # A row per thread.
        own_rows=256,
        ahead=8,
        # 16 x 64 integers of 64 bits are 8 registers per thread of 256; with 128 channels the
        # float32 kernel for sm_90 spills.
        sum_rows=16,
        channels=64,
    )
