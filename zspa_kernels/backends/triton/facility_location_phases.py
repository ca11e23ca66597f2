# SPDX-License-Identifier: Apache-2.0
"""The phases of the coverage greedy: own keys, gains, picks.

Program `me` owns the tokens me, me + programs, ... and evaluates their gains lazily: a gain only
falls, so an old one is an upper bound, and the best own token is known once its gain is new. Some
are evaluated at a time, one a lane, the best of each lane. What the picks cover is kept by each
program for itself. So a pick takes one barrier.

`version` counts the picks that covered anything; a gain of that version is new. Every operation of
a gain is monotone in what is covered, so a new gain never exceeds an old one by a rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import INF, KEY_END, LARGEST, order_key, ordered_sum, segment
from ._group import KEY_LAST, own_rows


@triton.jit
def begin(
    inv_norm, costs, seen, covered, answered, directed, M, length, me, programs,
    OWN: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """No own token has a gain yet, which puts it before all that have one; nothing is covered."""
    t = tl.arange(0, OWN)
    for t0 in range(0, own_rows(length, me, programs), OWN):
        i = me + programs * (t0 + t)
        inv = tl.load(inv_norm + i, mask=i < length, other=-1.0)
        tl.store(costs + i, tl.where(inv >= 0.0, -INF, INF), mask=i < length)
        tl.store(seen + i, i * 0 - 1, mask=i < length)
    s = tl.arange(0, WIDTH)
    for s0 in range(0, directed, WIDTH):
        tl.store(covered + s0 + s, tl.full([WIDTH], 0.0, tl.float32), mask=s0 + s < directed)
    m = tl.arange(0, WORDS)
    for m0 in range(0, M, WORDS):
        tl.store(answered + m0 + m, tl.full([WORDS], 0.0, tl.float32), mask=m0 + m < M)
    tl.debug_barrier()  # other threads of this program read all this next


@triton.jit
def share_of(directed, M, scale):
    """Factor of the sum over tokens.

    Alone it is a power of two: that changes no tie, and no product with a weight overflows.
    """
    count = tl.maximum(directed, 1)
    power = count * 0
    while (1 << power) < count:
        power += 1
    alone = ((127 - power) << 23).to(tl.float32, bitcast=True)
    return tl.where(M > 0, tl.div_rn(scale, count.to(tl.float32)), alone)


@triton.jit
def benefit(benefits, m, M, N, ok):
    """What tokens give to the rows `m`; 0 where that is not positive and finite.

    `benefits` points at row 0 of the tokens; shapes are broadcast.
    """
    x = tl.load(benefits + m.to(tl.int64) * N, mask=ok & (m < M), other=0.0)
    return tl.where((x > 0.0) & (x < INF), x, 0.0)


@triton.jit
def gains(
    matrix, stride, places, covered, directed, benefits, answered, M, N, share, token, ok,
    LANES: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """How much the coverage rises with each of the tokens [LANES], without their weights."""
    place = tl.load(places + token, mask=ok, other=-1)
    column = matrix + (place.to(tl.int64) * stride)[:, None]
    total = tl.full([LANES, WIDTH], 0.0, tl.float32)
    for s0 in range(0, directed, WIDTH):
        s = s0 + tl.arange(0, WIDTH)
        best = tl.load(covered + s, mask=s < directed, other=0.0)  # [WIDTH]
        covers = (place >= 0)[:, None] & (s < directed)[None, :]
        x = tl.load(column + s[None, :], mask=covers, other=0.0)  # [LANES, WIDTH]
        total += tl.maximum(x - best[None, :], 0.0)
    more = tl.full([LANES, WORDS], 0.0, tl.float32)
    for m0 in range(0, M, WORDS):
        m = m0 + tl.arange(0, WORDS)
        best = tl.load(answered + m, mask=m < M, other=0.0)  # [WORDS]
        x = benefit(benefits + token[:, None], m[None, :], M, N, ok[:, None])  # [LANES, WORDS]
        more += tl.maximum(x - best[None, :], 0.0)
    tokens = ordered_sum(total, LANES, WIDTH)
    return tl.fma(tl.broadcast_to(share, [LANES]), tokens, ordered_sum(more, LANES, WORDS))


@triton.jit
def lane_keys(costs, length, me, programs, LANES: tl.constexpr, OWN: tl.constexpr):
    """The smallest key of own tokens for each lane; a lane has every LANES-th own token."""
    t = tl.arange(0, LANES)[:, None] + LANES * tl.arange(0, OWN)[None, :]
    best = tl.full([LANES], KEY_LAST, tl.int64)
    for t0 in range(0, own_rows(length, me, programs), LANES * OWN):
        i = me + programs * (t0 + t)  # [LANES, OWN]
        value = tl.load(costs + i, mask=i < length, other=INF)
        best = tl.minimum(best, tl.min(order_key(value, i), 1))
    return best


@triton.jit
def to_refresh(keys, seen, version):
    """Which lanes have an old gain that may yet be the best, and whether there is one."""
    token = keys & 0xFFFFFFFF
    old = tl.load(seen + token, mask=keys < KEY_END, other=version) != version
    wanted = old & (keys < tl.min(tl.where(old, KEY_LAST, keys), 0))
    return wanted, tl.max(wanted.to(tl.int32), 0)


@triton.jit
def propose(
    costs, seen, version, weights, places, matrix, stride, covered, directed, benefits, answered,
    M, N, share, length, me, programs,
    LANES: tl.constexpr, OWN: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """The best own key, its gain new."""
    keys = lane_keys(costs, length, me, programs, LANES, OWN)
    wanted, some = to_refresh(keys, seen, version)
    while some > 0:
        token = tl.where(wanted, keys & 0xFFFFFFFF, 0)
        value = gains(
            matrix, stride, places, covered, directed, benefits, answered, M, N, share, token,
            wanted, LANES, WIDTH, WORDS,
        )  # fmt: skip
        if weights is not None:
            # Benefits may add up to infinity, which times 0 is no number.
            value = tl.minimum(value, LARGEST) * tl.load(weights + token, mask=wanted, other=0.0)
        tl.debug_barrier()  # each warp has read for itself what is to be refreshed
        tl.store(costs + token, -value, mask=wanted)
        tl.store(seen + token, tl.broadcast_to(version, [LANES]), mask=wanted)
        tl.debug_barrier()  # the keys are read again
        keys = lane_keys(costs, length, me, programs, LANES, OWN)
        wanted, some = to_refresh(keys, seen, version)
    return tl.min(keys, 0)


@triton.jit
def lowest(proposals, programs, MEMBERS: tl.constexpr):
    """The smallest key of all programs."""
    p = tl.arange(0, MEMBERS)
    return tl.min(tl.load(proposals + p, mask=p < programs, other=KEY_LAST), 0)


@triton.jit
def raised(best, x, ok):
    """(what is covered with `x`, whether anything rose). The caller may then overwrite `best`."""
    rose = tl.max((ok & (x > best)).to(tl.int32), 0)
    tl.debug_barrier()  # each warp may hold a copy of `best`, and `rose` must be the same in all
    return tl.maximum(best, x), rose


@triton.jit
def take(
    pick, costs, places, matrix, stride, covered, directed, benefits, answered, M, N, me, programs,
    WIDTH: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """What the token `pick` covers is covered. Returns 1 if that is more than before, else 0."""
    place = tl.load(places + pick)
    column = matrix + place.to(tl.int64) * stride
    rose = 0
    s = tl.arange(0, WIDTH)
    for s0 in range(0, tl.where(place >= 0, directed, 0), WIDTH):
        ok = s0 + s < directed
        x = tl.load(column + s0 + s, mask=ok, other=0.0)
        best, more = raised(tl.load(covered + s0 + s, mask=ok, other=0.0), x, ok)
        tl.store(covered + s0 + s, best, mask=ok)
        rose = tl.maximum(rose, more)
    m = tl.arange(0, WORDS)
    for m0 in range(0, M, WORDS):
        ok = m0 + m < M
        x = benefit(benefits + pick, m0 + m, M, N, ok)
        best, more = raised(tl.load(answered + m0 + m, mask=ok, other=0.0), x, ok)
        tl.store(answered + m0 + m, best, mask=ok)
        rose = tl.maximum(rose, more)
    if pick % programs == me:
        tl.store(costs + pick, INF)
    tl.debug_barrier()  # other threads of this program read all this next
    return rose


@triton.jit
def own_benefits(benefits, table, tokens, M):
    """Benefits of a segment; their rows are N apart in either layout."""
    if table is not None:
        return benefits + tokens
    else:
        return benefits + tokens * M


@triton.jit
def own_matrix(matrix, first, start, table, N, stride):
    """A segment's part of the matrix, which begins with that of the segment `start`.

    `first`: the segment's first row in scratch.
    """
    before, _, _, _, _, _, _, _ = segment(start, table, N, 0, 0, 0, 0)
    return matrix + (first - before) * stride
