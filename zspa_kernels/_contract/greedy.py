# SPDX-License-Identifier: Apache-2.0
"""The rules about arguments of the greedy ops beside `diversity`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .tensors import (
    FLOAT32,
    INT64,
    Shape,
    alike,
    companion,
    count,
    packed_tokens,
    visual_tokens,
    weights_of_tokens,
)
from .values import ratio, tensor

# A float32 cosine of a token with itself is off from 1 by up to some 1e-6. Much colder, and its
# softmax would divide 0 by 0 or infinity by infinity.
_COLDEST = 1e-6
_LARGEST_SCALE = 1e30  # kernels take it as float32


def dpp(
    visual: Tensor, k: int, weights: Tensor | None = None, visual_mask: Tensor | None = None
) -> Shape:
    """Rules of `zspa::dpp`."""
    batch, n = visual_tokens("dpp", visual, visual_mask)
    count("dpp", k, n)
    weights_of_tokens("dpp", weights, visual)
    return (*batch, k)


def dpp_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::dpp_varlen`."""
    packed_tokens("dpp_varlen", visual, cu_seqlens, total_k, max_seqlen, k=k)
    weights_of_tokens("dpp_varlen", weights, visual)
    return (total_k,)


def facility_location(
    visual: Tensor,
    k: int,
    benefits: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
) -> Shape:
    """Rules of `zspa::facility_location`."""
    batch, n = visual_tokens("facility_location", visual, visual_mask)
    count("facility_location", k, n)
    _coverage("facility_location", visual, benefits, temperature, scale)
    weights_of_tokens("facility_location", weights, visual)
    return (*batch, k)


def facility_location_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    benefits: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
) -> Shape:
    """Rules of `zspa::facility_location_varlen`."""
    op = "facility_location_varlen"
    packed_tokens(op, visual, cu_seqlens, total_k, max_seqlen, k=k)
    _coverage(op, visual, benefits, temperature, scale)
    weights_of_tokens(op, weights, visual)
    return (total_k,)


def min_sum(
    visual: Tensor, k: int, seeds: Tensor | None = None, visual_mask: Tensor | None = None
) -> Shape:
    """Rules of `zspa::min_sum`."""
    batch, n = visual_tokens("min_sum", visual, visual_mask)
    count("min_sum", k, n)
    if seeds is not None:
        companion("min_sum", "seeds", seeds, visual, INT64, (*batch, "S"))
    return (*batch, k)


def min_sum_varlen(
    visual: Tensor, cu_seqlens: Tensor, k: Tensor, total_k: int, max_seqlen: int
) -> Shape:
    """Rules of `zspa::min_sum_varlen`."""
    packed_tokens("min_sum_varlen", visual, cu_seqlens, total_k, max_seqlen, k=k)
    return (total_k,)


def benefits_of_images(op: str, benefits: Any, visual: Any) -> list[Tensor]:
    """Tensors `[M, n]`, one for each `[n, D]` of `visual`, with one M, dtype and device for all."""
    alike(op, "visual", visual, 2)
    if isinstance(benefits, Tensor | str) or not isinstance(benefits, Sequence):
        rule = "a sequence of tensors, as visual is"
        raise TypeError(f"{op}: benefits must be {rule}, got {type(benefits).__name__}")
    if len(benefits) != len(visual):
        rule = f"have a tensor for each image, {len(visual)}"
        raise ValueError(f"{op}: benefits must {rule}, got {len(benefits)}")
    for i, (part, image) in enumerate(zip(benefits, visual, strict=True)):
        tensor(op, f"benefits[{i}]", part)
        rows = benefits[0].shape[:1]
        companion(op, f"benefits[{i}]", part, image, FLOAT32, (*rows, image.shape[0]))
    return list(benefits)


def _coverage(
    op: str, visual: Tensor, benefits: Tensor | None, temperature: float, scale: float
) -> None:
    """Rows `[B, M, N]` to be covered, if there are any, and how tokens cover each other."""
    if 0.0 < ratio(op, "temperature", temperature) < _COLDEST:
        raise ValueError(f"{op}: temperature must be 0 or at least {_COLDEST}, got {temperature}")
    if ratio(op, "scale", scale) > _LARGEST_SCALE:
        raise ValueError(f"{op}: scale must be at most {_LARGEST_SCALE}, got {scale}")
    if benefits is not None:
        *batch, n, _ = visual.shape
        companion(op, "benefits", benefits, visual, FLOAT32, (*batch, "M", n))
