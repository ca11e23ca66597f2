# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of the unpruned prompt, and the part of them that is kept.

`"original"`: a kept token keeps its position: distances in the picture and to the text stay true.
`"compact"`: kept tokens are numbered from 0 without gaps, on every axis.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .architectures import Target

POSITIONS = ("original", "compact")


def counted(mask: Tensor) -> Tensor:
    """Positions int64 `[B, L]` that count the tokens of `mask`, 0 at padding, as in `generate`."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask.bool(), 0)


def full_positions(target: Target, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
    """Positions of the unpruned prompt, int64 `[B, L]`, or `[3, B, L]` with time, row, column."""
    given: Tensor | None = inputs.get("position_ids")
    if given is not None:
        if given.ndim == 3:
            return given[-3:]
        given = given.expand(mask.shape[0], -1)
        return given.expand(3, -1, -1) if target.arch.mrope else given
    if not target.arch.mrope:
        return counted(mask)
    known = {**inputs, "attention_mask": mask}
    if known.get("mm_token_type_ids") is None:  # without it Qwen counts as if all were text
        ids = known["input_ids"]
        types = [(ids == one.token).int() * kind for kind, one in enumerate(target.modalities, 1)]
        known["mm_token_type_ids"] = torch.stack(types).sum(0, dtype=torch.int)
    for theirs, value in _of_omni(inputs).items():
        known[theirs] = value
    index = type(target.inner).get_rope_index
    names = inspect.signature(index).parameters
    positions, _ = index(target.inner, **{k: v for k, v in known.items() if k in names})
    axes: Tensor = positions
    return axes


def _of_omni(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What Qwen2.5-Omni computes positions from by other names than those of its processor."""
    found = {
        "second_per_grids": inputs.get("video_second_per_grid"),
        "audio_seqlens": inputs.get("audio_feature_lengths"),
    }
    if inputs.get("feature_attention_mask") is not None:
        found["audio_seqlens"] = inputs["feature_attention_mask"].sum(-1)
    return {name: value for name, value in found.items() if value is not None}


def kept_positions(target: Target, full: Tensor, index: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Positions of the pruned prompt: `[B, L']`, or `[4, B, L']`.

    The first of four axes counts the tokens of the text model, by which transformers tells packed
    sequences apart; a gap in it would cut the prompt in two.
    """
    here = counted(mask)
    if mode == "compact":
        return here.expand(4, -1, -1) if target.arch.mrope else here
    if full.ndim == 2:
        return full.gather(1, index).masked_fill(~mask, 0)
    axes = full.gather(2, index.expand(3, -1, -1))
    return torch.cat((here[None], axes))
