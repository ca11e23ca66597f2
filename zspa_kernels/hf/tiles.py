# SPDX-License-Identifier: Apache-2.0
"""Pictures of any resolution, as LLaVA-NeXT and LLaVA-OneVision see them: a small one and tiles.

The large picture is cut into tiles, the tower's features of these are put together again without
the padding, and each row ends with a newline vector. The model's own packing does that here as
well, to labels instead of features, so that rows, padding and newlines are right by construction.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .architectures import Target


def cells(target: Target, inputs: Mapping[str, Any]) -> Tensor:
    """Cells `[T, 3]` of all pictures (see `Layout`); those of newlines are -1."""
    shapes = anyres_tiles(target, inputs)
    if target.arch.tile == "shrunk":
        return _shrunk(target, inputs, shapes)
    side = _side(target)
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    pictures = []
    for count, (_, wide) in shapes:
        found = [torch.cat((torch.zeros(side * side, 1), grid), dim=1)]
        for number in range(1, count):
            row, column = divmod(number - 1, wide)
            shift = torch.tensor([row * side, column * side])
            label = torch.full((side * side, 1), float(number))
            found.append(torch.cat((label, grid + shift), dim=1))
        pictures.append(torch.stack(found))
    return torch.cat(pack_anyres(target, inputs, pictures, -1.0)).long()


def _shrunk(
    target: Target, inputs: Mapping[str, Any], shapes: Sequence[tuple[int, tuple[int, int]]]
) -> Tensor:
    """LLaVA-OneVision's: its large picture is one tile, for shrinking mixes what were several."""
    side = _side(target)
    labels = [torch.ones(count, side * side, 1) for count, _ in shapes]
    for one in labels:
        one[0] = 0.0
    found = []
    for label in pack_anyres(target, inputs, labels, -1.0):
        tile = label.flatten().round().long()
        newline = tile < 0
        place = torch.arange(len(tile))
        width = torch.full_like(place, side)
        large = place >= side * side
        place[large] -= side * side
        width[large] = int(newline.nonzero()[0]) - side * side + 1
        cell = torch.stack((tile, place // width, place % width), dim=1)
        found.append(cell.masked_fill(newline[:, None], -1))
    return torch.cat(found)


def of_videos(target: Target, sizes: Sequence[int]) -> Tensor:
    """Cells of videos, whose frames are made smaller.

    LLaVA-OneVision's have half the side, and one newline behind the last.
    """
    shrunk = target.arch.tile == "shrunk"
    side = _side(target)
    side = -(-side // 2) if shrunk else side // int(target.model.config.spatial_pool_stride)
    found = []
    for size in sizes:
        place = torch.arange(size)
        cell = (place // side**2, place % side**2 // side, place % side)
        newline = (place == size - 1)[:, None] & shrunk
        found.append(torch.stack(cell, dim=1).masked_fill(newline, -1))
    return torch.cat(found)


def _side(target: Target) -> int:
    """Rows and columns of patches of a tile."""
    vision = target.model.config.vision_config
    return int(vision.image_size // vision.patch_size)


def anyres_tiles(target: Target, inputs: Mapping[str, Any]) -> list[tuple[int, tuple[int, int]]]:
    """For each picture: how many tiles it has with the small one, and how they are laid out.

    One that has the small one only is laid out as (0, 0).
    """
    config = target.model.config
    size = config.vision_config.image_size
    shape = target.module_attribute("get_anyres_image_grid_shape")
    found = []
    for picture, cut in zip(inputs["image_sizes"].tolist(), _cut(target, inputs), strict=True):
        high, wide = shape(picture, config.image_grid_pinpoints, size) if cut else (0, 0)
        found.append((1 + int(high) * int(wide), (int(high), int(wide))))
    return found


def _cut(target: Target, inputs: Mapping[str, Any]) -> list[bool]:
    """Which pictures are cut into tiles; LLaVA-OneVision's only if alone in their prompt."""
    counts = inputs.get("batch_num_images")
    if counts is None or "batch_num_images" not in target.encoder_arguments():
        return [True] * len(inputs["image_sizes"])
    return [int(n) == 1 for n in counts for _ in range(int(n))]


def pack_anyres(
    target: Target, inputs: Mapping[str, Any], pictures: list[Tensor], newline: float
) -> list[Tensor]:
    """Values `[tiles, n, C]` of each picture in the order of its tokens, `[tokens, C]`."""
    names = inspect.signature(type(target.inner).pack_image_features).parameters
    options = {}
    for name in ("vision_feature_select_strategy", "vision_aspect_ratio"):
        if name in names:
            given = inputs.get(name)
            options[name] = getattr(target.model.config, name) if given is None else given
    packed = target.inner.pack_image_features(
        pictures,
        inputs["image_sizes"].cpu(),
        image_newline=pictures[0].new_full((pictures[0].shape[-1],), newline),
        **options,
    )
    values: list[Tensor] = packed[0]
    return values


def along_tokens(target: Target, inputs: Mapping[str, Any], values: Tensor) -> Tensor:
    """Values `[tiles, n]` or `[tiles, n, C]` of patches in the order of visual tokens `[T, ...]`.

    NaN at newline tokens, which are no patches: what is rated by it is not chosen.
    """
    if not target.arch.in_tiles:
        return values.flatten(0, 1)
    counts = [tiles for tiles, _ in anyres_tiles(target, inputs)]
    pictures = list(values.reshape(*values.shape[:2], -1).split(counts))
    packed = torch.cat(pack_anyres(target, inputs, pictures, torch.nan))
    return packed.reshape(-1, *values.shape[2:])


def along_frames(target: Target, values: Tensor, videos: int) -> Tensor:
    """Values `[frames, n, ...]` of patches of LLaVA-OneVision's videos, by token `[T, ...]`."""
    flat = values.reshape(*values.shape[:2], -1)
    pooled = target.inner.apply_pooling(flat).reshape(videos, -1, flat.shape[-1])
    packed = torch.nn.functional.pad(pooled, (0, 0, 0, 1), value=torch.nan).flatten(0, 1)
    return packed.reshape(-1, *values.shape[2:])
