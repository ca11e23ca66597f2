# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-Omni: sounds beside pictures and videos, and the times of frames by another name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate, hidden, reported_columns, rows
from python_tests.vlm_omni import AUDIO, MELS
from zspa_kernels import hf

METHOD = zk.ZSPAPrune(keep=0.3, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
FRAMES = 40  # of a sound, which become ten tokens
SOUND = " ".join([AUDIO[0], *[AUDIO[1]] * 10, AUDIO[2]])


@pytest.fixture(name="tiny")
def _tiny() -> vlms.Tiny:
    return vlms.get("qwen2_5_omni")


def heard(tiny: vlms.Tiny, *texts: str) -> dict[str, Any]:
    """Prompts with a picture, a video and a sound each, where they name them."""
    count = len(texts)
    inputs = tiny.processor(
        images=[[vlms.photograph("chelsea", (170, 112))]] * count,
        videos=[vlms.video("rocket", 6)] * count,
        text=[f"<start> user {text} <end> <start> assistant" for text in texts],
    )
    generator = torch.Generator().manual_seed(0)
    inputs["input_features"] = torch.randn(count, MELS, FRAMES + 8, generator=generator)
    mask = torch.ones(count, FRAMES + 8, dtype=torch.long)
    mask[:, FRAMES:] = 0
    return {**inputs, "feature_attention_mask": mask}


def two(tiny: vlms.Tiny) -> dict[str, Any]:
    return heard(
        tiny,
        f"what is {tiny.image} and {SOUND} in {tiny.film} please",
        f"{tiny.film} who {SOUND} {tiny.image} is it",
    )


def test_sounds_are_left_whole(tiny: vlms.Tiny) -> None:
    """Pictures and videos in front of them and behind them are pruned; positions are right."""
    inputs = two(tiny)
    with METHOD(tiny.model) as handle:
        inside = rows(generate(tiny.model, inputs))
    report = handle.report
    assert report is not None
    assert [image.video for image in report.images] == [False, True, True, False]
    assert report.query_tokens == [3, 3]  # no piece of a sound
    pruned = hf.prune_inputs(tiny.model, inputs, METHOD)
    assert torch.equal(rows(generate(tiny.model, pruned)), inside)
    kept = pruned["input_ids"] == tiny.model.config.audio_token_id
    assert kept.sum(1).tolist() == [10, 10]
    keep = reported_columns(tiny, inputs, pruned.report)
    expected = hidden(tiny, inputs, keep)
    with torch.no_grad():
        logits = tiny.model(**pruned).logits
    for b, real in enumerate(pruned["attention_mask"].bool()):
        torch.testing.assert_close(logits[b, real], expected[b, pruned.index[b, real]], **CLOSE)


def test_nothing_changes_if_all_is_kept(tiny: vlms.Tiny) -> None:
    """So positions of sounds, and of frames in seconds, are the model's own."""
    inputs = two(tiny)
    expected = rows(generate(tiny.model, inputs))
    with torch.no_grad():
        direct = tiny.model(**inputs).logits
    method = zk.DivPrune(keep=1.0)
    handle = method(tiny.model).install()
    assert torch.equal(rows(generate(tiny.model, inputs)), expected)
    with torch.no_grad():
        assert torch.equal(tiny.model(**inputs).logits, direct)
    with pytest.warns(hf.NothingPrunedWarning):
        handle.remove()
    lengths = {k: v for k, v in inputs.items() if k != "feature_attention_mask"}
    lengths["audio_feature_lengths"] = inputs["feature_attention_mask"].sum(1)
    with pytest.warns(hf.NothingPrunedWarning):
        one, other = (hf.prune_inputs(tiny.model, x, method) for x in (inputs, lengths))
    assert torch.equal(one["position_ids"], other["position_ids"])


def test_a_sound_inside_of_a_video_is_refused(tiny: vlms.Tiny) -> None:
    inputs = two(tiny)
    ids = inputs["input_ids"]
    film = (ids[1] == tiny.model.config.video_token_id).nonzero().flatten()
    sound = (ids[1] == tiny.model.config.audio_token_id).nonzero().flatten()
    ids[1, [film[3], sound[0]]] = ids[1, [sound[0], film[3]]]
    message = "use_audio_in_video must be False, got a video between whose tokens"
    with pytest.raises(hf.UnsupportedInputError, match=message):
        hf.prune_inputs(tiny.model, inputs, METHOD)
    with METHOD(tiny.model) as handle:
        for ask in (tiny.model, tiny.model.generate):
            with pytest.raises(hf.UnsupportedInputError, match=message):
                ask(**inputs)
        generate(tiny.model, tiny.inputs())
    assert handle.calls == 1


def test_a_sound_in_a_conversation_is_refused(tiny: vlms.Tiny) -> None:
    chat = hf.ChatState(tiny.model, METHOD)
    one = heard(tiny, f"what is {tiny.image} and {SOUND} in {tiny.film}")
    with pytest.raises(hf.UnsupportedInputError, match="input_features must be None, got one"):
        chat.generate(**one, max_new_tokens=1)
