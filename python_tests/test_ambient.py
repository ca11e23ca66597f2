# SPDX-License-Identifier: Apache-2.0
"""Ambient state changes nothing, and no call changes ambient state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk

B, N, D, M = 2, 24, 16, 3


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


AMBIENT: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "matmul precision medium": lambda: matmul_precision("medium"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: default_device("meta"),
    "device context meta": lambda: torch.device("meta"),
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "deterministic": lambda: deterministic(True),
    "not deterministic": lambda: deterministic(False),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "two threads": lambda: threads(2),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))


def arguments(dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of every op, made before any ambient state is set; tokens and weights with grad."""
    generator = torch.Generator().manual_seed(3)
    return {
        "visual": draw(B, N, D).to(dtype).requires_grad_(),
        "prompt": draw(B, M, D).to(dtype).requires_grad_(),
        "weights": torch.rand(B, N, generator=generator).requires_grad_(),
        "visual_mask": torch.rand(B, N, generator=generator) > 0.2,
        "prompt_mask": torch.ones(B, M, dtype=torch.bool),
        "seeds": torch.tensor([[1, -1], [2, 5]]),
    }


def every_function(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
    """What the public functions answer; the interpreter of Triton is asked less, it is slow."""
    masks = {"visual_mask": x["visual_mask"]}
    both = {**masks, "prompt_mask": x["prompt_mask"], "backend": backend}
    visual, prompt, weights = x["visual"], x["prompt"], x["weights"]
    if backend == "triton":
        weighted = zk.diversity(visual, 2, seeds=x["seeds"], weights=weights, backend=backend)
        return [weighted, *zk.select_varlen(list(visual), prompt[0], keep=2, backend=backend)]
    results = [
        zk.select(visual, prompt, keep=0.4, **both),
        zk.select(visual, prompt, k_core=2, k_diverse=3, sorted=False, pooling="max", **both),
        zk.select(visual, keep=4, backend=backend),
        *zk.relevance_topk(visual, prompt, 4, pooling="none_mean", **both),
        *zk.relevance_topk(visual[0], prompt[0], 4, pooling="none_max", backend=backend),
        zk.diversity(visual, 5, seeds=x["seeds"], weights=weights, **masks, backend=backend),
        *zk.select_varlen(list(visual), list(prompt), keep=0.3, core_ratio=0.5, backend=backend),
        zk.diversity_varlen(
            visual.flatten(0, 1), [2, 3], lengths=[N, N], weights=weights.view(-1), backend=backend
        ),
        zk.dpp(visual, 5, weights=weights, **masks, backend=backend),
        *zk.dpp_varlen(list(visual), [2, 3], backend=backend),
        zk.facility_location(visual, 5, weights=weights, **masks, backend=backend),
        zk.facility_location(
            visual, 5, benefits=weights[:, None], temperature=0.2, backend=backend
        ),
        zk.min_sum(visual, 5, seeds=x["seeds"], **masks, backend=backend),
        *zk.min_sum_varlen(list(visual), [2, 3], backend=backend),
        zk.suppress(visual, weights, 5, threshold=0.3, **masks, backend=backend),
        zk.soft_suppress(visual, weights, 5, sharpness=9.0, **masks, backend=backend),
        *zk.facility_location_varlen(
            list(visual), [2, 3], benefits=list(weights[:, None]), scale=0.5, backend=backend
        ),
    ]
    return [t for result in results for t in ([result] if isinstance(result, Tensor) else result)]


# For the interpreter one dtype and the states that could reach it are enough.
CASES = [
    *product(("auto", "reference", "cpp"), (torch.float32, torch.bfloat16), AMBIENT),
    *product(("triton",), (torch.float32,), ("autocast bfloat16", "default dtype float64")),
    *product(("triton",), (torch.float32,), ("default device meta", "inference mode")),
]


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, torch.dtype], list[Tensor]]:
    """Answers without any ambient state, filled as they are needed."""
    return {}


def modes() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(("backend", "dtype", "ambient"), CASES)
def test_ambient_state_changes_nothing(
    ambient: str,
    dtype: torch.dtype,
    backend: str,
    plain: dict[tuple[str, torch.dtype], list[Tensor]],
    require_backend: Callable[..., None],
) -> None:
    if backend != "auto":
        require_backend(backend)
    x = arguments(dtype)
    key = backend, dtype
    if key not in plain:
        plain[key] = every_function(backend, x)
    with AMBIENT[ambient]():
        before = modes()
        found = every_function(backend, x)
        assert modes() == before
    for result, expected in zip(found, plain[key], strict=True):
        assert result.dtype == expected.dtype
        assert result.device == expected.device
        assert not result.requires_grad
        assert torch.equal(result.clone(), expected)


@pytest.mark.parametrize("ambient", ["autocast bfloat16", "no grad", "grad", "inference mode"])
def test_an_error_leaves_ambient_state_as_it_was(ambient: str) -> None:
    x = arguments(torch.float32)
    with AMBIENT[ambient]():
        before = modes()
        for backend in ("auto", "reference"):
            with pytest.raises(ValueError, match="k must be in"):
                zk.diversity(x["visual"], N + 1, backend=backend)
        assert modes() == before


def test_gather_under_ambient_state() -> None:
    x = draw(N, D)
    indices = torch.tensor([3, -1, 0])
    expected = torch.stack((x[3], torch.zeros_like(x[0]), x[0]))
    for enter in AMBIENT.values():
        with enter():
            assert torch.equal(zk.gather(x, indices).clone(), expected)
