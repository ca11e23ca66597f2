# SPDX-License-Identifier: Apache-2.0
"""How many pictures are encoded at once.

vLLM schedules pictures by their places in the prompt, and reserved memory for as many as fill a
batch with all their tokens. With a tenth of the places it would hand ten times as many to the
encoder. Nor did it reserve any for the words that the selection reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_GRIDS = ("image_grid_thw", "video_grid_thw")
_PIXELS = ("pixel_values", "pixel_values_videos")


@dataclass(frozen=True)
class Batches:
    """Splits what is to be encoded.

    Attributes:
        limit: visual tokens and words that are embedded at once, if they are not of one picture.
        patches: of one tile; 0 where a picture has a grid.
        merged: patches that make a token, where a picture has a grid.
    """

    limit: int
    patches: int = 0
    merged: int = 1

    @classmethod
    def of(cls, config: Any, limit: int) -> Batches:
        """For a model of this configuration."""
        vision = config.vision_config
        merged = getattr(vision, "spatial_merge_size", None)
        if merged is not None:
            return cls(limit, merged=merged**2)
        return cls(limit, patches=(vision.image_size // vision.patch_size) ** 2)

    def split(
        self, inputs: Mapping[str, Any], pictures: int, words: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Parts of a batch: the first picture, the one behind the last, and their inputs."""
        pixels = next((inputs[name] for name in _PIXELS if name in inputs), None)
        if pixels is None:  # encoded elsewhere
            yield 0, pictures, dict(inputs)
            return
        grid = next((inputs[name] for name in _GRIDS if name in inputs), None)
        if grid is None:
            rows = None
            sizes = [self.patches * math.prod(one.shape[:-3]) for one in pixels]
        else:
            rows = [math.prod(one) for one in grid.tolist()]
            sizes = [count // self.merged for count in rows]
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

    @staticmethod
    def _part(
        inputs: Mapping[str, Any], start: int, stop: int, rows: list[int] | None
    ) -> dict[str, Any]:
        def cut(name: str, value: Any) -> Any:
            if rows is not None and name in _PIXELS:  # [patches of all pictures, channels]
                return value[sum(rows[:start]) : sum(rows[:stop])]
            return value[start:stop]

        return {name: cut(name, value) for name, value in inputs.items()}
