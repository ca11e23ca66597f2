# SPDX-License-Identifier: Apache-2.0
"""The phases of the scan by score: ranks, comparisons of a block, and what is taken of it.

The order of a segment is a list of its rows by falling score, then -1 for each row that does not
count. A block of it is compared with all tokens taken and with itself, tile by tile:
hits[tile][row] says whether a taken token of that tile of columns suppresses the row of the block,
above[column][row] whether a row of the block would suppress a later one. The front of the order,
which has been looked at, becomes the list of what was left out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import INF, only_if
from ._exact import exact_cosines, joined
from ._group import CONTROL, DONE, KEY_LAST, own_rows
from ._products import chunked_dots

LEFT = tl.constexpr(34)  # word of the control: how many were left out


@triton.jit
def group_memory(
    group, me, programs, hits, above, near, control, k,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A group's part of the scratch; the list of open pairs is the program's own."""
    tiles = tl.cdiv(k, COLS)
    return (
        hits + group.to(tl.int64) * tiles * BLOCK,
        above + group * BLOCK * BLOCK,
        near + (group * programs + me) * ROWS * COLS,
        control + group * CONTROL,
    )


@triton.jit
def score_keys(scores, inv_norm, i, length):
    """int64: the higher the score of row i, the smaller; -0.0 equals +0.0. Last if it cannot be."""
    score = tl.load(scores + i, mask=i < length, other=0.0)
    inv = tl.load(inv_norm + i, mask=i < length, other=-1.0)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int64, bitcast=True)
    usable = (inv >= 0.0) & (tl.abs(score) < INF)  # False for NaN
    return tl.where(usable, ~(bits ^ ((bits >> 63) & KEY_LAST)), KEY_LAST)


@triton.jit
def rank(
    scores, inv_norm, order, control, length, me, programs,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Own rows are put at their places in the order: the number of rows before each."""
    if me == 0:
        tl.store(control + DONE, 0)
        tl.store(control + LEFT, 0)
    row = tl.arange(0, ROWS)
    for r0 in range(0, own_rows(length, me, programs), ROWS):
        i = me + programs * (r0 + row)
        key = score_keys(scores, inv_norm, i, length)
        before = tl.full([ROWS, COLS], 0, tl.int32)
        for s0 in range(0, length, COLS):
            s = s0 + tl.arange(0, COLS)
            other = score_keys(scores, inv_norm, s, length)
            same = (other[None, :] == key[:, None]) & (s[None, :] < i[:, None])
            before += (same | (other[None, :] < key[:, None])).to(tl.int32)
        place = tl.sum(before, 1)
        tl.store(order + place, tl.where(key < KEY_LAST, i, -1), mask=i < length)


@triton.jit
def compare(
    visual, inv_norm, order, indices, hits, above, near, pos, done, length, D, stride_n,
    over, under, limit_high, limit_low, me, programs,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr, PAIRS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The block at `pos` of the order with the `done` tokens taken and with itself.

    A float32 cosine above `over` is above the threshold, and one below `under` is not; what lies
    between is compared in float64, with the threshold in steps. Returns the tokens of the block.
    """
    lane = pos + tl.arange(0, BLOCK)
    token = tl.load(order + lane, mask=lane < length, other=-1)
    count = tl.sum((token >= 0).to(tl.int32), 0)
    down = tl.cdiv(count, ROWS)
    before = tl.cdiv(done, COLS)
    for task in range(me, down * (before + tl.cdiv(count, COLS)), programs):
        tile = task // down
        taken = tile < before
        row = task % down * ROWS + tl.arange(0, ROWS)
        col = tl.where(taken, tile, tile - before) * COLS + tl.arange(0, COLS)
        i = tl.load(order + pos + row, mask=row < count, other=0)
        j = column(order + pos, indices, col, taken, done, count)
        inv_i = tl.load(inv_norm + i, mask=row < count, other=-1.0)
        inv_j = tl.load(inv_norm + j, mask=j >= 0, other=-1.0)
        x = visual + (i.to(tl.int64) * stride_n)[:, None]
        y = visual + (j.to(tl.int64) * stride_n)[:, None]
        # In one loop Triton 3.6 and 3.7 crash on the list in `settle` when they compile for sm_100.
        dots = chunked_dots(
            x, inv_i > 0.0, y, inv_j > 0.0, 0, D, D, ROWS, COLS, BLOCK_K, CHUNK, ONE_LOOP=False
        )  # [ROWS, COLS]
        c = dots * (inv_i[:, None] * inv_j[None, :])
        meets = (inv_i > 0.0)[:, None] & (inv_j > 0.0)[None, :]
        meets = meets & (taken | (col[None, :] < row[:, None]))
        hit = (meets & (c > over)).to(tl.int32)
        some = tl.max(hit, 1)
        tl.store(hits + tile * BLOCK + row, some, mask=only_if(taken, row < count))
        at = above + col[None, :] * BLOCK + row[:, None]
        new = (row < count)[:, None] & (col < count)[None, :]
        tl.store(at, hit, mask=only_if(tile >= before, new))
        # What a taken token suppresses need not be compared with others.
        meets = meets & ((some == 0)[:, None] | (tile >= before))
        still = (meets & (c >= under) & (c <= over)).to(tl.int32)
        settle(
            still, visual, order + pos, indices, hits, above, near, tile, before, task % down,
            done, count, D, stride_n, limit_high, limit_low,
            BLOCK, ROWS, COLS, PAIRS, WIDE,
        )  # fmt: skip
    return count


@triton.jit
def column(block, indices, col, taken, done, count):
    """The tokens of columns: taken ones, or those of the block; -1 beyond."""
    old = tl.load(indices + col, mask=only_if(taken, col < done), other=-1).to(tl.int32)
    return tl.where(taken, old, tl.load(block + col, mask=col < count, other=-1))


@triton.jit
def settle(
    still, visual, block, indices, hits, above, near, tile, before, across, done, count, D,
    stride_n, limit_high, limit_low,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PAIRS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Pairs of a tile that are open are listed in `near`, and compared in float64."""
    still = tl.reshape(still, [ROWS * COLS])
    n = tl.sum(still, 0)
    if n > 0:
        tl.store(near + tl.cumsum(still, 0) - 1, tl.arange(0, ROWS * COLS), mask=still > 0)
        tl.debug_barrier()  # the list is there, and what float32 says is stored
        taken = tile < before
        limit = joined(limit_high, limit_low)
        for p0 in range(0, n, PAIRS):
            p = p0 + tl.arange(0, PAIRS)
            pair = tl.load(near + p, mask=p < n, other=0)
            row = across * ROWS + pair // COLS
            col = tl.where(taken, tile, tile - before) * COLS + pair % COLS
            i = tl.load(block + row)
            j = column(block, indices, col, taken, done, count)
            x = visual + i.to(tl.int64) * stride_n
            y = visual + j.to(tl.int64) * stride_n
            close = exact_cosines(x, y, p < n, D, PAIRS, WIDE) > limit
            close = close & (p < n)
            one = tl.full([PAIRS], 1, tl.int32)
            tl.store(hits + tile * BLOCK + row, one, mask=only_if(taken, close))
            tl.store(above + col * BLOCK + row, one, mask=only_if(tile >= before, close))
        tl.debug_barrier()  # the list is free again


@triton.jit
def take(
    order, indices, hits, above, control, pos, count, done, slots, length, fill,
    BLOCK: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Takes tokens of the block, one after the other. By one program of each group.

    Behind the last block those that were left out follow, if they are to `fill` slots.
    """
    lane = tl.arange(0, BLOCK)
    inside = lane < count
    i = tl.load(order + pos + lane, mask=inside, other=-1)
    left = tl.load(control + LEFT)
    hit = tl.full([BLOCK], 0, tl.int32)
    for tile in range(tl.cdiv(done, COLS)):
        hit += tl.load(hits + tile * BLOCK + lane, mask=inside, other=0)
    free = inside & (hit == 0)
    rest = inside
    at = tl.min(tl.where(free, lane, BLOCK), 0)
    while (at < BLOCK) & (done < slots):
        close = tl.load(above + at * BLOCK + lane, mask=inside & (lane > at), other=0)
        tl.store(indices + done, tl.load(order + pos + at).to(tl.int64))
        done += 1
        rest = rest & (lane != at)
        free = free & (lane > at) & (close == 0)
        at = tl.min(tl.where(free, lane, BLOCK), 0)
    tl.debug_barrier()  # the block has been read
    tl.store(order + left + tl.cumsum(rest.to(tl.int32), 0) - 1, i, mask=rest)
    left += tl.sum(rest.to(tl.int32), 0)
    if (fill != 0) & ((count < BLOCK) | (pos + BLOCK >= length)):
        tl.debug_barrier()  # the list is there
        for f0 in range(0, tl.minimum(left, slots - done), BLOCK):
            f = f0 + lane
            more = f < tl.minimum(left, slots - done)
            token = tl.load(order + f, mask=more, other=-1)
            tl.store(indices + done + f, token.to(tl.int64), mask=more)
    tl.store(control + DONE, done)
    tl.store(control + LEFT, left)


@triton.jit
def onward(control, pos, count, slots, length, BLOCK: tl.constexpr):
    """(where the next block starts, tokens taken, whether there is anything left to do)."""
    done = tl.load(control + DONE)
    pos += BLOCK
    return pos, done, (done < slots) & (count == BLOCK) & (pos < length)
