# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a pruned model kept, over the picture it saw.

A processor crops, resizes, pads and tiles; so the picture is rebuilt from `pixel_values`, and the
place of each visual token comes from the report. Needs Matplotlib and Pillow
(`pip install "zspa_kernels[demo,hf]"`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._pixels import bounds, rebuilt
from .hf import ImageReport, PruneReport
from .hf.architectures import Target
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
            LLaVA-NeXT's newline tokens and Video-LLaVA's [CLS], which show no place.
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
    values = modality.values(inputs)
    if not isinstance(values, Tensor):
        got = type(values).__name__
        raise ValueError(f"seen: inputs must hold a tensor {modality.pixels[0]}, got {got}")
    nowhere = one.cell[:, 1] < 0
    if bool(nowhere.all()):
        raise ValueError(f"seen: image must be a grid of tokens, got {len(nowhere)} tokens")
    cell = one.cell.masked_fill(nowhere[:, None], -1)
    values = values.detach().float().cpu()
    pictures = rebuilt(target, modality, inputs, values, report.images, image)
    coloured = [_colours(picture, values, processor) for picture in pictures]
    return _mosaic(coloured, cell, target.arch.in_tiles and not one.video)


def kept(
    model: Any,
    inputs: Mapping[str, Any],
    reports: PruneReport | Mapping[str, PruneReport],
    image: int | Sequence[int] = 0,
    *,
    processor: Any = None,
    heading: str = "",
    note: str = "",
    across: int | None = None,
) -> Figure:
    """Draw what was kept of an image: lit patches, core and diversity outlined in two colours.

    Args:
        model: see `seen`, as for the others not named here.
        inputs: of the calls.
        reports: of one call, or of several by title, drawn side by side.
        image: which image; or several, such as the crops of one picture (Idefics3, SmolVLM,
            LFM2-VL, Cohere2 Vision), drawn as one with gaps between them.
        processor: for true colours.
        heading: line above everything.
        note: small print below.
        across: how many of several images stand in a line; by default about as many as lines.

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
    numbers = [image] if isinstance(image, int) else list(image)
    if not numbers:
        raise ValueError("kept: image must be a number or several, got none")
    if across is not None and across < 1:
        raise ValueError(f"kept: across must be at least 1, got {across}")
    first = next(iter(named.values()))
    views = [seen(model, inputs, first, one, processor=processor) for one in numbers]
    view = _together(views, across)
    panels = []
    for title, report in named.items():
        if max(numbers) >= len(report.images) or any(
            report.images[one].before != len(own.place)
            for one, own in zip(numbers, views, strict=True)
        ):
            raise ValueError(f"kept: reports must be of the same inputs, got another for {title!r}")
        panels.append(_panel(title, view, [report.images[one] for one in numbers]))
    relevance = all(_title(one) in _BY_RELEVANCE for one in named.values())
    legend = LEGEND if relevance else _ANY_LEGEND
    return compare(view.pixels, panels, view.grid, heading=heading, note=note, legend=legend)


def _panel(title: str, view: Seen, images: Sequence[ImageReport]) -> Panel:
    """What was kept of images whose tokens are in `view`, one image behind the other."""
    starts = itertools.accumulate((one.before for one in images), initial=0)
    indices = torch.cat([one.indices + start for one, start in zip(images, starts, strict=False)])
    place, core = view.place[indices], torch.cat([one.core_mask for one in images])
    lit = place >= 0
    count = int(core.sum())
    text = f"{count} core + {len(core) - count} diversity" if count else f"{len(core)} tokens"
    ends = int((~lit).sum())
    hidden = f", {ends} of them without a place" if ends else ""
    subtitle = f"{text} of {len(view.place)}{hidden}"
    return Panel(Selection(place[lit], core[lit]), title, subtitle)


def _together(views: Sequence[Seen], across: int | None) -> Seen:
    """Several images on one canvas, a cell apart."""
    if len(views) == 1:
        return views[0]
    sides = {view.pixels.shape[0] // view.grid[0] for view in views}
    if len(sides) > 1:
        raise ValueError(f"kept: image must be of images with one size of patches, got {sides}")
    (side,) = sides
    across = across or math.ceil(math.sqrt(len(views)))
    high, wide = (max(view.grid[axis] for view in views) + 1 for axis in (0, 1))
    lines = -(-len(views) // across)
    total = (lines * high - 1, min(across, len(views)) * wide - 1)
    canvas = torch.tensor(_GAP, dtype=torch.uint8).repeat(total[0] * side, total[1] * side, 1)
    places = []
    for i, view in enumerate(views):
        top, left = (i // across) * high, (i % across) * wide
        picture = torch.from_numpy(view.pixels)
        down, right = slice(top * side, None), slice(left * side, None)
        canvas[down, right][: picture.shape[0], : picture.shape[1]] = picture
        row, column = view.place // view.grid[1] + top, view.place % view.grid[1] + left
        places.append(torch.where(view.place < 0, view.place, row * total[1] + column))
    return Seen(canvas.numpy(), total, torch.cat(places))


def _title(report: PruneReport) -> str:
    return report.method.partition("(")[0]


def _colours(picture: Tensor, values: Tensor, processor: Any) -> Tensor:
    """Normalised values `[3, H, W]` as uint8 `[H, W, 3]`."""
    source = getattr(processor, "image_processor", processor)
    mean, spread = (getattr(source, name, None) for name in ("image_mean", "image_std"))
    if mean is None or spread is None or not getattr(source, "do_normalize", True):
        low, high = float(values.min()), float(values.max())
        mean, spread = -low / max(high - low, 1e-12), 1 / max(high - low, 1e-12)
    # One for each channel, or one for all.
    mean, spread = (torch.tensor(one).reshape(-1, 1, 1) for one in (mean, spread))
    scaled = picture * spread + mean
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def _mosaic(pictures: Sequence[Tensor], cell: Tensor, by_label: bool) -> Seen:
    """Pictures `[H, W, 3]` of one patch size on one canvas, and the tokens' cells in it.

    Args:
        pictures: of the image.
        cell: `[before, 3]`, of the report.
        by_label: tokens of tiles from 1 on are all in the second picture.
    """
    part = cell[:, 0].clamp_max(1) if by_label else cell[:, 0]
    boxes = [bounds(cell[part == i]) for i in range(len(pictures))]
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
