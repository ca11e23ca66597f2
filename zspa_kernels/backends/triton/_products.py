# SPDX-License-Identifier: Apache-2.0
"""The phases that multiply: tiles of tokens by candidates, seeds or picks, and their cosines."""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import INF, only_if, tile_dots
from ._group import FINISH, FOLD, GRAM, LAST_ROW, NEAR, own_places, own_rows

CHUNKS = tl.constexpr(4)  # of a dot, read at a time; 4096 channels have as many
SCALED = tl.constexpr(8)  # columns of a Gram block that a program scales at a time


@triton.jit
def add_dots(total, x, x_ok, y, y_ok, k0, D, BLOCK_K: tl.constexpr):
    """`total` plus what the channels from k0 on add to the dots."""
    at = (k0 + tl.arange(0, BLOCK_K))[None, :]  # [1, BLOCK_K]
    a = tl.load(x + at, mask=x_ok[:, None] & (at < D), other=0.0)  # [ROWS, BLOCK_K]
    b = tl.load(y + at, mask=y_ok[:, None] & (at < D), other=0.0)  # [COLS, BLOCK_K]
    return tile_dots(a, b, total)


@triton.jit
def chunked_dots(
    x,
    x_ok,
    y,
    y_ok,
    start,
    stop,
    D,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    ONE_LOOP: tl.constexpr = True,
):
    """Dots of the rows at `x` [ROWS, 1] with those at `y` [COLS, 1], channels [start, stop).

    Each CHUNK of channels is added up by itself and the chunks one after another, so a chunk may
    as well be left to another program. start and stop are at borders of chunks, or stop is D.
    ONE_LOOP: over all channels, so that loads of the next chunk are on their way when one ends.
    """
    total = tl.full([ROWS, COLS], 0.0, tl.float32)
    if ONE_LOOP:
        chunk = tl.full([ROWS, COLS], 0.0, tl.float32)
        for k0 in range(start, stop, BLOCK_K):
            chunk = add_dots(chunk, x, x_ok, y, y_ok, k0, D, BLOCK_K)
            if (k0 + BLOCK_K) % CHUNK == 0:
                total += chunk
                chunk = tl.full([ROWS, COLS], 0.0, tl.float32)
        # What was left of D. Where nothing was, `chunk` is not 0 for sm_100: there Triton writes no
        # zeros but lets the next product not add, and behind the last one there is none.
        left = tl.cdiv(stop - start, BLOCK_K) % (CHUNK // BLOCK_K) != 0
        total = tl.where(left, total + chunk, total)
    else:
        for c0 in range(start, stop, CHUNK):
            chunk = tl.full([ROWS, COLS], 0.0, tl.float32)
            for k0 in range(c0, tl.minimum(c0 + CHUNK, D), BLOCK_K):
                chunk = add_dots(chunk, x, x_ok, y, y_ok, k0, D, BLOCK_K)
            total += chunk
    return total


@triton.jit
def cosines(dots, i, inv_i, j, inv_j):
    """`dots` [ROWS, COLS] scaled; -inf where a token meets itself or one that touches no other."""
    meets = (inv_i > 0.0)[:, None] & (inv_j > 0.0)[None, :] & (i[:, None] != j[None, :])
    return tl.where(meets, dots * (inv_i[:, None] * inv_j[None, :]), -INF)


@triton.jit
def products(
    stage,
    visual,
    inv_norm,
    nearest,
    columns,
    count,
    gram,
    length,
    D,
    stride_n,
    me,
    programs,
    factor,
    stride_f,
    shift,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Products of tokens, with the same bits for a pair whatever the stage, as in `update_dots`.

    GRAM writes the dots of the columns with each other to gram[chunk][column][column], one chunk
    unless SPLIT. NEAR compares each block of rows with the block that lies `shift` rows further on,
    and raises each row's largest cosine. FOLD, which needs `factor`, compares own rows with the
    columns and puts the cosines into columns of `factor`, which are `stride_f` (int64) apart.
    """
    gramming = stage == GRAM
    own = stage == FOLD
    rows = tl.where(own, own_rows(length, me, programs), tl.where(stage == NEAR, length, 0))
    rows = tl.where(gramming, count, rows)
    across = tl.where(stage == NEAR, 1, tl.cdiv(count, COLS))
    chunks = 1
    if SPLIT:
        chunks = tl.where(gramming, tl.cdiv(D, CHUNK), 1)
    tasks = tl.cdiv(rows, ROWS) * across * chunks
    for task in range(tl.where(own, 0, me), tasks, tl.where(own, 1, programs)):
        chunk = task % chunks
        down = (task // chunks) // across
        row = down * ROWS + tl.arange(0, ROWS)
        col = (task // chunks) % across * COLS + tl.arange(0, COLS)
        i = tl.load(columns + row, mask=only_if(gramming, row < rows), other=0)
        i = tl.where(gramming, i, tl.where(own, me + programs * row, row))
        j = tl.load(columns + col, mask=only_if(stage != NEAR, col < count), other=-1)
        j = tl.where(stage == NEAR, down * ROWS + shift + tl.arange(0, COLS), j)
        inv_i = tl.load(inv_norm + i, mask=row < rows, other=-1.0)
        inv_j = tl.load(inv_norm + j, mask=(j >= 0) & (j < length), other=-1.0)
        m = tl.load(nearest + i, mask=row < rows, other=INF)
        live = (inv_i > 0.0) & (m < INF)
        x = visual + (i.to(tl.int64) * stride_n)[:, None]
        y = visual + (j.to(tl.int64) * stride_n)[:, None]
        read = tl.where(stage == FOLD, live, inv_i > 0.0)  # what was selected is read no more
        start = chunk * CHUNK
        stop = D
        if SPLIT:
            stop = tl.where(gramming, tl.minimum(start + CHUNK, D), D)
        dots = chunked_dots(
            x, read, y, inv_j > 0.0, start, stop, D, ROWS, COLS, BLOCK_K, CHUNK
        )  # [ROWS, COLS]
        if gramming:
            # Dots are symmetric, so either token of a pair may be the row.
            tl.store(gram + (chunk * BLOCK + row[:, None]) * BLOCK + col[None, :], dots)
        elif factor is not None:
            place = me * own_places(length, programs) + row
            at = factor + col[None, :] * stride_f + place[:, None]
            ok = (row < rows)[:, None] & (col < count)[None, :]
            tl.store(at, dots * (inv_i[:, None] * inv_j[None, :]), mask=ok)
        else:
            c = cosines(dots, i, inv_i, j, inv_j)
            m = tl.where(live, tl.maximum(m, tl.max(c, 1)), m)
            tl.store(nearest + i, m, mask=row < rows)
            tl.debug_barrier()  # other threads of this program may read these rows next


@triton.jit
def update_dots(
    stage,
    visual,
    inv_norm,
    nearest,
    columns,
    count,
    dots,
    chunk_size,
    chunks,
    length,
    D,
    stride_n,
    me,
    programs,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Dots of all rows with the columns to dots[chunk][row][column], for `update`.

    The tiles are dealt out whatever rows a program owns: a tile of own rows only would have few
    rows, and every program would read all columns for them. With `chunks` more than 1, each chunk
    of channels is a task of its own, so that few tiles keep many programs busy. `chunk_size`
    (int64): elements of a chunk of `dots`.
    """
    across = tl.cdiv(count, COLS)
    tasks = tl.cdiv(length, ROWS) * across * chunks
    for task in range(me, tasks, programs):
        chunk = task % chunks
        i = (task // chunks) // across * ROWS + tl.arange(0, ROWS)
        col = (task // chunks) % across * COLS + tl.arange(0, COLS)
        j = tl.load(columns + col, mask=col < count, other=-1)
        inv_i = tl.load(inv_norm + i, mask=i < length, other=-1.0)
        inv_j = tl.load(inv_norm + j, mask=(j >= 0) & (j < length), other=-1.0)
        # What has been selected is read no more, unless it is to finish columns.
        m = tl.load(nearest + i, mask=i < length, other=INF)
        read = tl.where(stage == FOLD, (inv_i > 0.0) & (m < INF), inv_i > 0.0)
        x = visual + (i.to(tl.int64) * stride_n)[:, None]
        y = visual + (j.to(tl.int64) * stride_n)[:, None]
        start = chunk * CHUNK
        stop = tl.where(chunks > 1, tl.minimum(start + CHUNK, D), D)
        tile = chunked_dots(
            x, read, y, inv_j > 0.0, start, stop, D, ROWS, COLS, BLOCK_K, CHUNK
        )  # [ROWS, COLS]
        at = dots + chunk * chunk_size + (i.to(tl.int64) * BLOCK)[:, None] + col[None, :]
        tl.store(at, tile, mask=(i < length)[:, None])


@triton.jit
def update(
    stage,
    inv_norm,
    nearest,
    columns,
    count,
    dots,
    chunk_size,
    chunks,
    gram,
    closest,
    length,
    me,
    programs,
    BLOCK: tl.constexpr,
    OWN: tl.constexpr,
):
    """Own rows take in their cosines with the columns, of which `update_dots` left the dots.

    FOLD raises each row's largest cosine. FINISH does as well, and writes the largest cosine of
    each column with own rows to gram[me][column] and the row to closest[me][column].
    """
    col = tl.arange(0, BLOCK)
    j = tl.load(columns + col, mask=col < count, other=-1)
    inv_j = tl.load(inv_norm + j, mask=(j >= 0) & (j < length), other=-1.0)
    met = tl.full([BLOCK], -INF, tl.float32)
    who = tl.full([BLOCK], -1, tl.int32)
    for t0 in range(0, own_rows(length, me, programs), OWN):
        i = me + programs * (t0 + tl.arange(0, OWN))
        inv_i = tl.load(inv_norm + i, mask=i < length, other=-1.0)
        m = tl.load(nearest + i, mask=i < length, other=INF)
        at = dots + (i.to(tl.int64) * BLOCK)[:, None] + col[None, :]  # [OWN, BLOCK]
        ok = (i < length)[:, None] & (col < count)[None, :]
        total = tl.full([OWN, BLOCK], 0.0, tl.float32)
        for chunk0 in range(0, chunks, CHUNKS):
            for step in tl.static_range(CHUNKS):  # so many loads on their way
                here = at + (chunk0 + step) * chunk_size
                total += tl.load(here, mask=only_if(chunk0 + step < chunks, ok), other=0.0)
        live = (inv_i > 0.0) & (m < INF)
        c = cosines(total, i, inv_i, j, inv_j)
        m = tl.where(live, tl.maximum(m, tl.max(c, 1)), m)
        if stage == FINISH:
            final = tl.max((i[:, None] == j[None, :]).to(tl.int32), 1)
            m = tl.where(final > 0, INF, m)
            largest = tl.max(c, 0)
            nearer = tl.min(tl.where(c == largest[None, :], i[:, None], LAST_ROW), 0)
            who = tl.where(largest > met, nearer, who)
            met = tl.maximum(met, largest)
        tl.store(nearest + i, m, mask=i < length)
    if stage == FINISH:
        tl.store(gram + me * BLOCK + col, met)
        tl.store(closest + me * BLOCK + col, who)
    tl.debug_barrier()  # other threads of this program read these rows next


@triton.jit
def scale(
    inv_norm,
    columns,
    count,
    gram,
    D,
    me,
    programs,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """gram[0][column][row] becomes a cosine, -inf with a row that touches no other.

    Chunks are added in the order of `chunked_dots`.
    """
    row = tl.arange(0, BLOCK)
    i = tl.load(columns + row, mask=row < count, other=-1)
    inv_i = tl.load(inv_norm + i, mask=row < count, other=-1.0)
    chunks = 1
    if SPLIT:
        chunks = tl.cdiv(D, CHUNK)
    for c0 in range(me, count, programs * SCALED):
        col = c0 + programs * tl.arange(0, SCALED)
        j = tl.load(columns + col, mask=col < count, other=-1)
        inv_j = tl.load(inv_norm + j, mask=col < count, other=-1.0)
        at = gram + (col * BLOCK)[:, None] + row[None, :]  # [SCALED, BLOCK]
        ok = (col < count)[:, None] & (row < count)[None, :]
        dots = tl.full([SCALED, BLOCK], 0.0, tl.float32)
        for chunk in range(chunks):
            dots += tl.load(at + chunk * BLOCK * BLOCK, mask=ok, other=0.0)
        meets = (inv_j > 0.0)[:, None] & (inv_i > 0.0)[None, :]
        c = tl.where(meets, dots * (inv_j[:, None] * inv_i[None, :]), -INF)
        tl.store(at, c, mask=(col < count)[:, None])
