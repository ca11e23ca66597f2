# SPDX-License-Identifier: Apache-2.0
"""Pictures that are shrunk (LLaVA-OneVision), end rows (Mistral 3) or have names (Idefics3).

And the videos of LLaVA-NeXT-Video and LLaVA-OneVision, whose frames are made smaller.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageOps
from tokenizers import AddedToken
from torch import Tensor
from torch.nn.functional import interpolate

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate
from python_tests.vlm_llava import ONEVISION, pins
from python_tests.vlm_processors import OneVisionProcessor
from zspa_kernels import hf, pictures
from zspa_kernels.hf.architectures import ARCHITECTURES, Target
from zspa_kernels.hf.collect import wanted
from zspa_kernels.hf.encode import encode
from zspa_kernels.hf.layout import Layout
from zspa_kernels.hf.marks import marks
from zspa_kernels.hf.select import rate
from zspa_kernels.hf.tiles import of_videos

HALF = zk.DivPrune(keep=0.5)
GREY = (122, 116, 104)  # the processor's mean


def pruned(tiny: vlms.Tiny, inputs: Any, method: Any = HALF, **options: Any) -> Any:
    with hf.prune(tiny.model, method, **options) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    return handle.report


def one_picture(width: int, height: int) -> tuple[vlms.Tiny, Any]:
    tiny = vlms.get("llava_onevision")
    photo = vlms.photograph("chelsea", (width, height))
    return tiny, tiny.processor(images=[photo], text=tiny.prompt("what"), return_tensors="pt")


def features(tiny: vlms.Tiny, pixels: Tensor) -> Tensor:
    """What the projector is given for pictures `[n, 3, 56, 56]`, `[n, 16, C]`."""
    with torch.no_grad():
        return tiny.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]


def grid(values: Tensor) -> Tensor:
    """Values `[4, 16, C]` of tiles in two rows as one picture `[1, C, 8, 8]`."""
    tiles = values.reshape(2, 2, 4, 4, -1)
    return tiles.permute(4, 0, 2, 1, 3).reshape(1, -1, 8, 8)


# ---- LLaVA-OneVision: cells ----------------------------------------------------------------------


def test_cells_of_a_picture_that_is_made_smaller() -> None:
    tiny, inputs = one_picture(112, 112)  # four tiles without padding: 8 x 8 become 5 x 5
    cell = pruned(tiny, inputs).images[0].cell
    small = [[0, r, c] for r in range(4) for c in range(4)]
    large = [[1, r, c] if c < 5 else [-1, -1, -1] for r in range(5) for c in range(6)]
    assert cell.tolist() == small + large
    inner = tiny.model.model
    with torch.no_grad():
        tokens = encode(Target.of(tiny.model), inputs, need_features=False).tokens
        made = inner.multi_modal_projector(features(tiny, inputs["pixel_values"][0]))
    shrunk = interpolate(grid(made[1:]), (5, 5), mode="bilinear")[0]
    for token, (tile, row, column) in zip(tokens, cell.tolist(), strict=True):
        expected = inner.image_newline
        if tile >= 0:
            expected = shrunk[:, row, column] if tile else made[0, 4 * row + column]
        torch.testing.assert_close(token, expected)


@pytest.mark.parametrize(("width", "height", "rows", "columns"), [(112, 56, 4, 8), (112, 42, 4, 8)])
def test_cells_of_a_picture_that_stays(width: int, height: int, rows: int, columns: int) -> None:
    tiny, inputs = one_picture(width, height)
    cell = pruned(tiny, inputs).images[0].cell[16:]
    expected = [
        [1, r, c] if c < columns else [-1, -1, -1] for r in range(rows) for c in range(columns + 1)
    ]
    assert cell.tolist() == expected


@pytest.mark.parametrize(("ratio", "side"), [("anyres_max_9", 8), ("anyres_max_1", 4)])
def test_how_small_a_picture_is_made_may_be_said_by_the_call(ratio: str, side: int) -> None:
    """The model is made for `anyres_max_2`, whose newlines stand elsewhere."""
    tiny = vlms.get("llava_onevision")
    processor = OneVisionProcessor(tiny.processor.tokenizer, ONEVISION, 14, pins(ONEVISION), ratio)
    photo = vlms.photograph("chelsea", (112, 112))
    inputs = processor(images=[photo], text=tiny.prompt("what"), return_tensors="pt")
    cell = pruned(tiny, {**inputs, "vision_aspect_ratio": ratio}).images[0].cell[16:]
    line = range(side + 1)
    assert cell.tolist() == [
        [1, r, c] if c < side else [-1, -1, -1] for r in range(side) for c in line
    ]


def test_pictures_of_one_prompt_are_not_cut() -> None:
    tiny = vlms.get("llava_onevision")
    images = pruned(tiny, tiny.inputs("ragged"), scope="tile").images
    small = [[0, r, c] for r in range(4) for c in range(4)]
    assert [one.cell.tolist() for one in images[1:]] == [[*small, [-1, -1, -1]]] * 2
    assert images[0].before > 17
    for one in images:
        counts = [int((one.cell[:, 0] == tile).sum()) for tile in (0, 1)]
        ends = one.before - sum(counts)
        tiles = [counts[0], counts[1] + ends] if counts[1] else [counts[0] + ends]
        assert one.after == sum(zk.num_keep(count, 0.5) for count in tiles)


def test_ends_of_rows_can_be_kept_beside_the_budget() -> None:
    tiny, inputs = one_picture(112, 112)
    image = pruned(tiny, inputs, zk.DivPrune(keep=7), keep_newline=True).images[0]
    newline = image.cell[:, 0] < 0
    assert image.after == 7 + int(newline.sum())
    assert int(newline[image.indices].sum()) == int(newline.sum())


# ---- videos --------------------------------------------------------------------------------------

# How many newlines are behind the last frame.
NEWLINES = pytest.mark.parametrize(
    ("name", "newlines"), [("llava_next_video", 0), ("llava_onevision", 1)]
)


@NEWLINES
def test_cells_and_budgets_of_videos(name: str, newlines: int) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs("video")
    report = pruned(tiny, inputs)
    assert [(one.sample, one.video) for one in report.images] == [(0, True), (0, False), (1, True)]
    frames = [[t, r, c] for t in range(3) for r in range(2) for c in range(2)]
    for one in report.images[::2]:
        assert one.cell.tolist() == [*frames, *[[-1, -1, -1]] * newlines]
        assert one.after == zk.num_keep(12 + newlines, 0.5)
    film = pruned(tiny, inputs, scope="tile").images[0]
    kept = film.cell[film.indices, 0]
    assert [int((kept == t).sum()) for t in range(2)] == [2, 2]
    assert int((kept == 2).sum() + (kept < 0).sum()) == zk.num_keep(4 + newlines, 0.5)


@pytest.mark.parametrize(
    ("tile", "size", "side", "newlines"), [("anyres", 378, 6, 0), ("shrunk", 384, 14, 1)]
)
def test_frames_of_an_odd_side(tile: str, size: int, side: int, newlines: int) -> None:
    """LLaVA-OneVision's frames of 27 x 27 patches become 14 x 14 tokens; a pool leaves a rest."""
    vision = SimpleNamespace(image_size=size, patch_size=14)
    config = SimpleNamespace(vision_config=vision, spatial_pool_stride=4)
    model = SimpleNamespace(config=config)
    target: Any = SimpleNamespace(model=model, arch=SimpleNamespace(tile=tile))
    cell = of_videos(target, [2 * side**2 + newlines])
    expected = [[t, r, c] for t in range(2) for r in range(side) for c in range(side)]
    assert cell.tolist() == [*expected, *[[-1, -1, -1]] * newlines]


@NEWLINES
def test_videos_with_old_transformers(name: str, newlines: int) -> None:
    if vlms.VERSION >= (5, 20):
        pytest.skip("transformers < 5.20: test_oldest_transformers")
    tiny = vlms.get(name)
    inputs = {**tiny.inputs(), "pixel_values_videos": torch.zeros(1, 3, 3, 56, 56)}
    refused = pytest.raises(hf.UnsupportedInputError, match=r"videos must be None before.* 5.20")
    with refused, HALF(tiny.model):
        generate(tiny.model, inputs)


# ---- LLaVA-OneVision: ratings, attention and keys ------------------------------------------------


def test_zooprune_rates_what_becomes_a_token() -> None:
    """Ratings of patches are made smaller as their features are."""
    tiny, inputs = one_picture(112, 112)
    target = Target.of(tiny.model)
    method = zk.ZOOPrune(keep=0.3, projector=target.projector())
    with torch.no_grad():
        encoded = encode(target, inputs, need_features=True)
        ratings = rate(method, target, inputs, encoded)
    own = method.rate(features(tiny, inputs["pixel_values"][0]))
    shrunk = interpolate(grid(own[1:, :, None]), (5, 5), mode="bilinear")[0, 0]
    assert ratings is not None
    torch.testing.assert_close(ratings[:16], own[0])
    large = ratings[16:].reshape(5, 6)
    torch.testing.assert_close(large[:, :5], shrunk)
    assert large[:, 5].isnan().all()
    report = pruned(tiny, inputs, method)
    alone = method.select(encoded.tokens, sensitivity=ratings)
    assert torch.equal(report.images[0].indices, alone.indices)


def test_zooprune_rates_frames() -> None:
    tiny = vlms.get("llava_onevision")
    inputs = tiny.inputs("video")
    target = Target.of(tiny.model)
    method = zk.ZOOPrune(keep=0.3, projector=target.projector())
    with torch.no_grad():
        encoded = encode(target, inputs, need_features=True)
        ratings = rate(method, target, inputs, encoded)
    assert ratings is not None
    own = method.rate(features(tiny, inputs["pixel_values_videos"].flatten(0, 1)))
    pooled = interpolate(own.reshape(6, 1, 4, 4), (2, 2), mode="bilinear").reshape(2, 12)
    films = ratings[encoded.part == 1].reshape(2, 13)
    torch.testing.assert_close(films[:, :12], pooled)
    assert films[:, 12].isnan().all()


def eager(tiny: vlms.Tiny, pixels: Tensor) -> dict[str, Tensor]:
    """Of the tower's last layer, by eager attention: `[n, 16, ...]`."""
    tower = tiny.model.model.vision_tower
    seen: list[Tensor] = []
    layer = next(
        part for name, part in tower.named_modules() if name.endswith("layers.1.self_attn")
    )
    hook = layer.k_proj.register_forward_hook(lambda *call: seen.append(call[-1]))
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = tower(pixels, output_attentions=True)
    finally:
        tower.set_attn_implementation("sdpa")
        hook.remove()
    return {
        "attention": out.attentions[-1].mean((1, 2)),
        "keys": seen[0].unflatten(2, (2, -1)).mean(2),
    }


def collected(tiny: vlms.Tiny, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Which tokens are of videos, and attention and keys of all."""
    target = Target.of(tiny.model)
    found = wanted(zk.methods.VisionZip(keep=0.3), target, inputs)
    with torch.no_grad(), found.watching(target):
        encoded = encode(target, inputs, need_features=False)
    return encoded.part == 1, found.tensors(target, inputs, encoded)


def test_attention_and_keys_are_made_smaller_with_a_picture() -> None:
    tiny, inputs = one_picture(112, 112)
    _, found = collected(tiny, inputs)
    for kind, own in eager(tiny, inputs["pixel_values"][0]).items():
        own = own.reshape(*own.shape[:2], -1)
        shrunk = interpolate(grid(own[1:]), (5, 5), mode="bilinear")[0].permute(1, 2, 0)
        got = found[kind].reshape(len(found[kind]), -1)
        torch.testing.assert_close(got[:16], own[0])
        large = got[16:].reshape(5, 6, -1)
        torch.testing.assert_close(large[:, :5], shrunk)
        assert large[:, 5].isnan().all()
    report = pruned(tiny, inputs, zk.methods.SCOPE(keep=10))
    newlines = {i for i, cell in enumerate(report.images[0].cell.tolist()) if cell[0] < 0}
    assert not newlines & set(report.images[0].indices.tolist())


def test_attention_and_keys_of_frames_are_made_smaller() -> None:
    tiny = vlms.get("llava_onevision")
    inputs = tiny.inputs("video")
    film, found = collected(tiny, inputs)
    for kind, own in eager(tiny, inputs["pixel_values_videos"].flatten(0, 1)).items():
        patches = own.reshape(6, 4, 4, -1).permute(0, 3, 1, 2)
        pooled = interpolate(patches, (2, 2), mode="bilinear").permute(0, 2, 3, 1)
        got = found[kind][film].reshape(2, 13, -1)
        torch.testing.assert_close(got[:, :12], pooled.reshape(2, 12, -1))
        assert got[:, 12].isnan().all()


# ---- Mistral 3 -----------------------------------------------------------------------------------


def asked(tiny: vlms.Tiny, inputs: Any, **options: Any) -> list[str]:
    """The words of the first prompt that a method is given."""
    table = tiny.model.get_input_embeddings().weight
    words: list[list[str]] = []

    class Listening:
        def select(self, visual: Tensor, prompt: Tensor) -> zk.Selection:
            ids = [int((table == row).all(-1).nonzero()[0]) for row in prompt]
            words.append(tiny.processor.tokenizer.convert_ids_to_tokens(ids))
            return HALF.select(visual, prompt)

    pruned(tiny, inputs, Listening(), **options)
    return words[0]


@pytest.mark.parametrize("name", ["mistral3", "pixtral"])
def test_ends_of_rows_are_no_words(name: str) -> None:
    tiny = vlms.get(name)
    photo = vlms.photograph("chelsea", (170, 112))
    text = f"<start> user {tiny.image} what is this <end> <start> assistant"
    inputs = tiny.processor(images=[photo], text=text, return_tensors="pt")
    assert asked(tiny, inputs) == ["what", "is", "this"]
    assert asked(tiny, inputs, processor=tiny.processor) == ["what", "is", "this"]
    everything = ["<start>", "user", "what", "is", "this", "<end>", "<start>", "assistant"]
    assert asked(tiny, inputs, query="all") == everything
    cell = pruned(tiny, inputs).images[0].cell
    assert cell.tolist() == [[0, r, c] for r in range(4) for c in range(6)]


def test_a_question_in_front_of_the_picture() -> None:
    """The end of the last row is none, so the question is looked for before the picture."""
    tiny = vlms.get("mistral3")
    photo = vlms.photograph("chelsea", (170, 112))
    text = f"what is {tiny.image}"
    inputs = tiny.processor(images=[photo], text=text, return_tensors="pt")
    assert pruned(tiny, inputs, zk.ZSPAPrune(keep=0.3)).query_tokens == [2]


# ---- Idefics3, SmolVLM ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_names_of_crops_are_no_words(name: str) -> None:
    """A picture in three crops and one in one, with words between and behind them."""
    tiny = vlms.get(name)
    split = "<fake> <row_1_col_1> <image> <fake> <row_1_col_2> <image> a <fake> <global> <image>"
    whole = "<fake> <global> <image> <fake>"
    text = f"<start> user {split} <fake> compare {whole} {whole} and this <end> <start> assistant"
    photos = [vlms.photograph(one) for one in ("chelsea", "coffee", "rocket", "chelsea", "coffee")]
    inputs = tiny.processor(images=[photos], text=[text], return_tensors="pt")
    words = ["compare", "and", "this"]
    assert asked(tiny, inputs) == words
    assert asked(tiny, inputs, processor=tiny.processor) == words
    everything = ["<start>", "user", *words, "<end>", "<start>", "assistant"]
    assert asked(tiny, inputs, query="all") == everything


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("what is <image>", ["what", "is"]),
        ("<image> what is this", ["what", "is", "this"]),
        ("<image> this this", ["this", "this"]),
        ("where <image> is this", ["is", "this"]),
        ("a this <image> is <image> this what", ["is", "this", "what"]),
        ("what a <image> this what <image> this", ["this", "what", "this"]),
    ],
)
def test_pictures_that_no_processor_announced(text: str, words: list[str]) -> None:
    """Words around a picture stay the user's, unless all of its crops are announced alike."""
    tiny = vlms.get("smolvlm")
    photos = [vlms.photograph("chelsea")] * text.count("<image>")
    inputs = tiny.processor(images=[photos], text=[text], return_tensors="pt")
    assert asked(tiny, inputs) == words


def test_special_tokens_without_a_role_are_no_words() -> None:
    """A vocabulary marks them as special; they have no name such as that of the end of a turn."""
    tiny = vlms.build("smolvlm")
    tok = tiny.processor.tokenizer
    tok.add_tokens([AddedToken("<odd>", special=True), AddedToken("<even>", special=False)])
    assert tok.convert_tokens_to_ids("<odd>") not in tok.all_special_ids
    inputs = tiny.processor(
        images=[[vlms.photograph("chelsea")]], text=["<image> <odd> what <even>"]
    )
    assert asked(tiny, inputs, processor=tiny.processor) == ["what", "<even>"]


# ---- LFM2-VL, Cohere2 Vision ---------------------------------------------------------------------


def test_names_of_tiles_are_no_words() -> None:
    """A picture in two tiles and a small one, one that is whole, and another prompt."""
    tiny = vlms.get("lfm2_vl")
    split = "<first> <image> <second> <image> <small> <image>"
    text = f"<start> user a {split} compare it with <image> and this <end> <start> assistant"
    photos = [vlms.photograph(one, (140, 84)) for one in ("chelsea", "coffee", "rocket", "coffee")]
    inputs = tiny.processor(
        images=[*photos, photos[0]], text=[text, "<image> what"], return_tensors="pt"
    )
    words = ["compare", "<unk>", "<unk>", "and", "this"]
    assert asked(tiny, inputs) == words
    everything = ["<start>", "user", "a", "<first>", *words, "<end>", "<start>", "assistant"]
    assert asked(tiny, inputs, query="all") == everything
    images = pruned(tiny, inputs).images
    assert [one.sample for one in images] == [0, 0, 0, 0, 1]
    for one in images:
        assert one.cell.tolist() == [[0, r, c] for r in range(3) for c in range(5)]


def test_breaks_between_tiles_are_no_words() -> None:
    """Cohere2 Vision ends each tile with one; the last does not stand between two."""
    tiny = vlms.get("cohere2_vision")
    text = "<start> user <image> <break> <image> <break> what is this <end> <start> assistant"
    photos = [vlms.photograph(one) for one in ("chelsea", "coffee")]
    inputs = tiny.processor(images=photos, text=text, return_tensors="pt")
    assert asked(tiny, inputs) == ["<break>", "what", "is", "this"]
    assert asked(tiny, inputs, processor=tiny.processor) == ["what", "is", "this"]


def test_a_tile_of_another_prompt_has_no_name_here() -> None:
    column = torch.tensor([1, 2, 4, 5])
    sample, cell = torch.tensor([0, 0, 1, 1]), torch.zeros(4, 3)
    where = Layout(sample, column, sample, cell, torch.zeros(4, dtype=torch.bool))
    assert not marks(ARCHITECTURES["lfm2_vl"], where, torch.zeros(2, 7, dtype=torch.long)).any()


# ---- pictures ------------------------------------------------------------------------------------


def alike(seen: Any, photo: Any) -> float:
    """Correlation of what was rebuilt with a photograph."""
    resized = np.asarray(photo.resize(seen.shape[1::-1]), dtype=np.float64)
    return float(np.corrcoef(seen.astype(np.float64).ravel(), resized.ravel())[0, 1])


@pytest.mark.parametrize(("size", "rows", "columns"), [((112, 112), 5, 5), ((112, 84), 4, 6)])
def test_a_picture_that_was_made_smaller_is_drawn(
    size: tuple[int, int], rows: int, columns: int
) -> None:
    tiny, inputs = one_picture(*size)
    report = pruned(tiny, inputs)
    view = pictures.seen(tiny.model, inputs, report, processor=tiny.processor)
    assert view.grid == (max(4, rows), 4 + 1 + columns)
    top = 14 * ((view.grid[0] - rows) // 2)
    large = view.pixels[top : top + 14 * rows, 14 * 5 :]
    assert alike(large, vlms.photograph("chelsea", size)) > 0.99
    assert torch.equal(view.place < 0, report.images[0].cell[:, 0] < 0)


def test_pictures_of_a_batch_are_drawn() -> None:
    tiny = vlms.get("llava_onevision")
    inputs = tiny.inputs("ragged")
    report = pruned(tiny, inputs)
    view = pictures.seen(tiny.model, inputs, report, 2, processor=tiny.processor)
    assert view.grid == (4, 4)
    # Among others a picture is padded to a square.
    square = ImageOps.pad(vlms.photograph("coffee", (130, 100)), (130, 130), color=GREY)
    assert alike(view.pixels, square) > 0.98


@NEWLINES
def test_frames_of_a_video_are_drawn(name: str, newlines: int) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs("video")
    report = pruned(tiny, inputs)
    view = pictures.seen(tiny.model, inputs, report, 2, processor=tiny.processor)
    assert view.grid == (2 + 1 + 2, 2 + 1 + 2)  # three frames in two rows
    corner = view.pixels[: 2 * 28, : 2 * 28]
    frame = vlms.video("coffee", 4)[0]
    if newlines:  # the processor of LLaVA-OneVision pads them
        frame = ImageOps.pad(frame, (112, 112), color=GREY)
    assert alike(corner, frame) > 0.98


@pytest.mark.parametrize(
    ("name", "sizes", "patch", "side"),
    [
        ("mistral3", "image_sizes", 1, 28),
        ("pixtral", "image_sizes", 1, 14),
        ("lfm2_vl", "spatial_shapes", 14, 28),
    ],
)
def test_a_picture_of_any_shape_is_drawn(name: str, sizes: str, patch: int, side: int) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    report = pruned(tiny, inputs)
    photos = [("chelsea", (170, 112)), ("rocket", (120, 150)), ("coffee", (130, 100))]
    for image, (photo, size) in enumerate(photos):
        view = pictures.seen(tiny.model, inputs, report, image)
        high, wide = (inputs[sizes][image] * patch).tolist()
        assert view.grid == (high // side, wide // side)
        assert view.pixels.shape[:2] == (high, wide)
        assert alike(view.pixels, vlms.photograph(photo, size)) > 0.99
        assert view.place.tolist() == list(range(view.grid[0] * view.grid[1]))
    wrong = {**inputs, "pixel_values": inputs["pixel_values"][:1]}
    with pytest.raises(ValueError, match=f"those of the report, got 1 pictures and 3 {sizes}"):
        pictures.seen(tiny.model, wrong, report)
