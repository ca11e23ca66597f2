# SPDX-License-Identifier: Apache-2.0
"""The demo on real and synthetic pictures: what it selects, draws, measures and refuses."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from zspa_kernels import visualize
from zspa_kernels.demo import choices
from zspa_kernels.demo import run as run_module
from zspa_kernels.demo.choices import choose, mean_pairwise_cosine
from zspa_kernels.demo.errors import DemoError, UsageError
from zspa_kernels.demo.features import describe
from zspa_kernels.demo.picture import cut, parse_region, read, replacing
from zspa_kernels.demo.run import FACE, Report, run


@pytest.fixture(autouse=True)
def _no_time_for_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of timing is enough for tests."""
    monkeypatch.setattr(choices, "BUDGET", 0.0)


Pixels = npt.NDArray[np.uint8]


def _two_textures(side: int = 256, box: tuple[int, int, int, int] = (64, 96, 160, 192)) -> Pixels:
    """Green horizontal stripes, and inside the box a reddish checkerboard; noise on both."""
    y, x = np.mgrid[:side, :side]
    image = np.empty((side, side, 3))
    image[:] = np.where((y // 4 % 2 == 0)[..., None], (40, 150, 60), (70, 190, 90))
    checks = np.where(((x // 4 + y // 4) % 2 == 0)[..., None], (190, 60, 50), (120, 30, 40))
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = checks[y0:y1, x0:x1]
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _save(pixels: npt.NDArray[Any], path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def _run_and_check_pixels(monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> Report:
    """Runs the demo, then checks in the PNG that every patch is lit or dim as the indices say."""
    figures = []

    def remember(*args: Any, **kwargs: Any) -> Any:
        figures.append(visualize.compare(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(run_module, "compare", remember)
    report = run(*args, **kwargs)
    drawn = np.asarray(Image.open(report.out).convert("RGB")).astype(int)
    rows, columns = report.patches.grid
    for axes, choice in zip(figures[0].axes, report.choices, strict=True):
        box = axes.get_position()
        left, top = round(box.x0 * drawn.shape[1]), round((1 - box.y1) * drawn.shape[0])
        cell = round(box.width * drawn.shape[1] / columns)
        panel = drawn[top : top + rows * cell, left : left + columns * cell]
        photo = Image.fromarray(report.patches.pixels).resize(
            (columns * cell, rows * cell), Image.Resampling.LANCZOS
        )
        pixels = np.asarray(photo, dtype=int)
        kept = set(choice.selection.indices.tolist())
        for patch in range(rows * columns):
            # Away from outlines (an eighth of a patch) and from the box around the region.
            inner = np.s_[
                patch // columns * cell + cell // 4 : (patch // columns + 1) * cell - cell // 4,
                patch % columns * cell + cell // 4 : (patch % columns + 1) * cell - cell // 4,
            ]
            lit, before = panel[inner], pixels[inner]
            if patch in kept:
                assert (lit == before).all(), f"{choice.name}: patch {patch} should be lit"
            else:
                assert (np.ptp(lit, axis=-1) == 0).all(), f"{choice.name}: {patch} should be grey"
                assert lit.mean() < 0.5 * max(before.mean(), 2), f"{choice.name}: {patch} not dim"
    return report


def _check_counts(report: Report, kept: int, k_core: int) -> None:
    ours, divprune, relevance = report.choices
    assert (ours.k_core, ours.k_diverse) == (k_core, kept - k_core)
    assert (divprune.k_core, divprune.k_diverse) == (0, kept)
    assert (relevance.k_core, relevance.k_diverse) == (kept, 0)
    for choice in report.choices:
        indices = choice.selection.indices
        assert indices.dtype == torch.int64
        assert len(set(indices.tolist())) == kept
        assert 0 <= int(indices.min()) <= int(indices.max()) < len(report.patches)
        assert int(choice.selection.core_mask.sum()) == choice.k_core
        assert choice.op_seconds > 0
        assert choice.loop_seconds >= choice.fastest_seconds > 0


def test_astronaut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = _run_and_check_pixels(monkeypatch, out=tmp_path / "kept.png")
    assert report.region == FACE
    assert report.patches.grid == (32, 32)
    _check_counts(report, kept=102, k_core=41)
    ours, divprune, relevance = report.choices
    print(f"core tokens on the face: {ours.core_inside} of {ours.k_core}")
    assert ours.core_inside >= 0.8 * ours.k_core
    assert divprune.mean_cosine is not None
    assert ours.mean_cosine is not None
    assert relevance.mean_cosine is not None
    assert divprune.mean_cosine < ours.mean_cosine < relevance.mean_cosine
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.png"]


def test_core_lies_in_the_prompted_texture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = _save(_two_textures(), tmp_path / "textures.png")
    report = _run_and_check_pixels(
        monkeypatch, photo, "64,96,160,192", keep=0.2, core_ratio=0.5, out=tmp_path / "kept.png"
    )
    assert report.prompt_tokens == 36
    _check_counts(report, kept=51, k_core=26)
    ours, _, relevance = report.choices
    print(f"core tokens on the prompted texture: {ours.core_inside} of {ours.k_core}")
    assert ours.core_inside == ours.k_core
    # 51 relevant tokens cannot all fit into 36 patches; every one of the 36 is among them.
    assert relevance.core_inside == 36


def test_selection_is_the_op_on_the_descriptors(tmp_path: Path) -> None:
    photo = _save(_two_textures(128, (32, 32, 96, 96)), tmp_path / "textures.png")
    report = run(photo, "32,32,96,96", keep=0.25, core_ratio=0.25, out=tmp_path / "kept.png")
    visual = describe(report.patches)
    inside = torch.from_numpy(report.patches.inside(report.region))
    expected = torch.ops.zspa.select(visual, visual[inside], 4, 12, sorted=False)
    assert torch.equal(report.choices[0].selection.indices, expected)


def test_descriptors_are_standardised() -> None:
    patches = cut(_two_textures(), 16)
    tokens = describe(patches)
    assert tokens.shape == (256, 129)
    assert tokens.dtype == torch.float32
    assert torch.isfinite(tokens).all()
    assert float(tokens.mean(0).abs().max()) < 1e-6
    # The three groups weigh the same: each feature's variance is 1 / size of its group, or 0.
    for group in torch.split(tokens.var(0, correction=0), [24, 24, 81]):
        weighted = group * len(group)
        assert ((weighted - 1).abs() < 1e-3).logical_or(weighted == 0).all()


def test_flat_picture_has_no_directions_and_still_works(tmp_path: Path) -> None:
    photo = _save(np.full((64, 64, 3), 90, np.uint8), tmp_path / "flat.png")
    report = run(photo, keep=0.25, out=tmp_path / "kept.png")
    assert [c.selection.indices.tolist() for c in report.choices] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize(
    ("keep", "core_ratio", "kept", "k_core"),
    [
        *((1.0, 0.0, 64, 0), (1.0, 1.0, 64, 64), (0.01, 0.4, 1, 0), (0.02, 1.0, 1, 1)),
        *((1, 1.0, 1, 1), (1000, 0.5, 64, 32)),  # counts
    ],
)
def test_extreme_shares_and_counts(
    tmp_path: Path, keep: float, core_ratio: float, kept: int, k_core: int
) -> None:
    photo = _save(_two_textures(128), tmp_path / "textures.png")
    out = tmp_path / "kept.png"
    report = run(photo, "0,0,64,64", keep=keep, core_ratio=core_ratio, out=out)
    _check_counts(report, kept, k_core)
    assert (report.choices[0].mean_cosine is None) == (kept == 1)


@pytest.mark.parametrize(
    ("size", "patch", "grid"),
    [
        ((512, 512), 16, (32, 32)),
        ((100, 75), 16, (5, 6)),
        ((32, 16), 16, (1, 2)),
        ((4000, 3000), 16, (55, 73)),
        ((4096, 64), 16, (2, 128)),
        ((600, 400), 200, (2, 3)),
    ],
)
def test_any_size_becomes_whole_patches(
    size: tuple[int, int], patch: int, grid: tuple[int, int]
) -> None:
    patches = cut(np.zeros((size[1], size[0], 3), np.uint8), patch)
    assert patches.grid == grid
    assert patches.pixels.shape == (grid[0] * patch, grid[1] * patch, 3)
    assert len(patches) <= 4096
    assert ("resized" in patches.describe()) == (size != patches.size)


def test_region_follows_the_resizing() -> None:
    patches = cut(np.zeros((75, 100, 3), np.uint8), 16)
    assert patches.inside((0, 0, 100, 75)).all()
    # The right half; then a box too small for any centre: the patch under it.
    assert np.flatnonzero(patches.inside((50, 0, 100, 75)).reshape(5, 6).all(0)).tolist() == [
        3,
        4,
        5,
    ]
    assert np.flatnonzero(patches.inside((98, 73, 100, 75))).tolist() == [29]
    assert parse_region(" 1, 2,3 ,4", 10, 10) == (1, 2, 3, 4)


def test_pictures_of_many_kinds_become_rgb(tmp_path: Path) -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:, :, 0] = 200
    _save(rgb, tmp_path / "rgb.png")
    grey16 = np.zeros((20, 30), np.uint16)
    grey16[:10] = 60000
    _save(grey16, tmp_path / "grey16.png")
    warm = np.full((20, 30), 300, np.float32)  # kelvins, with a hole and a dead pixel
    warm[:10], warm[10, 0], warm[11, 0] = 310, np.nan, np.inf
    _save(warm, tmp_path / "warm.tif")
    clear = np.zeros((20, 30, 4), np.uint8)
    clear[:10, :, 3] = 255
    _save(clear, tmp_path / "clear.png")
    turned = Image.fromarray(rgb)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)

    assert read(tmp_path / "rgb.png").tolist() == rgb.tolist()
    assert read(tmp_path / "grey16.png")[[0, 19], 0].tolist() == [[255] * 3, [0] * 3]
    warmth = read(tmp_path / "warm.tif")[[0, 10, 11, 19], 0]
    assert warmth.tolist() == [[255] * 3, [0] * 3, [255] * 3, [0] * 3]
    assert read(tmp_path / "clear.png")[[0, 19], 0].tolist() == [[0] * 3, [255] * 3]
    assert read(tmp_path / "turned.png").shape == (30, 20, 3)


#: Of a picture to be turned, with a word for the unit of its resolution, where a number belongs.
_UNIT_IN_WORDS = b"Exif\0\0II*\0" + struct.pack(
    "<IHHHIHxxHHI4sI", 8, 2, 0x0112, 3, 1, 6, 0x0128, 2, 4, b"dpi", 0
)


def test_damaged_pictures_are_one_error(tmp_path: Path) -> None:
    whole = _save(_two_textures(64), tmp_path / "whole.png").read_bytes()
    turned = io.BytesIO()
    Image.fromarray(_two_textures(64)).save(turned, "JPEG", exif=_UNIT_IN_WORDS)
    for name, content in (
        ("cut.png", whole[: len(whole) // 2]),
        ("text.png", b"not a picture"),
        ("empty.png", b""),
        ("turned.jpg", turned.getvalue()),  # a struct.error of Pillow's
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DemoError, match=f"cannot read .*{name}: not a picture"):
            read(tmp_path / name)
    with pytest.raises(DemoError, match="No such file"):
        read(tmp_path / "missing.png")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    out.write_bytes(b"old")

    def fail_half_way(error: BaseException) -> None:
        with replacing(out) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(DemoError, match="No space left"):
        fail_half_way(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(KeyboardInterrupt())
    assert out.read_bytes() == b"old"
    with replacing(out) as temporary:
        temporary.write_bytes(b"new")
    assert out.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["kept.png"]


def test_output_through_a_link_replaces_what_the_link_names(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    with replacing(tmp_path / "link.png") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == b"new"


def test_the_picture_itself_is_never_overwritten(tmp_path: Path) -> None:
    photo = _save(_two_textures(64), tmp_path / "photo.png")
    before = photo.read_bytes()
    (tmp_path / "again.png").symlink_to(photo)
    for out in (photo, tmp_path / "again.png"):
        with pytest.raises(UsageError, match="is the picture itself"):
            run(photo, out=out)
    assert photo.read_bytes() == before


def test_mean_pairwise_cosine_is_the_mean_over_pairs() -> None:
    tokens = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [
        float(torch.nn.functional.cosine_similarity(tokens[i], tokens[j], dim=0))
        for i in range(7)
        for j in range(i)
    ]
    assert mean_pairwise_cosine(tokens) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert mean_pairwise_cosine(tokens[:1]) is None
    assert mean_pairwise_cosine(torch.zeros(3, 5)) == 0


def test_a_loop_that_picks_otherwise_is_reported() -> None:
    visual = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    inside = torch.zeros(20, dtype=torch.bool)

    def other_from_the_third(
        visual: torch.Tensor, prompt: torch.Tensor | None, k_core: int, k_diverse: int
    ) -> torch.Tensor:
        picks: torch.Tensor = torch.ops.zspa.select(visual, prompt, k_core, k_diverse, sorted=False)
        picks[2] = (picks[2] + 1) % 20
        return picks

    choice = choose("any", visual, visual[:2], 2, 4, inside, other_from_the_third)
    assert choice.first_difference == 3
