# SPDX-License-Identifier: Apache-2.0
"""Diversity of few tokens: all cosines once, then pick after pick without a barrier.

Algorithm   : the greedy of `diversity` one pick at a time. A matrix kernel computes the cosines of
              all pairs of an image, each pair once, and, for DivPrune's seed, the largest one of
              each token in each tile. Then one program per image keeps every token's largest cosine
              to the selection in registers; a pick costs a minimum over the tokens and the read of
              a row of the matrix. Up to 512 tokens the program is one warp, which waits for none;
              beyond, its warps synchronise twice per pick.
Inputs      : as for `diversity`, padded batches only
Outputs     : as for `diversity`, the same picks: tiles and their products are the same, but for
              which of a pair is the row of a tile, and products are symmetric
Work        : N^2 D flops and N D more for each row of a tile, N^2 floats written once and K rows of
              them read; 2 launches, 0 syncs
Mapping     : matrix: program <-> pair of blocks of tokens; picks: program <-> image
Numerics    : those of `diversity`
Deterministic: yes: every element is written by one program
Limits      : N <= 1024 (registers of one program, and no square matrix beyond)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _scratch
from ._common import INF, KEY_END, Segments, launch, only_if, order_bits, program, row_strides
from ._group import LAST_ROW, cost, nothing_selected, seed_list
from ._products import chunked_dots, cosines
from .diversity_config import Config, pairs, registers, whole_lanes

SEEDS = tl.constexpr(8)  # seeds whose rows are read at a time


@triton.jit(do_not_specialize=["N"])
def _diversity_matrix_kernel(
    visual,
    inv_norm,
    matrix,
    largest,
    N,
    D,
    stride_b,
    stride_n,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """matrix[segment][selected][compared], and its maxima largest[segment][block][selected].

    A program compares a block of tokens with itself or with another one, and stores the tile as it
    is and transposed. The other block lies `pair // blocks` further on, in a circle of all blocks:
    that comes to each pair once. A token's entry with itself is +inf, for what is selected is not
    picked; no maximum counts it.
    """
    blocks = tl.cdiv(N, ROWS)
    seg, pair = program(blocks * (blocks + 1) // 2, REVERSED)
    seg = tl.cast(seg, tl.int64)
    one = pair % blocks
    other = (one + pair // blocks) % blocks
    i = one * ROWS + tl.arange(0, ROWS)
    j = other * ROWS + tl.arange(0, ROWS)
    inv_i = tl.load(inv_norm + seg * N + i, mask=i < N, other=-1.0)
    inv_j = tl.load(inv_norm + seg * N + j, mask=j < N, other=-1.0)
    origin = visual + seg * stride_b
    x = origin + (i.to(tl.int64) * stride_n)[:, None]
    y = origin + (j.to(tl.int64) * stride_n)[:, None]
    dots = chunked_dots(x, inv_i > 0.0, y, inv_j > 0.0, 0, D, D, ROWS, ROWS, BLOCK_K, CHUNK)
    c = cosines(dots, i, inv_i, j, inv_j)  # [ROWS, ROWS]
    square = matrix + seg * N * padded(N)
    maxima = largest + seg * blocks * padded(N)
    tl.store(maxima + one * padded(N) + j, tl.max(c, 0), mask=j < padded(N))
    if one != other:
        tl.store(maxima + other * padded(N) + i, tl.max(c, 1), mask=i < padded(N))
        at = square + (i * padded(N))[:, None] + j[None, :]
        tl.store(at, c, mask=(i < N)[:, None] & (j < padded(N))[None, :])
    c = tl.where(i[:, None] == j[None, :], INF, c)
    at = square + (j * padded(N))[None, :] + i[:, None]
    tl.store(at, c, mask=(i < padded(N))[:, None] & (j < N)[None, :])


@triton.jit
def padded(N):
    """Places of a row of N floats: rows start at multiples of 16 bytes, and are read so."""
    return 4 * tl.cdiv(N, 4)


@triton.jit
def lowest(value, i):
    """The smallest key (value, index) of `value` [ROUNDS, WARPS, SPAN] at the tokens `i`.

    A thread compares what it holds, then a warp what its threads found: in 32 bits, for which
    there is an instruction. Last come the warps, if there are several: as a row, whose columns are
    lanes, so that they exchange keys once and each warp finds the smallest by itself.
    """
    bits = tl.min(order_bits(tl.min(value, 0)), 1)  # [WARPS]
    least = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    who = tl.where(value == least[None, :, None], i, LAST_ROW)
    key = (bits.to(tl.int64) << 32) | tl.min(tl.min(who, 0), 1).to(tl.int64)
    return tl.min(tl.min(key[None, :], 1), 0)


@triton.jit(do_not_specialize=["N", "num_seeds", "k_core", "k_diverse", "tiles", "in_slots"])
def _diversity_picks_kernel(
    inv_norm,
    weights,
    seeds,
    indices,
    matrix,
    largest,
    N,
    num_seeds,
    k_core,
    k_diverse,
    tiles,
    in_slots,
    ROUNDS: tl.constexpr,
    WARPS: tl.constexpr,
    SPAN: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """All picks of an image, one after another."""
    seg, _ = program(1, REVERSED)
    first = tl.cast(seg, tl.int64) * N
    slots = k_core + k_diverse
    slot = tl.cast(seg, tl.int64) * slots
    own_seeds, count_seeds = seed_list(seeds, seg, num_seeds, in_slots, slot, k_core)
    square = matrix + first * padded(N)
    part = tl.arange(0, ROUNDS)[:, None] * WARPS + tl.arange(0, WARPS)[None, :]
    i = (part * SPAN)[:, :, None] + tl.arange(0, SPAN)[None, None, :]  # [ROUNDS, WARPS, SPAN]
    m = nothing_selected(tl.load(inv_norm + first + i, mask=i < N, other=-1.0))
    w = None
    if weights is not None:
        w = tl.load(weights + first + i, mask=i < N, other=0.0)
    filled = 0
    valid = 0
    for s0 in range(0, count_seeds, SEEDS):
        for step in tl.static_range(SEEDS):
            j = tl.load(own_seeds + s0 + step, mask=s0 + step < count_seeds, other=-1)
            filled += (j >= 0).to(tl.int32)
            inside = (j >= 0) & (j < N)
            inv_j = tl.load(inv_norm + first + j, mask=inside, other=-1.0)
            valid += (inv_j >= 0.0).to(tl.int32)
            row = square + j * padded(N) + i
            m = tl.maximum(m, tl.load(row, mask=only_if(inside, i < padded(N)), other=-INF))
    tl.debug_barrier()  # all threads have read the seeds: their slots may be written
    done = tl.where(in_slots != 0, filled, 0)
    value = cost(m, w)
    if valid == 0:
        if weights is not None:
            value = cost(tl.where(m < INF, 0.0, m), w)
        else:
            for tile in range(tiles):
                at = largest + (tl.cast(seg, tl.int64) * tiles + tile) * padded(N) + i
                value = tl.maximum(value, tl.load(at, mask=i < padded(N), other=-INF))
    best = lowest(value, i)
    while (best < KEY_END) & (done < slots):
        pick = best & 0xFFFFFFFF
        tl.store(indices + slot + done, pick)
        done += 1
        row = square + pick * padded(N) + i
        m = tl.maximum(m, tl.load(row, mask=i < padded(N), other=-INF))
        best = lowest(cost(m, w), i)


def plan(cfg: Config, segments: Segments) -> _scratch.Plan:
    """The scratch memory that `picks` takes, but for the inverse norms."""
    n, tiles = segments.rows, -(-segments.rows // cfg.rows)
    places = 4 * -(-n // 4)  # `padded`
    return {
        "matrix": (torch.float32, (segments.count, n, places)),
        "largest": (torch.float32, (segments.count, tiles, places)),
    }


def picks(
    cfg: Config,
    visual: Tensor,
    segments: Segments,
    indices: Tensor,
    seeds: Tensor | None,
    weights: Tensor | None,
    scratch: dict[str, Tensor],
    after_core: bool,
) -> None:
    """Pick tokens into the slots of `indices`; arguments as of `diversity.greedy`."""
    n, tiles = segments.rows, -(-segments.rows // cfg.rows)
    launch(
        _diversity_matrix_kernel,
        segments.count * pairs(cfg, n),
        visual.device,
        *(visual, scratch["inv_norm"], scratch["matrix"], scratch["largest"]),
        *(n, visual.shape[-1], *row_strides(visual)),
        ROWS=cfg.rows,
        BLOCK_K=cfg.block_k,
        CHUNK=cfg.chunk,
        REVERSED=cfg.reverse,
        num_warps=cfg.warps,
        num_stages=cfg.whole_stages,
    )
    rounds, warps = whole_lanes(cfg, n)
    launch(
        _diversity_picks_kernel,
        segments.count,
        visual.device,
        *(scratch["inv_norm"], weights, indices if seeds is None else seeds, indices),
        *(scratch["matrix"], scratch["largest"], n, 0 if seeds is None else seeds.shape[1]),
        *(segments.k_core, segments.k_diverse, tiles, int(after_core)),
        ROUNDS=rounds,
        WARPS=warps,
        SPAN=cfg.whole_span,
        REVERSED=cfg.reverse,
        num_warps=warps,
        **registers(cfg.hip),
    )
