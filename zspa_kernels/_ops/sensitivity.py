# SPDX-License-Identifier: Apache-2.0
"""Implementations of the sensitivity ops."""

from __future__ import annotations

from torch import Tensor

from .._contract import sensitivity as _rules
from .implementation import backend_of, contiguous, dense, undisturbed


@undisturbed
def sensitivity(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    activation: str,
    directions: Tensor,
    radius: float = 0.01,
    backend: str = "auto",
) -> Tensor:
    _rules.sensitivity(features, w1, b1, w2, activation, directions, radius)
    run = backend_of(backend, "sensitivity", features)
    weights = (dense(w1), contiguous(b1), dense(w2), activation, dense(directions), radius)
    return _scores(features, run(_batch(features), *weights))


@undisturbed
def sensitivity_hidden(
    preactivation: Tensor,
    w2: Tensor,
    activation: str,
    shifts: Tensor,
    radius: float = 0.01,
    backend: str = "auto",
) -> Tensor:
    _rules.sensitivity_hidden(preactivation, w2, activation, shifts, radius)
    run = backend_of(backend, "sensitivity_hidden", preactivation)
    weights = (dense(w2), activation, dense(shifts), radius)
    return _scores(preactivation, run(_batch(preactivation), *weights))


@undisturbed
def sensitivity_rms(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _rules.sensitivity_rms(features, w1, b1, factor, activation, diagonal)
    run = backend_of(backend, "sensitivity_rms", features)
    weights = (dense(w1), contiguous(b1), dense(factor), activation, contiguous(diagonal))
    return _scores(features, run(_batch(features), *weights))


@undisturbed
def sensitivity_rms_hidden(
    preactivation: Tensor,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _rules.sensitivity_rms_hidden(preactivation, factor, activation, diagonal)
    run = backend_of(backend, "sensitivity_rms_hidden", preactivation)
    weights = (dense(factor), activation, contiguous(diagonal))
    return _scores(preactivation, run(_batch(preactivation), *weights))


def _batch(tokens: Tensor) -> Tensor:
    """Tokens as `[B, N, D]`, with a last axis of stride 1."""
    tokens = dense(tokens)
    return tokens if tokens.ndim == 3 else tokens.unsqueeze(0)


def _scores(tokens: Tensor, scores: Tensor) -> Tensor:
    """Scores `[B, N]` as the caller's tokens have their axes."""
    return scores if tokens.ndim == 3 else scores.squeeze(0)
