# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the diversity kernels, each with its reason. Standard library only, no autotuner.

`norm_block_k` and `block_k` decide the order of a sum, the tile shape the kind of matrix
instruction. They depend on D and the dtype and on nothing else, and every cosine of the op is made
by one tile shape: a pair has the same bits in every pass, and c_ij those of c_ji.
The reasons are counts (registers, bytes in flight, instructions); no figure here was timed yet.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One launch configuration of the three diversity kernels."""

    # Norms: a stream over the tokens; the same numbers as in relevance_topk_config, so that an
    # inverse norm has the same bits whichever op made it.
    norm_block_n: int
    norm_block_k: int
    norm_warps: int
    # Cosines: tiles of tokens by selected tokens, block_k channels at a time.
    # On the matrix units although a pass after a pick has one real column: the pass is bound by
    # reading V, its operands can be copied to shared memory ahead of time, half-precision values
    # need no conversion, and the order of the sum does not follow the layout of the loads.
    block_k: int
    start_n: int  # before the first pick: tokens by seeds, or by all other tokens
    start_c: int
    start_warps: int
    pick_n: int  # after each pick: tokens by that pick
    pick_c: int
    pick_warps: int
    stages: int
    programs: int  # programs the first pass aims at
    reverse: bool = False  # run the grid back to front; for tests of program order


def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    width = 1 << max(4, (d - 1).bit_length())  # the power of two that holds a row; tl.dot needs 16
    half = itemsize == 2
    return Config(
        norm_block_n=16,
        norm_block_k=min(width, 256),
        norm_warps=4,
        # A row of 64 half-precision values is one 128-byte line.
        block_k=min(width, 64 if half else 32),
        # One warpgroup needs 64 rows. 64 columns: each value read serves 64 products, and the pass
        # over all pairs (no seeds) is the one that is bound by arithmetic.
        start_n=64,
        start_c=64,
        start_warps=4,
        # One program a segment: the more rows it holds, the more bytes are on their way at a time:
        # 32 KiB a stage. One column is real; 16 is the fewest a matrix instruction takes.
        pick_n=256 if half else 128,
        pick_c=16,
        pick_warps=8,
        # AMD has 64 KiB of shared memory.
        stages=2 if hip else 3,
        programs=4096,
    )


def programs(cfg: Config, rows: int, segments: int, block: int) -> int:
    """Programs a segment, each taking every `programs`-th block of `block` rows."""
    blocks = -(-rows // block)
    return max(1, min(blocks, cfg.programs // max(1, segments)))
