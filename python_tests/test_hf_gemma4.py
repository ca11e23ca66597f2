# SPDX-License-Identifier: Apache-2.0
"""Gemma 4: frames and their times, sounds beside pictures, caches that layers share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate, hidden, kept_columns, rows
from python_tests.vlm_models import GEMMAS, SOUND
from zspa_kernels import hf
from zspa_kernels.hf.architectures import ARCHITECTURES
from zspa_kernels.hf.layout import Layout
from zspa_kernels.hf.marks import marks

METHOD = zk.ZSPAPrune(keep=0.3, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = pytest.mark.skipif(
    vlms.VERSION < (5, 20), reason="transformers >= 5.20 (mm_encoder_outputs)"
)

#: One with an encoder, one without.
BOTH = GEMMAS[::2]


@pytest.mark.parametrize("name", BOTH)
def test_budgets_of_frames(name: str) -> None:
    """A video has one as a picture has, or one for each of its frames."""
    tiny = vlms.get(name)
    pruned = hf.prune_inputs(tiny.model, tiny.inputs("video"), zk.DivPrune(keep=0.3))
    images = pruned.report.images
    assert [(one.sample, one.video) for one in images] == [(0, True), (0, False), (1, True)]
    for one, frames in zip(images[::2], (6, 4), strict=True):
        assert one.cell.tolist() == [
            [t, r, c] for t in range(frames) for r in range(3) for c in range(5)
        ]
        assert one.after == zk.num_keep(15 * frames, 0.3)
    by_frame = hf.prune_inputs(
        tiny.model, tiny.inputs("video"), zk.DivPrune(keep=0.3), scope="tile"
    ).report.images[0]
    assert torch.bincount(by_frame.cell[by_frame.indices, 0]).tolist() == [zk.num_keep(15, 0.3)] * 6
    high = vlms.get(name).processor(
        images=[[vlms.photograph("rocket", (60, 150))]], text=[tiny.image], return_tensors="pt"
    )
    cell = hf.prune_inputs(tiny.model, high, METHOD).report.images[0].cell
    assert cell.tolist() == [[0, r, c] for r in range(7) for c in range(2)]


def heard(tiny: vlms.Tiny, text: str, pieces: int) -> dict[str, Any]:
    """Inputs of a prompt with a picture and a sound."""
    text = text.replace("<audio>", " ".join(["<audio>"] * pieces))
    photo = vlms.photograph("chelsea", (170, 112))
    inputs = dict(tiny.processor(images=[[photo]], text=[text], return_tensors="pt"))
    sound = inputs["input_ids"] == tiny.model.config.audio_token_id
    inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"] + 3 * sound.int()
    # The encoder makes one token of four moments, and pads what it is given.
    length = 4 * pieces if tiny.name == "gemma4" else pieces
    generator = torch.Generator().manual_seed(0)
    inputs["input_features"] = torch.randn(1, length + 4, SOUND, generator=generator)
    inputs["input_features_mask"] = (torch.arange(length + 4) < length)[None]
    return inputs


@pytest.mark.parametrize("name", BOTH)
def test_a_sound_beside_a_picture(name: str) -> None:
    """It stays whole, and is no word of the question."""
    tiny = vlms.get(name)
    text = "<start> user what is <audio> in <image> and where <audio> please <end> assistant"
    inputs = heard(tiny, text, 3)
    double = torch.cat((inputs["input_features"], inputs["input_features"].flip(1)))
    mask = inputs["input_features_mask"]
    inputs.update(input_features=double, input_features_mask=torch.cat((mask, mask)))
    pruned = hf.prune_inputs(tiny.model, inputs, METHOD)
    ids = pruned["input_ids"]
    assert int((ids == tiny.model.config.audio_token_id).sum()) == 6
    with torch.no_grad():
        got = tiny.model(**pruned).logits
    expected = hidden(tiny, inputs, kept_columns(pruned, inputs["input_ids"].shape[1]))
    torch.testing.assert_close(got[0], expected[0, pruned.index[0]], **CLOSE)
    expected = rows(generate(tiny.model, pruned))
    with METHOD(tiny.model) as handle:
        torch.testing.assert_close(rows(generate(tiny.model, inputs)), expected, **CLOSE)
    assert handle.report is not None
    assert handle.report.query_tokens == pruned.report.query_tokens == [3]
    for query in ("all", torch.ones_like(inputs["input_ids"], dtype=torch.bool)):
        report = hf.prune_inputs(tiny.model, inputs, METHOD, query=query).report
        assert report.query_tokens == [len(text.split()) - 3 + 2]  # and the marks of the picture


@pytest.mark.parametrize("name", BOTH)
def test_a_sound_in_a_conversation_is_refused(name: str) -> None:
    tiny = vlms.get(name)
    chat = hf.ChatState(tiny.model, METHOD)
    with pytest.raises(hf.UnsupportedInputError, match="input_features must be None, got one"):
        chat.generate(**heard(tiny, "<image> what is <audio>", 2), max_new_tokens=1)


def test_a_sound_alone_passes() -> None:
    tiny = vlms.get("gemma4")
    inputs = heard(tiny, "<image> what is <audio>", 2)
    image = inputs["input_ids"] == tiny.model.config.image_token_id
    alone = {k: v for k, v in inputs.items() if k not in ("pixel_values", "image_position_ids")}
    alone["input_ids"] = inputs["input_ids"].masked_fill(image, 20)
    alone["mm_token_type_ids"] = inputs["mm_token_type_ids"].masked_fill(image, 0)
    expected = rows(generate(tiny.model, alone))
    handle = METHOD(tiny.model).install()
    assert torch.equal(rows(generate(tiny.model, alone)), expected)
    with pytest.warns(hf.NothingPrunedWarning):
        handle.remove()


SPACE, DIGITS = 7, {name: 10 + i for i, name in enumerate("0123456789:")}


def clock(text: str) -> list[int]:
    """Ids of a time as Gemma's tokenizer splits it: every digit by itself."""
    return [SPACE if one == " " else DIGITS[one] for one in text]


@pytest.mark.parametrize(
    ("before", "first", "marked"),
    [
        ([30, 31], "00:00 ", 7),  # and the mark behind it
        ([30, SPACE], "00:00 ", 8),  # this space is no word either
        ([30], "01:15 ", 7),
        ([], "00:00 ", 0),  # it cannot be told from a prompt that begins with words
        ([30, 31], "", 0),
    ],
)
def test_clocks_of_frames(before: list[int], first: str, marked: int) -> None:
    """In front of every frame stands its time: that of the first one behind the user's words."""
    boi, eoi, film = 2, 3, 4
    row = [*before, *clock(first), boi, film, film, eoi]
    start = len(before) + len(first)
    for time in ("00:01", "00:02"):
        row += [*clock(f" {time} "), boi, film, film, eoi]
    ids = torch.tensor([[*row, 30, 31]])
    column = (ids[0] == film).nonzero().flatten()
    zero = torch.zeros_like(column)
    where = Layout(zero, column, zero, torch.zeros(len(column), 3), zero == 0)
    found = marks(ARCHITECTURES["gemma4"], where, ids)[0]
    inside = torch.zeros_like(found)
    inside[column[0] : column[-1]] = True
    inside[column] = False
    assert torch.equal(found & (torch.arange(len(found)) > column[0]), inside)
    own = found[: column[0]].nonzero().flatten().tolist()
    assert own == list(range(start + 1 - marked, start + 1)) if marked else not own


@pytest.mark.parametrize(
    "row",
    [
        [30, *clock("00:00 "), 2, 4, 4, 3, 31],  # one frame: there is nothing to compare it with
        [*[30] * 9, 4, 4, 3, *clock(" 00:01 "), 2, 4, 4, 3],  # one that no processor announced
    ],
)
def test_no_clock_in_front_of_the_first_frame(row: list[int]) -> None:
    ids = torch.tensor([row])
    column = (ids[0] == 4).nonzero().flatten()
    zero = torch.zeros_like(column)
    where = Layout(zero, column, zero, torch.zeros(len(column), 3), zero == 0)
    assert not marks(ARCHITECTURES["gemma4"], where, ids)[0, : column[0]].any()
