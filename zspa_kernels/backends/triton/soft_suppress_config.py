# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the soft suppression kernel, each with its reason. Standard library only.

Norms and groups of programs are those of diversity_config, for the reasons given there. No size
here decides a pick: scores are sums in the order of the picks, of cosines in whole steps. The
reasons are counts; no figure here was timed yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from . import diversity_config


@dataclass(frozen=True, kw_only=True)
class Config(diversity_config.Config):
    """One launch configuration of the soft suppression kernel."""

    # Rows whose scores are looked at together.
    lanes: int
    # Tile of own rows by channels whose products with a pick are added up, and how many such
    # tiles are read before the first is used.
    own_rows: int
    wide: int
    ahead: int


@functools.cache
def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    shared = diversity_config.config(d, itemsize, hip)
    width = max(32, 1 << (d - 1).bit_length())  # the power of two that holds a row
    return Config(
        **vars(shared),
        # A row per thread.
        lanes=256,
        # 2880 tokens are 22 or 23 rows for each of 128 programs, and 4096 channels of 8 rows in
        # half precision 64 KiB on their way in two steps. Sums are 16 float64 a thread of 256.
        own_rows=8,
        wide=min(512, width),
        ahead=max(1, min(4, width // 512)),
    )
