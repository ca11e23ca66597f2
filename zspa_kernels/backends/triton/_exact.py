# SPDX-License-Identifier: Apache-2.0
"""Numbers in float64, for what float32 cannot decide."""

from __future__ import annotations

import struct

import triton
import triton.language as tl

STEPS = tl.constexpr(2.0**40)  # of 1: coarser than the error of float64, so equal cosines are equal
# From here on all values are whole, and their distance is 1.
WHOLE = tl.constexpr(2.0**52)


def halves(x: float) -> tuple[int, int]:
    """A float64 argument of a kernel, as two int32: Triton would round it to float32."""
    low, high = struct.unpack("<ii", struct.pack("<d", x))
    return high, low


@triton.jit
def joined(high, low):
    """The float64 that `halves` took apart."""
    bits = (tl.cast(high, tl.int64) << 32) | (tl.cast(low, tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def wide(x):
    """float64 of any floating dtype; half precision by way of float32, which holds it."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32).to(tl.float64)


@triton.jit
def rounded(x):
    """float64 values rounded to integers, halves to even ones."""
    size = tl.abs(x)
    size = tl.where(size < WHOLE, (size + WHOLE) - WHOLE, size)
    return tl.where(x < 0.0, -size, size)


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
