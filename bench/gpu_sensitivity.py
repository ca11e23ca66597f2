# SPDX-License-Identifier: Apache-2.0
"""Sensitivity on a GPU: a check against the published formula in float64, and its timing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import zspa_kernels as zk
from bench import gpu_check
from bench.gpu_check import check
from zspa_kernels.testing.sensitivity import (
    TORCH_ACTIVATIONS,
    jacobian_sensitivity,
    linearised_sensitivity,
    projector,
    published_sensitivity,
)

RADIUS = 0.01
#: Relative error of a score that is allowed for these inputs, as for every backend.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}

Weights = tuple[Tensor, Tensor, Tensor]


def weights(d: int, hidden: int, out: int, dtype: torch.dtype) -> Weights:
    """`W1 [H, D]`, `b1 [H]`, `W2 [O, H]` of random weights, on the device."""
    draw = torch.Generator().manual_seed(0)
    w1 = torch.randn(hidden, d, generator=draw) / d**0.5
    b1 = 0.1 * torch.randn(hidden, generator=draw)
    w2 = torch.randn(out, hidden, generator=draw) / hidden**0.5
    return tuple(x.to(gpu_check.DEVICE, dtype) for x in (w1, b1, w2))  # type: ignore[return-value]


def features(n: int, d: int, dtype: torch.dtype) -> Tensor:
    """`[N, D]` on the device."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, d, generator=draw).to(gpu_check.DEVICE, dtype)


def error(scores: Tensor, right: Tensor) -> float:
    """Largest relative error."""
    return float(((scores.double().cpu() - right.cpu()).abs() / right.cpu()).max())


@check
def sensitivity_cases() -> None:
    """Every activation and dtype: differences, their limit, and the closed form."""
    for dtype, limit in BOUNDS.items():
        for activation in TORCH_ACTIVATIONS:
            w1, b1, w2 = weights(48, 130, 70, dtype)
            x = features(37, 48, dtype)
            u = zk.unit_directions(5, 48, seed=3).to(gpu_check.DEVICE)
            wide = [t.double() for t in (w1, b1, w2)]
            project = projector(wide[0], wide[1], wide[2], None, activation)
            y, v = x.double(), u.double()
            plan = zk.SensitivityPlan(w1, b1, w2, activation)
            for name, scores, right in (
                ("differences", _op(x, (w1, b1, w2), activation, u, RADIUS),
                 published_sensitivity(y, project, v, RADIUS)),
                ("their limit", _op(x, (w1, b1, w2), activation, u, 0.0),
                 linearised_sensitivity(y, project, v)),
                ("closed form", plan(x), jacobian_sensitivity(y, project)),
            ):  # fmt: skip
                wrong = error(scores, right)
                assert wrong <= limit, f"{name}, {activation}, {dtype}: error {wrong:.1e}"


def _op(x: Tensor, parts: Weights, activation: str, u: Tensor, radius: float) -> Tensor:
    scores: Tensor = torch.ops.zspa.sensitivity(x, *parts, activation, u, radius)
    return scores


def timing(n: int = 576, d: int = 1024, width: int = 4096, m: int = 64) -> Iterator[dict[str, Any]]:
    """Replays of a projector's forward pass, of the published shape and of ours; bfloat16.

    A score is compared with the float64 formula on the first tokens; one that is wrong has no time.
    """
    from bench.gpu_timing import best

    parts = weights(d, width, width, torch.bfloat16)
    w1, b1, w2 = parts
    x, u = features(n, d, torch.bfloat16), zk.unit_directions(m, d, seed=0).to(gpu_check.DEVICE)
    hidden = functional.linear(x, w1, b1)
    forward = projector(w1, b1, w2, None, "gelu")
    plan, low = (zk.SensitivityPlan(*parts, "gelu", rank=rank) for rank in (None, 256))
    some = x[:8].double()
    project = projector(w1.double(), b1.double(), w2.double(), None, "gelu")
    by_differences = published_sensitivity(some, project, u.double(), RADIUS)
    by_jacobian = jacobian_sensitivity(some, project)
    calls: dict[str, tuple[Callable[[], Tensor], Tensor | None]] = {
        "forward pass": (lambda: forward(x), None),
        f"published, m = {m}": (lambda: published_sensitivity(x, forward, u, RADIUS), None),
        f"zeroth order, m = {m}": (lambda: _op(x, parts, "gelu", u, RADIUS), by_differences),
        "closed form, given the pre-activation": (
            lambda: plan(preactivation=hidden), by_jacobian,
        ),
        "rank 256, given the pre-activation": (lambda: low(preactivation=hidden), None),
    }  # fmt: skip
    for name, (call, right) in calls.items():
        record: dict[str, Any] = {"sensitivity": name, "n": n, "kind": "ours"}
        wrong = None if right is None else error(call()[:8], right)
        if wrong is not None and wrong > BOUNDS[torch.bfloat16]:
            yield {**record, "status": "wrong", "error": wrong}
        else:
            yield {**record, "error": wrong, "ms": best(call)}
