# SPDX-License-Identifier: Apache-2.0
"""`hf.ChatState`: a conversation from the cache gives what reading all of it anew would give."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import zspa_kernels as zk
from python_tests import vlm_models, vlms
from python_tests.hf_oracle import NEW, hidden, reported_columns, shown
from zspa_kernels import hf
from zspa_kernels.hf import rollback

METHOD = zk.ZSPAPrune(keep=0.3, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}

pytestmark = pytest.mark.skipif(
    vlms.VERSION < (5, 20), reason="transformers >= 5.20 (mm_encoder_outputs)"
)


@pytest.mark.parametrize(("name", "kind"), vlms.cases("picture"))
def test_three_turns(name: str, kind: str) -> None:
    """A picture (or a video), a question, a picture: every step against the masked oracle."""
    tiny = vlms.get(name)
    chat = hf.ChatState(tiny.model, METHOD)
    cat: Any = vlms.photograph("chelsea", (170, 112))
    first = tiny.image
    if kind == "video":
        tiny.videos(1)  # skips where a model cannot be asked about them
        cat, first = vlms.video("rocket", 4), tiny.film
    cup = vlms.photograph("coffee", (130, 100))
    keep = torch.zeros(1, 0, dtype=torch.bool)
    ids = torch.zeros(1, 0, dtype=torch.long)
    pictures: list[Any] = []
    used = 0
    for text, new in (
        (f"<start> user {first} what is this", [cat]),
        ("<end> <start> user where is the cat", []),
        (f"<end> <start> user compare {tiny.image} shortly", [cup]),
    ):
        pictures += new
        if new:
            made = tiny.processor(
                **given(tiny, new), text=[text], return_tensors="pt", padding=True
            )
        else:
            made = tiny.processor.tokenizer([text], return_tensors="pt")
        ids = torch.cat((ids, made["input_ids"]), dim=1)
        inputs = whole(tiny, ids, pictures)
        earlier = chat.report
        output = chat.generate(**inputs, **OPTIONS)
        assert torch.equal(output.sequences[:, : ids.shape[1]], ids)
        # Before 5.23 Gemma's token types would be misread behind a cache: it is read anew.
        anew = bool(new) and tiny.name == "gemma3" and vlms.VERSION < (5, 23)
        assert chat.reused == (0 if anew else used)
        assert bool(new) == (chat.report is not earlier)
        added = torch.ones(1, ids.shape[1] - keep.shape[1], dtype=torch.bool)
        keep = torch.cat((keep, added), dim=1)
        if new:
            assert chat.report is not None
            report = chat.report
            # Read anew, the question of the first picture ends behind what was answered.
            assert report.query_tokens == [1 if chat.reused else 3 + NEW * bool(used)]
            images = report.images
            assert len(images) == (2 if anew and used else 1)
            columns = shown(tiny, ids[0]).nonzero().flatten()
            columns = columns[-sum(image.before for image in images) :]
            keep[0, columns] = False
            for image, own in zip(images, columns.split([x.before for x in images]), strict=True):
                keep[0, own[image.indices]] = True
            assert (report.prompt_before, report.prompt_after) == ([len(ids[0])], [int(keep.sum())])
            share = report.kv_bytes_after / report.kv_bytes_before
            assert share == report.prompt_after[0] / report.prompt_before[0]
        ids = output.sequences
        keep = torch.cat((keep, torch.ones(1, NEW, dtype=torch.bool)), dim=1)
        expected = hidden(tiny, whole(tiny, ids, pictures), keep)
        got = torch.stack(output.logits, dim=1)[0]
        torch.testing.assert_close(got, expected[0, -NEW - 1 : -1], **CLOSE)
        used = int(keep.sum()) - 1  # the last token has not been read yet


def given(tiny: vlms.Tiny, shown: list[Any]) -> dict[str, Any]:
    """Pictures and videos as a processor takes them."""
    films = [one for one in shown if isinstance(one, list)]
    pictures = [one for one in shown if not isinstance(one, list)]
    # LLaVA-OneVision cuts pictures into tiles that share no list: those of earlier turns stay.
    flat = tiny.name == "llava_onevision"
    found: dict[str, Any] = {"images": pictures if flat else [pictures]}
    return {**found, "videos": films} if films else found


def whole(tiny: vlms.Tiny, ids: torch.Tensor, pictures: list[Any]) -> dict[str, Any]:
    """The processor's output for a conversation given by its ids."""
    words = " and ".join(tiny.film if isinstance(one, list) else tiny.image for one in pictures)
    made = dict(
        tiny.processor(**given(tiny, pictures), text=[words], return_tensors="pt", padding=True)
    )
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in made:
            mark = shown(tiny, ids).to(made[name].dtype)
            if tiny.name in vlms.FILMS:
                mark = mark + (ids == tiny.model.config.video_token_id).to(mark.dtype)
            made[name] = mark
    return {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_compact_positions_and_conversations_that_change() -> None:
    tiny = vlms.get("qwen2_5_vl")
    inputs = tiny.inputs()
    for mode in ("original", "compact"):
        chat = hf.ChatState(tiny.model, METHOD, positions=mode)
        with vlms.rotary_positions(tiny.model) as seen:
            first = chat.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            with METHOD(tiny.model, positions=mode):
                expected = tiny.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(first, expected)
        if mode == "compact":
            counted = torch.cat(seen[:NEW], dim=-1)
            assert torch.equal(counted, torch.arange(counted.shape[-1]).expand_as(counted))
    # The same prompt once more has its last token to read; one with an edited question is another.
    assert torch.equal(chat.generate(**inputs, max_new_tokens=NEW, do_sample=False), first)
    assert chat.report is not None
    assert chat.reused == chat.report.prompt_after[0] - 1
    edited = first.clone()
    edited[0, inputs["input_ids"].shape[1] - 4] = 20  # in front of <end> <start> assistant
    longer = torch.cat((edited, first[:, -1:]), dim=1)
    assert not torch.equal(edited, first)
    kind = torch.zeros_like(longer)
    kind[:, : inputs["mm_token_type_ids"].shape[1]] = inputs["mm_token_type_ids"]
    call = {**inputs, "input_ids": longer, "mm_token_type_ids": kind}
    call["attention_mask"] = torch.ones_like(longer)
    anew = chat.generate(**call, max_new_tokens=NEW, do_sample=False)
    assert chat.reused == 0
    with METHOD(tiny.model, positions="compact"):
        expected = tiny.model.generate(**call, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(anew, expected)
    chat.generate(**tiny.inputs(words="what is in this"), max_new_tokens=NEW, do_sample=False)
    assert chat.reused == 0  # a question of fewer words


@pytest.mark.parametrize("name", vlms.BUILDERS)
def test_an_answer_that_is_written_otherwise(name: str) -> None:
    """It is read again, and what follows; the picture stays as it was pruned for its question."""
    tiny = vlms.get(name)
    chat = hf.ChatState(tiny.model, METHOD)
    inputs = tiny.inputs()
    length = inputs["input_ids"].shape[1]
    first = chat.generate(**inputs, **OPTIONS).sequences
    report = chat.report
    assert report is not None
    cat = vlms.photograph("chelsea", (170, 112))
    for answer in ([20, 21, 22, 23, 24], [20, 21, 25], [20]):
        ids = torch.cat((first[:, :length], torch.tensor([answer])), dim=1)
        call = whole(tiny, ids, [cat])
        output = chat.generate(**call, **OPTIONS)
        # States are kept of the question's end, <end> <start> assistant stands behind it.
        states = tiny.name in vlm_models.STATES
        again = -2 if states else 2 * (answer[-1] == 25)
        assert chat.reused == report.prompt_after[0] + again
        assert chat.report is report
        keep = torch.ones_like(ids, dtype=torch.bool)
        keep[:, :length] = reported_columns(tiny, inputs, report)
        keep = torch.nn.functional.pad(keep, (0, NEW), value=True)
        expected = hidden(tiny, whole(tiny, output.sequences, [cat]), keep)
        got = torch.stack(output.logits, dim=1)[0]
        torch.testing.assert_close(got, expected[0, -NEW - 1 : -1], **CLOSE)
    # A template that opens the answer otherwise, as with a mark for thinking.
    ids = torch.cat((first[:, : length - 1], torch.tensor([[21, 22]])), dim=1)
    chat.generate(**whole(tiny, ids, [cat]), **OPTIONS)
    assert chat.reused == report.prompt_after[0] - (2 if tiny.name in vlm_models.STATES else 1)
    assert chat.report is report


@pytest.mark.parametrize("name", ["llava", "qwen3_5"])
def test_a_later_question_that_was_edited(name: str) -> None:
    """The picture stays as it was pruned for the first; what states have read stays read."""
    tiny = vlms.get(name)
    chat = hf.ChatState(tiny.model, METHOD)
    cat = vlms.photograph("chelsea", (170, 112))
    first = chat.generate(**tiny.inputs(), **OPTIONS).sequences
    report = chat.report
    for words in ("where is the cat", "where is the table"):
        asked = f"<end> <start> user {words} <end> <start> assistant"
        new = tiny.processor.tokenizer([asked], return_tensors="pt")["input_ids"]
        call = whole(tiny, torch.cat((first, new), dim=1), [cat])
        output = chat.generate(**call, **OPTIONS)
        assert chat.reused > 0 or (name in vlm_models.STATES and "table" in words)
    if name in vlm_models.STATES:  # of the question before, and of no other
        assert chat.reused == 0
        anew = hf.ChatState(tiny.model, METHOD).generate(**call, **OPTIONS)
        assert torch.equal(torch.stack(output.logits), torch.stack(anew.logits))
    else:
        assert chat.report is report


def test_a_prompt_of_no_template() -> None:
    """No token ends its question, so each of its words counts."""
    tiny = vlms.get("llava")
    chat = hf.ChatState(tiny.model, METHOD)
    for words, again in (("what is this", 0), ("what is there", 0), ("what is there", 1)):
        made = tiny.processor(
            images=[vlms.photograph("coffee", (130, 100))],
            text=f"{tiny.image} {words}",
            return_tensors="pt",
        )
        chat.generate(**made, **OPTIONS)
        assert (chat.reused > 0) == again


def test_an_end_in_front_of_a_picture_is_of_an_earlier_turn() -> None:
    """As in LLaVA's template, which ends answers only: all words behind it are the question's."""
    tiny = vlms.get("llava")
    chat = hf.ChatState(tiny.model, METHOD)
    photos = [vlms.photograph(name, (170, 112)) for name in ("chelsea", "coffee")]
    first = chat.generate(**tiny.inputs(), **OPTIONS).sequences
    for words, again in (("is this a cat", True), ("is this a cup", False)):
        made = tiny.processor(
            images=[photos[1]], text=f"<end> user {tiny.image} {words}", return_tensors="pt"
        )
        ids = torch.cat((first, made["input_ids"]), dim=1)
        chat.generate(**whole(tiny, ids, photos), **OPTIONS)
        assert (chat.reused > 0) == again


def test_what_a_cache_cannot_forget_is_read_anew() -> None:
    tiny = vlms.get("gemma3")
    for words, fits in (("where " * 20, True), ("where " * 60, False)):  # a window of 64 tokens
        chat, fresh = (hf.ChatState(tiny.model, METHOD) for _ in range(2))
        inputs = tiny.inputs(words=words)
        chat.generate(**inputs, **OPTIONS)
        ids = torch.cat((inputs["input_ids"], torch.tensor([[20, 21]])), dim=1)
        call = whole(tiny, ids, [vlms.photograph("chelsea", (170, 112))])
        output = chat.generate(**call, **OPTIONS)
        assert (chat.reused > 0) == fits
        expected = fresh.generate(**call, **OPTIONS)
        if not fits:
            assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))
    # Some versions call quantized layers croppable.
    layer = type("HQQQuantizedLayer", (), {"is_croppable": True})()
    cache = SimpleNamespace(get_seq_length=lambda: 9, layers=[layer])
    assert rollback.shorten(cache, 9, rollback.Saved())
    assert not rollback.shorten(cache, 8, rollback.Saved())


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "qwen3_5", "smolvlm"])
def test_another_picture_is_another_conversation(name: str) -> None:
    """The words are the same, and so are the ids: the cache would show the picture of before."""
    tiny = vlms.get(name)
    chat = hf.ChatState(tiny.model, METHOD)
    options = {**OPTIONS, "suppress_tokens": [tiny.model.config.image_token_id]}
    first = chat.generate(**tiny.inputs(), **options).sequences
    longer = torch.cat((first, torch.tensor([[20, 21, 22]])), dim=1)
    cat, rocket = (vlms.photograph(name, (170, 112)) for name in ("chelsea", "rocket"))
    call = whole(tiny, longer, [cat])
    expected = copy.deepcopy(chat).generate(**call, **options)
    # Pictures that are not given again are those of before.
    words = {name: value for name, value in call.items() if value.shape == longer.shape}
    second = chat.generate(**words, **options)
    assert chat.reused > 0
    assert torch.equal(torch.stack(second.logits), torch.stack(expected.logits))
    same = second.sequences
    longer = torch.cat((same, torch.tensor([[20, 21, 22]])), dim=1)
    # One that brings nothing new has its last token to read.
    for ids, photo, reused in ((longer, cat, True), (longer, rocket, False), (same, cat, True)):
        again, call = copy.deepcopy(chat), whole(tiny, ids, [photo])
        output = again.generate(**call, **options)
        assert (again.reused > 0) == reused
        if not reused:
            anew = hf.ChatState(tiny.model, METHOD).generate(**call, **options)
            assert torch.equal(torch.stack(output.logits), torch.stack(anew.logits))


def test_copies_have_one_cache_and_the_last_one_goes_on() -> None:
    """The others would read what that one has put behind their words, or in place of them."""
    tiny = vlms.get("llava")
    chat = hf.ChatState(tiny.model, METHOD)
    options = {**OPTIONS, "suppress_tokens": [tiny.model.config.image_token_id]}
    ids = chat.generate(**tiny.inputs(), **options).sequences
    other = copy.copy(chat)
    for who, goes_on, words in (
        (other, True, [20, 21]),
        (chat, False, [22, 23]),
        (other, True, [24, 25]),
        (other, True, [26, 27]),
        (other, False, [28, 29]),
    ):
        longer = torch.cat((ids, torch.tensor([words])), dim=1)
        call = whole(tiny, longer, [vlms.photograph("chelsea", (170, 112))])
        if words == [28, 29]:  # what a copy has read before it failed is there as well
            with pytest.raises(ValueError, match="not used by the model"):
                copy.copy(who).generate(**call, **options, unknown=1)
        expected = copy.deepcopy(who) if goes_on else hf.ChatState(tiny.model, METHOD)
        got, wanted = (one.generate(**call, **options) for one in (who, expected))
        assert (who.reused > 0) == goes_on
        assert torch.equal(torch.stack(got.logits), torch.stack(wanted.logits))
        if who is other:
            ids = got.sequences


def test_pictures_of_another_conversation_are_forgotten() -> None:
    """A video of before is none of a conversation about pictures, not even in its second turn."""
    tiny = vlms.get("qwen2_5_vl")
    chat, fresh = (hf.ChatState(tiny.model, METHOD) for _ in range(2))
    chat.generate(**tiny.videos(1), **OPTIONS)
    options = {**OPTIONS, "suppress_tokens": [tiny.model.config.image_token_id]}
    photos = [vlms.photograph(name, (170, 112)) for name in ("chelsea", "coffee")]
    ids = tiny.inputs()["input_ids"]
    for turn in (1, 2):
        call = whole(tiny, ids, photos[:turn])
        output, expected = chat.generate(**call, **options), fresh.generate(**call, **options)
        assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))
        ids = torch.cat((output.sequences, tiny.inputs()["input_ids"]), dim=1)
    assert chat.reused > 0


def test_a_prompt_whose_pictures_are_missing() -> None:
    tiny = vlms.get("llava")
    chat = hf.ChatState(tiny.model, METHOD)
    ids = tiny.inputs()["input_ids"]
    with pytest.raises(hf.PlaceholderMismatchError, match="visual feature, 0, got 64"):
        chat.generate(input_ids=ids)
    first = chat.generate(**tiny.inputs(), **OPTIONS).sequences
    edited = torch.cat((ids[:, :-4], first[:, -4:]), dim=1)
    with pytest.raises(hf.PlaceholderMismatchError, match="visual feature, 0, got 64"):
        chat.generate(input_ids=edited)


def test_what_is_refused() -> None:
    tiny = vlms.get("llava")
    chat = hf.ChatState(tiny.model, METHOD)
    inputs = tiny.inputs()
    beams = transformers.GenerationConfig(num_return_sequences=3, do_sample=True)
    for wrong, text in (
        (tiny.inputs("ragged"), "one conversation without padding"),
        (vlms.widened(inputs), "one conversation without padding"),
        ({**inputs, "num_beams": 2}, "num_beams must be 1, got 2"),
        ({**inputs, "generation_config": beams}, "num_return_sequences must be 1, got 3"),
        ({**inputs, "cache_implementation": "static"}, "one that grows .*, got 'static'"),
        ({**inputs, "past_key_values": object()}, "the cache must be its own"),
    ):
        with pytest.raises(hf.UnsupportedInputError, match=f"ChatState: .*{text}"):
            chat.generate(**wrong)
    with pytest.raises(hf.UnsupportedInputError, match="use_cache must be True"):
        chat.generate(**inputs, use_cache=False)
    with METHOD(tiny.model):
        tiny.model.generate(**inputs, max_new_tokens=1)
        with pytest.raises(hf.AlreadyPrunedError, match="leave its block or call its remove"):
            chat.generate(**inputs)
    with pytest.raises(hf.UnsupportedInputError, match="mm_encoder_outputs must be None"):
        chat.generate(input_ids=torch.tensor([[5, 6]]), mm_encoder_outputs={})


def test_after_an_error_the_conversation_is_read_anew() -> None:
    """The cache may hold a part of the turn that failed."""
    tiny = vlms.get("llava")
    chat = hf.ChatState(tiny.model, METHOD)
    inputs = tiny.inputs()
    grads: list[bool] = []
    watching = tiny.model.model.vision_tower.register_forward_hook(
        lambda *_: grads.append(torch.is_grad_enabled())
    )
    first = chat.generate(**inputs, **OPTIONS).sequences
    watching.remove()
    assert grads == [False]  # the states of all layers would be kept for gradients
    longer = {**inputs, "input_ids": torch.cat((first, torch.tensor([[5, 6, 7]])), dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])

    def fail(*args: Any) -> None:
        raise RuntimeError("inside")

    failing = tiny.model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"):
        chat.generate(**longer, **OPTIONS)
    failing.remove()
    anew = chat.generate(**longer, **OPTIONS)
    assert chat.reused == 0
    with METHOD(tiny.model):
        expected = tiny.model.generate(**longer, **OPTIONS)
    assert torch.equal(anew.sequences, expected.sequences)


def test_lengths_and_streams_count_the_whole_conversation() -> None:
    tiny = vlms.get("llava")
    chat = hf.ChatState(tiny.model, METHOD)
    inputs = tiny.inputs()
    ids, picture = inputs["input_ids"], {"pixel_values": inputs["pixel_values"]}
    for text in (None, "<end> <start> user who"):
        if text is not None:
            new = tiny.processor.tokenizer([text], return_tensors="pt")["input_ids"]
            ids = torch.cat((ids, new), dim=1)
        given: list[torch.Tensor] = []
        streamer = SimpleNamespace(put=given.append, end=lambda: None)
        call = {**inputs, "input_ids": ids}
        call.pop("attention_mask")
        length = ids.shape[1] + NEW
        sequences = chat.generate(**call, max_length=length, do_sample=False, streamer=streamer)
        assert sequences.shape == (1, length)
        assert torch.equal(torch.cat([one.flatten() for one in given]), sequences[0])
        ids = sequences
    assert chat.reused > 0
    config = transformers.GenerationConfig(return_dict_in_generate=True, max_new_tokens=1)
    output = chat.generate(input_ids=inputs["input_ids"], generation_config=config, **picture)
    assert output.sequences.shape == (1, inputs["input_ids"].shape[1] + 1)
