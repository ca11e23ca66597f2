# SPDX-License-Identifier: Apache-2.0
"""Reading a picture, cutting it into patches, and writing a PNG without leaving half a file."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from zspa_kernels.demo.errors import DemoError, UsageError

MIN_PATCH, MAX_PATCH = 8, 256
# Larger pictures are scaled down to this, as models do; it also keeps the PyTorch loops that the
# demo times (they hold an N x N matrix) at a tenth of a gigabyte.
MAX_TOKENS = 4096
MAX_TOKENS_ALONG_A_SIDE = 128
MAX_ASPECT = 64

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Patches:
    """A picture whose sides are whole numbers of patches.

    Attributes:
        pixels: `[rows * patch, columns * patch, 3]` uint8.
        grid: (rows, columns) of patches; patch `i` is token `i` in raster order.
        patch: side of a patch in pixels.
        original: (width, height) of the picture before it was resized.
    """

    pixels: npt.NDArray[np.uint8]
    grid: tuple[int, int]
    patch: int
    original: tuple[int, int]

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) after resizing."""
        return self.grid[1] * self.patch, self.grid[0] * self.patch

    def describe(self) -> str:
        """One line that says what became of the picture."""
        rows, columns = self.grid
        width, height = self.original
        resized = ""
        if self.size != self.original:
            resized = f" resized to {self.size[0]} x {self.size[1]},"
        return (
            f"{width} x {height} pixels,{resized} {rows} x {columns} patches of "
            f"{self.patch} x {self.patch} = {len(self)} tokens"
        )

    def scaled(self, region: Box) -> tuple[float, float, float, float]:
        """A box given in pixels of the original picture, in pixels of the resized one."""
        across = self.size[0] / self.original[0]
        down = self.size[1] / self.original[1]
        return region[0] * across, region[1] * down, region[2] * across, region[3] * down

    def inside(self, region: Box) -> npt.NDArray[np.bool_]:
        """Which patches have their centre in `region`; the one under its centre when none has.

        Returns:
            bool `[rows * columns]` with at least one True.
        """
        rows, columns = self.grid
        x0, y0, x1, y1 = self.scaled(region)
        x = (np.arange(columns) + 0.5) * self.patch
        y = (np.arange(rows) + 0.5) * self.patch
        mask: npt.NDArray[np.bool_] = np.outer((y >= y0) & (y < y1), (x >= x0) & (x < x1))
        if not mask.any():
            mask[int((y0 + y1) / 2 / self.patch), int((x0 + x1) / 2 / self.patch)] = True
        return mask.ravel()


def read(path: Path) -> npt.NDArray[np.uint8]:
    """Reads any picture Pillow can open as `[height, width, 3]` uint8 RGB.

    The camera's orientation tag is applied, transparency becomes white, and pictures with more than
    8 bits a channel are stretched over their own range.

    Raises:
        DemoError: the file is missing, damaged, or not a picture.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode[0] in "IF":
                image = Image.fromarray(_stretched(np.asarray(image, dtype=np.float64)))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    # Each of Pillow's decoders has errors of its own for damaged files, as has its reader of EXIF.
    except Exception as error:
        reason = getattr(error, "strerror", None) or "not a picture that Pillow can read"
        if isinstance(error, Image.DecompressionBombError):
            reason = "more pixels than Pillow opens safely"
        raise DemoError(f"cannot read {path}: {reason}") from error


def _stretched(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Values of any range as 0 to 255; NaN is as dark as the lowest."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    stretched = (values - low) * (255 / max(high - low, 1e-12))
    return np.asarray(stretched.round(), dtype=np.uint8)


def cut(pixels: npt.NDArray[np.uint8], patch: int) -> Patches:
    """Resizes a picture to whole patches, at most `MAX_TOKENS` of them.

    Nothing is cropped: each side goes to the nearest multiple of `patch`, as Qwen2-VL does, and a
    large picture is scaled down first.

    Raises:
        UsageError: `patch` is out of range.
        DemoError: the picture holds fewer than two whole patches, or is too long and thin.
    """
    if not MIN_PATCH <= patch <= MAX_PATCH:
        raise UsageError(f"--patch must be from {MIN_PATCH} to {MAX_PATCH} pixels, got {patch}")
    height, width = pixels.shape[:2]
    if (width // patch) * (height // patch) < 2:
        raise DemoError(
            f"the picture ({width} x {height}) is smaller than two patches of {patch} x {patch} "
            "pixels: use a larger one or a smaller --patch"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DemoError(f"the picture ({width} x {height}) is more than {MAX_ASPECT}:1 long")
    columns, rows = width / patch, height / patch
    shrink = min(
        math.sqrt(MAX_TOKENS / (columns * rows)), MAX_TOKENS_ALONG_A_SIDE / max(columns, rows)
    )
    if shrink < 1:
        columns, rows = max(1, int(columns * shrink)), max(1, int(rows * shrink))
    else:
        columns, rows = round(columns), round(rows)
    if (columns * patch, rows * patch) != (width, height):
        image = Image.fromarray(pixels)
        resized = image.resize((columns * patch, rows * patch), Image.Resampling.LANCZOS)
        pixels = np.asarray(resized)
    return Patches(pixels, (rows, columns), patch, (width, height))


def parse_region(text: str, width: int, height: int) -> Box:
    """Reads `x0,y0,x1,y1` (pixels, x1 and y1 excluded) and checks it against the picture.

    Raises:
        UsageError: malformed, empty, or not within the picture.
    """
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--region must be four integers x0,y0,x1,y1, got {text!r}") from None
    if x0 >= x1 or y0 >= y1:
        raise UsageError(f"--region {text} is empty: it needs x0 < x1 and y0 < y1")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise UsageError(f"--region {text} is not within the picture, 0,0,{width},{height}")
    return x0, y0, x1, y1


@contextlib.contextmanager
def replacing(path: Path, never: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place only if the block succeeds.

    Args:
        path: the PNG; a link is followed.
        never: a file that must stay as it is.

    Raises:
        UsageError: `path` does not end in .png, or is the file `never`.
        DemoError: it cannot be written; found out before the block starts.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, got {str(path)!r}")
    target = Path(os.path.realpath(path))
    # Hidden and beside the target, so that the final rename stays on one file system.
    temporary = target.with_name(f".zspa-{os.getpid()}.png")
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(target.stat().st_mode):
                raise DemoError(f"cannot write {path}: it exists and is not a file")
            if never is not None and target.samefile(never):
                raise UsageError(f"--out {path} is the picture itself")
        temporary.touch()
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise DemoError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
