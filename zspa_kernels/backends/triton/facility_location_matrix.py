# SPDX-License-Identifier: Apache-2.0
"""The matrix of facility location: how well the tokens of the images in flight cover each other.

The images of a call take turns in one matrix (`facility_location_config.in_flight`). An image's
rows begin where those of the images before it in its turn end, and its numbers are the same
whichever turn it has.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._common import Segments, launch, ordered_sum, pair_dots, program, row_strides, segment
from .facility_location_config import Config, programs
from .facility_location_phases import own_matrix


@triton.jit(do_not_specialize=["N"])
def _facility_location_list_kernel(
    inv_norm, table, places, order, directed, N, BLOCK: tl.constexpr, REVERSED: tl.constexpr
):  # fmt: skip
    """Numbers the tokens that are covered and cover: places[token], -1 for none; order[place]."""
    seg, _me = program(1, REVERSED)
    first, _, _, _, length, _, _, _ = segment(seg, table, N, 0, 0, 0, 0)
    count = 0
    for i0 in range(0, length, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        counts = tl.load(inv_norm + first + i, mask=i < length, other=-1.0) > 0.0
        place = count + tl.cumsum(counts.to(tl.int32), 0) - 1
        tl.store(places + first + i, tl.where(counts, place, -1), mask=i < length)
        tl.store(order + first + place, i, mask=counts)
        count += tl.sum(counts.to(tl.int32), 0)
    tl.store(directed + seg, count)


@triton.jit(do_not_specialize=["N", "start", "programs"])
def _facility_location_matrix_kernel(
    visual,
    inv_norm,
    table,
    order,
    directed,
    matrix,
    N,
    D,
    stride_b,
    stride_n,
    stride,
    temperature,
    start,
    programs,
    SOFT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """matrix[j][i]: how well the token of place j covers that of place i.

    The cosine; below 0 it covers nothing, for what is covered starts at 0.
    SOFT: exp((cosine - 1) / temperature), not yet divided by its sum over j.
    """
    turn, me = program(programs, REVERSED)
    seg = start + turn
    first, _, origin, _, _, _, _, _ = segment(seg, table, N, stride_b, stride_n, 0, 0)
    own = own_matrix(matrix, first, start, table, N, stride)
    count = tl.load(directed + seg)
    across = tl.cdiv(count, COLS)
    for task in range(me, tl.cdiv(count, ROWS) * across, programs):
        row = task // across * ROWS + tl.arange(0, ROWS)
        col = task % across * COLS + tl.arange(0, COLS)
        i = tl.load(order + first + row, mask=row < count, other=0)
        j = tl.load(order + first + col, mask=col < count, other=0)
        x = visual + origin + (i.to(tl.int64) * stride_n)[:, None]
        y = visual + origin + (j.to(tl.int64) * stride_n)[:, None]
        dots = pair_dots(x, row < count, y, col < count, D, ROWS, COLS, BLOCK_K)
        inv_i = tl.load(inv_norm + first + i)
        inv_j = tl.load(inv_norm + first + j)
        scale = inv_i[:, None] * inv_j[None, :]
        if SOFT:
            value = tl.exp(
                tl.fma(dots, scale, tl.full([ROWS, COLS], -1.0, tl.float32)) / temperature
            )
        else:
            value = dots * scale
        at = own + col.to(tl.int64)[None, :] * stride + row[:, None]
        tl.store(at, value, mask=(row < count)[:, None] & (col < count)[None, :])


@triton.jit(do_not_specialize=["N", "start", "programs"])
def _facility_location_soft_kernel(
    table, directed, matrix, N, stride, start, programs,
    ROWS: tl.constexpr, COLS: tl.constexpr, REVERSED: tl.constexpr,
):  # fmt: skip
    """Each covered token's similarities are divided by their sum.

    Here and not where they are used: there a product before a difference might be fused with it,
    and something would be left of what is covered exactly.
    """
    turn, me = program(programs, REVERSED)
    seg = start + turn
    first, _, _, _, _, _, _, _ = segment(seg, table, N, 0, 0, 0, 0)
    count = tl.load(directed + seg)
    own = own_matrix(matrix, first, start, table, N, stride)
    for block in range(me * ROWS, count, programs * ROWS):
        row = block + tl.arange(0, ROWS)
        sums = tl.full([ROWS, COLS], 0.0, tl.float32)
        for c0 in range(0, count, COLS):
            col = (c0 + tl.arange(0, COLS)).to(tl.int64)
            ok = (row < count)[:, None] & (col < count)[None, :]
            sums += tl.load(own + col[None, :] * stride + row[:, None], mask=ok, other=0.0)
        factor = tl.div_rn(tl.full([ROWS], 1.0, tl.float32), ordered_sum(sums, ROWS, COLS))
        for c0 in range(0, count, COLS):
            col = (c0 + tl.arange(0, COLS)).to(tl.int64)
            ok = (row < count)[:, None] & (col < count)[None, :]
            at = own + col[None, :] * stride + row[:, None]
            tl.store(at, tl.load(at, mask=ok, other=0.0) * factor[:, None], mask=ok)


def number(cfg: Config, segments: Segments, scratch: dict[str, Tensor]) -> None:
    """Numbers the tokens with a direction, which are the rows of the matrix, of all segments."""
    launch(
        _facility_location_list_kernel,
        segments.count,
        scratch["inv_norm"].device,
        *(scratch["inv_norm"], segments.table, scratch["places"], scratch["order"]),
        *(scratch["directed"], segments.rows),
        BLOCK=cfg.list_block,
        REVERSED=cfg.shared.reverse,
    )


def compare(
    cfg: Config,
    visual: Tensor,
    segments: Segments,
    start: int,
    count: int,
    longest: int,
    stride: int,
    temperature: float,
    scratch: dict[str, Tensor],
) -> None:
    """How well the tokens of `count` segments from `start` on cover each other, in the matrix."""
    n, table, device = segments.rows, segments.table, visual.device
    down, across = -(-longest // cfg.rows), -(-longest // cfg.cols)
    each = programs(cfg, down * across, count)
    launch(
        _facility_location_matrix_kernel,
        count * each,
        device,
        *(visual, scratch["inv_norm"], table, scratch["order"], scratch["directed"]),
        *(scratch["matrix"], n, visual.shape[-1], *row_strides(visual), stride),
        *(float(temperature), start, each),
        SOFT=temperature > 0,
        ROWS=cfg.rows,
        COLS=cfg.cols,
        BLOCK_K=cfg.block_k,
        REVERSED=cfg.shared.reverse,
        num_warps=cfg.warps,
        num_stages=cfg.stages,
    )
    if temperature > 0:
        each = programs(cfg, -(-longest // cfg.soft_rows), count)
        launch(
            _facility_location_soft_kernel,
            count * each,
            device,
            *(table, scratch["directed"], scratch["matrix"], n, stride, start, each),
            ROWS=cfg.soft_rows,
            COLS=cfg.soft_cols,
            REVERSED=cfg.shared.reverse,
            num_warps=cfg.greedy_warps,
        )
