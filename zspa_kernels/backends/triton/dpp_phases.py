# SPDX-License-Identifier: Apache-2.0
"""The phases of the determinantal greedy but for products and candidates.

What is kept of a token: its residual, the cost a pick minimises (+inf: it cannot be picked) and its
row of the Cholesky factor. A column of the factor has a place for each row, the own rows of a
program next to each other. `panel[column][lane]` is the factor of the candidates of a pass.

An element of the factor is the cosine, less the products of earlier columns one after another,
times one over the root of the pick's residual. It has the same bits whether the row was a candidate
or not, however many programs there are, and however many picks a pass makes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._candidates import lanes_in_order
from ._common import INF, only_if
from ._group import DONE, PICKED, own_places, own_rows
from .diversity_phases import lowest

# Residuals start at 1; a smaller one counts as 0. csrc/cpu/dpp_config.h says why.
DEPENDENT = tl.constexpr(2.0**-16)


@triton.jit
def cost(residual, w):
    """What a pick minimises. The root, because the square of a weight may leave float32."""
    if w is not None:
        return -(w * tl.sqrt_rn(residual))
    else:
        return -residual


@triton.jit
def shrink(residual, entry):
    """The residual of a row after it got an entry of the factor."""
    left = tl.fma(-entry, entry, residual)
    return tl.where(left <= DEPENDENT, 0.0, left)


@triton.jit
def subtract(
    x, p, p_ok, p_stride, f, f_ok, f_stride, first, last,
    COLS: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """`x` [COLS, ROWS] less the products p[s] q[s], s = first ... last - 1, one after another.

    `p` [COLS] and `f` [ROWS] point at step 0; strides are int64 elements a step.
    """
    for s0 in range(first, last, AHEAD):
        for ahead in tl.static_range(AHEAD):
            s = s0 + ahead
            a = tl.load(p + s * p_stride, mask=only_if(s < last, p_ok), other=0.0)  # [COLS]
            b = tl.load(f + s * f_stride, mask=only_if(s < last, f_ok), other=0.0)  # [ROWS]
            a = tl.broadcast_to(-a[:, None], [COLS, ROWS])
            x = tl.fma(a, tl.broadcast_to(b[None, :], [COLS, ROWS]), x)
    return x


@triton.jit
def begin(
    inv_norm, weights, residual, costs, control, length, me, programs, BLOCK: tl.constexpr
):  # fmt: skip
    """Own rows before the first pick: a residual of exactly 1, or 0 of a zero row."""
    t = tl.arange(0, BLOCK)
    for t0 in range(0, own_rows(length, me, programs), BLOCK):
        i = me + programs * (t0 + t)
        inv = tl.load(inv_norm + i, mask=i < length, other=-1.0)
        r = tl.where(inv > 0.0, 1.0, 0.0)
        w = None
        if weights is not None:
            w = tl.load(weights + i, mask=i < length, other=0.0)
        tl.store(residual + i, r, mask=i < length)
        tl.store(costs + i, tl.where(inv >= 0.0, cost(r, w), INF), mask=i < length)
    if me == 0:
        tl.store(control + DONE, 0)
    tl.debug_barrier()  # other threads of this program read these rows next


@triton.jit
def gather(
    factor, stride_f, panel, columns, count, filled, length, me, programs,
    BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The candidates' rows of the factor, `filled` columns of it, into the panel."""
    lane = tl.arange(0, BLOCK)
    i = tl.load(columns + lane, mask=lane < count, other=0)
    place = (i % programs) * own_places(length, programs) + i // programs
    for s0 in range(me * SPAN, filled, programs * SPAN):
        s = (s0 + tl.arange(0, SPAN)).to(tl.int64)[:, None]  # [SPAN, 1]
        ok = (s < filled) & (lane < count)[None, :]
        entry = tl.load(factor + s * stride_f + place[None, :], mask=ok)  # [SPAN, BLOCK]
        tl.store(panel + s * BLOCK + lane[None, :], entry, mask=ok)


@triton.jit
def complement(
    inv_norm, columns, count, gram, panel, filled, D, me, programs,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr,
    SPAN: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """gram[0][column][row]: dots become cosines, and these entries of the residual matrix.

    Chunks are added in the order of `chunked_dots`.
    """
    row = tl.arange(0, BLOCK)
    inv_i = tl.load(inv_norm + tl.load(columns + row, mask=row < count, other=0))
    chunks = 1
    if SPLIT:
        chunks = tl.cdiv(D, CHUNK)
    for c0 in range(me * SPAN, count, programs * SPAN):
        col = c0 + tl.arange(0, SPAN)
        at = gram + col[:, None] * BLOCK + row[None, :]
        ok = (col < count)[:, None] & (row < count)[None, :]
        x = tl.full([SPAN, BLOCK], 0.0, tl.float32)
        for chunk in range(chunks):
            x += tl.load(at + chunk * BLOCK * BLOCK, mask=ok, other=0.0)
        inv_j = tl.load(inv_norm + tl.load(columns + col, mask=col < count, other=0))
        x = x * (inv_i[None, :] * inv_j[:, None])
        x = subtract(
            x, panel + col, col < count, BLOCK, panel + row, row < count, BLOCK, 0, filled,
            SPAN, BLOCK, AHEAD,
        )  # fmt: skip
        tl.store(at, x, mask=ok)


@triton.jit
def chain(
    residual, costs, weights, columns, count, edge, gram, panel, scales, filled, picks, lanes,
    lefts, control, indices, base, slots,
    BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Picks among the candidates while a pick beats every other row. By one program of each group.

    A pick becomes a column of the factor unless it depends on the picks before it. `edge`: no row
    outside the candidates has a smaller key.

    `lefts` [2, BLOCK] are the candidates' residuals, for picks in turn: a warp that is ahead writes
    those of the next pick while others still read the last one's.
    """
    lane = tl.arange(0, BLOCK)
    ok = lane < count
    i = tl.load(columns + lane, mask=ok, other=0)
    r = tl.load(residual + i, mask=ok, other=0.0)
    m = tl.load(costs + i, mask=ok, other=INF)
    w = None
    if weights is not None:
        w = tl.load(weights + i, mask=ok, other=0.0)
    code, edge = lanes_in_order(columns, i, ok, edge, BLOCK)
    done = tl.load(control + DONE)
    n = 0
    made = 0
    tl.store(lefts + lane, r, mask=ok)
    tl.debug_barrier()
    best = smallest(m, code, BLOCK)
    while (best < edge) & (done + n < slots):
        at = (best & (BLOCK - 1)).to(tl.int32)
        pick = tl.load(columns + at)
        tl.store(indices + done + n, base + pick)
        m = tl.where(lane == at, INF, m)
        left = tl.load(lefts + (n % 2) * BLOCK + at)
        if left > 0.0:
            t = filled + made
            scale = tl.div_rn(tl.full([], 1.0, tl.float32), tl.sqrt_rn(left))
            x = tl.load(gram + at * BLOCK + lane, mask=ok, other=0.0)[None, :]  # [1, BLOCK]
            own = at + tl.arange(0, 1)
            x = subtract(
                x, panel + own, own >= 0, BLOCK, panel + lane, ok, BLOCK, filled, t,
                1, BLOCK, AHEAD,
            )  # fmt: skip
            entry = tl.where(r > 0.0, tl.reshape(x, [BLOCK]) * scale, 0.0)
            tl.store(panel + t * BLOCK + lane, entry, mask=ok)
            tl.store(scales + t, scale)
            tl.store(picks + made, pick)
            tl.store(lanes + made, at)
            r = shrink(r, entry)
            m = tl.where(m < INF, cost(r, w), INF)
            made += 1
        n += 1
        tl.store(lefts + (n % 2) * BLOCK + lane, r, mask=ok)
        tl.debug_barrier()  # the next pick reads the panel and what is left
        best = smallest(m, code, BLOCK)
    tl.store(costs + i, INF, mask=ok & (m == INF))
    tl.store(control + PICKED, made)
    tl.store(control + DONE, done + n)


@triton.jit
def smallest(value, code, BLOCK: tl.constexpr):
    """The smallest key (value, code) of all candidates; a warp compares 32 of them by itself."""
    WARPS: tl.constexpr = BLOCK // 32 if BLOCK > 32 else 1
    value = tl.reshape(value, [WARPS, BLOCK // WARPS])
    bits, who = lowest(value, tl.reshape(code, [WARPS, BLOCK // WARPS]))  # [WARPS]
    return tl.min((bits.to(tl.int64) << 32) | who.to(tl.int64), 0)


@triton.jit
def substitute(
    residual, costs, weights, factor, stride_f, panel, scales, filled, lanes, count, length, me,
    programs,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Cosines in the columns filled ... filled + count - 1 become the factor; residuals fall.

    Of own rows, a tile of columns after the other.
    """
    tl.debug_barrier()  # the cosines are there
    places = own_places(length, programs)
    factor += me * places
    rows = own_rows(length, me, programs)
    if count == 0:
        rows = 0
    for r0 in range(0, rows, ROWS):
        row = r0 + tl.arange(0, ROWS)
        i = me + programs * row
        r = tl.load(residual + i, mask=row < rows, other=0.0)
        m = tl.load(costs + i, mask=row < rows, other=INF)
        f_ok = row < places  # a multiple of four: so are the rows of an access
        for c0 in range(0, count, COLS):
            col = c0 + tl.arange(0, COLS)
            lane = tl.load(lanes + col, mask=col < count, other=0)
            at = factor + (filled + col).to(tl.int64)[:, None] * stride_f + row[None, :]
            ok = (col < count)[:, None] & f_ok[None, :]
            x = tl.load(at, mask=ok, other=0.0)  # [COLS, ROWS]
            x = subtract(
                x, panel + lane, col < count, BLOCK, factor + row, f_ok, stride_f,
                0, filled + c0, COLS, ROWS, AHEAD,
            )  # fmt: skip
            for c in range(c0, tl.minimum(c0 + COLS, count)):
                entry = tl.sum(tl.where((col == c)[:, None], x, 0.0), 0)  # [ROWS]
                entry = entry * tl.load(scales + filled + c)
                entry = tl.where(r > 0.0, entry, 0.0)
                r = shrink(r, entry)
                p = tl.load(panel + (filled + c) * BLOCK + lane, mask=col < count, other=0.0)
                p = tl.broadcast_to(-p[:, None], [COLS, ROWS])
                entry = tl.broadcast_to(entry[None, :], [COLS, ROWS])
                x = tl.where((col > c)[:, None], tl.fma(p, entry, x), x)
                x = tl.where((col == c)[:, None], entry, x)
            tl.debug_barrier()  # all have read the cosines that are now overwritten
            tl.store(at, x, mask=ok)
            tl.debug_barrier()  # the next tile reads these columns
        w = None
        if weights is not None:
            w = tl.load(weights + i, mask=row < rows, other=0.0)
        tl.store(residual + i, r, mask=row < rows)
        tl.store(costs + i, tl.where(m < INF, cost(r, w), INF), mask=row < rows)
    tl.debug_barrier()  # other threads of this program read these rows next
