# SPDX-License-Identifier: Apache-2.0
"""Cosines in float64, for what float32 cannot decide."""

from __future__ import annotations

import triton
import triton.language as tl

STEPS = tl.constexpr(2.0**40)  # of 1: coarser than the error of float64, so equal cosines are equal
# Added and subtracted again, it leaves an integer: the distance of float64 values there is 1.
ROUND = tl.constexpr(1.5 * 2.0**52)


@triton.jit
def wide(x):
    """float64 of any floating dtype; half precision by way of float32, which holds it."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(tl.float64)


@triton.jit
def rounded(x):
    """float64 values below 2**51 rounded to integers, halves to even ones."""
    return (x + ROUND) - ROUND


@triton.jit
def exact_cosines(x, y, ok, D, PAIRS: tl.constexpr, WIDE: tl.constexpr):
    """float64 [PAIRS]: cosines of the rows at `x` with those at `y`, in whole steps of 2**-40.

    The step is coarser than the error of a sum of D products, so the order of these does not show.
    """
    k = tl.arange(0, WIDE)
    xy = tl.full([PAIRS, WIDE], 0.0, tl.float64)
    xx = tl.full([PAIRS, WIDE], 0.0, tl.float64)
    yy = tl.full([PAIRS, WIDE], 0.0, tl.float64)
    for k0 in range(0, D, WIDE):
        at = (k0 + k)[None, :]
        some = ok[:, None] & (at < D)
        a = wide(tl.load(x[:, None] + at, mask=some, other=0.0))  # [PAIRS, WIDE]
        b = wide(tl.load(y[:, None] + at, mask=some, other=0.0))  # [PAIRS, WIDE]
        xy += a * b
        xx += a * a
        yy += b * b
    lengths = tl.sqrt(tl.sum(xx, 1)) * tl.sqrt(tl.sum(yy, 1))
    return rounded(tl.sum(xy, 1) / tl.where(ok, lengths, 1.0) * STEPS)
