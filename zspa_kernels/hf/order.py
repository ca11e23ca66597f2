# SPDX-License-Identifier: Apache-2.0
"""From the rows that a tower or a projector has to the visual tokens that are made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .architectures import Target
from .encode import Part
from .layout import patch_grids
from .tiles import along_frames, along_tokens


def along(target: Target, inputs: Mapping[str, Any], part: Part, values: Tensor) -> Tensor:
    """Values of the projector's rows in the order of the visual tokens, `[T, ...]`.

    What becomes of the rows between projector and language model is done to their values as well:
    packing tiles, making large pictures and frames smaller, leaving out padding. NaN at newlines.

    Args:
        target: the model.
        inputs: of the call.
        part: the pictures, or the videos.
        values: `[entries, n, ...]`, or `[n, ...]` where the rows of all entries are in a row.
    """
    if target.arch.in_tiles and not part.modality.moves:
        return along_tokens(target, inputs, values)
    if target.arch.tile == "shrunk":  # LLaVA-NeXT-Video's frames are small when projected
        return along_frames(target, values, len(part.sizes))
    if target.arch.blocks:
        return _out_of_windows(target, inputs[part.modality.grid], values)
    if values.ndim == 1:
        return values
    if target.arch.size == "position_ids":  # of padding as well
        real: Tensor = inputs[part.modality.places][..., 0] >= 0
        return values[real.to(values.device)]
    return values.flatten(0, 1)


def in_blocks(target: Target, values: Tensor) -> Tensor:
    """Values `[P, ...]` of patches, as the means `[T, ...]` of squares that follow one another."""
    side = target.model.config.vision_config.spatial_merge_size
    return values.reshape(-1, side * side, *values.shape[1:]).mean(1)


def in_squares(
    target: Target, inputs: Mapping[str, Any], part: Part, values: Sequence[Tensor]
) -> Tensor:
    """Values `[P, ...]` of each picture's patches row by row, as means `[T, ...]` of squares.

    NaN is padding: a square has the mean of its patches, and NaN if it has none.
    """
    if target.arch.size:
        grids, side = patch_grids(target, inputs, part.modality)
        tokens = [(rows // side, columns // side) for rows, columns in grids]
    else:
        wide, across = math.isqrt(len(values[0])), math.isqrt(sum(part.sizes) // len(values))
        side = wide // across
        grids, tokens = [(wide, wide)] * len(values), [(across, across)] * len(values)
    means = []
    for value, (rows, columns), (high, wide) in zip(values, grids, tokens, strict=True):
        grid = value[: rows * columns].reshape(rows, columns, -1)
        whole = grid[: high * side, : wide * side]  # the rest becomes no token (Mistral 3)
        squares = whole.reshape(high, side, wide, side, -1).nanmean((1, 3))
        means.append(squares.reshape(high * wide, *value.shape[1:]))
    return torch.cat(means)


def _out_of_windows(target: Target, grid: Tensor, values: Tensor) -> Tensor:
    """Values `[T, ...]` in the order of visual tokens; Qwen2.5-VL's tower goes window by window."""
    visual = target.towers()[0]
    if not hasattr(visual, "window_size"):
        return values
    if hasattr(visual, "get_window_index"):
        order = visual.get_window_index(grid)[0]
    else:
        index = target.module_attribute("get_vision_window_index")
        order = index(grid, visual.spatial_merge_size, visual.window_size, visual.patch_size)[0]
    return values[torch.as_tensor(order, device=values.device).argsort()]
