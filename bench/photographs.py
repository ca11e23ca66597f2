# SPDX-License-Identifier: Apache-2.0
"""Tokens of real photographs, from real towers, in the shapes of the benchmarks.

A name is `TOWER:PHOTOGRAPH`, for example `clip:coffee`; workloads name their tokens by it, as by a
token model of `zspa_kernels.testing`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from skimage import data
from torch import Tensor
from torch.nn.functional import interpolate

from bench import towers
from bench.towers import TOWERS, Seen

#: Of scikit-image: a portrait, a cat, a cup, a workshop, a page of print, a rocket at night.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "motorcycle", "page", "rocket")


@dataclass(frozen=True)
class Layout:
    """How a photograph becomes tokens.

    Attributes:
        side: Tokens along one side of an image that the tower sees.
        tiles: Along one side of the photograph; with more than one, the whole photograph comes
            first and then its tiles in raster order, as in LLaVA-NeXT.
    """

    side: int
    tiles: int = 1

    @property
    def n(self) -> int:
        """Tokens of all images together."""
        return self.side**2 * (1 if self.tiles == 1 else 1 + self.tiles**2)


#: By number of tokens: LLaVA-1.5, Qwen2.5-VL, LLaVA-NeXT.
LAYOUTS = {layout.n: layout for layout in (Layout(24), Layout(36), Layout(24, tiles=2))}


def names() -> tuple[str, ...]:
    """All names: each photograph by each tower."""
    return tuple(f"{tower}:{photograph}" for tower in TOWERS for photograph in PHOTOGRAPHS)


def split(name: str) -> tuple[str, str]:
    """(tower, photograph) of a name.

    Raises:
        ValueError: If it is not one of `names`.
    """
    if name not in names():
        raise ValueError(f"name must be TOWER:PHOTOGRAPH, one of {names()}, got {name!r}")
    tower, photograph = name.split(":")
    return tower, photograph


def square(photograph: str) -> Tensor:
    """The middle of a photograph, float32 `[3, S, S]` in [0, 1]; S is its shorter side."""
    made = (
        data.stereo_motorcycle()[0] if photograph == "motorcycle" else getattr(data, photograph)()
    )
    pixels = np.atleast_3d(np.asarray(made, dtype=np.uint8))
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    side = min(pixels.shape[:2])
    top, left = ((size - side) // 2 for size in pixels.shape[:2])
    middle = pixels[top : top + side, left : left + side]
    return torch.from_numpy(middle.transpose(2, 0, 1).astype(np.float32) / 255)


@functools.lru_cache(maxsize=8)
def seen(name: str, n: int) -> Seen:
    """What the tower makes of a photograph: `n` tokens in one row, `Seen` without the batch.

    Raises:
        ValueError: For an unknown name, or an `n` that no layout has.
    """
    tower, photograph = split(name)
    if n not in LAYOUTS:
        raise ValueError(f"n must be one of {tuple(LAYOUTS)}, got {n}")
    layout = LAYOUTS[n]
    edge = layout.side * TOWERS[tower].patch
    pixels = square(photograph)
    images = [resized(pixels, edge)]
    if layout.tiles > 1:
        large = resized(pixels, edge * layout.tiles)
        rows = large.unfold(1, edge, edge).unfold(2, edge, edge)  # [3, tiles, tiles, edge, edge]
        images += rows.flatten(1, 2).transpose(0, 1).unbind()
    whole = towers.see(tower, torch.stack(images))
    return Seen(*(part.flatten(0, 1) for part in (whole.tokens, whole.attention, whole.keys)))


def resized(pixels: Tensor, edge: int) -> Tensor:
    """Colours `[3, S, S]` in [0, 1] as `[3, edge, edge]`."""
    size = (edge, edge)
    return interpolate(pixels[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def region(n: int) -> Tensor:
    """Bool `[n]`: the middle ninth of the first image, which stands in for a question."""
    side = LAYOUTS[n].side
    inside = torch.zeros(n, dtype=torch.bool)
    middle = slice(side // 3, side - side // 3)
    inside[: side * side].view(side, side)[middle, middle] = True
    return inside


def widened(tokens: Tensor, d: int) -> Tensor:
    """Tokens `[n, C]` in `d` channels, float32, with the lengths and cosines that they have.

    A projector would change both; its weights are not available here. Orthonormal directions keep
    them, up to rounding, and let a tower's tokens stand beside others of a language model's width.
    The directions are the same for all tokens of C channels.
    """
    return (tokens.double() @ _directions(tokens.shape[1], d)).float()


@functools.cache
def _directions(c: int, d: int) -> Tensor:
    """Float64 `[c, d]`, orthonormal rows."""
    drawn = torch.randn(d, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T


def draw(name: str, n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(tokens `[n, d]`, words `[m, d]`): the words are the tokens of `region`."""
    tokens = widened(seen(name, n).tokens, d).to(dtype)
    return tokens, tokens[region(n)]
