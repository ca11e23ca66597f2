# SPDX-License-Identifier: Apache-2.0
"""Pivots, and the tokens that resemble each of them least: what DART chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.cpp import _pivots as _cpp
from ._image import ROWS, SHORTEST, contiguous, native, on_grid, plain, undisturbed
from .scores import combined, largest, members
from .sharing import in_turns
from .similarity import standing


def by_pivots(
    visual: Tensor,
    k: int,
    pivots: int,
    text_pivots: int,
    sorted: bool,
    keys: Tensor | None,
    prompt: Tensor | None,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The `k` tokens of `DART`, all of whose arguments were checked.

    Returns:
        int64 `[B, k]`, the tokens; bool `[B, k]`, which are pivots; float32 `[B, N]`, the norms.
    """
    counts = (k, pivots, text_pivots, sorted)
    if native(visual, keys, prompt, visual_mask, prompt_mask):
        own = None if keys is None else plain(keys)
        words = None if prompt is None else plain(prompt)
        masks = contiguous(visual_mask), contiguous(prompt_mask)
        return _cpp.by_pivots(plain(visual), *counts, own, words, *masks)
    return _by_pivots(visual, *counts, keys, prompt, visual_mask, prompt_mask)


@undisturbed
def _by_pivots(
    visual: Tensor,
    k: int,
    count: int,
    text_pivots: int,
    sorted: bool,
    keys: Tensor | None,
    prompt: Tensor | None,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    stands = standing(visual, visual_mask)
    valid, measured = stands.isfinite(), visual
    if keys is not None:
        valid, measured = valid & standing(keys, visual_mask).isfinite(), keys
    norms = _absolute_sums(measured).masked_fill(stands < 0.0, -1.0)
    norms = norms.masked_fill(~valid, torch.nan)
    core = largest(norms, min(count, k), valid)
    pivots = _directions(visual, core)
    live = core.new_full((*core.shape[:-1], 1), core.shape[-1])
    if prompt is not None and text_pivots:
        words = standing(prompt, prompt_mask) == 0.0  # that have a direction
        text = largest(_absolute_sums(prompt), min(text_pivots, prompt.shape[-2]), words)
        pivots = torch.cat((pivots, _directions(prompt, text)), dim=-2)
        live = live + (text >= 0).sum(-1, keepdim=True)
    similar = _cosines_to(visual, pivots).masked_fill((stands < 0.0).unsqueeze(-2), 2.0)
    free = valid & ~members(core, visual.shape[-2])
    others = in_turns(similar, k - core.shape[-1], live, free)
    return *combined(core, others, k, sorted), norms


def _absolute_sums(x: Tensor) -> Tensor:
    """float32 `[B, N]`: L1 norms of rows, added in float64, so that equal rows have equal ones."""
    parts = x.tensor_split(1 + x.shape[-2] // ROWS, dim=-2)
    return torch.cat([part.double().abs_().sum(-1) for part in parts], dim=-1).float()


def _directions(x: Tensor, index: Tensor) -> Tensor:
    """float64 `[B, P, D]`: the rows `index` `[B, P]` of `x`, of length 1; of -1 any."""
    where = index.clamp_min(0).unsqueeze(-1).expand(*index.shape, x.shape[-1])
    rows = x.gather(-2, where).double()
    return rows / _length(rows).unsqueeze(-1)


def _cosines_to(x: Tensor, pivots: Tensor) -> Tensor:
    """float64 `[B, P, N]` of rows and directions, on a grid that is coarser than their error."""
    parts = x.tensor_split(1 + x.shape[-2] // ROWS, dim=-2)
    wide = (part.double() for part in parts)
    cosines = [pivots @ rows.mT / _length(rows).unsqueeze(-2) for rows in wide]
    return on_grid(torch.cat(cosines, dim=-1))


def _length(rows: Tensor) -> Tensor:
    """Of float64 rows; infinite of those without direction."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return length.where(length >= SHORTEST, torch.inf)
