# SPDX-License-Identifier: Apache-2.0
"""Every rule about arguments, once.

Each op has one function here. It takes the op's own arguments (same order, same defaults), raises
the contract's errors, and returns the shape of the indices the op will produce. Implementations on
every device, named backends and fakes all call it, so no entry point knows a rule of its own.

Errors read `<op>: <argument> must <rule>, got <value>`:
    TypeError   a wrong kind of object or dtype, or None where something is required
    ValueError  a wrong rank, shape, range, device, layout or option

Values inside tensors are never looked at, and nothing is formatted unless it is raised.

Sizes are compared as `(k > n) is True`. In a fake they may be symbolic; then the comparison is no
bool, the rule passes without adding a guard, and the call on real tensors applies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._contract_values import FLOATS, at_least, axes, integers, option, place, say, tensor

POOLINGS = ("mean", "max", "none_mean", "none_max")

_TOKEN_LIMIT = 2**31  # kernels count the tokens of a segment in 32 bits

Shape = tuple[int, ...]


def num_tokens(op: str, visual: Tensor) -> int:
    """N of the tokens `visual`, which must be a tensor of rank 2 or 3."""
    tensor(op, "visual", visual)
    return _token_axes(op, visual)[-2]


def count(op: str, k: int, n: int) -> None:
    """`k` tokens of `n` can be taken."""
    if (k < 0) is True or (k > n) is True:
        raise ValueError(f"{op}: k must be in [0, N={n}], got {k}")


def two_counts(op: str, k_core: int, k_diverse: int, n: int, has_prompt: bool) -> None:
    """`k_core` and `k_diverse` tokens of `n` can be taken; a core needs a prompt."""
    at_least(op, "k_core", k_core, 0)
    at_least(op, "k_diverse", k_diverse, 0)
    k = k_core + k_diverse
    if (k > n) is True:
        raise ValueError(f"{op}: k_core + k_diverse must be in [0, N={n}], got {k}")
    if not has_prompt and (k_core > 0) is True:
        raise TypeError(f"{op}: prompt must be a tensor when k_core={k_core} > 0, got None")


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
        _holds_values(op, f"{name}[{i}]", item)
        first = items[0]
        if item.dtype != first.dtype:
            raise TypeError(f"{op}: {name}[{i}] must be {first.dtype} like [0], got {item.dtype}")
        if item.ndim != ndim or item.shape[1:] != first.shape[1:]:
            rule = "[n, D], one D for all" if ndim == 2 else "[n]"
            raise ValueError(f"{op}: {name}[{i}] must be {rule}, got {axes(item)}")
        if item.device != first.device:
            raise ValueError(f"{op}: {name}[{i}] must be on {first.device}, got {item.device}")


# ---- the ops ------------------------------------------------------------------------------------


def select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    sorted: bool = True,
) -> Shape:
    """Rules of `zspa::select`."""
    batch, n = _visual("select", visual, visual_mask)
    if prompt is not None:
        _prompt("select", visual, prompt, prompt_mask)
    elif prompt_mask is not None:
        raise ValueError("select: prompt_mask must be None without a prompt, got a tensor")
    two_counts("select", k_core, k_diverse, n, prompt is not None)
    option("select", "pooling", pooling, POOLINGS)
    return (*batch, k_core + k_diverse)


def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
) -> Shape:
    """Rules of `zspa::relevance_topk`; the scores have the shape of `visual` without D."""
    batch, n = _visual("relevance_topk", visual, visual_mask)
    _prompt("relevance_topk", visual, prompt, prompt_mask)
    count("relevance_topk", k, n)
    option("relevance_topk", "pooling", pooling, POOLINGS)
    return (*batch, k)


def diversity(
    visual: Tensor,
    k: int,
    seeds: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::diversity`."""
    batch, n = _visual("diversity", visual, visual_mask)
    count("diversity", k, n)
    if seeds is not None:
        _companion("diversity", "seeds", seeds, visual, _INT64, (*batch, "S"))
    _weights("diversity", weights, visual)
    return (*batch, k)


def select_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    prompt: Tensor | None,
    prompt_spans: Tensor | None,
    k_core: Tensor,
    k_diverse: Tensor,
    total_k: int,
    max_seqlen: int,
    pooling: str = "mean",
    sorted: bool = True,
) -> Shape:
    """Rules of `zspa::select_varlen`."""
    segments = _ragged(
        "select_varlen", visual, cu_seqlens, total_k, max_seqlen, k_core=k_core, k_diverse=k_diverse
    )
    if prompt is not None:
        _prompt("select_varlen", visual, prompt, None)
    elif prompt_spans is not None:
        raise ValueError("select_varlen: prompt_spans must be None without a prompt, got a tensor")
    if prompt_spans is not None:
        _companion("select_varlen", "prompt_spans", prompt_spans, visual, _INTS, (segments, 2))
    option("select_varlen", "pooling", pooling, POOLINGS)
    return (total_k,)


def diversity_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::diversity_varlen`."""
    _ragged("diversity_varlen", visual, cu_seqlens, total_k, max_seqlen, k=k)
    _weights("diversity_varlen", weights, visual)
    return (total_k,)


def gather(x: Tensor, indices: Tensor) -> None:
    """Rules of `gather`: x `[N, ...]` with indices `[K]`, or x `[B, N, ...]` with `[B, K]`."""
    tensor("gather", "x", x)
    tensor("gather", "indices", indices)
    if indices.dtype is not torch.int64:
        raise TypeError(f"gather: indices must be int64, got {indices.dtype}")
    if indices.ndim not in (1, 2):
        raise ValueError(f"gather: indices must be [K] or [B, K], got {axes(indices)}")
    if x.ndim < indices.ndim or (indices.ndim == 2 and (x.shape[0] != indices.shape[0]) is True):
        rule = "[N, ...]" if indices.ndim == 1 else f"[B={indices.shape[0]}, N, ...]"
        raise ValueError(f"gather: x must be {rule}, got {axes(x)}")
    if x.device != indices.device:
        raise ValueError(f"gather: indices must be on {x.device} like x, got {indices.device}")


# ---- the rules they share -----------------------------------------------------------------------

_INT64 = (torch.int64,)
_INTS = (torch.int64, torch.int32)
_FLOAT32 = (torch.float32,)
_BOOL = (torch.bool,)


def _tokens(op: str, name: str, x: Tensor) -> None:
    tensor(op, name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, float16 or bfloat16, got {x.dtype}")


def place_of_tokens(op: str, device: Any, dtype: Any) -> torch.device:
    """Return `device`, on which tokens of this `dtype` can be made."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise TypeError(f"{op}: dtype must be float32, float16 or bfloat16, got {dtype!r:.60}")
    return place(op, "device", device)


def _token_axes(op: str, visual: Tensor, name: str = "visual") -> torch.Size:
    shape = visual.shape
    if len(shape) not in (2, 3):
        raise ValueError(f"{op}: {name} must be [N, D] or [B, N, D], got {axes(visual)}")
    return shape


def _holds_values(op: str, name: str, x: Tensor) -> None:
    if x.is_meta:
        raise ValueError(f"{op}: {name} must be on a device that holds values, got a meta tensor")


def _visual(
    op: str, visual: Tensor, mask: Tensor | None, name: str = "visual", of: str = "visual_mask"
) -> tuple[Shape, int]:
    """Check the tokens `name` and their mask `of`; return the batch axes, () or (B,), and N."""
    _tokens(op, name, visual)
    _holds_values(op, name, visual)
    shape = _token_axes(op, visual, name)
    n = shape[-2]
    if (shape[-1] < 1) is True:
        raise ValueError(f"{op}: {name} must have D >= 1, got {axes(visual)}")
    if (n >= _TOKEN_LIMIT) is True:
        raise ValueError(f"{op}: {name} must have N < 2**31 tokens, got {axes(visual)}")
    batch = shape[:-2]
    if mask is not None:
        _companion(op, of, mask, visual, _BOOL, (*batch, n))
    return batch, n


def _prompt(
    op: str,
    visual: Tensor,
    prompt: Tensor,
    mask: Tensor | None,
    name: str = "prompt",
    like: str = "visual",
) -> None:
    """Check the text `name` beside the tokens `like`, and its mask."""
    _tokens(op, name, prompt)
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
        _companion(op, "prompt_mask", mask, visual, _BOOL, have[:-1])


def _companion(
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


def _weights(op: str, weights: Tensor | None, visual: Tensor) -> None:
    """Check the weights of tokens, if there are any."""
    if weights is not None:
        _companion(op, "weights", weights, visual, _FLOAT32, visual.shape[:-1])


def _ragged(
    op: str, visual: Tensor, cu_seqlens: Tensor, total_k: int, max_seqlen: int, **counts: Tensor
) -> int:
    """Check packed tokens `[T, D]`, their offsets and counts; return the number of segments S."""
    _visual(op, visual, None)
    if visual.ndim != 2:
        raise ValueError(f"{op}: visual must be packed tokens [T, D], got {axes(visual)}")
    tensor(op, "cu_seqlens", cu_seqlens)
    if cu_seqlens.ndim != 1 or (cu_seqlens.shape[0] < 1) is True:
        raise ValueError(f"{op}: cu_seqlens must have shape [S + 1], got {axes(cu_seqlens)}")
    _companion(op, "cu_seqlens", cu_seqlens, visual, _INTS, cu_seqlens.shape)
    at_least(op, "total_k", total_k, 0)
    at_least(op, "max_seqlen", max_seqlen, 0)
    segments = cu_seqlens.shape[0] - 1
    for name, x in counts.items():
        _companion(op, name, x, visual, _INTS, (segments,))
    return segments
