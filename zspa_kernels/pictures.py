# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a pruned model kept, over the picture it saw.

A processor crops, resizes, pads and tiles; so the picture is rebuilt from `pixel_values`, and the
place of each visual token comes from the report. Needs Matplotlib and Pillow
(`pip install "zspa_kernels[demo,hf]"`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .hf import ImageReport, PruneReport
from .hf.architectures import Modality, Target
from .hf.tiles import anyres_tiles
from .types import Selection
from .visualize import LEGEND, Panel, compare

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

# Between the pictures of one image; dimmed it is as dark as the background of the figure.
_GAP = (46, 46, 46)
# Whose core is relevance to the prompt; that of others may be attention or another score.
_BY_RELEVANCE = ("ZSPAPrune", "DivPrune", "AllInRelevance")
_ANY_LEGEND = ("core: highest score (relevance, attention, ...)", "kept beside the core")


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as a model saw it, and where its visual tokens are.

    Attributes:
        pixels: uint8 `[H, W, 3]`. An image that is seen more than once is a row of pictures with
            gaps: LLaVA-NeXT's small picture and its large one without the padding, which becomes no
            tokens; InternVL's tiles in the order of their tokens; the times of a video, each of
            which is shown by the first of its frames.
        grid: (rows, columns) of cells; `pixels` is divided evenly. A cell is a token or a gap.
        place: int64 `[before]`: cell of each of the image's tokens, counted in raster order; -1 for
            LLaVA-NeXT's newline tokens, which show nothing.
    """

    pixels: npt.NDArray[np.uint8]
    grid: tuple[int, int]
    place: Tensor

    def selection(self, image: ImageReport) -> Selection:
        """The cells that were kept, for `visualize.light` and `visualize.compare`."""
        place = self.place[image.indices]
        return Selection(place[place >= 0], image.core_mask[place >= 0])


def seen(
    model: Any,
    inputs: Mapping[str, Any],
    report: PruneReport,
    image: int = 0,
    *,
    processor: Any = None,
) -> Seen:
    """Rebuild the picture that the model saw.

    Args:
        model: that was pruned, or any of its kind.
        inputs: what its processor returned; `pixel_values` (or `pixel_values_videos`) and what
            describes them are read.
        report: of a call with these inputs.
        image: which one of `report.images`; it may be a video.
        processor: of the model, or its image processor: its `image_mean` and `image_std` give the
            true colours. Without it the values are stretched over the range of brightness.

    Raises:
        ValueError: report and inputs do not belong together, or the tokens of the image are no
            grid.
        UnsupportedModelError: the architecture is unknown.
    """
    target = Target.of(model)
    if not 0 <= image < len(report.images):
        count = len(report.images)
        raise ValueError(f"seen: image must be from 0 to {count - 1}, got {image}")
    one = report.images[image]
    modality = target.modalities[int(one.video)]
    if not isinstance(inputs.get(modality.pixels), Tensor):
        got = type(inputs.get(modality.pixels)).__name__
        raise ValueError(f"seen: inputs must hold a tensor {modality.pixels}, got {got}")
    cell = one.cell
    if bool((cell[:, 1] < 0).logical_and(cell[:, 0] >= 0).any()):
        raise ValueError(f"seen: image must be a grid of tokens, got {len(cell)} tokens")
    values = inputs[modality.pixels].detach().float().cpu()
    number = sum(other.video == one.video for other in report.images[:image])
    in_tiles = target.arch.in_tiles and not one.video
    if in_tiles:
        pictures = _anyres(target, inputs, values, cell, number)
    elif target.arch.in_tiles:
        pictures = _frames(values, cell, number)
    elif target.arch.size == "grid_thw":
        pictures = _patches(target, inputs[modality.grid], values, number)
    elif target.arch.size == "image_sizes":
        pictures = _sized(inputs, values, number)
    elif target.arch.size == "spatial_shapes":
        pictures = _shaped(inputs, values, number)
    elif target.arch.size == "position_ids":
        pictures = _placed(inputs, modality, values, number)
    else:
        pictures = _tiles(values, report.images, number)
    coloured = [_colours(picture, values, processor) for picture in pictures]
    return _mosaic(coloured, cell, in_tiles)


def kept(
    model: Any,
    inputs: Mapping[str, Any],
    reports: PruneReport | Mapping[str, PruneReport],
    image: int = 0,
    *,
    processor: Any = None,
    heading: str = "",
    note: str = "",
) -> Figure:
    """Draw what was kept of an image: lit patches, core and diversity outlined in two colours.

    Args:
        model: see `seen`, as for the others not named here.
        inputs: of the calls.
        reports: of one call, or of several by title, drawn side by side.
        image: which image.
        processor: for true colours.
        heading: line above everything.
        note: small print below.

    Returns:
        A Matplotlib figure: `kept(...).savefig("kept.png")`. See `visualize.compare`.

    Raises:
        ValueError, UnsupportedModelError: see `seen`.
        ModuleNotFoundError: the extra is not installed.

    Example:
        >>> import torch, transformers, zspa_kernels as zk
        >>> from zspa_kernels import pictures
        >>> small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        >>> vision = transformers.CLIPVisionConfig(
        ...     **small, num_attention_heads=2, image_size=56, patch_size=14
        ... )
        >>> text = transformers.LlamaConfig(**small, num_attention_heads=2, vocab_size=10)
        >>> config = transformers.LlavaConfig(
        ...     vision_config=vision, text_config=text, image_token_index=9
        ... )
        >>> model = transformers.LlavaForConditionalGeneration(config)
        >>> inputs = {
        ...     "input_ids": torch.tensor([[1, *[9] * 16, 3, 4, 5]]),
        ...     "attention_mask": torch.ones(1, 20, dtype=torch.long),
        ...     "pixel_values": torch.rand(1, 3, 56, 56),
        ... }
        >>> reports = {}
        >>> for method in (zk.ZSPAPrune(keep=0.25), zk.DivPrune(keep=0.25)):
        ...     with method(model) as handle:
        ...         _ = model.generate(**inputs, max_new_tokens=1)
        ...     reports[type(method).__name__] = handle.report
        >>> figure = pictures.kept(model, inputs, reports)
        >>> [text.get_text() for text in figure.texts][0:3:2]
        ['ZSPAPrune', 'DivPrune']
    """
    named = {_title(reports): reports} if isinstance(reports, PruneReport) else dict(reports)
    if not named:
        raise ValueError("kept: reports must hold at least one report, got none")
    view = seen(model, inputs, next(iter(named.values())), image, processor=processor)
    panels = []
    for title, report in named.items():
        if image >= len(report.images) or report.images[image].before != len(view.place):
            raise ValueError(f"kept: reports must be of the same inputs, got another for {title!r}")
        one = report.images[image]
        counts = f"{one.core} core + {one.diverse} diversity" if one.core else f"{one.after} tokens"
        shown = view.selection(one)
        ends = one.after - len(shown.indices)  # LLaVA-NeXT's newline tokens
        note_ends = f", {ends} of them ends of rows, not shown" if ends else ""
        panels.append(Panel(shown, title, f"{counts} of {one.before}{note_ends}"))
    relevance = all(_title(one) in _BY_RELEVANCE for one in named.values())
    legend = LEGEND if relevance else _ANY_LEGEND
    return compare(view.pixels, panels, view.grid, heading=heading, note=note, legend=legend)


def _title(report: PruneReport) -> str:
    return report.method.partition("(")[0]


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
    if len(values) != sum(sizes) or image >= len(sizes):
        raise ValueError(
            f"seen: inputs must be those of the report, got {len(values)} patches for "
            f"{sum(sizes)} in the grids"
        )
    frames, rows, columns = grids[image]
    merge, side, depth = (
        vision.spatial_merge_size,
        vision.patch_size,
        vision.temporal_patch_size,
    )
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
    if image >= len(shapes) or values.ndim != 5 or len(values) != len(shapes):
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
    box = _box(cell[cell[:, 0] > 0])
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
    _, _, rows, columns = _box(cell)
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
    if image >= len(sizes) or len(values) != len(sizes):
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
    if len(values) != sum(frames) or image >= len(frames):
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
    if len(values) != len(shapes) or image >= len(shapes):
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


def _box(cells: Tensor) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the rows and columns in `[n, 3]`; the last two excluded."""
    cells = cells[cells[:, 0] >= 0]
    low, high = cells[:, 1:].amin(0).tolist(), cells[:, 1:].amax(0).tolist()
    return low[0], low[1], high[0] + 1, high[1] + 1


def _colours(picture: Tensor, values: Tensor, processor: Any) -> Tensor:
    """Normalised values `[3, H, W]` as uint8 `[H, W, 3]`."""
    source = getattr(processor, "image_processor", processor)
    mean, spread = (getattr(source, name, None) for name in ("image_mean", "image_std"))
    if mean is None or spread is None or not getattr(source, "do_normalize", True):
        low, high = float(values.min()), float(values.max())
        mean, spread = [-low / max(high - low, 1e-12)] * 3, [1 / max(high - low, 1e-12)] * 3
    scaled = picture * torch.tensor(spread)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def _mosaic(pictures: Sequence[Tensor], cell: Tensor, by_label: bool) -> Seen:
    """Pictures `[H, W, 3]` of one patch size on one canvas, and the tokens' cells in it.

    Args:
        pictures: of the image.
        cell: `[before, 3]`, of the report.
        by_label: tokens of tiles from 1 on are all in the second picture.
    """
    part = cell[:, 0].clamp_max(1) if by_label else cell[:, 0]
    boxes = [_box(cell[part == i]) for i in range(len(pictures))]
    sizes = [(bottom - top, right - left) for top, left, bottom, right in boxes]
    side = pictures[0].shape[0] // sizes[0][0]
    across = len(pictures) if by_label else math.ceil(math.sqrt(len(pictures)))
    high, wide = max(rows for rows, _ in sizes), max(columns for _, columns in sizes)
    corners = []
    right_end = 0
    for i, (rows, columns) in enumerate(sizes):
        line, slot = divmod(i, across)
        left = 0 if slot == 0 else right_end + 1
        corners.append((line * (high + 1) + (high - rows) // 2, left))
        right_end = left + (columns if by_label else wide)
    total = (
        max(top + rows for (top, _), (rows, _) in zip(corners, sizes, strict=True)),
        max(left + columns for (_, left), (_, columns) in zip(corners, sizes, strict=True)),
    )
    canvas = torch.tensor(_GAP, dtype=torch.uint8).repeat(total[0] * side, total[1] * side, 1)
    place = torch.full((len(cell),), -1, dtype=torch.long)
    for i, (picture, (top, left), box) in enumerate(zip(pictures, corners, boxes, strict=True)):
        # What is left of a side that is no multiple of the patch became no tokens.
        height, width = sizes[i][0] * side, sizes[i][1] * side
        there = (slice(top * side, top * side + height), slice(left * side, left * side + width))
        canvas[there] = picture[:height, :width]
        mine = part == i
        row, column = cell[mine, 1] - box[0] + top, cell[mine, 2] - box[1] + left
        place[mine] = row * total[1] + column
    return Seen(canvas.numpy(), total, place)
