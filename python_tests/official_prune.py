# SPDX-License-Identifier: Apache-2.0
"""Pruning what transformers' own processors make of photographs, videos and published templates.

Needs torchvision; `test_hf_processors.py` runs this in a process that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests import official_processors, test_hf_towers, vlm_models, vlms
from python_tests.hf_oracle import NEW, generate, hidden, kept_columns, reported_columns, rows
from zspa_kernels import ask, hf, pictures

METHOD = zk.ZSPAPrune(keep=0.3, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
FRAMES = ("internvl", "smolvlm")  # whose processors make pictures of videos
FILMED = [name for name in official_processors.BUILDERS if name in (*vlms.FILMS, *FRAMES)]


def frames(name: str, count: int) -> Any:
    return np.stack([np.asarray(frame) for frame in vlms.video(name, count)])


def made(model: official_processors.Model, kind: str) -> Any:
    """`"pictures"`: a prompt with one, and one with two. `"videos"`: one with both, and one."""
    cat, rocket, coffee = (
        vlms.photograph(name, size)
        for name, size in (("chelsea", (170, 112)), ("rocket", (120, 150)), ("coffee", (260, 100)))
    )
    prompt = model.official.prompt
    if kind == "pictures":
        texts = [prompt("image", "What is this?"), prompt("image", "image", "Compare the two.")]
        given: dict[str, Any] = {"images": [[cat], [rocket, coffee]]}
    else:
        # Some take videos of one length only; SmolVLM's takes no picture beside a video.
        alone = model.tiny.name == "smolvlm"
        beside = ["When was it?"] if alone else ["When ", "image", "was it?"]
        texts = [prompt("video", *beside), prompt("video", "Who is this?")]
        films = [frames("rocket", 4), frames("coffee", 4)]
        told = {"fps": 2.0, "total_num_frames": 4, "duration": 2.0, "frames_indices": [0, 1, 2, 3]}
        given = {"videos": films, "video_metadata": [dict(told) for _ in films]}
        if not alone:
            given["images"] = [[cat], []]
    return model.official.processor(text=texts, return_tensors="pt", padding=True, **given)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "pictures") for name in official_processors.BUILDERS]
    + [(name, "videos") for name in FILMED],
)
def test_what_is_left_is_the_prompt_without_the_dropped_tokens(name: str, kind: str) -> None:
    model = official_processors.get(name)
    tiny, inputs = model.tiny, made(model, kind)
    pruned = hf.prune_inputs(tiny.model, inputs, METHOD)
    keep = kept_columns(pruned, inputs["input_ids"].shape[1])
    assert torch.equal(keep, reported_columns(tiny, inputs, pruned.report))
    assert pruned.report.after < 0.4 * pruned.report.before
    with torch.no_grad():
        logits = tiny.model(**pruned).logits
    expected = hidden(tiny, inputs, keep)
    for b, real in enumerate(pruned["attention_mask"].bool()):
        torch.testing.assert_close(logits[b, real], expected[b, pruned.index[b, real]], **CLOSE)
    with METHOD(tiny.model) as handle:
        inside = generate(tiny.model, inputs)
    assert handle.report is not None
    assert handle.report.after == pruned.report.after
    assert torch.equal(rows(inside), rows(generate(tiny.model, pruned)))


@pytest.mark.parametrize(
    "name", [name for name in test_hf_towers.PRUNED if name in official_processors.BUILDERS]
)
def test_attention_and_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are padded, cut and laid out as the processor does it."""
    model = official_processors.get(name)
    inputs = made(model, "pictures")
    pictured = test_hf_towers.pictures_of(model.tiny, inputs)
    test_hf_towers.check(model.tiny, inputs, pictured, monkeypatch)


class Asked:
    """Keeps the first token of each image, and what it was asked about the first."""

    def select_varlen(self, visual: Sequence[Tensor], prompt: Sequence[Tensor]) -> list[Any]:
        self.words = prompt[0]
        first = torch.zeros(1, dtype=torch.long)
        return [zk.Selection(first, first.bool()) for _ in visual]


def question(model: official_processors.Model, inputs: Any, **options: Any) -> str:
    """The words that count for the first image."""
    asked = Asked()
    hf.prune_inputs(model.tiny.model, inputs, asked, **options)
    embed = model.tiny.model.get_input_embeddings()
    with torch.no_grad():
        table = embed(torch.arange(embed.num_embeddings))
    ids = [int((table == word).all(-1).nonzero()[0]) for word in asked.words]
    text: str = model.official.processor.tokenizer.decode(ids)
    return text


# Line breaks that a template or a processor writes before and behind a picture.
LINES = {
    **dict.fromkeys(
        ("llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "vipllava"),
        ("", "\n"),
    ),
    **dict.fromkeys(("internvl", "ovis2"), ("", "\n")),
    "gemma3": ("\n\n", "\n\n"),
}
# What is not told from the question without the processor: marks of a picture, and where the
# answer begins.
MARKS = {
    "internvl": "</img>",
    "aya_vision": "<|END_OF_IMG|>",
    "cohere2_vision": "<|IMG_LINE_BREAK|><|END_OF_IMG|>",
    "lfm2_vl": "<|image_end|>",
}
BEHIND = {
    **dict.fromkeys(("llava", "llava_next_video", "video_llava"), " ASSISTANT:"),
    "vipllava": "###Assistant:",
    "deepseek_vl": "\n\nAssistant:",
    "llava_next": " [/INST]",
    **dict.fromkeys(("mistral3", "pixtral"), "[/INST]"),
    **dict.fromkeys(("glm4v", "glm46v"), "<|assistant|>\n"),
}


@pytest.mark.parametrize("name", official_processors.BUILDERS)
def test_the_question(name: str) -> None:
    model = official_processors.get(name)
    processor, words = model.official.processor, "What is this?"

    def inputs(*parts: str) -> Any:
        pictures = [vlms.photograph("coffee", (260, 100))] * parts.count("image")
        return processor(
            text=[model.official.prompt(*parts)], images=[pictures], return_tensors="pt"
        )

    before, behind = LINES.get(name, ("", ""))
    one = inputs("image", words)
    guess = MARKS.get(name, "") + behind + words + BEHIND.get(name, "")
    assert question(model, one) == guess
    assert question(model, one, processor=processor) == before + behind + words
    two = inputs("image", "Here and", "image", words)
    expected = f"{before}{behind}Here and{before}{behind}{words}"
    assert question(model, two, processor=processor) == expected
    if name not in MARKS:
        guess = f"{behind}Here and{before}{behind}{words}{BEHIND.get(name, '')}"
        assert question(model, two) == guess
    last = inputs(words, "image")
    assert question(model, last, processor=processor) == words + before + behind


@pytest.mark.parametrize("name", FILMED)
def test_the_question_of_a_video(name: str) -> None:
    model, words = official_processors.get(name), "Who is this?"
    processor = model.official.processor
    # The time of the second pair of frames is longer: 9.2 and 1000.2 seconds.
    told = {
        "fps": 2.0,
        "total_num_frames": 2002,
        "duration": 1001.0,
        "frames_indices": [18, 19, 2000, 2001],
    }

    def inputs(*parts: str) -> Any:
        return processor(
            text=[model.official.prompt(*parts)],
            videos=[frames("coffee", 4)],
            video_metadata=[dict(told)],
            return_tensors="pt",
        )

    one = inputs("video", words)
    if name in FRAMES:  # it writes their names between them
        assert question(model, one).count("Frame") == 3
        assert question(model, one, processor=processor).count("Frame") == 4
        assert question(model, one, query=[words], processor=processor) == words
        return
    line = LINES.get(name, ("", ""))[1]
    assert question(model, one) == line + words + BEHIND.get(name, "")
    assert question(model, one, processor=processor) == line + words
    last = inputs(words, "video")
    assert question(model, last, processor=processor) == words + line


@pytest.mark.parametrize("name", official_processors.BUILDERS)
def test_a_conversation(name: str) -> None:
    """Its answers are not those that the model gave: so a cache knows the rest only."""
    model = official_processors.get(name)
    tiny, processor = model.tiny, model.official.processor
    method = zk.DivPrune(keep=0.3)  # which chooses the same whatever was asked
    chat = hf.ChatState(tiny.model, method, processor=processor)
    cat, coffee = vlms.photograph("chelsea", (170, 112)), vlms.photograph("coffee", (260, 100))
    style = model.official.style
    opening = 0
    if name in vlm_models.STATES:  # which are kept of the question's end
        opening = len(processor.tokenizer(f"\n{style.answer}{style.thought}")["input_ids"])
    turns: list[list[str]] = []
    pictures: list[Any] = []
    kept = 0
    for said, new in (
        ([["image", "What is this?"]], [cat]),
        ([["A cat."], ["Sure?"]], []),
        ([["Yes."], ["image", "And this?"]], [coffee]),
    ):
        turns += said
        pictures += new
        text = [model.official.conversation(*turns)]
        inputs = processor(text=text, images=[pictures], return_tensors="pt")
        output = generate(chat, inputs)
        pruned = hf.prune_inputs(tiny.model, inputs, method)
        expected = rows(generate(tiny.model, pruned))
        torch.testing.assert_close(rows(output), expected, **CLOSE)
        # LLaVA-OneVision sees a picture in tiles while it is alone; a window of Gemma 3 is full.
        full = len(pictures) == 2 and name in ("llava_onevision", "gemma3")
        if full:
            assert chat.reused == 0
        else:  # perhaps with letters of the answer, perhaps without its opening
            assert kept - opening <= chat.reused <= kept + NEW
        kept = pruned["input_ids"].shape[1]


def test_every_tile_has_its_share() -> None:
    model = official_processors.get("internvl")
    pruned = hf.prune_inputs(model.tiny.model, made(model, "pictures"), METHOD, scope="tile")
    assert [image.before // 16 for image in pruned.report.images] == [3, 1, 4]  # tiles
    for image in pruned.report.images:
        share = (image.indices // 16).bincount()
        assert share.tolist() == [zk.num_keep(16, METHOD.keep)] * (image.before // 16)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_a_crop_is_an_image(name: str) -> None:
    model = official_processors.get(name)
    pruned = hf.prune_inputs(model.tiny.model, made(model, "pictures"), METHOD)
    assert [image.before for image in pruned.report.images] == [16] * 13


@pytest.mark.parametrize("name", ["glm4v", "glm46v"])
def test_videos_of_glm_are_refused(name: str) -> None:
    model = official_processors.get(name)
    inputs = model.official.processor(
        text=[model.official.prompt("video", "Who is this?")],
        videos=[frames("coffee", 4)],
        return_tensors="pt",
    )
    with pytest.raises(hf.UnsupportedInputError, match="pixel_values_videos"):
        hf.prune_inputs(model.tiny.model, inputs, METHOD)


@pytest.mark.parametrize(("name", "crops"), [("qwen2_5_vl", 1), ("smolvlm", 5)])
def test_the_command(
    name: str, crops: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A question about a file, answered by a model that is loaded as users load theirs."""
    model = official_processors.get(name)
    for part in (model.tiny.model, model.official.processor):
        part.save_pretrained(tmp_path)
    vlms.photograph("chelsea", (340, 224)).save(tmp_path / "photo.png")
    drawn: list[Any] = []
    kept = pictures.kept

    def watch(*args: Any, **options: Any) -> Any:
        drawn.append((len(args[3]), options["across"]))
        return kept(*args, **options)

    monkeypatch.setattr(pictures, "kept", watch)
    answer = ask.ask(
        str(tmp_path),
        tmp_path / "photo.png",
        "What is this?",
        options={"keep": 0.3},
        max_new_tokens=2,
        out=tmp_path / "kept.png",
    )
    assert len(answer.report.images) == crops
    assert answer.report.query_tokens == [len("What is this?")]
    assert drawn == [(crops, 1 if crops == 1 else 2)]
    assert (tmp_path / "kept.png").stat().st_size > 10_000
