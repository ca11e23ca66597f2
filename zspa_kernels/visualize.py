# SPDX-License-Identifier: Apache-2.0
"""Pictures of a selection: kept patches stay lit, the rest is dimmed.

`light` makes the pixels (NumPy only); `compare` sets several selections side by side with titles
and a legend (needs Matplotlib and Pillow: `pip install "zspa_kernels[demo]"`).
"""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from zspa_kernels._contract.values import at_least, integer_at_least, naming, real, say
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
#: What they mean for the methods whose core is relevance.
LEGEND = ("core: most relevant to the prompt", "diversity: least like anything kept so far")
# Dropped patches keep this share of their brightness and lose their colour.
DIM = 0.36

_BACKGROUND, _INK, _FAINT = "#0e1117", "#f3f4f6", "#9ca3af"
# Pixels: longer side of a panel beside others and below others, room for a panel's own title.
_PANEL, _WIDE_PANEL, _SLOT = 640, 1360, 520
_MARGIN, _GAP, _HEAD, _TITLE, _LINE = 40, 32, 84, 118, 28


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
        outline: width of outlines in pixels; by default an eighth of a patch, from 1 to 4; 0 for
            none.

    Returns:
        A new uint8 `[H, W, 3]` array.

    Raises:
        TypeError: grid is not a pair of ints, or selection is no selection.
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

    pixels, (rows, columns) = _checked("light", image, grid)
    if rows > pixels.shape[0] or columns > pixels.shape[1]:
        fit = f"fit an image of {list(pixels.shape[:2])} pixels"
        raise ValueError(f"light: grid must {fit}, got {grid}")
    if not 0.0 <= real("light", "dim", dim) <= 1.0:
        raise ValueError(f"light: dim must be in [0, 1], got {dim}")
    kinds = _kinds(selection, rows * columns).reshape(rows, columns)

    # Patch edges at rounded positions, so that any grid divides any image.
    row_of = np.arange(pixels.shape[0]) * rows // pixels.shape[0]
    column_of = np.arange(pixels.shape[1]) * columns // pixels.shape[1]
    kind_at = kinds[row_of][:, column_of]

    grey = pixels @ np.array([0.299, 0.587, 0.114]) * dim
    lit = np.where(kind_at[..., None] > 0, pixels, grey.round().astype(np.uint8)[..., None])
    if outline is None:
        outline = min(pixels.shape[0] // rows, pixels.shape[1] // columns) // 8
        outline = min(max(outline, 1), 4)
    integer_at_least("light", "outline", outline, 0)
    edge = _edges(kind_at, outline)
    lit[edge & (kind_at == 2)] = CORE_COLOUR
    lit[edge & (kind_at == 1)] = DIVERSITY_COLOUR
    return lit


def _checked(op: str, image: Any, grid: Any) -> tuple[Pixels, tuple[int, int]]:
    """The image as an array of uint8 colours, and the grid as two ints."""
    import numpy as np

    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"{op}: image must be uint8 [H, W, 3], got {got}")
    try:
        rows, columns = map(operator.index, grid)
    except (TypeError, ValueError):
        rule = "(rows, columns), two ints"
        raise TypeError(f"{op}: grid must be {rule}, got {grid!r:.60}") from None
    at_least(op, "grid", min(rows, columns), 1)
    return pixels, (rows, columns)


def _kinds(selection: Selection | torch.Tensor, count: int) -> npt.NDArray[np.uint8]:
    """0 for dropped, 1 for diversity, 2 for core: `[count]`."""
    import numpy as np

    if isinstance(selection, Selection):
        indices, core = selection.indices.detach().cpu(), selection.core_mask.detach().cpu()
    elif isinstance(selection, torch.Tensor) and selection.dtype is torch.int64:
        indices = selection.detach().cpu()
        core = torch.zeros(indices.shape, dtype=torch.bool)
    else:
        rule = "a Selection or int64 indices"
        raise TypeError(f"light: selection must be {rule}, got {say(selection)}")
    if indices.dim() != 1:
        rule = "[K], of one image (take one row of a batch)"
        raise ValueError(f"light: selection must be {rule}, got {list(indices.shape)}")
    if core.shape != indices.shape:
        rule = f"a core_mask of {len(indices)}, one an index"
        raise ValueError(f"light: selection must have {rule}, got {list(core.shape)}")
    valid = indices >= 0
    if int(indices.max() if indices.numel() else 0) >= count:
        rule = f"indices below {count}, the patches of the grid"
        raise ValueError(f"light: selection must have {rule}, got {int(indices.max())}")
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
    """One selection in `compare`: what to draw and what to write above it (subtitle: two lines)."""

    selection: Selection
    title: str
    subtitle: str = ""


@naming("compare")
def compare(
    image: Any,
    panels: Sequence[Panel],
    grid: tuple[int, int],
    *,
    heading: str = "",
    note: str = "",
    region: tuple[float, float, float, float] | None = None,
    legend: tuple[str, str] = LEGEND,
) -> Figure:
    """Selections side by side (above one another for a wide image), with titles and a legend.

    Args:
        image: as for `light`; resized so that the longer side of a panel has about 640 pixels, or
            1360 where panels are above one another.
        panels: what to draw, from the left.
        grid: (rows, columns) of visual tokens.
        heading: line above everything.
        note: small print below.
        region: (x0, y0, x1, y1) in pixels of `image`, outlined in every panel.
        legend: what the colours of core and diversity mean.

    Returns:
        A Matplotlib figure (no global pyplot state). Its axes are the panels, in order; saved at
        its own dpi, every patch covers a whole number of pixels.

    Raises:
        TypeError, ValueError: as for `light`; something that is no `Panel`.
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
        from matplotlib.figure import Figure
        from PIL import Image
    except ModuleNotFoundError as error:
        needed = f'{error.name} is not installed: pip install "zspa_kernels[demo]"'
        raise ModuleNotFoundError(needed, name=error.name) from error

    pixels, grid = _checked("compare", image, grid)
    for panel in panels:
        if not isinstance(panel, Panel):
            got = type(panel).__name__
            raise TypeError(f"compare: panels must be of Panel(selection, title), got a {got}")
    if region is not None and (len(region) != 4 or not all(map(math.isfinite, region))):
        raise ValueError(f"compare: region must be (x0, y0, x1, y1), got {region!r:.60}")
    place = _Layout.of(grid, len(panels), heading, note, region is not None)
    resized = Image.fromarray(pixels).resize((place.width, place.height), Image.Resampling.LANCZOS)

    # The user's own Matplotlib settings (a tight bounding box, say) would move the panels. Dollars
    # are no formula.
    with matplotlib.style.context(["default", {"text.parse_math": False}]):
        figure = Figure(figsize=(place.total_width / 100, place.total_height / 100), dpi=100)
        figure.set_facecolor(_BACKGROUND)
        for panel, (left, top) in zip(panels, place.corners, strict=True):
            axes = figure.add_axes(place.panel(left, top))
            axes.imshow(light(resized, panel.selection, grid), interpolation="none", aspect="auto")
            axes.set_axis_off()
            if region is not None:
                scale = (place.width / pixels.shape[1], place.height / pixels.shape[0])
                _outline(axes, region, scale)
            figure.text(*place.at(left, top - 80), panel.title, size=19, weight="bold", color=_INK)
            figure.text(
                *place.at(left, top - 70),
                panel.subtitle,
                size=15,
                color=_FAINT,
                verticalalignment="top",
                linespacing=1.25,
            )
        figure.text(*place.at(_MARGIN, 60), heading, size=24, color=_INK)
        _legend(figure, place, region is not None, legend)
    return figure


@dataclass(frozen=True)
class _Layout:
    """Where everything goes, in pixels from the top left.

    Attributes:
        width: of a panel.
        height: of a panel.
        corners: (left, top) of each panel.
        legend_columns: 1 where the legend does not fit on one line.
        legend_top: upper end of the legend.
        note: the small print, broken into lines.
        note_top: upper end of the small print.
        total_width: of the figure.
        total_height: of the figure.
    """

    width: int
    height: int
    corners: tuple[tuple[int, int], ...]
    legend_columns: int
    legend_top: int
    note: str
    note_top: int
    total_width: int
    total_height: int

    @classmethod
    def of(
        cls, grid: tuple[int, int], panels: int, heading: str, note: str, with_region: bool
    ) -> _Layout:
        rows, columns = grid
        stacked = columns > 1.6 * rows and panels > 1
        # Whole pixels a patch, so that every patch is drawn alike.
        cell = max(1, (_WIDE_PANEL if stacked else _PANEL) // max(rows, columns))
        width, height = columns * cell, rows * cell
        across, down = max(width, _SLOT) + _GAP, height + _TITLE + _GAP // 2
        top = (_HEAD if heading else _MARGIN // 2) + _TITLE
        steps = [(0, i) if stacked else (i, 0) for i in range(panels)]
        corners = tuple((_MARGIN + i * across, top + j * down) for i, j in steps)

        total_width = max((x for x, _ in corners), default=0) + max(width, _SLOT) + _MARGIN
        legend_top = max((y for _, y in corners), default=top) + height + _LINE
        entries = 3 if with_region else 2
        legend_columns = entries if total_width >= 470 * entries else 1
        note_top = legend_top + (entries // legend_columns) * _LINE + _LINE // 2
        # At its size a character is about ten pixels wide.
        lines = textwrap.wrap(note, (total_width - 2 * _MARGIN) // 10)
        total_height = note_top + len(lines) * _LINE + _MARGIN // 2
        return cls(
            width,
            height,
            corners,
            legend_columns,
            legend_top,
            "\n".join(lines),
            note_top,
            _whole(total_width),
            _whole(total_height),
        )

    def panel(self, left: int, top: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of a panel, a hair within its pixels.

        Matplotlib 3.10 stretches a picture to 641 pixels if its box is 640.0000000000001 wide.
        """
        hair = 1e-6
        x, y = self.at(left + hair, top + self.height - hair)
        width, height = self.width - 2 * hair, self.height - 2 * hair
        return x, y, width / self.total_width, height / self.total_height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A position as Matplotlib counts: shares of the figure, from the bottom left."""
        return x / self.total_width, 1 - y / self.total_height


def _whole(pixels: int) -> int:
    """At least as many, such that the same number comes back from inches.

    16.08 inches at 100 dpi are 1607.9999999999998 pixels, of which Matplotlib 3.10 draws 1607.
    """
    while pixels / 100 * 100 != pixels:
        pixels += 1
    return pixels


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


def _legend(figure: Figure, place: _Layout, with_region: bool, texts: tuple[str, str]) -> None:
    """What the colours mean, along the bottom, and the small print."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    core, diversity = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (CORE_COLOUR, DIVERSITY_COLOUR))
    handles: list[Patch | Line2D] = [
        Patch(facecolor=core, label=texts[0]),
        Patch(facecolor=diversity, label=texts[1]),
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
        bbox_to_anchor=place.at(_MARGIN, place.legend_top),
        borderaxespad=0.0,
        borderpad=0.0,
        ncols=place.legend_columns,
        frameon=False,
        labelcolor=_INK,
        fontsize=16,
        handlelength=1.4,
    )
    figure.text(
        *place.at(_MARGIN, place.note_top),
        place.note,
        size=13.5,
        color=_FAINT,
        verticalalignment="top",
    )
