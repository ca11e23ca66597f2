# SPDX-License-Identifier: Apache-2.0
"""Derivatives and difference quotients of activations, elementwise in float32."""

from __future__ import annotations

import triton
import triton.language as tl

END = tl.constexpr(80.0)
SERIES_STEP = tl.constexpr(0.0625)
QUICK = tl.constexpr(1.702)
CUBE = tl.constexpr(0.044715)
TWICE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)


@triton.jit
def logistic(x):
    """The logistic function and its first three derivatives."""
    e = tl.exp(-tl.abs(x))
    near_one = 1.0 / (1.0 + e)
    near_zero = e * near_one
    s = tl.where(x < 0.0, near_zero, near_one)
    d1 = near_zero * near_one
    d2 = d1 * (1.0 - 2.0 * s)
    return s, d1, d2, d1 * (1.0 - 6.0 * d1)


@triton.jit
def gate(x, ACTIVATION: tl.constexpr):
    """What x is multiplied with in the activation, and its first three derivatives."""
    if ACTIVATION == "gelu":
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        cdf = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        return cdf, density, -x * density, (x * x - 1.0) * density
    elif ACTIVATION == "gelu_tanh":
        # Tensors come first: a constexpr on the left would make a constexpr of the product.
        w1 = x * x * (3.0 * CUBE * TWICE) + TWICE
        w2 = x * (6.0 * CUBE * TWICE)
        w3 = 6.0 * CUBE * TWICE
        s, d1, d2, d3 = logistic(x * (x * x * (CUBE * TWICE) + TWICE))
        return (
            s,
            d1 * w1,
            d2 * w1 * w1 + d1 * w2,
            d3 * w1 * w1 * w1 + d2 * w1 * w2 * 3.0 + d1 * w3,
        )
    elif ACTIVATION == "quick_gelu":
        s, d1, d2, d3 = logistic(x * QUICK)
        return s, d1 * QUICK, d2 * (QUICK * QUICK), d3 * (QUICK * QUICK * QUICK)
    else:
        return logistic(x)


@triton.jit
def cut(x):
    """`x` in [-END, END]; NaN stays."""
    x = tl.where(x < -END, -END, x)
    return tl.where(x > END, END, x)


@triton.jit
def value(x, ACTIVATION: tl.constexpr):
    """act(x) of a smooth activation."""
    s, _, _, _ = gate(x, ACTIVATION)
    return x * s


@triton.jit
def odd_part(x, ACTIVATION: tl.constexpr):
    """(act'(x), act'''(x) / 6): act(x + d) - act(x - d) = 2 d (first + third d^2 + ...)."""
    if ACTIVATION == "identity":
        return 1.0 + x * 0.0, x * 0.0  # x * 0 keeps NaN
    elif ACTIVATION == "relu":
        return tl.where(x > 0.0, 1.0, 0.0) + x * 0.0, x * 0.0
    else:
        x = cut(x)
        s, d1, d2, d3 = gate(x, ACTIVATION)
        return s + x * d1, (3.0 * d2 + x * d3) * (1.0 / 6.0)


@triton.jit
def quotient(a, first, third, shift, radius, ACTIVATION: tl.constexpr):
    """(act(a + d) - act(a - d)) / (2 radius) for d = radius * shift; shapes broadcast."""
    step = radius * shift
    result = shift * (first + third * (step * step))
    if ACTIVATION == "relu":
        # Exact for every step: the part of [a - step, a + step] that lies above 0.
        size = tl.abs(step)
        part = (a + size) / tl.where(size > 0.0, 2.0 * size, 1.0)
        part = tl.where(part < 0.0, 0.0, part)
        part = tl.where(part > 1.0, 1.0, part)
        result = tl.where(size > 0.0, shift * part, result)
    elif ACTIVATION != "identity":
        if tl.max(tl.abs(step)) > SERIES_STEP:
            large = tl.abs(step) > SERIES_STEP
            difference = value(a + step, ACTIVATION) - value(a - step, ACTIVATION)
            direct = difference * (shift / tl.where(large, 2.0 * step, 1.0))
            result = tl.where(large, direct, result)
    return result
