# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the sorting kernel, each with its reason. Standard library only, no autotuner."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One launch configuration; it decides nothing but time: the kernel counts integers."""

    # 32 x 128 comparisons of 64-bit indices are 32 a thread of 128.
    slots: int = 32
    columns: int = 128
    warps: int = 4
    programs: int = 4096  # programs the launch aims at; an H200 holds about a thousand at a time
    reverse: bool = False  # run the grid back to front; for tests of program order


@functools.cache
def config() -> Config:
    """The configuration."""
    return Config()


def programs(cfg: Config, slots: int, segments: int) -> int:
    """Programs a segment, each taking every `programs`-th block of slots."""
    blocks = -(-slots // cfg.slots)
    return max(1, min(blocks, cfg.programs // max(1, segments)))
