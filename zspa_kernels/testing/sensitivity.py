# SPDX-License-Identifier: Apache-2.0
"""ZOO-Prune's sensitivity as it was published, and the Jacobian it estimates: oracles and baseline.

Written from the formulas with PyTorch's own activations, for a projector that is any function of
tokens `[..., D]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[[Tensor], Tensor]

#: PyTorch's own, which this package does not use.
TORCH_ACTIVATIONS: dict[str, Function] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "relu": functional.relu,
    "identity": lambda x: x,
}


def projector(
    w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> Function:
    """`x -> w2 act(w1 x + b1) + b2`."""
    act = TORCH_ACTIVATIONS[activation]
    return lambda x: functional.linear(act(functional.linear(x, w1, b1)), w2, b2)


def published_sensitivity(
    features: Tensor,
    project: Function,
    directions: Tensor,
    radius: float,
    at_once: int | None = None,
) -> Tensor:
    """Mean over the directions of `||P(x + h u) - P(x - h u)|| / (2 h)`, in the published shape.

    Every direction moves every token, all perturbed tokens go through the projector twice, and
    everything is in the dtype of the features but for the mean.

    Args:
        features: `[N, D]`; in float64 this is the oracle.
        project: the projector.
        directions: `[m, D]`, used as given.
        radius: h, above 0.
        at_once: directions in one pass; None: all of them, as published.

    Returns:
        `[N]`, float64 for float64 features and float32 otherwise.
    """
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    total = torch.zeros(len(features), dtype=wide, device=features.device)
    for some in directions.to(features.dtype).split(at_once or len(directions)):
        step = radius * some[:, None]  # [m, 1, D]
        plus = project(features + step)  # [m, N, O]
        minus = project(features - step)
        total += (plus - minus).norm(dim=-1).to(wide).sum(0)
    return total / (2.0 * radius * len(directions))


def linearised_sensitivity(features: Tensor, project: Function, directions: Tensor) -> Tensor:
    """Mean over the directions of `||J u||`, `[N]`: the published estimate's limit for h = 0."""
    lengths: Tensor = _responses(features, project, directions).norm(dim=1)
    return lengths.mean(1)


def jacobian_sensitivity(
    features: Tensor, project: Function, directions: Tensor | None = None
) -> Tensor:
    """Root mean square of `||J u||` over all unit directions, or over the given ones, `[N]`."""
    if directions is None:
        responses, count = _jacobian(features, project), features.shape[1]
    else:
        responses, count = _responses(features, project, directions), len(directions)
    length: Tensor = responses.flatten(1).norm(dim=1)
    return length / math.sqrt(count)


def _jacobian(features: Tensor, project: Function) -> Tensor:
    jacobian: Tensor = torch.func.vmap(torch.func.jacrev(project))(features)
    return jacobian  # [N, O, D]


def _responses(features: Tensor, project: Function, directions: Tensor) -> Tensor:
    """J u for every direction u, `[N, O, m]`."""
    return _jacobian(features, project) @ directions.to(features.dtype).T
