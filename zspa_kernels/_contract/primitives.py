# SPDX-License-Identifier: Apache-2.0
"""The rules about arguments of the primitives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tensors import (
    BOOL,
    INT64,
    INTS,
    Shape,
    companion,
    count,
    holds_values,
    text_tokens,
    visual_tokens,
)
from .values import FLOATS, at_least, axes, brief, integer, integers, real, tensor

_ANY_FLOAT = (*FLOATS, torch.float64)


def visual(op: str, x: Tensor, mask: Tensor | None = None, k: int | None = None) -> Shape:
    """Tokens, their mask, and how many of them; return the batch axes, () or (B,)."""
    batch, n = visual_tokens(op, x, mask)
    if k is not None:
        count(op, k, n)
    return batch


def vectors(op: str, x: Tensor, mask: Tensor | None, k: int = 0) -> None:
    """Features that stand for tokens, their mask, and how many of them."""
    _, n = visual_tokens(op, x, mask, "features", "mask")
    count(op, k, n)


def visual_and_prompt(
    op: str, x: Tensor, prompt: Tensor, mask: Tensor | None, prompt_mask: Tensor | None
) -> None:
    """Tokens, text embeddings beside them, and both masks."""
    visual(op, x, mask)
    text_tokens(op, x, prompt, prompt_mask)


def embeddings(op: str, image: Tensor, text: Tensor, like: Tensor) -> None:
    """Embeddings of patches `[B, N, C]`, one for each token of `like`, and of text `[B, M, C]`."""
    features(op, "image_embeds", image, like)
    text_tokens(op, image, text, None, "text_embeds", "image_embeds")


def per_token(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """Floats `[B, N]`, one for each token of `like` `[B, N, D]`."""
    companion(op, name, x, like, _ANY_FLOAT, like.shape[:-1])


def positions(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """Places `[B, N, 2]`, one for each token of `like` `[B, N, D]`."""
    companion(op, name, x, like, (*FLOATS, *INTS), (*like.shape[:-1], 2))


def features(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """Vectors `[B, N, C]`, one for each token of `like` `[B, N, D]`."""
    companion(op, name, x, like, FLOATS, (*like.shape[:-1], "C"))
    if (x.shape[-1] < 1) is True:
        raise ValueError(f"{op}: {name} must have C >= 1, got {axes(x)}")


def scores(op: str, x: Tensor, k: int, mask: Tensor | None = None) -> None:
    """Floats `[B, N]` or `[N]`, their mask, and how many of them to take."""
    tensor(op, "scores", x)
    if x.dtype not in _ANY_FLOAT:
        raise TypeError(f"{op}: scores must be floating point, got {x.dtype}")
    if x.ndim not in (1, 2):
        raise ValueError(f"{op}: scores must be [N] or [B, N], got {axes(x)}")
    holds_values(op, "scores", x)
    count(op, integer(op, "k", k), x.shape[-1])
    if mask is not None:
        flags(op, "mask", mask, x)


def flags(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """Bools of the shape of `like`."""
    companion(op, name, x, like, BOOL, tuple(like.shape))


def labels(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """Ints of the shape of `like`."""
    companion(op, name, x, like, INTS, tuple(like.shape))


def ints(op: str, name: str, x: Tensor) -> None:
    """Ints, whatever their shape."""
    tensor(op, name, x)
    if x.dtype not in INTS:
        raise TypeError(f"{op}: {name} must be int64 or int32, got {x.dtype}")


def indices(op: str, name: str, x: Tensor, like: Tensor) -> None:
    """int64 `[B, S]` or `[S]`, indices into the tokens of `like` `[B, N, D]`."""
    companion(op, name, x, like, INT64, (*like.shape[:-2], "S"))


def quotas(op: str, values: Any, k: int) -> list[int]:
    """Counts on the host that add up to `k`."""
    result = integers(op, "quotas", values)
    if sum(result) != k:
        raise ValueError(f"{op}: quotas must add up to k={k}, got {result}")
    return result


def number(op: str, name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float in `[low, high]`."""
    result = real(op, name, value)
    if not low <= result <= high:  # NaN fails too
        raise ValueError(f"{op}: {name} must be in [{low:g}, {high:g}], got {brief(value)}")
    return result


def rows(op: str, x: Tensor, owner: Tensor, k: int, weights: Tensor | None) -> None:
    """Rows `[B, N, ...]`, the slot of each in `[0, k)`, and weights."""
    tensor(op, "x", x)
    tensor(op, "owner", owner)
    if x.dtype not in _ANY_FLOAT:
        raise TypeError(f"{op}: x must be floating point, got {x.dtype}")
    if owner.dtype is not torch.int64:
        raise TypeError(f"{op}: owner must be int64, got {owner.dtype}")
    if owner.ndim not in (1, 2) or x.shape[: owner.ndim] != owner.shape:
        raise ValueError(f"{op}: owner must be [N] or [B, N] of x {axes(x)}, got {axes(owner)}")
    if owner.device != x.device:
        raise ValueError(f"{op}: owner must be on {x.device} like x, got {owner.device}")
    at_least(op, "k", integer(op, "k", k), 0)
    if weights is not None:
        companion(op, "weights", weights, x, _ANY_FLOAT, tuple(owner.shape))
