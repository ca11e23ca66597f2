# SPDX-License-Identifier: Apache-2.0
"""What the first calls would do, done before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from . import api
from ._contract import tensors as _tensors
from ._contract import values as _values

#: The ops of selection that can be prepared.
OPS = (
    *("select", "diversity", "relevance_topk", "dpp", "facility_location", "min_sum"),
    *("suppress", "soft_suppress"),
)

Run = Callable[..., None]


def warmup(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    num_tokens: int = 576,
    dim: int = 4096,
    ops: Iterable[str] | None = None,
) -> None:
    """Do now what the first calls would do: load the backend, compile its kernels, cache them.

    Runs the selection ops on zeros, with and without their optional arguments, for images and
    batches of several sizes. Call it once for each device, dtype and D: before you measure latency
    or serve requests, and before a CUDA-graph capture, during which nothing can be compiled. On a
    GPU the kernels of all ops take a minute or two to compile, those of `select` a fifth of it.

    Args:
        device: where the tokens will be.
        dtype: their dtype.
        num_tokens: a typical N.
        dim: their D, on which compiled kernels depend.
        ops: which of "select", "diversity", "relevance_topk", "dpp", "facility_location",
            "min_sum", "suppress" and "soft_suppress" will be called, each with its ragged form;
            None: all. `zk.DivPrune` and `zk.ZSPAPrune` call "select".

    Raises:
        TypeError: a size is not an int, `device` is not a device, tokens cannot have the dtype, or
            `ops` is not several names.
        ValueError: a size is too small, the device does not exist or holds no values, or there is
            no such op.

    Example:
        >>> warmup("cpu", num_tokens=16, dim=8, ops=["select"])
    """
    for name, size, least in (("num_tokens", num_tokens, 0), ("dim", dim, 1)):
        _values.integer_at_least("warmup", name, size, least)
    device = _tensors.place_of_tokens("warmup", device, dtype)
    wanted = OPS if ops is None else _wanted(ops)

    def run(op: str, *args: Any, **options: Any) -> None:
        if op.removesuffix("_varlen") in wanted:
            getattr(api, op)(*args, **options)

    _sizes(run, torch.zeros((1, 1025, dim), dtype=dtype, device=device))
    visual = torch.zeros((2, num_tokens, dim), dtype=dtype, device=device)
    weights = torch.zeros((2, num_tokens), dtype=torch.float32, device=device)
    _batches(run, visual, weights, {})
    _batches(run, visual, weights, {"visual_mask": torch.ones_like(weights, dtype=torch.bool)})
    _ragged(run, visual, weights)


def _wanted(ops: Iterable[str]) -> set[str]:
    if isinstance(ops, str) or not isinstance(ops, Iterable):
        raise TypeError(f"warmup: ops must be several names, got {_values.say(ops)}")
    wanted = list(ops)
    for op in wanted:
        _values.option("warmup", "ops", op, OPS)
    return set(wanted)


def _sizes(run: Run, visual: Tensor) -> None:
    """Images of several sizes and batches of several, cut from one image `[1, 1025, D]`.

    How many programs share an image, or whether one takes all its tokens, follows its size and
    that of the batch, and decides which kernel they run.
    """
    weights = torch.zeros(visual.shape[:2], dtype=torch.float32, device=visual.device)
    for n in (64, 256, 512, 1024):
        run("select", visual[:, :n], k_core=0, k_diverse=1)
        for op in ("diversity", "dpp"):
            run(op, visual[:, :n], 1)
            run(op, visual[:, :n], 1, weights=weights[:, :n])
        run("min_sum", visual[:, :n], 1)
    for images in (1, 8, 40):
        batch = visual.expand(images, -1, -1)
        run("select", batch, k_core=0, k_diverse=1)
        run("diversity", batch, 1)
        run("diversity", batch, 1, weights=weights.expand(images, -1))
    for images, n in ((1, 1025), (8, 64), (40, 16)):
        ragged, heavy = [visual[0, :n]] * images, [weights[0, :n]] * images
        run("select_varlen", ragged, k_core=0, k_diverse=1)
        run("min_sum_varlen", ragged, 1)
        for op in ("diversity_varlen", "dpp_varlen"):
            run(op, ragged, 1)
            run(op, ragged, 1, weights=heavy)


def _batches(run: Run, visual: Tensor, weights: Tensor, masked: dict[str, Any]) -> None:
    """Every op on a batch `[2, N, D]`, with and without its optional arguments."""
    n, prompt = visual.shape[1], visual[:, :1]
    one, k = min(1, n), min(2, n)
    seeds = torch.zeros((2, 1), dtype=torch.int64, device=visual.device)
    run("select", visual, k_core=0, k_diverse=k, **masked)
    run("select", visual, prompt, k_core=one, k_diverse=k - one, **masked)
    run("relevance_topk", visual, prompt, k, **masked)
    run("diversity", visual, k, seeds=seeds, **masked)
    run("diversity", visual, k, weights=weights, **masked)
    for given in (masked, {"weights": weights, **masked}):
        run("dpp", visual, k, **given)
        # None of its kernels depends on N, and its matrix is N x N.
        few = {name: x[:, :64] for name, x in given.items()}
        run("facility_location", visual[:, :64], k, **few)
        run("facility_location", visual[:, :64], k, temperature=1.0, **few)
    run("min_sum", visual, k, seeds=seeds, **masked)
    run("suppress", visual, weights, k, threshold=0.9, **masked)
    for places in (None, visual.new_zeros((2, n, 2))):
        run("soft_suppress", visual, weights, k, sharpness=20.0, positions=places, **masked)


def _ragged(run: Run, visual: Tensor, weights: Tensor) -> None:
    """Every ragged op on the images of a batch `[2, N, D]`."""
    n, images = visual.shape[1], list(visual)
    one, k = min(1, n), min(2, n)
    run("select_varlen", images, k_core=0, k_diverse=k)
    run("select_varlen", images, visual[0, :1], k_core=one, k_diverse=k - one)
    run("diversity_varlen", images, k, weights=list(weights))
    few = list(visual[:, :64])
    for heavy in (None, weights):
        run("dpp_varlen", images, k, weights=None if heavy is None else list(heavy))
        some = None if heavy is None else list(heavy[:, :64])
        run("facility_location_varlen", few, k, weights=some)
        run("facility_location_varlen", few, k, weights=some, temperature=1.0)
    run("min_sum_varlen", images, k)
