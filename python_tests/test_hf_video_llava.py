# SPDX-License-Identifier: Apache-2.0
"""Video-LLaVA: an encoder that returns frames, frames that begin with [CLS], a name of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate, rows
from zspa_kernels import hf, pictures
from zspa_kernels.hf.architectures import Target
from zspa_kernels.hf.collect import wanted
from zspa_kernels.hf.encode import encode

HALF = zk.DivPrune(keep=0.5)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-6}
FRAMES, PATCHES = 3, 16  # of a video, of a frame
CELLS = [[-1, -1], *([r, c] for r in range(4) for c in range(4))]


def pruned(inputs: Any, **options: Any) -> Any:
    tiny = vlms.get("video_llava")
    with hf.prune(tiny.model, HALF, **options) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    return handle.report


def films(text: str, *names: str) -> Any:
    """A prompt with videos."""
    tiny = vlms.get("video_llava")
    shown = [vlms.video(name, 4) for name in names]
    return tiny.processor(images=[], videos=shown, text=[text])


def test_a_video_has_one_budget_and_a_frame_is_a_tile() -> None:
    tiny = vlms.get("video_llava")
    report = pruned(tiny.inputs("video"))
    film, picture, other = report.images
    assert [one.video for one in report.images] == [True, False, True]
    assert [one.before for one in report.images] == [51, PATCHES, 51]
    frames = [[t, *cell] for t in range(FRAMES) for cell in CELLS]
    assert film.cell.tolist() == other.cell.tolist() == frames
    assert picture.cell.tolist() == [[0, *cell] for cell in CELLS[1:]]
    assert (film.after, picture.after) == (zk.num_keep(51, 0.5), 8)
    by_frame = pruned(tiny.inputs("video"), scope="tile").images[0]
    share = by_frame.cell[by_frame.indices, 0].bincount()
    assert share.tolist() == [zk.num_keep(PATCHES + 1, 0.5)] * FRAMES


def test_videos_between_which_no_word_stands() -> None:
    report = pruned(films("<start> user <video> <video> who <end>", "rocket", "coffee"))
    assert [one.before for one in report.images] == [51, 51]
    assert [one.after for one in report.images] == [zk.num_keep(51, 0.5)] * 2
    assert "2 videos, 102 -> 52 visual tokens" in str(report)


def test_a_picture_may_have_cls_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = vlms.get("video_llava")
    monkeypatch.setattr(tiny.model.config, "vision_feature_select_strategy", "full")
    monkeypatch.setattr(tiny.processor, "count", PATCHES + 1)
    (image,) = pruned(tiny.inputs()).images
    assert image.cell.tolist() == [[0, *cell] for cell in CELLS]


def test_pictures_by_the_name_that_other_models_use() -> None:
    if vlms.VERSION < (5, 23):
        pytest.skip("transformers >= 5.23: older ones know the other name only")
    tiny = vlms.get("video_llava")
    inputs = tiny.inputs("video")
    renamed = {k: v for k, v in inputs.items() if k != tiny.pixels}
    renamed["pixel_values"] = inputs[tiny.pixels]
    with HALF(tiny.model) as handle:
        expected = rows(generate(tiny.model, inputs))
        assert torch.equal(rows(generate(tiny.model, renamed)), expected)
    assert handle.report is not None
    assert (handle.calls, handle.report.images[1].after) == (2, 8)
    once = hf.prune_inputs(tiny.model, renamed, HALF)
    assert torch.equal(rows(generate(tiny.model, once)), expected)
    chat = hf.ChatState(tiny.model, HALF)
    alone = tiny.inputs()
    for name in (tiny.pixels, "pixel_values"):
        given = {**{k: v for k, v in alone.items() if k != tiny.pixels}, name: alone[tiny.pixels]}
        chat.generate(**given, max_new_tokens=1)
        assert chat.report is not None
        assert chat.report.images[0].after == 8


def eager(tower: Any, pixels: Any) -> dict[str, Any]:
    """What each patch gets from [CLS], and its key: of the layer whose output is projected."""
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = tower(pixels, output_attentions=True, output_hidden_states=True)
            layer = next(x for n, x in tower.named_modules() if n.endswith("encoder.layers"))[-2]
            keys = layer.self_attn.k_proj(layer.layer_norm1(out.hidden_states[-3]))
    finally:
        tower.set_attn_implementation("sdpa")
    heads = keys.unflatten(-1, (layer.self_attn.num_heads, -1))
    return {"attention": out.attentions[-2][:, :, 0, 1:].mean(1), "keys": heads.mean(2)[:, 1:]}


def test_attention_and_keys_of_both_towers() -> None:
    """A frame's [CLS] is a visual token, but no patch: it has none."""
    tiny = vlms.get("video_llava")
    target, inputs, inner = Target.of(tiny.model), tiny.inputs("video"), tiny.model.model
    found = wanted(zk.methods.VisionZip(keep=0.2), target, inputs)
    with torch.no_grad(), found.watching(target):
        encoded = encode(target, inputs, need_features=False)
    made = found.tensors(target, inputs, encoded)
    still = eager(inner.image_tower, inputs[tiny.pixels])
    film = eager(inner.video_tower, inputs["pixel_values_videos"].flatten(0, 1))
    for name, values in made.items():
        torch.testing.assert_close(values[encoded.part == 0], still[name].flatten(0, 1), **CLOSE)
        frames = values[encoded.part == 1].unflatten(0, (-1, PATCHES + 1))
        assert frames[:, 0].isnan().all()
        torch.testing.assert_close(frames[:, 1:], film[name], **CLOSE)


@pytest.mark.parametrize("name", ["visionzip", "fastervlm", "scope", "tome", "mmtok", "zooprune"])
def test_methods_of_clip(name: str) -> None:
    tiny = vlms.get("video_llava")
    inputs = tiny.inputs("video")
    method: Any = zk.methods.get(name, keep=5)
    with method(tiny.model) as handle:
        inside = rows(generate(tiny.model, inputs))
    assert inside.isfinite().all()
    assert handle.report is not None
    for image in handle.report.images:
        assert image.after == 5
        if name not in ("mmtok", "zooprune"):
            assert (image.cell[image.indices, 1] >= 0).all()


def test_frames_are_drawn_apart_and_cls_is_not() -> None:
    tiny = vlms.get("video_llava")
    inputs = tiny.inputs("video")
    report = pruned(inputs)
    view = pictures.seen(tiny.model, inputs, report, 2)
    assert view.grid == (4 + 1 + 4, 4 + 1 + 4)
    corners = [(0, 0), (0, 5), (5, 0)]
    expected = [
        -1 if row < 0 else (top + row) * 9 + left + column
        for top, left in corners
        for row, column in CELLS
    ]
    assert view.place.tolist() == expected
    for (top, left), frame in zip(corners, vlms.video("coffee", FRAMES), strict=True):
        part = view.pixels[14 * top : 14 * top + 56, 14 * left : 14 * left + 56]
        pair = np.corrcoef(part.ravel(), np.asarray(frame.resize((56, 56))).ravel())
        assert pair[0, 1] > 0.99
    still = pictures.seen(tiny.model, inputs, report, 1)
    assert still.place.tolist() == list(range(PATCHES))
    with pytest.warns(hf.NothingPrunedWarning), zk.DivPrune(keep=1.0)(tiny.model) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    figure = pictures.kept(tiny.model, inputs, handle.report, 2)
    assert any("51 tokens of 51, 3 of them without a place" in t.get_text() for t in figure.texts)
