# SPDX-License-Identifier: Apache-2.0
"""What the first calls would do, done before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import api
from ._contract import tensors as _tensors
from ._contract import values as _values


def warmup(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    num_tokens: int = 576,
    dim: int = 4096,
) -> None:
    """Do now what the first calls would do: load the backend, compile its kernels, cache them.

    Runs every selection op on zeros, with and without its optional arguments, for images and
    batches of several sizes. Call it once for each device, dtype and D: before you measure latency
    or serve requests, and before a CUDA-graph capture, during which nothing can be compiled.

    Args:
        device: where the tokens will be.
        dtype: their dtype.
        num_tokens: a typical N.
        dim: their D, on which compiled kernels depend.

    Raises:
        TypeError: a size is not an int, `device` is not a device, or tokens cannot have the dtype.
        ValueError: a size is too small, or the device does not exist or holds no values.

    Example:
        >>> warmup("cpu", num_tokens=16, dim=8)
    """
    for name, size, least in (("num_tokens", num_tokens, 0), ("dim", dim, 1)):
        _values.integer_at_least("warmup", name, size, least)
    device = _tensors.place_of_tokens("warmup", device, dtype)
    _sizes(torch.zeros((1, 1025, dim), dtype=dtype, device=device))
    visual = torch.zeros((2, num_tokens, dim), dtype=dtype, device=device)
    weights = torch.zeros((2, num_tokens), dtype=torch.float32, device=device)
    _batches(visual, weights, {})
    _batches(visual, weights, {"visual_mask": torch.ones_like(weights, dtype=torch.bool)})
    _ragged(visual, weights)


def _sizes(visual: Tensor) -> None:
    """Images of several sizes and batches of several, cut from one image `[1, 1025, D]`.

    How many programs share an image, or whether one takes all its tokens, follows its size and
    that of the batch, and decides which kernel they run.
    """
    weights = torch.zeros(visual.shape[:2], dtype=torch.float32, device=visual.device)
    for n in (64, 256, 512, 1024):
        for op in (api.diversity, api.dpp):
            op(visual[:, :n], 1)
            op(visual[:, :n], 1, weights=weights[:, :n])
        api.min_sum(visual[:, :n], 1)
    for images in (1, 8, 40):
        batch = visual.expand(images, -1, -1)
        api.diversity(batch, 1)
        api.diversity(batch, 1, weights=weights.expand(images, -1))


def _batches(visual: Tensor, weights: Tensor, masked: dict[str, Any]) -> None:
    """Every op on a batch `[2, N, D]`, with and without its optional arguments."""
    n, prompt = visual.shape[1], visual[:, :1]
    one, k = min(1, n), min(2, n)
    seeds = torch.zeros((2, 1), dtype=torch.int64, device=visual.device)
    api.select(visual, k_core=0, k_diverse=k, **masked)
    api.select(visual, prompt, k_core=one, k_diverse=k - one, **masked)
    api.relevance_topk(visual, prompt, k, **masked)
    api.diversity(visual, k, seeds=seeds, **masked)
    api.diversity(visual, k, weights=weights, **masked)
    for given in (masked, {"weights": weights, **masked}):
        api.dpp(visual, k, **given)
        # None of its kernels depends on N, and its matrix is N x N.
        few = {name: x[:, :64] for name, x in given.items()}
        api.facility_location(visual[:, :64], k, **few)
        api.facility_location(visual[:, :64], k, temperature=1.0, **few)
    api.min_sum(visual, k, seeds=seeds, **masked)
    api.suppress(visual, weights, k, threshold=0.9, **masked)
    for places in (None, visual.new_zeros((2, n, 2))):
        api.soft_suppress(visual, weights, k, sharpness=20.0, positions=places, **masked)


def _ragged(visual: Tensor, weights: Tensor) -> None:
    """Every ragged op on the images of a batch `[2, N, D]`."""
    n, images = visual.shape[1], list(visual)
    one, k = min(1, n), min(2, n)
    api.select_varlen(images, k_core=0, k_diverse=k)
    api.select_varlen(images, visual[0, :1], k_core=one, k_diverse=k - one)
    api.diversity_varlen(images, k, weights=list(weights))
    few = list(visual[:, :64])
    for heavy in (None, weights):
        api.dpp_varlen(images, k, weights=None if heavy is None else list(heavy))
        some = None if heavy is None else list(heavy[:, :64])
        api.facility_location_varlen(few, k, weights=some)
        api.facility_location_varlen(few, k, weights=some, temperature=1.0)
    api.min_sum_varlen(images, k)
