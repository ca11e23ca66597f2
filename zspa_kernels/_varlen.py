# SPDX-License-Identifier: Apache-2.0
"""The ragged public functions: images of different lengths, packed, in one call of an op."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, overload

import torch
from torch import Tensor

from . import _counts
from ._contract import selection as _rules
from ._contract import tensors as _tensors
from ._contract import values as _values
from ._ops.call import call


@overload
def select_varlen(
    visual: Tensor,
    prompt: Tensor | Sequence[Tensor] | None = ...,
    *,
    lengths: Sequence[int],
    prompt_lengths: Sequence[int] | None = ...,
    keep: float | None = ...,
    core_ratio: float | None = ...,
    k_core: int | Sequence[int] | None = ...,
    k_diverse: int | Sequence[int] | None = ...,
    pooling: str = ...,
    sorted: bool = ...,
    rounding: str = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def select_varlen(
    visual: Sequence[Tensor],
    prompt: Tensor | Sequence[Tensor] | None = ...,
    *,
    lengths: None = ...,
    prompt_lengths: Sequence[int] | None = ...,
    keep: float | None = ...,
    core_ratio: float | None = ...,
    k_core: int | Sequence[int] | None = ...,
    k_diverse: int | Sequence[int] | None = ...,
    pooling: str = ...,
    sorted: bool = ...,
    rounding: str = ...,
    backend: str = ...,
) -> list[Tensor]: ...
def select_varlen(
    visual: Tensor | Sequence[Tensor],
    prompt: Tensor | Sequence[Tensor] | None = None,
    *,
    lengths: Sequence[int] | None = None,
    prompt_lengths: Sequence[int] | None = None,
    keep: float | None = None,
    core_ratio: float | None = None,
    k_core: int | Sequence[int] | None = None,
    k_diverse: int | Sequence[int] | None = None,
    pooling: str = "mean",
    sorted: bool = True,
    rounding: str = "round",
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """Choose which visual tokens to keep, for images of different lengths.

    The same as `select` on each image alone, bit for bit, in one call and without padding. A share
    `keep` is a share of each image's own length.

    Args:
        visual: one tensor `[n, D]` per image, with the same D, dtype and device; or all images
            packed as `[T, D]`, together with `lengths`.
        prompt: None: by diversity alone. One tensor `[M, D]`: every image uses it. One tensor
            `[m, D]` per image; or all prompts packed as `[P, D]`, together with `prompt_lengths`.
        lengths: tokens of each image in packed `visual`; they add up to T.
        prompt_lengths: tokens of each image's prompt in packed `prompt`; they add up to P. An image
            whose prompt has no token is selected by diversity.
        keep: how many tokens of each image: a share in (0, 1] or a count; see `num_keep`.
        core_ratio: share of the kept tokens chosen by relevance, default 0.2 (0 without a prompt).
        k_core: how many core tokens, instead of `keep`: one count for all images, or one per image.
        k_diverse: how many diversity tokens, likewise; together at most the length of the image.
        pooling: as in `select`.
        sorted: as in `select`, inside each image.
        rounding: as in `select`.
        backend: as in `select`.

    Returns:
        For a list of images, a list of int64 `[K]`: for each image, indices into that image. For
        packed images, one int64 `[K of all images]`: indices into the packed tokens, image by
        image, so that `gather(visual, indices)` is the packed kept tokens. -1 where valid tokens
        run out.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`; lengths and counts
            are ints on the host, so all of them are checked.

    Complexity: the sum of `select` on each image.

    Example:
        >>> import torch
        >>> images = [torch.eye(4), torch.eye(4)[:3]]
        >>> select_varlen(images, prompt=torch.eye(4)[2:3], keep=2, core_ratio=0.5)
        [tensor([0, 2]), tensor([0, 2])]
        >>> select_varlen(torch.cat(images), lengths=[4, 3], keep=0.5)
        tensor([0, 1, 4, 5])
    """
    op = "select_varlen"
    _values.flag(op, "sorted", sorted)
    _values.option(op, "pooling", pooling, _rules.POOLINGS)
    tokens, sizes = _pack(op, "visual", visual, "lengths", lengths)
    texts, text_sizes = _pack_prompt(op, prompt, prompt_lengths, len(sizes))
    cores = _each(op, "k_core", k_core, len(sizes))
    diverses = _each(op, "k_diverse", k_diverse, len(sizes))
    has_prompt = prompt is not None
    counts = []
    for n, core, diverse in zip(sizes, cores, diverses, strict=True):
        pair = _counts.counts(op, n, keep, core_ratio, core, diverse, rounding, has_prompt)
        _rules.two_counts(op, *pair, n, has_prompt)
        counts.append(pair)
    if tokens is None:
        return []
    cu_seqlens, kc, kd, text_offsets = _upload(
        tokens.device,
        _offsets(sizes),
        [core for core, _ in counts],
        [diverse for _, diverse in counts],
        _offsets(text_sizes or []),
    )
    spans = torch.stack((text_offsets[:-1], text_offsets[1:]), dim=1) if text_sizes else None
    ks = [core + diverse for core, diverse in counts]
    longest = max([0, *sizes])  # torch.compile knows no `default=` of max
    arguments = (tokens, cu_seqlens, texts, spans, kc, kd, sum(ks), longest, pooling, sorted)
    indices: Tensor = call(op, backend, arguments)
    return indices if tokens is visual else _per_image(indices, cu_seqlens, kc + kd, ks)


@overload
def diversity_varlen(
    visual: Tensor,
    k: int | Sequence[int],
    *,
    lengths: Sequence[int],
    weights: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def diversity_varlen(
    visual: Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lengths: None = ...,
    weights: Sequence[Tensor] | None = ...,
    backend: str = ...,
) -> list[Tensor]: ...
def diversity_varlen(
    visual: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """Pick tokens greedily, each the least similar to those before it, in images of any length.

    The same as `diversity` without seeds on each image alone, bit for bit, in one call.

    Args:
        visual: one tensor `[n, D]` per image, or all packed as `[T, D]`, together with `lengths`.
        k: how many of each image, at most its length: one count for all, or one per image.
        lengths: tokens of each image in packed `visual`; they add up to T.
        weights: float32, one tensor `[n]` per image for a list of images, `[T]` for packed ones.
        backend: as in `select`.

    Returns:
        For a list of images, a list of int64 `[k]`: indices into each image in the order of
        picking. For packed images, one int64 tensor of indices into the packed tokens. -1 where
        valid tokens run out.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select_varlen`.

    Complexity: the sum of `diversity` on each image.

    Example:
        >>> import torch
        >>> diversity_varlen(torch.eye(3), [1, 2], lengths=[1, 2])
        tensor([0, 1, 2])
    """
    return picks_varlen("diversity_varlen", visual, k, lengths, weights, backend)


def picks_varlen(
    op: str,
    visual: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    lengths: Sequence[int] | None,
    weights: Tensor | Sequence[Tensor] | None,
    backend: str,
    *,
    before: tuple[Any, ...] = (),
    behind: tuple[Any, ...] = (),
    weighted: bool = True,
) -> Tensor | list[Tensor]:
    """Call a ragged greedy op that picks k tokens of each image.

    `before` and `behind` are its arguments before and after the weights; `weighted` is False for an
    op that takes none.
    """
    tokens, sizes = _pack(op, "visual", visual, "lengths", lengths)
    ks = [_values.integer(op, "k", value) for value in _each(op, "k", k, len(sizes))]
    for n, value in zip(sizes, ks, strict=True):
        _tensors.count(op, value, n)
    of_each: Any = None if isinstance(visual, Tensor) else weights
    if of_each is not None:
        _tensors.alike(op, "weights", of_each, 1)
        weight_sizes = [len(part) for part in of_each]
        if weight_sizes != sizes:
            raise ValueError(f"{op}: weights must have lengths {sizes}, got {weight_sizes}")
    if tokens is None:
        return []
    if of_each is not None:
        weights = side_by_side(of_each)
    cu_seqlens, counts = _upload(tokens.device, _offsets(sizes), ks)
    longest = max([0, *sizes])
    options = (*before, weights, *behind) if weighted else ()
    arguments = (tokens, cu_seqlens, counts, sum(ks), longest, *options)
    indices: Tensor = call(op, backend, arguments)
    return indices if tokens is visual else _per_image(indices, cu_seqlens, counts, ks)


def _pack(
    op: str, name: str, x: Any, lengths_name: str, lengths: Any
) -> tuple[Tensor | None, list[int]]:
    """All rows in one tensor, and how many belong to each image; no tensor for no images."""
    if isinstance(x, Tensor):
        return x, _tensors.packed(op, name, x, lengths_name, lengths)
    _tensors.alike(op, name, x, 2)
    if lengths is not None:
        raise ValueError(f"{op}: {lengths_name} must be None for a list of tensors, got {lengths}")
    sizes = [item.shape[0] for item in x]
    if not sizes:
        return None, sizes
    return side_by_side(x), sizes


def side_by_side(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`parts`, at least one, as one tensor."""
    with torch.autocast(parts[0].device.type, enabled=False):  # which would change dtypes, or fail
        return torch.cat(list(parts), dim=dim)


def _pack_prompt(
    op: str, prompt: Any, lengths: Any, images: int
) -> tuple[Tensor | None, list[int] | None]:
    """The prompt tokens, and how many belong to each image; None if all images use all of them."""
    if prompt is None:
        if lengths is not None:
            raise ValueError(f"{op}: prompt_lengths must be None without a prompt, got {lengths}")
        return None, None
    if isinstance(prompt, Tensor) and lengths is None:
        return prompt, None
    tokens, sizes = _pack(op, "prompt", prompt, "prompt_lengths", lengths)
    if len(sizes) != images:
        raise ValueError(
            f"{op}: prompt must have a part for each image, {images}, got {len(sizes)}"
        )
    return tokens, sizes


def _each(op: str, name: str, value: Any, images: int) -> list[Any]:
    """One value for each image, from one for all or a sequence."""
    if not hasattr(value, "__iter__"):
        return [value] * images
    values = _values.integers(op, name, value)
    if len(values) != images:
        raise ValueError(
            f"{op}: {name} must have a count for each image, {images}, got {len(values)}"
        )
    return values


def _offsets(sizes: list[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))


def _upload(device: torch.device, *columns: list[int]) -> tuple[Tensor, ...]:
    """int64 tensors on `device`, in one copy that does not wait for the device."""
    flat = torch.tensor([n for column in columns for n in column], dtype=torch.int64, device="cpu")
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts: tuple[Tensor, ...] = flat.split([len(column) for column in columns])
    return parts


def _per_image(indices: Tensor, cu_seqlens: Tensor, counts: Tensor, ks: list[int]) -> list[Tensor]:
    """Indices into each image, from indices into the packed tokens."""
    first = cu_seqlens[:-1].repeat_interleave(counts, output_size=len(indices))
    return list(torch.where(indices < 0, indices, indices - first).split(ks))
