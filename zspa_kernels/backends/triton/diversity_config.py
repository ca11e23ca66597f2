# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the diversity kernels, each with its reason. Standard library only, no autotuner.

`norm_block_k`, `block_k`, `chunk` and the tile decide the bits of a cosine. They depend on D and
the dtype and on nothing else, so a row has the same bits alone, in a batch, padded, or as a ragged
segment. The number of programs decides how the work is cut, never what comes out.
The reasons are counts (registers, bytes in flight, instructions), and where it is said times.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """How the programs that share a segment choose candidates; three sizes, so three kernels."""

    programs: int  # the most programs a group may have, a power of two
    width: int  # keys each proposes; the last only bounds
    own: int  # own rows whose keys are compared at a time
    split: bool  # the chunks of a Gram block go to different programs


@dataclass(frozen=True)
class Config:
    """One launch configuration of the diversity kernels."""

    # Norms: a stream over the tokens; the same numbers as in relevance_topk_config, so that an
    # inverse norm has the same bits whichever op made it.
    norm_block_n: int
    norm_block_k: int
    norm_warps: int
    norm_programs: int
    # Candidates a pass, and columns an update. One lane each where picks are made; more would
    # lower the number of passes a little and make each pick dearer.
    block: int
    # Tiles of tokens by selected tokens, block_k channels at a time.
    rows: int
    cols: int
    block_k: int
    # Channels added up by themselves, so that a Gram block of few tiles keeps many programs busy.
    chunk: int
    update_rows: int  # of a tile of an update, which has `cols` columns
    update_own: int  # own rows whose dots are added up at a time
    finished: int  # programs whose column maxima are compared at a time
    votes: int  # finished columns that must agree how far away their nearest row is
    warps: int
    stages: int
    least_rows: int  # a program with fewer own rows is not worth a place at the barrier
    groups: tuple[Group, ...]
    # Few tokens: the whole matrix of cosines, then one program an image picks (diversity_whole).
    whole_rows: int  # at most so many tokens
    whole_stages: int  # of the tiles; they are square, `rows` by `rows`
    whole_tiles: int  # at most so many tiles a multiprocessor
    whole_alone: int  # at most so many tokens have a program of one warp that picks
    whole_warps: int  # of the program that picks, where there are more
    whole_span: int  # tokens that a warp reads at a time, 16 bytes per thread
    hip: bool
    reverse: bool = False  # run the grid back to front; for tests of program order


@functools.cache
def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    width = 1 << max(4, (d - 1).bit_length())  # the power of two that holds a row; tl.dot needs 16
    half = itemsize == 2
    units = half or hip  # AMD has matrix units for float32; NVIDIA's would round it to TF32
    # 128 bytes of a row, one line, at a time; half of it where a thread holds operands of its own.
    deep = min(width, 64 if half else 32 if units else 16)
    own = 16  # keys of 64 bits: what leaves the kernels without spills on sm_90
    return Config(
        norm_block_n=4,
        norm_block_k=min(width, 1024),
        norm_warps=4,
        norm_programs=4096,
        block=128,
        # One warpgroup needs 64 rows. Without matrix units a thread holds its operands in
        # registers, 2 rows and 2 columns of 16 channels: 64 of them. The greedy kernels keep some
        # 120 more; with 32 x 64 or 32 channels a few of those went to memory. Of an operand in
        # shared memory 32 x 32 reads as much for a product as 32 x 64, from L2 a third more.
        rows=64 if units else 32,
        cols=64 if units else 32,
        block_k=deep,
        # A program that takes one chunk of a Gram block begins with an empty pipeline, so a chunk
        # is not too short: 16 steps in half precision.
        chunk=max(deep, 1024),
        # Alone in a kernel on an H100, tried by hand, 2880 x 4096 by 29 columns take 8.1 us with
        # 128 x 64, 10.5 with 64 x 64, 12.1 with 128 x 128; by 128 columns 16.7, 16.9 and 12.9, but
        # a pass rarely makes that many picks.
        update_rows=128 if half else 64 if units else 32,
        # 32 x 128 dots are 16 registers per thread of 256, for each of 4 chunks read at a time.
        update_own=32,
        # 32 x 128 maxima are 16 registers per thread of 256.
        finished=32,
        # Of 128 finished columns 32 to 128 agree on `video` tokens of N = 1296 to 4096, at most 4
        # on models without such an order: `python -m bench.gpu_seed`. With it `video` takes 2
        # passes of FINISH instead of 7 to 16; the other models take as many as without.
        votes=16,
        # Two warpgroups: more loads on their way for the tiles; the picks would like fewer.
        # AMD's warps are twice as wide, and 4 of them leave each lane 512 registers.
        warps=4 if hip else 8,
        # (128 + 64) rows x 128 bytes per stage: 96 KiB; AMD has 64 KiB in all.
        stages=2 if hip else 4,
        # 576 tokens still have 72 programs, 2880 as many as a group has at most.
        least_rows=8,
        # Of the `block` best keys a program owns block/programs on average. `width` has room for
        # more than two standard deviations beyond that at the largest group of each size: smaller
        # groups of 9 programs (14 keys) or 33 (4) still propose most of them.
        groups=(
            Group(programs=8, width=64, own=own, split=False),
            Group(programs=32, width=16, own=own, split=True),
            Group(programs=128, width=8, own=own, split=True),
        ),
        # Counts, not times. 576 tokens, 23 given and 35 picked, by blocks: one or two passes of 4
        # barriers, a Gram block and an update each, after the update for what is given; the
        # matrix: 45 tiles side by side and no barrier, nor more for DivPrune's seed. 1024 tokens
        # are 136 tiles, five images of 576 are 225: all of them at once, two a multiprocessor.
        # No square matrix is made beyond 1024 tokens.
        whole_rows=1024,
        # 5 steps of (64 + 64) rows x 128 bytes on their way are 80 KiB: 1280 cycles at 64 bytes a
        # cycle, what L2 gives a multiprocessor at best. 96 KiB in all where products are
        # asynchronous, so two programs fit beside each other; 80 KiB elsewhere, where a GPU may
        # have but 99.
        whole_stages=2 if hip else 6,
        # Tiles of float32 have a quarter of the area, and two programs fit beside each other.
        whole_tiles=2 if units else 4,
        # Two barriers a pick where warps exchange what they found, none where there is one warp.
        # One warp has up to 16 tokens a thread then, each of eight warps 4.
        whole_alone=512,
        whole_warps=4 if hip else 8,
        whole_span=256 if hip else 128,
        hip=hip,
    )


def pairs(cfg: Config, rows: int) -> int:
    """Tiles of the whole matrix of so many rows: a block with itself and with each other, once."""
    blocks = -(-rows // cfg.rows)
    return blocks * (blocks + 1) // 2


def whole(cfg: Config, rows: int, segments: int, multiprocessors: int) -> bool:
    """Whether a padded batch of segments of so many rows takes the whole matrix."""
    most = cfg.whole_tiles * multiprocessors
    return rows <= cfg.whole_rows and segments * pairs(cfg, rows) <= most


def whole_lanes(cfg: Config, rows: int) -> tuple[int, int]:
    """(times that each thread of the program that picks reads of a row, its warps).

    Three kernels for all sizes.
    """
    warps = 1 if rows <= cfg.whole_alone else cfg.whole_warps
    lanes = max(256, 1 << (rows - 1).bit_length())
    return max(1, lanes // (warps * cfg.whole_span)), warps


def norm_programs(cfg: Config, rows: int, segments: int) -> int:
    """Programs a segment for the norms, each taking every `programs`-th block of rows."""
    blocks = -(-rows // cfg.norm_block_n)
    return max(1, min(blocks, cfg.norm_programs // max(1, segments)))


def grid(cfg: Config, rows: int, segments: int, multiprocessors: int) -> tuple[int, int]:
    """(groups, programs per group): all programs are resident at once, one per multiprocessor.

    Programs wait for each other, so none may wait for a place; one a multiprocessor always fits.
    Groups with many segments take them in turn.
    """
    groups = max(1, min(segments, multiprocessors))
    most = min(multiprocessors // groups, cfg.groups[-1].programs, -(-rows // cfg.least_rows))
    return groups, max(1, most)


def update_chunks(cfg: Config, rows: int, d: int, programs: int) -> int:
    """Into how many chunks the channels of an update of so many rows are cut: 1, or all there are.

    All, where that spares programs more of their tiles than an eighth: as much as adding up takes.
    """
    tiles, chunks = -(-rows // cfg.update_rows), -(-d // cfg.chunk)
    whole, cut = -(-tiles // programs), -(-tiles * chunks // programs)
    return chunks if 8 * cut + whole * chunks < 8 * whole * chunks else 1


def group(cfg: Config, programs: int) -> Group:
    """The smallest size of group that holds so many programs."""
    return next(g for g in cfg.groups if g.programs >= programs)


def registers(hip: bool) -> dict[str, Any]:
    """Options of a kernel with one program per multiprocessor.

    NVIDIA's compiler would rather spill than let a program keep others of 128 or 256 threads out.
    """
    return {} if hip else {"maxnreg": 255}


def constants(cfg: Config, size: Group) -> dict[str, Any]:
    """What the greedy kernels are compiled with for such groups."""
    return {
        "BLOCK": cfg.block,
        "ROWS": cfg.rows,
        "COLS": cfg.cols,
        "BLOCK_K": cfg.block_k,
        "CHUNK": cfg.chunk,
        "PROGRAMS": size.programs,
        "WIDTH": size.width,
        "OWN": size.own,
        "SPLIT": size.split,
        "HIP": cfg.hip,
        "REVERSED": cfg.reverse,
        "num_warps": cfg.warps,
        "num_stages": cfg.stages,
    }
