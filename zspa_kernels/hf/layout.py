# SPDX-License-Identifier: Apache-2.0
"""Which visual token stands where: in its prompt, in its image, in its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        cell: `[T, 3]`: tile, row and column in the picture; -1 for LLaVA-NeXT's newline tokens,
            and wherever an image is no square of tokens. Tiles of a video are its times.
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

    def stamps(self, ids: Tensor) -> Tensor:
        """Bool `[B, L]`: text that belongs to a video, the time of each of its frames (Qwen3-VL).

        It stands between frames. That of the first one begins with the same token as the others.
        """
        found = torch.zeros_like(ids, dtype=torch.bool)
        for number in self.image[self.video].unique().tolist():
            mine = self.image == number
            row, columns = int(self.sample[mine][0]), self.column[mine]
            first, last = int(columns[0]), int(columns[-1])
            between = found.new_ones(last - first + 1)
            between[columns - first] = False
            found[row, first : last + 1] = between
            gap = (between.nonzero().flatten() + first).tolist()
            # <end of vision> <time> ... <start of vision>: up to the next frame.
            size = next((i for i, at in enumerate(gap, gap[0]) if at != i), len(gap)) if gap else 0
            if size > 2:
                before = ids[row, max(first - 2 * size, 0) : first]
                opened = (before == ids[row, gap[1]]).nonzero().flatten()
                if len(opened):
                    found[row, first - len(before) + int(opened[-1]) : first] = True
        return found


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
    return Layout(sample[order], column[order], image, cell[order], video[order])


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
    if bool(((image[1:] == image[:-1]) & (sample[1:] != sample[:-1])).any()):
        raise UnsupportedInputError(
            "prune: input_ids must have all tokens of an image in one prompt, got an image that "
            "spans two; make prompts and pictures with one call of the model's processor"
        )
    if target.arch.tile == "anyres":
        cell = _anyres(target, inputs)
    elif target.arch.mrope:
        cell = _grids(target, inputs[modality.grid])
    else:
        cell = _squares(image, kinds[target.arch.tile])
    return Layout(sample, column, image, cell, torch.full_like(start, modality.name == "video"))


def _lengths(label: Tensor) -> list[int]:
    """How often each value of a non-decreasing `label` occurs."""
    counts: list[int] = torch.unique_consecutive(label, return_counts=True)[1].tolist()
    return counts


def _squares(image: Tensor, tile: Tensor) -> Tensor:
    """Cells of tiles that are squares of tokens."""
    cells = []
    first = 0
    for length in _lengths(tile):
        side = math.isqrt(length)
        token = torch.arange(length)
        number = int(tile[first] - tile[image == image[first]][0])
        if side * side == length:
            cells.append(torch.stack((torch.full((length,), number), token // side, token % side)))
        else:
            cells.append(torch.stack((torch.full((length,), number), -1 - 0 * token, token)))
        first += length
    return torch.cat(cells, dim=1).T if cells else torch.zeros((0, 3), dtype=torch.long)


def _grids(target: Target, grids: Tensor) -> Tensor:
    """Cells of Qwen's pictures or videos, whose grids come with the inputs."""
    merge = int(target.model.config.vision_config.spatial_merge_size)
    cells = []
    for frames, rows, columns in grids.tolist():
        axes = (torch.arange(frames), torch.arange(rows // merge), torch.arange(columns // merge))
        cells.append(torch.cartesian_prod(*axes).reshape(-1, 3))
    return torch.cat(cells)


def _anyres(target: Target, inputs: Mapping[str, Any]) -> Tensor:
    """Cells of LLaVA-NeXT's pictures: tile 0 is the small one, the others are tiles of the large.

    The model's own packing is given the cells instead of features, so its rows, padding and
    newlines are right by construction. Rows and columns of tiles count through the large picture.
    """
    config = target.model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    pictures = []
    for count, (_, wide) in anyres_tiles(target, inputs):
        cells = [torch.cat((torch.zeros(side * side, 1), grid), dim=1)]
        for number in range(1, count):
            row, column = divmod(number - 1, wide)
            shift = torch.tensor([row * side, column * side])
            label = torch.full((side * side, 1), float(number))
            cells.append(torch.cat((label, grid + shift), dim=1))
        pictures.append(torch.stack(cells))
    return torch.cat(pack_anyres(target, inputs, pictures, -1.0)).long()


def anyres_tiles(target: Target, inputs: Mapping[str, Any]) -> list[tuple[int, tuple[int, int]]]:
    """For each picture: how many tiles it has with the small one, and how they are laid out."""
    config = target.model.config
    size = config.vision_config.image_size
    shape = target.module_attribute("get_anyres_image_grid_shape")
    found = []
    for picture in inputs["image_sizes"].tolist():
        high, wide = map(int, shape(picture, config.image_grid_pinpoints, size))
        found.append((1 + high * wide, (high, wide)))
    return found


def pack_anyres(
    target: Target, inputs: Mapping[str, Any], pictures: list[Tensor], newline: float
) -> list[Tensor]:
    """Values `[tiles, n, C]` of each picture in the order of its tokens, `[tokens, C]`."""
    packed = target.inner.pack_image_features(
        pictures,
        inputs["image_sizes"].cpu(),
        vision_feature_select_strategy=target.model.config.vision_feature_select_strategy,
        image_newline=pictures[0].new_full((pictures[0].shape[-1],), newline),
    )
    values: list[Tensor] = packed[0]
    return values


def along_tokens(target: Target, inputs: Mapping[str, Any], values: Tensor) -> Tensor:
    """Values `[tiles, n]` or `[tiles, n, C]` of patches in the order of visual tokens `[T, ...]`.

    NaN at LLaVA-NeXT's newline tokens, which are no patches: what is rated by it is not chosen.
    """
    if target.arch.tile != "anyres":
        return values.flatten(0, 1)
    counts = [tiles for tiles, _ in anyres_tiles(target, inputs)]
    pictures = list(values.reshape(*values.shape[:2], -1).split(counts))
    packed = torch.cat(pack_anyres(target, inputs, pictures, torch.nan))
    return packed.reshape(-1, *values.shape[2:])
