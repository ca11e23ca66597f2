# SPDX-License-Identifier: Apache-2.0
"""Which visual token stands where: in its prompt, in its image, in its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import tiles
from .architectures import Modality, Target
from .errors import PlaceholderMismatchError, UnsupportedInputError

SCOPES = ("image", "tile", "sample")


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the T visual tokens of a batch are; all tensors int64 `[T]` on the host.

    Attributes:
        sample: which prompt.
        column: where in the prompt.
        image: which image or video, counted through the batch.
        cell: `[T, 3]`: tile, row and column in the picture; -1 for newline tokens (LLaVA-NeXT,
            LLaVA-OneVision), and wherever an image is no square of tokens. Tiles of a video are its
            times. Row and column of [CLS] (Video-LLaVA) are -1.
        video: bool `[T]`: of a video.
    """

    sample: Tensor
    column: Tensor
    image: Tensor
    cell: Tensor
    video: Tensor

    @property
    def newline(self) -> Tensor:
        """Bool `[T]`: tokens that end a row of the picture and show nothing of it."""
        return self.cell[:, 0] < 0

    def groups(self, scope: str) -> Tensor:
        """Number of the group that a token is selected in, counted through the batch."""
        if scope == "sample":
            return self.sample
        if scope == "image":
            return self.image
        # A newline belongs to the tile it follows: its number is that of the token before.
        tile = self.cell[:, 0].clone()
        for i in torch.nonzero(self.newline).flatten().tolist():
            tile[i] = tile[i - 1]
        tiles = int(tile.max()) + 1 if len(tile) else 1
        return self.image * tiles + tile


def layout(
    target: Target, inputs: Mapping[str, Any], ids: Tensor, sizes: Mapping[str, Sequence[int]]
) -> Layout:
    """Match tokens and placeholders.

    Args:
        target: the model.
        inputs: of the processor.
        ids: `[B, L]` on the host.
        sizes: tokens of each entry of the encoder of images, and of that of videos.
    """
    with torch.device("cpu"):  # the caller's default may be another
        parts = [
            _layout(target, inputs, ids == one.token, one, sizes[one.name])
            for one in target.modalities
            if one.name in sizes
        ]
    sample, column, image, cell, video = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("sample", "column", "image", "cell", "video")
    )
    order = (sample * ids.shape[1] + column).argsort()
    # Numbers of images and of videos become one count in the order of the prompts.
    image = torch.unique_consecutive((2 * image + video)[order], return_inverse=True)[1]
    found = Layout(sample[order], column[order], image, cell[order], video[order])
    _refuse_sound_inside(target, found, ids)
    return found


def _refuse_sound_inside(target: Target, where: Layout, ids: Tensor) -> None:
    """Raise for a video and its sound in pieces (Qwen2.5-Omni), whose positions need an option."""
    sound = getattr(target.model.config, "audio_token_id", None)
    if sound is None:
        return
    before = (ids == sound).cumsum(1)[where.sample, where.column]
    if bool(((before.diff() != 0) & (where.image.diff() == 0)).any()):
        raise UnsupportedInputError(
            "prune: use_audio_in_video must be False, got a video between whose tokens stand those "
            "of its sound; give the processor the sound as audio, or the video without it"
        )


def _layout(
    target: Target,
    inputs: Mapping[str, Any],
    placeholders: Tensor,
    modality: Modality,
    sizes: Sequence[int],
) -> Layout:
    """Of images or of videos; `placeholders` is bool `[B, L]`, True at their tokens."""
    sample, column = torch.nonzero(placeholders, as_tuple=True)
    if len(sample) != sum(sizes):
        raise PlaceholderMismatchError(len(sample), sum(sizes), modality.name)
    entry = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
    start = torch.ones_like(sample, dtype=torch.bool)
    start[1:] = (sample[1:] != sample[:-1]) | (column[1:] != column[:-1] + 1)
    run = start.cumsum(0)
    kinds = {"entry": entry, "run": run}
    image = kinds[target.arch.image]
    if target.arch.frames and modality.moves:  # all videos have as many
        image = entry // modality.values(inputs).shape[1]
    if bool(((image[1:] == image[:-1]) & (sample[1:] != sample[:-1])).any()):
        raise UnsupportedInputError(
            "prune: input_ids must have all tokens of an image in one prompt, got an image that "
            "spans two; make prompts and pictures with one call of the model's processor"
        )
    if target.arch.size == "position_ids":
        cell = _placed(inputs, modality, sizes)
    elif target.arch.size:
        cell = _grids(_sizes(target, inputs, modality))
    elif target.arch.in_tiles:
        cell = tiles.of_videos(target, sizes) if modality.moves else tiles.cells(target, inputs)
    else:
        cell = _squares(image, kinds[target.arch.tile], target.arch.frames)
    return Layout(sample, column, image, cell, torch.full_like(start, modality.moves))


def _lengths(label: Tensor) -> list[int]:
    """How often each value of a non-decreasing `label` occurs."""
    counts: list[int] = torch.unique_consecutive(label, return_counts=True)[1].tolist()
    return counts


def _squares(image: Tensor, tile: Tensor, cls: bool = False) -> Tensor:
    """Cells of tiles that are squares of tokens; with `cls` perhaps behind [CLS], at -1."""
    cells = []
    first = 0
    for length in _lengths(tile):
        side = math.isqrt(length)
        spare = int(cls and side * side + 1 == length)
        token = torch.arange(length) - spare
        number = int(tile[first] - tile[image == image[first]][0])
        if side * side + spare == length:
            place = torch.stack((token // side, token % side)).masked_fill(token < 0, -1)
            cells.append(torch.cat((torch.full((1, length), number), place)))
        else:
            cells.append(torch.stack((torch.full((length,), number), -1 - 0 * token, token)))
        first += length
    return torch.cat(cells, dim=1).T if cells else torch.zeros((0, 3), dtype=torch.long)


def _sizes(target: Target, inputs: Mapping[str, Any], modality: Modality) -> list[list[int]]:
    """Times, rows and columns of tokens of each picture or video."""
    config = target.model.config
    if target.arch.size == "grid_thw":
        merge = int(config.vision_config.spatial_merge_size)
        grids = inputs[modality.grid].tolist()
        return [[times, rows // merge, columns // merge] for times, rows, columns in grids]
    found, side = patch_grids(target, inputs, modality)
    return [[1, rows // side, columns // side] for rows, columns in found]


def patch_grids(
    target: Target, inputs: Mapping[str, Any], modality: Modality
) -> tuple[list[tuple[int, int]], int]:
    """Rows and columns of patches of each picture or frame, and those that are a token."""
    config = target.model.config
    if target.arch.size == "position_ids":
        columns, rows = (inputs[modality.places].amax(1) + 1).T.tolist()
        return list(zip(rows, columns, strict=True)), int(config.vision_config.pooling_kernel_size)
    sizes = inputs[target.arch.size]
    if target.arch.size == "spatial_shapes":
        return [(rows, columns) for rows, columns in sizes.tolist()], int(config.downsample_factor)
    patches = (sizes // config.vision_config.patch_size).tolist()
    return [(rows, columns) for rows, columns in patches], getattr(config, "spatial_merge_size", 1)


def _placed(inputs: Mapping[str, Any], modality: Modality, sizes: Sequence[int]) -> Tensor:
    """Cells of pictures or videos whose patches say where they are: `[pictures, patches, 2]`."""
    places = inputs[modality.places].cpu()
    patches = (places[..., 0] >= 0).sum(1)
    frames = inputs["num_frames_per_video"].tolist() if modality.moves else [1] * len(places)
    found = []
    for one, count, size in zip(places.split(frames), patches.split(frames), sizes, strict=True):
        side = math.isqrt(int(count.sum()) // size)  # of the square of patches that is a token
        for time, (columns, rows) in enumerate(((one.amax(1) + 1) // side).tolist()):
            axes = (torch.tensor([time]), torch.arange(rows), torch.arange(columns))
            found.append(torch.cartesian_prod(*axes))
    return torch.cat(found)


def _grids(sizes: Sequence[Sequence[int]]) -> Tensor:
    """Cells of pictures or videos that have (times, rows, columns)."""
    axes = [[torch.arange(edge) for edge in size] for size in sizes]
    return torch.cat([torch.cartesian_prod(*one).reshape(-1, 3) for one in axes])
