# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the coverage kernels, each with its reason. Standard library only, no autotuner.

Norms and how programs share a segment are those of diversity_config. `rows`, `cols` and `block_k`
decide the bits of a cosine, `width` and `words` those of a gain; they depend on D and the dtype and
on nothing else. The reasons are counts; no figure here was timed yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from . import diversity_config


@dataclass(frozen=True)
class Config:
    """One launch configuration of the coverage kernels."""

    shared: diversity_config.Config
    list_block: int  # tokens whose places are counted at a time
    # Tiles of the matrix of cosines, block_k channels at a time.
    rows: int
    cols: int
    block_k: int
    warps: int
    stages: int
    programs: int  # the most programs of the launches that need not be resident
    matrix_bytes: int  # of the matrices of the images in flight
    # Softmax: covered tokens and covering ones whose similarities are added at a time.
    soft_rows: int
    soft_cols: int
    # Greedy.
    lanes: int  # gains evaluated at a time
    width: int  # covered tokens at a time
    words: int  # given rows at a time
    own: int  # own tokens of a lane whose keys are compared at a time
    members: int  # the most programs that share a segment, a power of two
    greedy_warps: int


@functools.cache
def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    shared = diversity_config.config(d, itemsize, hip)
    half = itemsize == 2
    return Config(
        shared=shared,
        list_block=1024,
        # An ordinary product: 128 x 128 in half precision reads each row once for 128 others.
        # Without matrix units a thread holds its operands in registers.
        rows=128 if half else 64,
        cols=128 if half else 64,
        block_k=shared.block_k,
        warps=8,
        # (128 + 128) rows x 128 bytes per stage: 96 KiB; AMD has 64 KiB in all.
        stages=2 if hip else 3,
        programs=4096,
        # 8 images of 2880 tokens, 32 of 1440, 200 of 576. 8 x 23 x 23 tiles are 32 rounds on 132
        # multiprocessors, and 8 groups of 16 programs pick: more images at a time would save
        # little but meetings. A matrix that is larger is alone.
        matrix_bytes=2**28,
        # 32 neighbours are 128 bytes of a column; 1024 sums are 8 a thread of 128.
        soft_rows=32,
        soft_cols=32,
        # Most picks make a program evaluate a few gains one after another; eight columns at a time
        # are 16 numbers a thread of 128 on their way.
        lanes=8,
        width=256,
        words=32,
        # 8 x 16 keys: 2880 tokens are 22 or 23 for each of 128 programs.
        own=16,
        members=shared.groups[-1].programs,
        # A gain is a read of one column: more warps would wait longer for each other.
        greedy_warps=4,
    )


def programs(cfg: Config, tasks: int, segments: int) -> int:
    """Programs a segment for `tasks` tasks, each taking every `programs`-th one."""
    return max(1, min(tasks, cfg.programs // max(1, segments)))


def in_flight(cfg: Config, rows: int, longest: int, stride: int, segments: int) -> int:
    """How many segments have their matrices at a time: it decides memory and time, never a pick.

    Args:
        cfg: of the kernels.
        rows: of all segments.
        longest: the most rows of a segment.
        stride: elements of a row of the matrix.
        segments: at least one.
    """
    if 4 * rows * stride <= cfg.matrix_bytes:
        return segments
    return max(1, min(segments, cfg.matrix_bytes // (4 * longest * stride)))
