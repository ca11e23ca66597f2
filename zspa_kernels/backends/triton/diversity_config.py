# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the diversity kernels, each with its reason. Standard library only, no autotuner.

`norm_block_k` and `block_k` decide the order of a sum. They depend on D and the dtype and on
nothing else, and no kernel splits a dot: c_ij has the bits of c_ji, and a row has the same bits
alone, in a batch, padded, or as a ragged segment.
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
    start_stages: int
    pick_n: int  # after each pick: tokens by that pick
    pick_c: int
    pick_warps: int
    pick_stages: int
    programs: int  # programs the first pass aims at
    reverse: bool = False  # run the grid back to front; for tests of program order


def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    width = 1 << max(4, (d - 1).bit_length())  # the power of two that holds a row; tl.dot needs 16
    half = itemsize == 2
    units = half or hip  # AMD has matrix units for float32; NVIDIA's would round it to TF32
    return Config(
        norm_block_n=16,
        norm_block_k=min(width, 256),
        norm_warps=4,
        # 128 bytes of a row, one line, at a time.
        block_k=min(width, 64 if half else 32),
        # One warpgroup needs 64 rows. 64 columns: each value read serves 64 products, and the pass
        # over all pairs (no seeds) is the one that is bound by arithmetic. Without matrix units a
        # thread holds its operands in registers: half the rows on half the warps do not spill.
        start_n=64 if units else 32,
        start_c=64,
        start_warps=8 if units else 4,
        start_stages=2 if hip else 3,
        # One program a segment: the more rows it has on their way, the better it hides latency.
        # 4 stages of 128 rows or 2 of 256 are 64 KiB, above the 45 KB that 64 bytes a cycle times
        # 700 cycles ask for, and with the column tile below the 99 KB of the smallest GPUs; AMD has
        # 64 KiB. One column is real; 16 is the fewest a matrix instruction takes.
        pick_n=128 if half else 256,
        pick_c=16,
        pick_warps=8,
        pick_stages=2 if hip or not half else 4,
        programs=4096,
    )


def programs(cfg: Config, rows: int, segments: int, block: int) -> int:
    """Programs a segment, each taking every `programs`-th block of `block` rows."""
    blocks = -(-rows // block)
    return max(1, min(blocks, cfg.programs // max(1, segments)))
