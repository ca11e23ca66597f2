# SPDX-License-Identifier: Apache-2.0
"""How many pictures are encoded at once.

vLLM schedules pictures by their places in the prompt, and reserved memory for as many as fill a
batch with all their tokens. With a tenth of the places it would hand ten times as many to the
encoder. Nor did it reserve any for the words that the selection reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Fields with pixels begin so, and those with the places of patches (Gemma 4).
PIXELS, _POSITIONS = "pixel_", "pixel_position_ids"
#: Seconds of a step in time of each video (Qwen2.5-VL).
SECONDS = "second_per_grid_ts"
MODALITIES = ("image", "video")
#: Tiles of each picture, where those of all stand one behind the other.
_TILES = ("image_num_patches", "video_num_patches", "num_patches")
#: Patches down and across of each tile, where tiles differ (LFM2-VL).
_SHAPES = "spatial_shapes"
#: Frames of each video, with as many patches each (Gemma 4).
_FRAMES = "video_frame_counts"


def grid(modality: str) -> str:
    """Name of the sizes of pictures, or videos, in patches (Qwen)."""
    return f"{modality}_grid_thw"


def with_rows(vision: Any) -> bool:
    """Whether pictures have sizes of their own, and text at the ends of their rows (Pixtral)."""
    return getattr(vision, "model_type", None) == "pixtral"


@dataclass(frozen=True)
class Batches:
    """Splits what is to be encoded.

    Attributes:
        limit: visual tokens and words that are embedded at once, if they are not of one picture.
        tile: tokens of one tile; 0 where a picture has a size of its own.
        merged: patches that make a token, where a picture has a grid, or a list of patches, or a
            tile a shape.
        square: rows of pixels that make a row of tokens, where a picture has neither.
    """

    limit: int
    tile: int = 0
    merged: int = 1
    square: int = 0

    @classmethod
    def of(cls, config: Any, limit: int) -> Batches:
        """For a model of this configuration."""
        vision = config.vision_config
        merged = getattr(vision, "spatial_merge_size", None)
        if merged is not None:
            return cls(limit, merged=merged**2)
        merged = getattr(vision, "pooling_kernel_size", None)
        if merged is not None:
            # Without an encoder, patches are merged by the processor.
            whole = vision.model_type == "gemma4_unified_vision"
            return cls(limit, merged=1 if whole else merged**2)
        if not hasattr(vision, "image_size"):  # tiles have shapes of their own
            return cls(limit, merged=config.downsample_factor**2)
        size, patch = (
            edge if isinstance(edge, int) else edge[0]
            for edge in (
                getattr(config, "force_image_size", None) or vision.image_size,
                vision.patch_size,
            )
        )
        if with_rows(vision):
            return cls(limit, square=patch * getattr(config, "spatial_merge_size", 1))
        pooled = getattr(config, "mm_tokens_per_image", None)
        if pooled is not None:
            return cls(limit, tile=pooled)
        side = size // patch * getattr(config, "downsample_ratio", 1)
        for name in ("scale_factor", "downsample_factor"):
            side /= getattr(config, name, 1)
        return cls(limit, tile=int(side) ** 2)

    def split(
        self, inputs: Mapping[str, Any], pictures: int, words: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Parts of a batch: the first picture, the one behind the last, and their inputs.

        Pixels stay where they are; see `moved`.
        """
        pixels = next((value for name, value in inputs.items() if name.startswith(PIXELS)), None)
        if pixels is None:  # encoded elsewhere
            yield 0, pictures, dict(inputs)
            return
        rows, sizes = self._sizes(inputs, pixels)
        if words is not None:
            sizes = [size + len(own) for size, own in zip(sizes, words, strict=True)]
        start = 0
        while start < pictures:
            stop, total = start + 1, sizes[start]
            while stop < pictures and total + sizes[stop] <= self.limit:
                total += sizes[stop]
                stop += 1
            yield start, stop, self._part(inputs, start, stop, rows)
            start = stop

    def _sizes(self, inputs: Mapping[str, Any], pixels: Any) -> tuple[list[int] | None, list[int]]:
        """Rows of pixels and tokens of each picture; no rows where it has pixels of its own."""
        found = next((inputs[name] for name in map(grid, MODALITIES) if name in inputs), None)
        if found is not None:
            rows = [math.prod(one) for one in found.tolist()]
            return rows, [count // self.merged for count in rows]
        patches = next((inputs[name] for name in inputs if name.startswith(_POSITIONS)), None)
        if patches is not None:  # with padding, which is encoded, too
            lists = [len(one) // self.merged for one in patches]
            if _FRAMES not in inputs:
                return None, lists
            rows, left = inputs[_FRAMES].tolist(), iter(lists)
            return rows, [sum(itertools.islice(left, count)) for count in rows]
        tiles = next((inputs[name] for name in _TILES if name in inputs), None)
        if tiles is not None:
            counts = tiles.tolist()
            return counts, [sum(self.tiles(inputs, counts, place)) for place in range(len(counts))]
        if self.square:
            grids = [[edge // self.square for edge in one.shape[-2:]] for one in pixels]
            # With the ends of rows, which vLLM counts, too.
            return None, [rows * (columns + 1) for rows, columns in grids]
        return None, [self.tile * math.prod(one.shape[:-3]) for one in pixels]

    def tiles(self, inputs: Mapping[str, Any], counts: Any, place: int) -> list[int]:
        """Tokens of each tile of the picture at `place`.

        Args:
            inputs: of the pictures.
            counts: tiles of each picture, or a list of their tokens.
            place: among the pictures.
        """
        if self.tile:
            return [self.tile] * int(counts[place])
        if _SHAPES not in inputs:
            return list(map(int, counts[place]))
        before = int(sum(counts[:place]))
        shapes = inputs[_SHAPES][before : before + int(counts[place])].tolist()
        return [math.prod(shape) // self.merged for shape in shapes]

    @staticmethod
    def _part(
        inputs: Mapping[str, Any], start: int, stop: int, rows: list[int] | None
    ) -> dict[str, Any]:
        def cut(name: str, value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim == 0:  # of all pictures
                return value
            # One picture's behind the other's.
            if rows is not None and (name.startswith(PIXELS) or name == _SHAPES):
                return value[sum(rows[:start]) : sum(rows[:stop])]
            return value[start:stop]

        return {name: cut(name, value) for name, value in inputs.items()}


def moved(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Inputs with their pixels on the `device`, where vLLM would have put those of all parts."""

    def onto(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return [onto(one) for one in value]
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()  # only then does the copy wait for nobody
        return value.to(device, non_blocking=True)

    return {
        name: onto(value) if name.startswith(PIXELS) else value for name, value in inputs.items()
    }
