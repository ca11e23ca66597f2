# SPDX-License-Identifier: Apache-2.0
"""Pixels of the pictures that a model saw, from the inputs that its processor made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .hf import ImageReport
from .hf.architectures import Modality, Target
from .hf.tiles import anyres_tiles


def rebuilt(
    target: Target,
    modality: Modality,
    inputs: Mapping[str, Any],
    values: Tensor,
    images: Sequence[ImageReport],
    image: int,
) -> list[Tensor]:
    """Pictures `[3, H, W]` of an image, as normalised by the processor.

    Args:
        target: the model.
        modality: of the image.
        inputs: of the processor.
        values: those of its pixels, float32 on the host.
        images: of the report.
        image: which of them.

    Raises:
        ValueError: report and inputs do not belong together.
    """
    one = images[image]
    alike = [other.video == one.video for other in images]
    number = sum(alike[:image])
    sizes = _sizes(target, modality, inputs)
    if sizes is not None and len(sizes) != sum(alike):  # as of all turns of a conversation
        raise ValueError(
            f"seen: inputs must be those of the report, of {sum(alike)} {modality.name}s, got "
            f"{len(sizes)}"
        )
    if target.arch.in_tiles and not one.video:
        return _anyres(target, inputs, values, one.cell, number)
    if target.arch.in_tiles:
        return _frames(values, one.cell, number)
    if target.arch.size == "grid_thw":
        return _patches(target, inputs[modality.grid], values, number)
    if target.arch.size == "image_sizes":
        return _sized(inputs, values, number)
    if target.arch.size == "spatial_shapes":
        return _shaped(inputs, values, number)
    if target.arch.size == "position_ids":
        return _placed(inputs, modality, values, number)
    return _tiles(values, [other for other in images if other.video == one.video], number)


def _sizes(target: Target, modality: Modality, inputs: Mapping[str, Any]) -> Tensor | None:
    """What has one row for each picture or video of the inputs, if anything has."""
    name = target.arch.size
    if name == "grid_thw":
        name = modality.grid
    elif name == "position_ids":
        name = "num_frames_per_video" if modality.moves else modality.places
    elif target.arch.in_tiles:
        name = modality.pixels[0] if modality.moves else "image_sizes"
    found: Tensor | None = inputs[name] if name else None
    return found


def _tiles(values: Tensor, images: Sequence[ImageReport], image: int) -> list[Tensor]:
    """Pictures `[3, H, W]` of an image among those of all images, one after another."""
    counts = [int(one.cell[:, 0].max()) + 1 for one in images]
    flat = values.reshape(-1, *values.shape[-3:])
    if len(flat) > sum(counts):  # SmolVLM's prompts are padded with black pictures
        flat = flat[flat.flatten(1).ne(0).any(1)]
    if len(flat) != sum(counts):
        raise ValueError(
            f"seen: inputs must be those of the report, of {sum(counts)} pictures, got {len(flat)}"
        )
    return list(flat.split(counts)[image])


def _patches(target: Target, grid: Tensor, values: Tensor, image: int) -> list[Tensor]:
    """Qwen's `[patches, C * T * P * P]`, ordered by merged token, back to a `[3, H, W]` a time."""
    vision = target.model.config.vision_config
    grids = grid.tolist()
    sizes = [math.prod(grid) for grid in grids]
    if len(values) != sum(sizes):
        raise ValueError(
            f"seen: inputs must be those of the report, got {len(values)} patches for "
            f"{sum(sizes)} in the grids"
        )
    frames, rows, columns = grids[image]
    merge, side, depth = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    blocks = values.split(sizes)[image].reshape(
        frames, rows // merge, columns // merge, merge, merge, 3, depth, side, side
    )
    # Two frames become a patch; a still picture is two equal ones.
    first = blocks[:, :, :, :, :, :, 0].permute(0, 5, 1, 3, 6, 2, 4, 7)
    return list(first.reshape(frames, 3, rows * side, columns * side))


def _anyres(
    target: Target, inputs: Mapping[str, Any], values: Tensor, cell: Tensor, image: int
) -> list[Tensor]:
    """The small picture, and the part of the large one that has tokens."""
    shapes = anyres_tiles(target, inputs)
    if values.ndim != 5 or len(values) != len(shapes):
        raise ValueError(
            f"seen: inputs must be those of the report, got pixel_values {list(values.shape)} "
            f"for {len(shapes)} image_sizes"
        )
    high, wide = shapes[image][1]
    small, tiles = values[image, 0], values[image, 1 : 1 + high * wide]
    if not len(tiles):
        return [small]
    size = small.shape[-1]
    whole = tiles.reshape(high, wide, 3, size, size).permute(2, 0, 3, 1, 4)
    whole = whole.reshape(3, high * size, wide * size)
    vision = target.model.config.vision_config
    side, patches = vision.patch_size, size // vision.patch_size
    box = bounds(cell[cell[:, 0] > 0])
    if target.arch.tile != "shrunk":
        top, left, bottom, right = (side * edge for edge in box)
        return [small, whole[:, top:bottom, left:right]]
    # The padding is cut off by rows and columns of patches before the picture is made smaller.
    grid = torch.arange(high * wide * patches**2).reshape(1, high * patches, wide * patches)
    inside = target.module_attribute("unpad_image")(grid, inputs["image_sizes"][image].tolist())
    (top, left), (bottom, right) = (
        divmod(int(edge), wide * patches) for edge in (inside.min(), inside.max())
    )
    seen = whole[:, top * side : (bottom + 1) * side, left * side : (right + 1) * side]
    return [small, _scaled(seen, box[2] * side, box[3] * side)]


def _frames(values: Tensor, cell: Tensor, video: int) -> list[Tensor]:
    """LLaVA-OneVision's frames, a whole number of pixels a token."""
    _, _, rows, columns = bounds(cell)
    frames = values[video]
    side = frames.shape[-1] // columns
    return [_scaled(frame, rows * side, columns * side) for frame in frames]


def _scaled(picture: Tensor, height: int, width: int) -> Tensor:
    scaled = torch.nn.functional.interpolate(
        picture[None], (height, width), mode="bilinear", antialias=True
    )
    return scaled[0]


def _sized(inputs: Mapping[str, Any], values: Tensor, image: int) -> list[Tensor]:
    """Mistral 3's picture without what makes a batch of it."""
    sizes = inputs["image_sizes"].tolist()
    if len(values) != len(sizes):
        raise ValueError(
            f"seen: inputs must be those of the report, got {len(values)} pictures and "
            f"{len(sizes)} image_sizes"
        )
    height, width = sizes[image]
    return [values[image][:, :height, :width]]


def _placed(
    inputs: Mapping[str, Any], modality: Modality, values: Tensor, image: int
) -> list[Tensor]:
    """Gemma 4's patches `[pictures, patches, P * P * C]`, put where they were."""
    places = inputs[modality.places].cpu()
    frames = inputs["num_frames_per_video"].tolist() if modality.moves else [1] * len(places)
    if len(values) != sum(frames):
        raise ValueError(
            f"seen: inputs must be those of the report, got {len(values)} pictures for the places "
            f"of {sum(frames)}"
        )
    found = []
    for patches, place in zip(
        values.split(frames)[image], places.split(frames)[image], strict=True
    ):
        real = place[:, 0] >= 0
        found.append(_laid(patches[real], *place[real].flip(1).T))
    return found


def _shaped(inputs: Mapping[str, Any], values: Tensor, image: int) -> list[Tensor]:
    """LFM2-VL's patches `[pictures, patches, P * P * C]`, row by row."""
    shapes = inputs["spatial_shapes"].tolist()
    if len(values) != len(shapes):
        raise ValueError(
            f"seen: inputs must be those of the report, got {len(values)} pictures and "
            f"{len(shapes)} spatial_shapes"
        )
    rows, columns = shapes[image]
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return [_laid(values[image, : rows * columns], *place.T)]


def _laid(patches: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Patches `[n, P * P * C]` at their rows and columns, a picture `[3, H, W]`."""
    side = math.isqrt(patches.shape[-1] // 3)
    picture = torch.zeros(int(row.max()) + 1, int(column.max()) + 1, side, side, 3)
    picture[row, column] = patches.reshape(-1, side, side, 3)
    return picture.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)


def bounds(cells: Tensor) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the rows and columns in `[n, 3]`; the last two excluded."""
    cells = cells[cells[:, 0] >= 0]
    low, high = cells[:, 1:].amin(0).tolist(), cells[:, 1:].amax(0).tolist()
    return low[0], low[1], high[0] + 1, high[1] + 1
