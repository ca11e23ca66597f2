# SPDX-License-Identifier: Apache-2.0
"""Rules about tensors of tokens, and about those that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .values import FLOATS, at_least, axes, integers, place, say, tensor

INT64 = (torch.int64,)
INTS = (torch.int64, torch.int32)
FLOAT32 = (torch.float32,)
BOOL = (torch.bool,)

_TOKEN_LIMIT = 2**31  # kernels count the tokens of a segment in 32 bits

Shape = tuple[int, ...]


def num_tokens(op: str, visual: Tensor) -> int:
    """N of the tokens `visual`, which must be a tensor of rank 2 or 3."""
    tensor(op, "visual", visual)
    return token_axes(op, visual)[-2]


def count(op: str, k: int, n: int) -> None:
    """`k` tokens of `n` can be taken."""
    if (k < 0) is True or (k > n) is True:
        raise ValueError(f"{op}: k must be in [0, N={n}], got {k}")


def packed(op: str, name: str, x: Tensor, lengths_name: str, lengths: Any) -> list[int]:
    """Segments of `lengths` ints make up the packed tensor `x`; return them as a list."""
    tensor(op, name, x)
    if lengths is None:
        raise TypeError(f"{op}: {lengths_name} must be given for packed {name}, got None")
    result = integers(op, lengths_name, lengths)
    if x.ndim == 0 or sum(result) != x.shape[0]:
        rows = f"sum {sum(result)}, {name} {axes(x)}"
        raise ValueError(f"{op}: {lengths_name} must add up to the rows of {name}, got {rows}")
    return result


def alike(op: str, name: str, items: Any, ndim: int) -> None:
    """`items` are tensors of rank `ndim` that differ in nothing but their first axis."""
    if isinstance(items, str) or not isinstance(items, Sequence):
        several = "a sequence of tensors"
        kinds = f"{several}, as visual is" if ndim == 1 else f"a tensor or {several}"
        raise TypeError(f"{op}: {name} must be {kinds}, got {say(items)}")
    for i, item in enumerate(items):
        tensor(op, f"{name}[{i}]", item)
        holds_values(op, f"{name}[{i}]", item)
        first = items[0]
        if item.dtype != first.dtype:
            raise TypeError(f"{op}: {name}[{i}] must be {first.dtype} like [0], got {item.dtype}")
        if item.ndim != ndim or item.shape[1:] != first.shape[1:]:
            rule = "[n, D], one D for all" if ndim == 2 else "[n]"
            raise ValueError(f"{op}: {name}[{i}] must be {rule}, got {axes(item)}")
        if item.device != first.device:
            raise ValueError(f"{op}: {name}[{i}] must be on {first.device}, got {item.device}")


def tokens(op: str, name: str, x: Tensor) -> None:
    tensor(op, name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, float16 or bfloat16, got {x.dtype}")


def place_of_tokens(op: str, device: Any, dtype: Any) -> torch.device:
    """Return `device`, on which tokens of this `dtype` can be made."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise TypeError(f"{op}: dtype must be float32, float16 or bfloat16, got {dtype!r:.60}")
    return place(op, "device", device)


def token_axes(op: str, visual: Tensor, name: str = "visual") -> torch.Size:
    shape = visual.shape
    if len(shape) not in (2, 3):
        raise ValueError(f"{op}: {name} must be [N, D] or [B, N, D], got {axes(visual)}")
    return shape


def holds_values(op: str, name: str, x: Tensor) -> None:
    if x.is_meta:
        raise ValueError(f"{op}: {name} must be on a device that holds values, got a meta tensor")


def visual_tokens(
    op: str, visual: Tensor, mask: Tensor | None, name: str = "visual", of: str = "visual_mask"
) -> tuple[Shape, int]:
    """Check the tokens `name` and their mask `of`; return the batch axes, () or (B,), and N."""
    tokens(op, name, visual)
    holds_values(op, name, visual)
    shape = token_axes(op, visual, name)
    n = shape[-2]
    if (shape[-1] < 1) is True:
        raise ValueError(f"{op}: {name} must have D >= 1, got {axes(visual)}")
    if (n >= _TOKEN_LIMIT) is True:
        raise ValueError(f"{op}: {name} must have N < 2**31 tokens, got {axes(visual)}")
    batch = shape[:-2]
    if mask is not None:
        companion(op, of, mask, visual, BOOL, (*batch, n))
    return batch, n


def text_tokens(
    op: str,
    visual: Tensor,
    prompt: Tensor,
    mask: Tensor | None,
    name: str = "prompt",
    like: str = "visual",
) -> None:
    """Check the text `name` beside the tokens `like`, and its mask."""
    tokens(op, name, prompt)
    have, want = prompt.shape, visual.shape
    if (
        len(have) != len(want)
        or (have[-1] != want[-1]) is True
        or (len(want) == 3 and (have[0] != want[0]) is True)
    ):
        batch = f"B={want[0]}, " if len(want) == 3 else ""
        raise ValueError(
            f"{op}: {name} must be [{batch}M, D={want[-1]}] like {like} {axes(visual)}, "
            f"got {axes(prompt)}"
        )
    if (have[-2] >= _TOKEN_LIMIT) is True:
        raise ValueError(f"{op}: {name} must have M < 2**31 tokens, got {axes(prompt)}")
    if prompt.device != visual.device:
        raise ValueError(f"{op}: {name} must be on {visual.device}, got {prompt.device}")
    if mask is not None:
        companion(op, "prompt_mask", mask, visual, BOOL, have[:-1])


def companion(
    op: str,
    name: str,
    x: Tensor,
    visual: Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | str, ...],
) -> None:
    """A tensor that goes with `visual`: same device, one of `dtypes`, exactly `shape`.

    An axis of any size has a name instead of a size.
    """
    tensor(op, name, x)
    if x.dtype not in dtypes:
        *first, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        allowed = f"{', '.join(first)} or {last}" if first else last
        raise TypeError(f"{op}: {name} must be {allowed}, got {x.dtype}")
    have = x.shape
    # Sizes of other tensors may be symbols, and comparing these as a whole would fix them.
    if not (type(x) is Tensor and have == shape) and not _may_be(have, shape):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{op}: {name} must have shape [{wanted}], got {axes(x)}")
    if x.device != visual.device:
        raise ValueError(f"{op}: {name} must be on {visual.device}, got {x.device}")


def _may_be(have: Shape, want: tuple[int | str, ...]) -> bool:
    if len(have) != len(want):
        return False
    sizes = zip(have, want, strict=True)
    return not any((a != b) is True for a, b in sizes if not isinstance(b, str))


def weights_of_tokens(op: str, weights: Tensor | None, visual: Tensor) -> None:
    """Check the weights of tokens, if there are any."""
    if weights is not None:
        companion(op, "weights", weights, visual, FLOAT32, visual.shape[:-1])


def packed_tokens(
    op: str, visual: Tensor, cu_seqlens: Tensor, total_k: int, max_seqlen: int, **counts: Tensor
) -> int:
    """Check packed tokens `[T, D]`, their offsets and counts; return the number of segments S."""
    visual_tokens(op, visual, None)
    if visual.ndim != 2:
        raise ValueError(f"{op}: visual must be packed tokens [T, D], got {axes(visual)}")
    tensor(op, "cu_seqlens", cu_seqlens)
    if cu_seqlens.ndim != 1 or (cu_seqlens.shape[0] < 1) is True:
        raise ValueError(f"{op}: cu_seqlens must have shape [S + 1], got {axes(cu_seqlens)}")
    companion(op, "cu_seqlens", cu_seqlens, visual, INTS, cu_seqlens.shape)
    at_least(op, "total_k", total_k, 0)
    at_least(op, "max_seqlen", max_seqlen, 0)
    segments = cu_seqlens.shape[0] - 1
    for name, x in counts.items():
        companion(op, name, x, visual, INTS, (segments,))
    return segments
