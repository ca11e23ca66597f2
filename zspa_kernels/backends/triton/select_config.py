# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the sorting kernel, each with its reason. Standard library only, no autotuner."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One launch configuration; it decides nothing but time: the kernel counts integers."""

    # As for the top-k: on an H100 a selection of 58 of 576 took 62.8 us with 32 slots, 61.6 with 8.
    # 1024 picks at a time are 4 loads a thread; all of the usual selections wait for one or two.
    slots: int = 8
    columns: int = 256
    steps: int = 4  # times `columns` are loaded at a time
    warps: int = 8
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
