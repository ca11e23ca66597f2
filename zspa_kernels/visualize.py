# SPDX-License-Identifier: Apache-2.0
"""Pictures of a selection: kept patches stay lit, the rest is dimmed.

`light` makes the pixels (NumPy only); `compare` sets several selections side by side with titles
and a legend (needs Matplotlib and Pillow: `pip install "zspa_kernels[demo]"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from zspa_kernels.types import Selection

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Pixels = npt.NDArray[np.uint8]

# Amber and sky blue: told apart under every common colour blindness, and on grey.
CORE_COLOUR = (255, 183, 3)
DIVERSITY_COLOUR = (56, 189, 248)
# Dropped patches keep this share of their brightness and lose their colour.
DIM = 0.36

_BACKGROUND, _INK, _FAINT = "#0e1117", "#f3f4f6", "#9ca3af"
_PANEL, _GAP, _MARGIN, _HEAD, _FOOT, _TITLE = 640, 32, 40, 84, 124, 96


def light(
    image: Any,
    selection: Selection | torch.Tensor,
    grid: tuple[int, int],
    *,
    dim: float = DIM,
    outline: int | None = None,
) -> Pixels:
    """Dims every patch of an image that a selection dropped and outlines those it kept.

    Neighbouring kept patches of one kind share an outline, drawn inside them: core in
    `CORE_COLOUR`, the others in `DIVERSITY_COLOUR`. Pixels of a kept patch that are not outline are
    untouched.

    Args:
        image: uint8 `[H, W, 3]` array (or anything `numpy.asarray` turns into one, such as a
            Pillow image in RGB mode), H and W at least the grid's rows and columns.
        selection: a `Selection` of one image (indices `[K]`), or its indices alone (all drawn as
            diversity). Indices count patches in raster order; -1 is padding.
        grid: (rows, columns) of visual tokens; the image is divided evenly.
        dim: brightness left to dropped patches, from 0 to 1.
        outline: width of outlines in pixels; by default a tenth of a patch, from 1 to 4; 0 for
            none.

    Returns:
        A new uint8 `[H, W, 3]` array.

    Raises:
        ValueError: image, grid, or indices that do not fit together, or dim out of range.

    Example:
        >>> import numpy as np, torch
        >>> from zspa_kernels.visualize import light
        >>> photo = np.full((64, 64, 3), 200, dtype=np.uint8)
        >>> lit = light(photo, torch.tensor([0, 5]), (4, 4), outline=0)
        >>> lit[8, 8].tolist(), lit[40, 40].tolist()
        ([200, 200, 200], [72, 72, 72])
    """
    import numpy as np

    pixels = np.asarray(image)
    rows, columns = grid
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    if rows < 1 or columns < 1 or rows > pixels.shape[0] or columns > pixels.shape[1]:
        raise ValueError(f"grid {grid} does not fit an image of {list(pixels.shape[:2])} pixels")
    if not 0.0 <= dim <= 1.0:
        raise ValueError(f"dim must be from 0 to 1, got {dim}")
    kinds = _kinds(selection, rows * columns).reshape(rows, columns)

    # Patch edges at rounded positions, so that any grid divides any image.
    row_of = np.arange(pixels.shape[0]) * rows // pixels.shape[0]
    column_of = np.arange(pixels.shape[1]) * columns // pixels.shape[1]
    kind_at = kinds[row_of][:, column_of]

    grey = pixels @ np.array([0.299, 0.587, 0.114]) * dim
    lit = np.where(kind_at[..., None] > 0, pixels, grey.round().astype(np.uint8)[..., None])
    if outline is None:
        outline = min(pixels.shape[0] // rows, pixels.shape[1] // columns) // 10
        outline = min(max(outline, 1), 4)
    edge = _edges(kind_at, outline)
    lit[edge & (kind_at == 2)] = CORE_COLOUR
    lit[edge & (kind_at == 1)] = DIVERSITY_COLOUR
    return lit


def _kinds(selection: Selection | torch.Tensor, count: int) -> npt.NDArray[np.uint8]:
    """0 for dropped, 1 for diversity, 2 for core: `[count]`."""
    import numpy as np

    if isinstance(selection, Selection):
        indices, core = selection.indices.detach().cpu(), selection.core_mask.detach().cpu()
    else:
        indices = selection.detach().cpu()
        core = torch.zeros(indices.shape, dtype=torch.bool)
    if indices.dim() != 1:
        raise ValueError(
            f"indices must be [K], of one image, got {list(indices.shape)}: pass one row of a batch"
        )
    valid = indices >= 0
    if int(indices.max() if indices.numel() else 0) >= count:
        raise ValueError(f"index {int(indices.max())} is outside a grid of {count} patches")
    kinds = np.zeros(count, dtype=np.uint8)
    kinds[indices[valid].numpy()] = np.where(core[valid].numpy(), 2, 1)
    return kinds


def _edges(kind_at: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.bool_]:
    """Pixels less than `width` away from a pixel of another kind, or from the image's border."""
    import numpy as np

    # Two kinds are in a window where its smallest and largest differ; one axis after the other.
    low = high = np.pad(kind_at, width, constant_values=255)
    for axis in (0, 1):
        shifts = range(2 * width + 1)
        size = kind_at.shape[axis]
        low = np.min([low.take(range(i, i + size), axis) for i in shifts], axis=0)
        high = np.max([high.take(range(i, i + size), axis) for i in shifts], axis=0)
    edge: npt.NDArray[np.bool_] = low != high
    return edge


@dataclass(frozen=True)
class Panel:
    """One selection in `compare`: what to draw and what to write above it."""

    selection: Selection
    title: str
    subtitle: str = ""


def compare(
    image: Any,
    panels: Sequence[Panel],
    grid: tuple[int, int],
    *,
    heading: str = "",
    note: str = "",
    region: tuple[float, float, float, float] | None = None,
) -> Figure:
    """Selections side by side (above one another for a wide image), with titles and a legend.

    Args:
        image: as for `light`; enlarged or reduced to panels of about 640 pixels.
        panels: what to draw, from the left.
        grid: (rows, columns) of visual tokens.
        heading: line above everything.
        note: small print below.
        region: (x0, y0, x1, y1) in pixels of `image`, outlined in every panel.

    Returns:
        A Matplotlib figure (no global pyplot state). Its axes are the panels, in order; saved at
        its own dpi, every patch covers a whole number of pixels.

    Raises:
        ValueError: as for `light`.
        ModuleNotFoundError: the extra is not installed.

    Example:
        >>> import numpy as np, torch
        >>> from zspa_kernels import Selection
        >>> from zspa_kernels.visualize import Panel, compare
        >>> photo = np.zeros((64, 96, 3), dtype=np.uint8)
        >>> kept = Selection(torch.tensor([3, 7]), torch.tensor([True, False]), None)
        >>> figure = compare(photo, [Panel(kept, "two of 24")], (4, 6))
        >>> figure.savefig("kept.png")  # doctest: +SKIP
    """
    try:
        import matplotlib.style
        import numpy as np
        from matplotlib.figure import Figure
        from PIL import Image
    except ModuleNotFoundError as error:
        needed = f'{error.name} is not installed: pip install "zspa_kernels[demo]"'
        raise ModuleNotFoundError(needed, name=error.name) from error

    rows, columns = grid
    pixels = np.asarray(image)
    cell = max(1, _PANEL // max(rows, columns))
    width, height = columns * cell, rows * cell
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    stacked = width > 1.6 * height
    across, down = (1, len(panels)) if stacked else (len(panels), 1)
    head = _HEAD if heading else _MARGIN // 2
    total_width = max(2 * _MARGIN + across * width + (across - 1) * _GAP, 2 * _MARGIN + _PANEL)
    total_height = head + down * (_TITLE + height) + (down - 1) * _GAP + _FOOT
    left = (total_width - across * width - (across - 1) * _GAP) // 2

    # The user's own Matplotlib settings (a tight bounding box, say) would move the panels.
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(total_width / 100, total_height / 100), dpi=100)
        figure.set_facecolor(_BACKGROUND)
        for number, panel in enumerate(panels):
            x = left + (0 if stacked else number * (width + _GAP))
            y = head + _TITLE + (number * (height + _TITLE + _GAP) if stacked else 0)
            box = (
                x / total_width,
                1 - (y + height) / total_height,
                width / total_width,
                height / total_height,
            )
            axes = figure.add_axes(box)
            axes.imshow(light(resized, panel.selection, grid), interpolation="none", aspect="auto")
            axes.set_axis_off()
            if region is not None:
                scale = (width / pixels.shape[1], height / pixels.shape[0])
                _outline(axes, region, scale)
            line = 1 / total_height
            title_at = 1 - (y - 52) * line
            figure.text(x / total_width, title_at, panel.title, size=19, weight="bold", color=_INK)
            figure.text(
                x / total_width, title_at - 33 * line, panel.subtitle, size=15, color=_FAINT
            )
        if heading:
            figure.text(left / total_width, 1 - 60 / total_height, heading, size=24, color=_INK)
        _legend(figure, left, region is not None, note)
    return figure


def _outline(
    axes: Axes, region: tuple[float, float, float, float], scale: tuple[float, float]
) -> None:
    """A white dashed box over a dark one, visible on any photo."""
    from matplotlib.patches import Rectangle

    # imshow puts pixel centres at whole numbers, so the image starts at -0.5.
    corner = (region[0] * scale[0] - 0.5, region[1] * scale[1] - 0.5)
    size = ((region[2] - region[0]) * scale[0], (region[3] - region[1]) * scale[1])
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=3.0))
    axes.add_patch(
        Rectangle(
            corner, *size, fill=False, edgecolor="white", linewidth=1.5, linestyle=(0, (4, 3))
        )
    )


def _legend(figure: Figure, left: int, with_region: bool, note: str) -> None:
    """What the colours mean, along the bottom."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches() * figure.dpi
    core, diversity = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (CORE_COLOUR, DIVERSITY_COLOUR))
    handles: list[Patch | Line2D] = [
        Patch(facecolor=core, label="core: most relevant to the prompt"),
        Patch(facecolor=diversity, label="diversity: least like anything kept so far"),
    ]
    if with_region:
        handles.append(
            Line2D(
                [], [], color="white", linestyle=(0, (3, 2)), label="prompt: patches in this box"
            )
        )
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left / width, (_FOOT - 26) / height),
        borderaxespad=0.0,
        borderpad=0.0,
        ncols=len(handles),
        frameon=False,
        labelcolor=_INK,
        fontsize=16,
        handlelength=1.4,
    )
    figure.text(left / width, 32 / height, note, size=13.5, color=_FAINT)
