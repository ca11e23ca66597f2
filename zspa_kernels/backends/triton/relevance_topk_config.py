# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the relevance kernels, each with its reason. Standard library only, no autotuner.

Only `block_k` and `max_block_k` decide the order of a sum. They depend on D and the dtype and on
nothing else, so a row has the same bits alone, in a batch, padded, or as a ragged segment.
The reasons are counts (registers, bytes in flight, instructions), and where it is said a time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One launch configuration of the five relevance kernels."""

    # Norms and cosines against a pooled prompt: a stream over the tokens, bound by memory.
    # Elementwise on purpose: the pooled prompt is float32, so a matrix unit would have to round it
    # for bfloat16 tokens (or run at its float32 rate for one column in sixteen).
    block_n: int  # rows a program holds: block_n * block_k * 2 sums in registers
    block_k: int  # elements of a row at a time
    warps: int
    # Cosines against every prompt token (none_max): tiles on the matrix units.
    max_block_n: int
    max_block_m: int
    max_block_k: int
    max_warps: int
    max_stages: int
    # Pooling: prompt tokens one after another, so that masked ones leave the sum's bits alone.
    pool_block_d: int
    pool_warps: int
    # Top-k by counting: for each row, how many rows precede it.
    rank_rows: int
    rank_columns: int  # a multiple of rank_rows, at least 128 (see relevance_topk_rank)
    rank_steps: int  # times rank_columns are loaded at a time
    rank_warps: int
    # Programs of the stream, and blocks of each where there would be more.
    two_rounds: int
    several: int
    # Programs a launch aims at; a ragged segment shorter than the longest leaves some idle.
    programs: int
    reverse: bool = False  # run the grid back to front; for tests of program order


@functools.cache
def config(d: int, itemsize: int, mixed: bool = False, hip: bool = False) -> Config:
    """The configuration for D channels.

    Args:
        d: D.
        itemsize: bytes of an element of visual or prompt, whichever is wider.
        mixed: visual and prompt differ in dtype.
        hip: for an AMD GPU.
    """
    width = 1 << max(4, (d - 1).bit_length())  # the power of two that holds a row; tl.dot needs 16
    return Config(
        # 4 x 1024 sums of squares and dots are 64 registers per thread of 128, which has 4 loads of
        # bfloat16 on their way. Nothing else is on its way in a program, so a row of 4096 waits 4
        # times, not 16 as with 16 x 256, and 576 rows have 144 programs, not 36.
        block_n=4,
        block_k=min(width, 1024),
        warps=4,
        # One warpgroup needs 64 rows; 8 warps, because 4 spill where float32 does without matrix
        # units. With 64 rows Triton 3.6 and 3.7 multiply float32 values that were half-precision
        # ones in TF32 on sm_100 whatever is asked of them; fewer rows do without matrix units.
        # 32 prompt tokens: a question is 10 to 60 tokens long.
        max_block_n=32 if mixed else 64,
        max_block_m=32,
        # 128 bytes of a row, one line, at a time.
        max_block_k=min(width, 64 if itemsize == 2 else 32),
        max_warps=8,
        # (64 + 32) rows x 128 bytes per stage: 36 KiB, so that two programs fit beside each other;
        # AMD has 64 KiB.
        max_stages=2 if hip else 3,
        # 128 channels a program: D = 4096 gives 32 programs a prompt, a warp reads whole lines.
        pool_block_d=min(width, 128),
        pool_warps=1,
        # Waiting, not comparing, is what few tokens cost: on an H100 a selection of 58 of 576 took
        # 62.8 us with 32 rows and 128 columns at a time (and int64 keys), 60.3 with 8 rows, 58.9
        # with 8 and 512. Now 576 rows are 72 programs, which wait for memory three times: for their
        # own scores, for those before and for those behind. With 8 rows a comparison is 2.7
        # instructions, loading included (16 rows: 2.4), in 32 registers, so that 8 programs fit
        # beside each other. That counts to 25 us at 16384 tokens, where it took 165.
        rank_rows=8,
        rank_columns=256,
        rank_steps=4,
        rank_warps=8,
        # An H200 holds 132 x 3 programs that score at a time (138 registers for sm_90). Beyond two
        # rounds of them a program takes several blocks: it reads the pooled prompt from L2 for the
        # first of them and from L1 for the others, and what is most of the time is bandwidth.
        two_rounds=792,
        several=4,
        # Four rounds of the smaller programs, 132 x 8 at a time, even out the last one.
        programs=4096,
    )


def stream_programs(cfg: Config, rows: int, segments: int) -> int:
    """Programs a segment of the stream over the tokens."""
    blocks = -(-rows // cfg.block_n)
    each = 1 if segments * blocks <= cfg.two_rounds else cfg.several
    return programs(cfg, rows, segments, cfg.block_n * each)


def programs(cfg: Config, rows: int, segments: int, block: int) -> int:
    """Programs a segment, each taking every `programs`-th block of `block` rows."""
    blocks = -(-rows // block)
    return max(1, min(blocks, cfg.programs // max(1, segments)))
