# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model kept: rebuilt from its inputs, lit where the report says."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zspa_kernels as zk
from python_tests import vlms
from python_tests.colours import NAMES, colourful
from python_tests.hf_oracle import generate
from python_tests.vlm_models import GEMMAS
from zspa_kernels import pictures
from zspa_kernels.visualize import CORE_COLOUR, DIVERSITY_COLOUR, light


def report_of(
    tiny: vlms.Tiny, inputs: Any, method: Any = None, **options: Any
) -> zk.hf.PruneReport:
    with zk.hf.prune(tiny.model, method or zk.DivPrune(keep=0.3), **options) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    assert handle.report is not None
    return handle.report


def close(pixels: Any, picture: Image.Image) -> None:
    """The same up to rounding of normalised values."""
    expected = np.asarray(picture.convert("RGB"), dtype=np.int16)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(np.int16) - expected).max() <= 1


# ---- the picture is the one that was seen --------------------------------------------------------


def test_clip_sees_a_cropped_picture() -> None:
    tiny = vlms.get("llava")
    photo = vlms.photograph("chelsea", (180, 112))  # as high as the square: only cropped
    inputs = tiny.processor(images=photo, text=tiny.prompt("what"), return_tensors="pt")
    view = pictures.seen(tiny.model, inputs, report_of(tiny, inputs), processor=tiny.processor)
    close(view.pixels, photo.crop((34, 0, 146, 112)))
    assert view.grid == (8, 8)
    assert view.place.tolist() == list(range(64))


def test_qwen_merges_patches() -> None:
    tiny = vlms.get("qwen2_5_vl")
    photos = [vlms.photograph("coffee", (84, 112)), vlms.photograph("rocket", (140, 56))]
    text = tiny.prompt("compare", pictures=2)
    inputs = tiny.processor(images=photos, text=text, return_tensors="pt")
    report = report_of(tiny, inputs)
    for image, photo in enumerate(photos):  # their sides are multiples of 28: neither is resized
        view = pictures.seen(tiny.model, inputs, report, image, processor=tiny.processor)
        close(view.pixels, photo)
        assert view.grid == (photo.height // 28, photo.width // 28)
        assert view.place.tolist() == list(range(view.grid[0] * view.grid[1]))


def test_times_of_a_video_are_drawn_apart() -> None:
    tiny = vlms.get("qwen2_5_vl")
    inputs = tiny.inputs("video")
    report = report_of(tiny, inputs)
    frames = vlms.video("rocket", 6)
    view = pictures.seen(tiny.model, inputs, report, 0, processor=tiny.processor)
    high, wide = frames[0].height // 28, frames[0].width // 28
    assert view.grid == (2 * high + 1, 2 * wide + 1)
    for time, (top, left) in enumerate([(0, 0), (0, wide + 1), (high + 1, 0)]):
        rows = slice(28 * top, 28 * (top + high))
        close(view.pixels[rows, 28 * left : 28 * (left + wide)], frames[2 * time])
        place = view.place[report.images[0].cell[:, 0] == time]
        cells = [(top + r) * view.grid[1] + left + c for r in range(high) for c in range(wide)]
        assert place.tolist() == cells
    other = pictures.seen(tiny.model, inputs, report, 2, processor=tiny.processor)
    close(other.pixels[: 28 * high, : 28 * wide], vlms.video("coffee", 4)[0])


@pytest.mark.parametrize("name", GEMMAS[::2])
def test_frames_of_a_video_are_drawn_apart(name: str) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs("video")
    view = pictures.seen(tiny.model, inputs, report_of(tiny, inputs), 2)
    assert view.grid == (2 * 3 + 1, 2 * 5 + 1)
    assert view.place.tolist() == [
        (top + r) * 11 + left + c
        for top, left in ((0, 0), (0, 6), (4, 0), (4, 6))
        for r in range(3)
        for c in range(5)
    ]
    for frame, (top, left) in zip(
        vlms.video("coffee", 4), ((0, 0), (0, 108), (72, 0), (72, 108)), strict=True
    ):
        part = view.pixels[top : top + 54, left : left + 90]
        pair = np.corrcoef(part.ravel(), np.asarray(frame.resize((90, 54))).ravel())
        assert pair[0, 1] > 0.99


def test_llava_next_sees_a_small_picture_and_tiles_of_a_large_one() -> None:
    tiny = vlms.get("llava_next")
    photo = vlms.photograph("rocket", (112, 84))  # the large one is padded above and below
    inputs = tiny.processor(images=photo, text=tiny.prompt("what"), return_tensors="pt")
    report = report_of(tiny, inputs)
    view = pictures.seen(tiny.model, inputs, report, processor=tiny.processor)
    assert view.grid == (6, 4 + 1 + 8)
    close(view.pixels[:, 5 * 14 :], photo)
    small = view.pixels[14 : 5 * 14, : 4 * 14].astype(np.float64)
    whole = np.asarray(photo.resize((56, 56), Image.Resampling.BICUBIC), dtype=np.float64)
    assert np.abs(small - whole).mean() < 4  # resized by the processor in its own way
    cell = report.images[0].cell
    assert torch.equal(view.place < 0, cell[:, 0] < 0)
    shown = view.place[view.place >= 0]
    assert len(shown.unique()) == len(shown) == 16 + 48
    # A newline has no cell to be lit, and is no error.
    everything = report_of(tiny, inputs, zk.DivPrune(keep=0.9), keep_newline=True).images[0]
    figure = pictures.kept(tiny.model, inputs, report_of(tiny, inputs, keep_newline=True))
    assert any("of them without a place" in text.get_text() for text in figure.texts)
    lit = view.selection(everything)
    assert len(lit.indices) == everything.after - int((cell[:, 0] < 0).sum())


@pytest.mark.parametrize(
    "name",
    ["smolvlm", "gemma3", "internvl", "qwen3_vl", "qwen3_5", "glm4v", "lfm3_vl", *GEMMAS[::2]],
)
def test_each_image_of_a_batch_is_its_own(name: str) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    report = report_of(tiny, inputs)
    photos = [
        vlms.photograph(what, size)
        for what, size in (("chelsea", (170, 112)), ("rocket", (120, 150)), ("coffee", (130, 100)))
    ]
    assert len(report.images) == 3
    for image, photo in enumerate(photos):
        view = pictures.seen(tiny.model, inputs, report, image, processor=tiny.processor)
        high, wide = view.pixels.shape[:2]
        resized = np.asarray(photo.resize((wide, high)), dtype=np.float64)
        # Without a mean and a spread the values are stretched, so only shapes are alike.
        pair = np.corrcoef(view.pixels.astype(np.float64).ravel(), resized.ravel())
        assert pair[0, 1] > 0.95
        assert int(view.place.max()) == view.grid[0] * view.grid[1] - 1


def test_tiles_of_one_image_are_drawn_apart() -> None:
    tiny = vlms.get("internvl")
    photo = vlms.photograph("coffee", (112, 112))
    tiles = [photo, photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM), photo.rotate(90)]
    shown = " ".join([tiny.image] * 3)
    prompt = tiny.prompt("what").replace(tiny.image, shown)
    inputs = tiny.processor(images=tiles, text=prompt, return_tensors="pt")
    report = report_of(tiny, inputs)
    assert len(report.images) == 1
    view = pictures.seen(tiny.model, inputs, report)
    assert view.grid == (4 + 1 + 4, 4 + 1 + 4)
    cells = [(row, column) for row in range(4) for column in range(4)]
    corners = [(0, 0), (0, 5), (5, 0)]
    expected = [(top + r) * 9 + left + c for top, left in corners for r, c in cells]
    assert view.place.tolist() == expected
    for (top, left), tile in zip(corners, tiles, strict=True):
        part = view.pixels[28 * top : 28 * top + 112, 28 * left : 28 * left + 112]
        pair = np.corrcoef(part.ravel().astype(np.float64), np.asarray(tile).ravel())
        assert pair[0, 1] > 0.99


# ---- what is lit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", NAMES)
def test_the_region_the_prompt_asks_for_is_lit_as_core(colour: str) -> None:
    tiny, inputs, regions = colourful(colour)
    method = zk.ZSPAPrune(keep=12, core_ratio=0.5)
    report = report_of(tiny, inputs, method)
    view = pictures.seen(tiny.model, inputs, report, processor=tiny.processor)
    lit = light(view.pixels, view.selection(report.images[0]), view.grid, outline=1)
    core = (lit == np.array(CORE_COLOUR, dtype=np.uint8)).all(-1)
    top, left, bottom, right = (14 * edge for edge in regions[colour])
    rows, columns = core.nonzero()
    assert (rows.min(), columns.min()) == (top, left)
    assert (rows.max(), columns.max()) == (bottom - 1, right - 1)
    diverse = (lit == np.array(DIVERSITY_COLOUR, dtype=np.uint8)).all(-1)
    for name in set(NAMES) - {colour}:
        top, left, bottom, right = (14 * edge for edge in regions[name])
        assert diverse[top:bottom, left:right].any()
    channel = NAMES.index(colour)  # and it is the region of that colour
    top, left, bottom, right = (14 * edge for edge in regions[colour])
    inside = view.pixels[top:bottom, left:right].astype(int)
    assert (inside[..., channel] > inside.min(-1) + 50).all()


def test_channels_may_share_a_mean() -> None:
    tiny, inputs, _ = colourful("red")
    report = report_of(tiny, inputs, zk.DivPrune(keep=12))
    one, other = (
        pictures.seen(
            tiny.model,
            inputs,
            report,
            processor=SimpleNamespace(image_mean=mean, image_std=[0.2, 0.3, 0.4]),
        )
        for mean in (0.4, [0.4] * 3)
    )
    assert (one.pixels == other.pixels).all()


def test_methods_side_by_side() -> None:
    tiny, inputs, _ = colourful("red")
    methods = {"with the prompt": zk.ZSPAPrune(keep=12), "without": zk.DivPrune(keep=12)}
    reports = {title: report_of(tiny, inputs, method) for title, method in methods.items()}
    figure = pictures.kept(
        tiny.model, inputs, reports, processor=tiny.processor, heading="12 of 64"
    )
    words = [text.get_text() for text in figure.texts]
    assert {"with the prompt", "without", "2 core + 10 diversity of 64"} <= set(words)
    assert {"12 tokens of 64", "12 of 64"} <= set(words)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    drawn = np.asarray(Image.open(file).convert("RGB"))
    view = pictures.seen(tiny.model, inputs, reports["without"], processor=tiny.processor)
    for axes, report in zip(figure.axes, reports.values(), strict=True):
        box = axes.get_position()
        left, top = round(box.x0 * drawn.shape[1]), round((1 - box.y1) * drawn.shape[0])
        panel = drawn[top : top + 640, left : left + 640]
        large = Image.fromarray(view.pixels).resize((640, 640), Image.Resampling.LANCZOS)
        expected = light(large, view.selection(report.images[0]), view.grid)
        np.testing.assert_array_equal(panel, expected)
    one = pictures.kept(tiny.model, inputs, reports["without"])
    assert "DivPrune" in [text.get_text() for text in one.texts]


def test_several_images_are_drawn_as_one() -> None:
    """With gaps of a cell between them, and what was kept of each."""
    tiny = vlms.get("lfm2_vl")
    photos = [vlms.photograph(name, size) for name, size in (
        ("chelsea", (170, 112)), ("rocket", (112, 170)), ("coffee", (130, 100)))]  # fmt: skip
    text = tiny.prompt("what", pictures=3)
    inputs = tiny.processor(images=[photos], text=[text], return_tensors="pt")
    report = report_of(tiny, inputs, zk.ZSPAPrune(keep=0.3, core_ratio=0.5))
    views = [pictures.seen(tiny.model, inputs, report, i) for i in range(3)]
    high, wide = (1 + max(view.grid[axis] for view in views) for axis in (0, 1))
    figure = pictures.kept(tiny.model, inputs, report, [0, 1, 2], across=2)
    side = views[0].pixels.shape[0] // views[0].grid[0]
    canvas = np.full((side * (2 * high - 1), side * (2 * wide - 1), 3), 46, dtype=np.uint8)
    grid = (2 * high - 1, 2 * wide - 1)
    cells, core = [], []
    for view, image, (top, left) in zip(
        views, report.images, ((0, 0), (0, wide), (high, 0)), strict=True
    ):
        rows, columns = view.pixels.shape[:2]
        canvas[top * side :, left * side :][:rows, :columns] = view.pixels
        for index, is_core in zip(image.indices.tolist(), image.core_mask.tolist(), strict=True):
            row, column = divmod(int(view.place[index]), view.grid[1])
            cells.append((top + row) * grid[1] + left + column)
            core.append(is_core)
    (panel,) = figure.axes
    drawn = np.asarray(panel.images[0].get_array())
    large = Image.fromarray(canvas).resize(drawn.shape[1::-1], Image.Resampling.LANCZOS)
    chosen = zk.Selection(torch.tensor(cells), torch.tensor(core))
    np.testing.assert_array_equal(drawn, light(large, chosen, grid))
    counts = f"{sum(core)} core + {len(core) - sum(core)} diversity of {report.before}"
    assert counts in [text.get_text() for text in figure.texts]
    square = pictures.kept(tiny.model, inputs, report, [0, 1, 2])
    np.testing.assert_array_equal(np.asarray(square.axes[0].images[0].get_array()), drawn)
    with pytest.raises(ValueError, match="image must be a number or several, got none"):
        pictures.kept(tiny.model, inputs, report, [])
    with pytest.raises(ValueError, match="across must be at least 1, got 0"):
        pictures.kept(tiny.model, inputs, report, [0, 1], across=0)


# ---- what does not fit ---------------------------------------------------------------------------


def test_what_does_not_belong_together_is_refused() -> None:
    tiny = vlms.get("llava")
    single, ragged = tiny.inputs("single"), tiny.inputs("ragged")
    report = report_of(tiny, single)
    with pytest.raises(ValueError, match="image must be from 0 to 0, got 1"):
        pictures.seen(tiny.model, single, report, 1)
    with pytest.raises(ValueError, match="inputs must be those of the report, of 1 pictures, got"):
        pictures.seen(tiny.model, ragged, report)
    with pytest.raises(ValueError, match="pixel_values, got NoneType"):
        pictures.seen(tiny.model, {}, report)
    with pytest.raises(zk.hf.UnsupportedModelError):
        pictures.seen(torch.nn.Linear(2, 2), single, report)
    with pytest.raises(ValueError, match="at least one report"):
        pictures.kept(tiny.model, single, {})
    other = report_of(vlms.get("gemma3"), vlms.get("gemma3").inputs())
    with pytest.raises(ValueError, match="of the same inputs, got another for 'two'"):
        pictures.kept(tiny.model, single, {"one": report, "two": other})
    for name in ("qwen2_5_vl", "llava_next", "gemma4"):
        tiny = vlms.get(name)
        report = report_of(tiny, tiny.inputs())
        wrong = {**tiny.inputs(), "pixel_values": tiny.inputs()["pixel_values"][:0]}
        with pytest.raises(ValueError, match="inputs must be those of the report"):
            pictures.seen(tiny.model, wrong, report)


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "llava_onevision", "pixtral", "qwen2_5_vl", "gemma4", "lfm2_vl"]
)
def test_pictures_that_the_report_does_not_know_are_refused(name: str) -> None:
    """A `ChatState` reports the new ones of a turn, whose inputs have those of earlier turns."""
    tiny = vlms.get(name)
    report = report_of(tiny, tiny.inputs("ragged"))
    last = dataclasses.replace(report, images=report.images[-1:])
    with pytest.raises(ValueError, match=r"those of the report, of 1 (image|picture)s, got"):
        pictures.seen(tiny.model, tiny.inputs("ragged"), last)
    if name in vlms.FILMS:
        report = report_of(tiny, tiny.videos(0, 1))
        last = dataclasses.replace(report, images=report.images[-1:])
        with pytest.raises(ValueError, match="must be those of the report, of 1 videos, got 2"):
            pictures.seen(tiny.model, tiny.videos(0, 1), last)
