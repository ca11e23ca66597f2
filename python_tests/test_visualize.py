# SPDX-License-Identifier: Apache-2.0
"""Pictures of selections: which pixels are lit, dimmed, outlined, and where."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from zspa_kernels.types import Selection
from zspa_kernels.visualize import CORE_COLOUR, DIM, DIVERSITY_COLOUR, Panel, compare, light

Pixels = npt.NDArray[np.uint8]


def _photo(height: int, width: int) -> Pixels:
    """Noise: no pixel looks the same dimmed, and hardly any equals its neighbour."""
    return np.random.default_rng(0).integers(60, 256, (height, width, 3), dtype=np.uint8)


def _selection(core: list[int], diverse: list[int], padding: int = 0) -> Selection:
    indices = torch.tensor(core + diverse + [-1] * padding)
    return Selection(indices, torch.arange(len(indices)) < len(core), None)


def _grey(pixels: Pixels, dim: float = DIM) -> Pixels:
    grey = (pixels @ np.array([0.299, 0.587, 0.114]) * dim).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def test_light_keeps_kept_patches_and_dims_the_others() -> None:
    photo = _photo(40, 60)
    before = photo.copy()
    lit = light(photo, _selection([7], [0, 23], padding=2), (4, 6), outline=0)
    for patch in range(24):
        rows = slice(patch // 6 * 10, patch // 6 * 10 + 10)
        columns = slice(patch % 6 * 10, patch % 6 * 10 + 10)
        kept = patch in (7, 0, 23)
        expected = photo[rows, columns] if kept else _grey(photo[rows, columns])
        np.testing.assert_array_equal(lit[rows, columns], expected)
    np.testing.assert_array_equal(photo, before)


def test_light_outlines_by_kind_and_joins_neighbours_of_a_kind() -> None:
    lit = light(_photo(40, 60), _selection([7, 8], [9]), (4, 6), outline=1)
    # The two core patches share an outline: nothing is drawn between them.
    assert (lit[10, 10:30] == CORE_COLOUR).all()
    assert (lit[10:20, 10] == CORE_COLOUR).all()
    assert not (lit[11:19, 19] == np.array(CORE_COLOUR)).all(-1).any()
    # Core and diversity are drawn apart, each inside its own patch.
    assert (lit[10:20, 29] == CORE_COLOUR).all()
    assert (lit[10:20, 30] == DIVERSITY_COLOUR).all()
    assert (lit[10:20, 39] == DIVERSITY_COLOUR).all()


@pytest.mark.parametrize(("patch", "width"), [(5, 1), (24, 3), (40, 4), (100, 4)])
def test_light_outlines_an_eighth_of_a_patch_up_to_four_pixels(patch: int, width: int) -> None:
    lit = light(_photo(2 * patch, 2 * patch), _selection([0], []), (2, 2))
    drawn: npt.NDArray[np.bool_] = (lit[patch // 2] == np.array(CORE_COLOUR)).all(-1)
    assert drawn.nonzero()[0].tolist() == [*range(width), *range(patch - width, patch)]


def test_light_takes_bare_indices_and_grids_that_do_not_divide_the_image() -> None:
    photo = _photo(11, 7)
    lit = light(photo, torch.tensor([0, 5]), (3, 2), outline=0, dim=0.0)
    kept: npt.NDArray[np.bool_] = lit.max(-1) > 0
    # Rows 0-3, 4-7, 8-10 and columns 0-3, 4-6.
    assert kept[:4, :4].all()
    assert kept[8:, 4:].all()
    assert kept.sum() == 4 * 4 + 3 * 3


def test_light_of_nothing_is_all_dim() -> None:
    photo = _photo(8, 8)
    lit = light(photo, torch.tensor([], dtype=torch.int64), (2, 2))
    np.testing.assert_array_equal(lit, _grey(photo))


@pytest.mark.parametrize(
    ("image", "indices", "grid", "dim", "said"),
    [
        (np.zeros((8, 8), np.uint8), [0], (2, 2), 0.3, "uint8 [H, W, 3]"),
        (np.zeros((8, 8, 3)), [0], (2, 2), 0.3, "float64"),
        (
            np.zeros((8, 8, 3), np.uint8),
            [0],
            (9, 2),
            0.3,
            "light: grid must fit an image of [8, 8]",
        ),
        (np.zeros((8, 8, 3), np.uint8), [0], (0, 2), 0.3, "light: grid must be at least 1, got 0"),
        (np.zeros((8, 8, 3), np.uint8), [4], (2, 2), 0.3, "indices below 4, the patches"),
        (np.zeros((8, 8, 3), np.uint8), [[0]], (2, 2), 0.3, "light: selection must be [K], of one"),
        (np.zeros((8, 8, 3), np.uint8), [0], (2, 2), float("nan"), "dim must be"),
    ],
)
def test_light_says_what_does_not_fit(
    image: Any, indices: list[Any], grid: tuple[int, int], dim: float, said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        light(image, torch.tensor(indices), grid, dim=dim)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"outline": -1}, ValueError, "outline must be at least 0, got -1"),
        ({"outline": 1.5}, TypeError, "outline must be an int, got float 1.5"),
        ({"dim": "dark"}, TypeError, "dim must be a float, got str 'dark'"),
    ],
)
def test_light_refuses_what_it_cannot_draw(options: Any, kind: Any, said: str) -> None:
    with pytest.raises(kind, match=f"^light: {said}"):
        light(_photo(8, 8), torch.tensor([0]), (2, 2), **options)


def test_light_takes_a_mask_of_its_indices_only() -> None:
    short = Selection(torch.tensor([0, 3]), torch.tensor([True]), None)
    with pytest.raises(ValueError, match=r"^light: selection must have a core_mask of 2, .* \[1\]"):
        light(_photo(8, 8), short, (2, 2))


def test_dollars_are_no_formula() -> None:
    panel = Panel(_selection([0], []), "from $5^{$", "to $\\six$")
    figure = compare(_photo(8, 8), [panel], (2, 2), heading="$_$", note="$^$", legend=("$^$", "$"))
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize("region", [(1, 2), (0, 0, float("nan"), 4)])
def test_compare_takes_four_numbers_for_a_region(region: Any) -> None:
    with pytest.raises(ValueError, match=r"^compare: region must be \(x0, y0, x1, y1\), got"):
        compare(_photo(8, 8), [Panel(_selection([0], []), "one")], (2, 2), region=region)


@pytest.mark.parametrize("selection", [[0, 3], np.array([0]), torch.ones(4) > 0, torch.ones(2)])
def test_light_takes_selections_and_indices_only(selection: Any) -> None:
    with pytest.raises(TypeError, match=r"^light: selection must be a Selection or int"):
        light(_photo(8, 8), selection, (2, 2))


@pytest.mark.parametrize(
    ("image", "panels", "grid", "kind", "said"),
    [
        (
            _photo(8, 8) / 255,
            [],
            (2, 2),
            ValueError,
            r"image must be uint8 .* got float64 \[8, 8, 3\]",
        ),
        (_photo(8, 8).transpose(2, 0, 1), [], (2, 2), ValueError, r"image must be .* \[3, 8, 8\]"),
        (_photo(8, 8), [], 2, TypeError, r"grid must be \(rows, columns\), two ints, got 2"),
        (_photo(8, 8), [], (0, 2), ValueError, "grid must be at least 1, got 0"),
        (_photo(8, 8), [], (2, 2.5), TypeError, r"grid must be .* got \(2, 2.5\)"),
        (_photo(8, 8), [_selection([0], [])], (2, 2), TypeError, r"Panel\(.*\), got a Selection"),
        (_photo(8, 8), [Panel(_selection([9], []), "")], (2, 2), ValueError, "indices below 4"),
    ],
)
def test_compare_says_what_does_not_fit(
    image: Any, panels: Any, grid: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=f"^compare: .*{said}"):
        compare(image, panels, grid)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 8)])
def test_compare_draws_each_selection_pixel_by_pixel(rows: int, columns: int) -> None:
    # Panels have 640 pixels along their longer side, or 1360 above one another: drawn as it is.
    cell = 160 if rows == columns else 170
    photo = _photo(rows * cell, columns * cell)
    selections = [_selection([1, 2], [5]), _selection([], [0, 7]), _selection([3], [])]
    panels = [Panel(selection, f"number {i}") for i, selection in enumerate(selections)]
    figure = compare(photo, panels, (rows, columns), heading="three", note="noise")

    file = io.BytesIO()
    figure.savefig(file, format="png")
    drawn = np.asarray(Image.open(file).convert("RGB"))
    # No pixel is cut off at the border, which would move everything: at any size.
    width, height = figure.get_size_inches() * figure.dpi
    assert (int(width), int(height)) == (round(width), round(height)) == drawn.shape[1::-1]
    corners = []
    for axes, selection in zip(figure.axes, selections, strict=True):
        box = axes.get_position()
        left, top = round(box.x0 * drawn.shape[1]), round((1 - box.y1) * drawn.shape[0])
        panel = drawn[top : top + photo.shape[0], left : left + photo.shape[1]]
        np.testing.assert_array_equal(panel, light(photo, selection, (rows, columns)))
        corners.append((left, top))
    side_by_side = len({top for _, top in corners}) == 1
    assert side_by_side == (rows == columns)


@pytest.mark.parametrize("grid", [(4, 4), (1, 40), (40, 1), (2, 3)])
@pytest.mark.parametrize("count", [1, 3])
def test_compare_keeps_every_word_within_the_figure(grid: tuple[int, int], count: int) -> None:
    panels = [
        Panel(_selection([0], [1]), "All in relevance", "1638 core (1600 in the box)")
    ] * count
    note = "Tokens: classical features. " * 5
    region = (0, 0, 10, 10)
    figure = compare(_photo(40, 40), panels, grid, heading="4096 kept", note=note, region=region)
    (legend,) = figure.legends
    for artist in (*figure.texts, legend):
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


def test_compare_ignores_the_users_matplotlib_settings() -> None:
    import matplotlib

    photo = _photo(64, 64)
    panels = [Panel(_selection([0], []), "one")]
    plain = compare(photo, panels, (4, 4))
    with matplotlib.rc_context({"figure.dpi": 37.0, "font.size": 40.0, "axes.facecolor": "red"}):
        styled = compare(photo, panels, (4, 4))
    pictures = []
    for figure in (plain, styled):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        pictures.append(file.getvalue())
    assert pictures[0] == pictures[1]


def test_compare_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "zspa_kernels\[demo\]"'):
        compare(_photo(8, 8), [Panel(_selection([0], []), "one")], (2, 2))
