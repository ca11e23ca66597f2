# SPDX-License-Identifier: Apache-2.0
"""Implementations of the greedy ops beside `diversity`."""

from __future__ import annotations

import math

from torch import Tensor

from .. import _segments
from .._contract import greedy as _rules
from .._contract import suppress as _suppress_rules
from .implementation import backend_of, contiguous, dense, undisturbed


@undisturbed
def dpp(
    visual: Tensor,
    k: int,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _rules.dpp(visual, k, weights, visual_mask)
    run = backend_of(backend, "dpp", visual)
    indices: Tensor = run(dense(visual), k, contiguous(weights), contiguous(visual_mask))
    return indices


@undisturbed
def dpp_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _rules.dpp_varlen(visual, cu_seqlens, k, total_k, max_seqlen, weights)
    run = backend_of(backend, "dpp_varlen", visual)
    table = _segments.ragged_table(cu_seqlens, None, k, total_k, max_seqlen, visual.shape[0])
    indices: Tensor = run(dense(visual), table, total_k, max_seqlen, contiguous(weights))
    return indices


@undisturbed
def facility_location(
    visual: Tensor,
    k: int,
    benefits: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    _rules.facility_location(visual, k, benefits, weights, visual_mask, temperature, scale)
    run = backend_of(backend, "facility_location", visual)
    given = contiguous(benefits), contiguous(weights), contiguous(visual_mask)
    indices: Tensor = run(dense(visual), k, *given, temperature, scale)
    return indices


@undisturbed
def facility_location_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    benefits: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    _rules.facility_location_varlen(
        visual, cu_seqlens, k, total_k, max_seqlen, benefits, weights, temperature, scale
    )
    run = backend_of(backend, "facility_location_varlen", visual)
    table = _segments.ragged_table(cu_seqlens, None, k, total_k, max_seqlen, visual.shape[0])
    rows = contiguous(benefits), contiguous(weights)
    indices: Tensor = run(dense(visual), table, total_k, max_seqlen, *rows, temperature, scale)
    return indices


@undisturbed
def min_sum(
    visual: Tensor,
    k: int,
    seeds: Tensor | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _rules.min_sum(visual, k, seeds, visual_mask)
    run = backend_of(backend, "min_sum", visual)
    indices: Tensor = run(dense(visual), k, contiguous(seeds), contiguous(visual_mask))
    return indices


@undisturbed
def min_sum_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    backend: str = "auto",
) -> Tensor:
    _rules.min_sum_varlen(visual, cu_seqlens, k, total_k, max_seqlen)
    run = backend_of(backend, "min_sum_varlen", visual)
    table = _segments.ragged_table(cu_seqlens, None, k, total_k, max_seqlen, visual.shape[0])
    indices: Tensor = run(dense(visual), table, total_k, max_seqlen)
    return indices


@undisturbed
def suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    threshold: float,
    fill: bool = True,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _suppress_rules.suppress(visual, scores, k, threshold, fill, visual_mask)
    run = backend_of(backend, "suppress", visual)
    mask = contiguous(visual_mask)
    # A multiple of 2**-40, as the cosines that are compared with it: 0.3 is not above 0.3.
    limit = round(threshold * 2.0**40) * 2.0**-40
    indices: Tensor = run(dense(visual), contiguous(scores), k, limit, fill, mask)
    return indices


@undisturbed
def soft_suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    sharpness: float,
    rule: str = "subtract",
    positions: Tensor | None = None,
    spread: float | None = None,
    reach: float | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _suppress_rules.soft_suppress(
        visual, scores, k, sharpness, rule, positions, spread, reach, visual_mask
    )
    run = backend_of(backend, "soft_suppress", visual)
    limits = [math.inf if x is None else x for x in (spread, reach)]
    indices: Tensor = run(
        *(dense(visual), contiguous(scores), k, sharpness, rule),
        *(contiguous(positions), *limits, contiguous(visual_mask)),
    )
    return indices
