# SPDX-License-Identifier: Apache-2.0
"""`with method(model):` on every architecture: generating, and calling the model directly.

These tests run on every version of transformers, whatever way it offers to hand over a pruned
prompt; see docs/hf.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

import zspa_kernels as zk
from python_tests import vlm_models, vlms
from python_tests.hf_oracle import (
    NEW,
    TOGETHER,
    cache_name,
    cache_of,
    generate,
    hidden,
    hidden_with_grad,
    reported_columns,
    rows,
    shown,
)
from zspa_kernels import hf

METHOD = zk.ZSPAPrune(keep=0.2, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=vlms.BUILDERS, scope="module")
def tiny(request: pytest.FixtureRequest) -> vlms.Tiny:
    return vlms.get(request.param)


@pytest.mark.parametrize(("name", "kind"), vlms.cases("single", "ragged"))
def test_keep_all_changes_no_bit(name: str, kind: str) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs(kind)
    expected = generate(tiny.model, inputs)
    handle = zk.ZSPAPrune(keep=1.0)(tiny.model).install()
    got = generate(tiny.model, inputs)
    with torch.no_grad():
        direct = tiny.model(**inputs).logits
    with pytest.warns(hf.NothingPrunedWarning, match="nothing was pruned: ZSPAPrune"):
        handle.remove()
    assert torch.equal(rows(got), rows(expected))
    assert torch.equal(got.sequences, expected.sequences)
    with torch.no_grad():
        assert torch.equal(direct, tiny.model(**inputs).logits)


@pytest.mark.parametrize(("name", "kind"), vlms.cases("ragged"))
def test_the_prompt_comes_back_whole(name: str, kind: str) -> None:
    """P13: callers cut `sequences[:, len(prompt):]`."""
    tiny = vlms.get(name)
    inputs = tiny.inputs(kind)
    length = inputs["input_ids"].shape[1]
    named: set[str] = set()
    watching = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: named.update(kwargs), with_kwargs=True
    )
    with METHOD(tiny.model) as handle:
        output = generate(tiny.model, inputs)
        watching.remove()
        rest = {k: v for k, v in inputs.items() if k != "input_ids"}
        options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
        plain = tiny.model.generate(inputs["input_ids"], **rest, **options)
    assert torch.equal(output.sequences[:, :length], inputs["input_ids"])
    assert torch.equal(output.sequences[:, length:], rows(output).argmax(-1))
    assert torch.equal(plain, output.sequences)
    assert "kwargs" not in named  # what `generate` takes beyond its names is given by its own
    assert handle.report is not None
    assert handle.report.after < handle.report.before / 2
    assert handle.calls == 2
    pruned = max(handle.report.prompt_after)
    assert cache_of(output).get_seq_length() == pruned + NEW - 1


@pytest.mark.parametrize(("name", "kind"), vlms.cases("ragged"))
def test_a_batch_is_its_prompts_alone_at_every_step(name: str, kind: str) -> None:
    """P3: the mask of a padded batch is wrong in the steps of decoding, if anywhere."""
    tiny = vlms.get(name)
    with METHOD(tiny.model):
        together = rows(generate(tiny.model, tiny.inputs(kind)))
        for b in range(2):
            alone = rows(generate(tiny.model, tiny.alone(b, kind)))
            torch.testing.assert_close(alone[0], together[b], **CLOSE)


@pytest.mark.parametrize(("name", "kind"), vlms.cases("single"))
def test_positions_where_they_are_used(name: str, kind: str) -> None:
    """Captured at the rotary embedding, in the prompt and in every step."""
    tiny = vlms.get(name)
    inputs = tiny.inputs() if kind == "single" else tiny.alone(0, kind)
    with vlms.rotary_positions(tiny.model) as full:
        generate(tiny.model, inputs)
    with vlms.rotary_positions(tiny.model) as pruned, METHOD(tiny.model) as handle:
        generate(tiny.model, inputs)
    packed = METHOD(tiny.model, positions="compact")
    with vlms.rotary_positions(tiny.model) as compact, packed:
        generate(tiny.model, inputs)
    assert handle.report is not None
    assert packed.report is not None
    assert (handle.report.positions, packed.report.positions) == ("original", "compact")
    keep = reported_columns(tiny, inputs, handle.report)[0]
    assert len(full) == len(pruned) == len(compact) == NEW
    assert torch.equal(pruned[0], full[0][..., keep])
    for step, expected in zip(pruned[1:], full[1:], strict=True):
        assert torch.equal(step, expected)
    counted = torch.cat(compact, dim=-1)
    assert torch.equal(counted, torch.arange(counted.shape[-1]).expand_as(counted))


@pytest.mark.parametrize("size", [(170, 112), (112, 170)], ids=["wide", "tall"])
def test_a_prompt_that_ends_with_a_picture(tiny: vlms.Tiny, size: tuple[int, int]) -> None:
    """Its last token stays: the answer is read there, and goes on behind the largest position."""
    if tiny.name == "qwen2_5_omni":
        pytest.skip("other models: this one counts a mark behind the picture, unpruned as well")
    made = tiny.processor(
        images=[vlms.photograph("chelsea", size)],
        text=f"<start> user what is {tiny.image}",
        return_tensors="pt",
    )
    ids = made["input_ids"]
    end = int(shown(tiny, ids)[0].nonzero()[-1]) + 1
    inputs = {k: v[:, :end] if v.shape == ids.shape else v for k, v in made.items()}
    with vlms.rotary_positions(tiny.model) as full:
        generate(tiny.model, inputs)
    with METHOD(tiny.model) as handle, torch.no_grad():
        with vlms.rotary_positions(tiny.model) as pruned:
            output = generate(tiny.model, inputs)
        past = {cache_name(tiny.model): cache_of(tiny.model(**inputs, use_cache=True))}
        with vlms.rotary_positions(tiny.model) as step:
            mask = torch.ones(1, end + 1, dtype=torch.long)
            tiny.model(input_ids=ids[:, :1], attention_mask=mask, use_cache=True, **past)
    assert step[0].unique().tolist() == [int(full[0].max()) + 1]
    assert handle.report is not None
    keep = reported_columns(tiny, inputs, handle.report)
    assert keep[0, -1]
    assert torch.equal(pruned[0], full[0][..., keep[0]])
    torch.testing.assert_close(rows(output)[0, 0], hidden(tiny, inputs, keep)[0, -1], **CLOSE)
    # Of an unpruned prompt that ends so these count each axis on from the last token of its own.
    if not (tiny.name in (*vlms.FILMS, *vlms.MROPE) and (5, 0) <= vlms.VERSION < (5, 20)):
        assert all(map(torch.equal, pruned[1:NEW], full[1:NEW]))


def by_hand(model: Any, inputs: Any, first: Any, ends: torch.Tensor) -> torch.Tensor:
    """Logits of NEW steps, the first of them of columns `ends` of `first`; masks are unpruned."""
    output, mask = first, inputs["attention_mask"]
    steps = [output.logits[torch.arange(len(ends)), ends]]
    for _ in range(NEW - 1):
        token = steps[-1].argmax(-1, keepdim=True)
        mask = torch.cat((mask, torch.ones_like(token)), dim=1)
        past = {cache_name(model): cache_of(output)}
        output = model(input_ids=token, attention_mask=mask, use_cache=True, **past)
        steps.append(output.logits[:, -1])
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize(("name", "kind"), vlms.cases("ragged", "right"))
def test_a_direct_call_sees_the_kept_tokens_only(name: str, kind: str) -> None:
    """The masked oracle, and then decoding by hand with masks of the unpruned prompt."""
    tiny = vlms.get(name)
    inputs = tiny.inputs(kind)
    padded = tiny.inputs("ragged" if kind == "right" else kind)
    for positions in ("compact", "original"):
        with METHOD(tiny.model, positions=positions) as handle, torch.no_grad():
            first = tiny.model(**inputs, use_cache=True)
            report = handle.report
            assert report is not None
            ends = torch.tensor(report.prompt_after if kind == "right" else [0, 0]) - 1
            if kind == "right" and name in vlm_models.STATES:
                # They have read the padding behind the prompts; unpruned nobody says so.
                with pytest.raises(hf.UnsupportedInputError, match="its padding on the left when"):
                    by_hand(tiny.model, inputs, first, ends)
                continue
            steps = by_hand(tiny.model, inputs, first, ends)
            generated = rows(generate(tiny.model, padded))
        torch.testing.assert_close(steps, generated, **CLOSE)
    assert report is not None
    assert report.route == "hooks"
    keep = reported_columns(tiny, inputs, report)
    expected = hidden(tiny, inputs, keep)
    for b, columns in enumerate(keep):
        count = int(columns.sum())
        own = first.logits[b, :count] if kind == "right" else first.logits[b, -count:]
        torch.testing.assert_close(own, expected[b, columns], **CLOSE)


@dataclass
class Uneven:
    """Keeps two tokens of an image for one question, and five for another."""

    def select_varlen(
        self, visual: Sequence[torch.Tensor], prompt: Sequence[torch.Tensor]
    ) -> list[zk.Selection]:
        counts = [2 if float(words[0, 0]) > 0 else 5 for words in prompt]
        return [zk.Selection(torch.arange(n), torch.zeros(n, dtype=torch.bool)) for n in counts]


def test_a_batch_that_pruning_makes_ragged(tiny: vlms.Tiny) -> None:
    """P4: prompts without padding, so without a mask, of which unequal parts are left."""
    first = tiny.model.get_input_embeddings().weight[:, 0].detach()
    words = sorted(
        ("what", "who", "where", "count", "describe", "compare"),
        key=lambda word: float(first[tiny.processor.tokenizer.convert_tokens_to_ids(word)]),
    )
    photos = [[vlms.photograph(name, (112, 112))] for name in ("chelsea", "coffee")]
    # They begin with the picture: no padding may stand for a piece of it.
    texts = [f"{tiny.image} {word} is it" for word in (words[0], words[-1])]

    def asked(*chosen: int) -> dict[str, Any]:
        made = tiny.processor(
            images=[photos[i] for i in chosen],
            text=[texts[i] for i in chosen],
            return_tensors="pt",
            padding=True,
        )
        assert made["attention_mask"].all()
        return {name: value for name, value in made.items() if name != "attention_mask"}

    with hf.prune(tiny.model, Uneven()) as handle, torch.no_grad():
        together = rows(generate(tiny.model, asked(0, 1)))
        assert handle.report is not None
        assert [image.after for image in handle.report.images] == [5, 2]
        output = tiny.model(**asked(0, 1), use_cache=True)
        steps = [output.logits[:, -1]]
        for _ in range(NEW - 1):
            token = steps[-1].argmax(-1, keepdim=True)
            past = {cache_name(tiny.model): cache_of(output)}
            output = tiny.model(input_ids=token, use_cache=True, **past)
            steps.append(output.logits[:, -1])
        torch.testing.assert_close(torch.stack(steps, dim=1), together, **CLOSE)
        for b in range(2):
            alone = rows(generate(tiny.model, asked(b)))
            torch.testing.assert_close(alone[0], together[b], **CLOSE)


def bytes_of(output: Any) -> int:
    """Keys and values of all layers."""
    layers = [one for one in cache_of(output).layers if getattr(one, "keys", None) is not None]
    return sum(x.nbytes for one in layers for x in (one.keys, one.values))


@pytest.mark.parametrize("name", [*TOGETHER, "gemma4", "cohere2_vision", "llava"])
def test_a_window_shorter_than_the_prompt(name: str) -> None:
    """P19: sliding layers hold fewer slots than the pruned prompt; batches stay their prompts."""
    tiny = vlms.get(name)
    config = copy.deepcopy(tiny.model.config)
    if name == "llava":  # Mistral's layers are of no kinds: all of them slide
        config.text_config = vlm_models.text(transformers.MistralConfig, sliding_window=8)
    config.text_config.sliding_window = 8
    torch.manual_seed(0)
    model = type(tiny.model)(config).eval()
    model.generation_config = tiny.model.generation_config
    inputs = tiny.inputs("ragged")
    with METHOD(model) as handle:
        output = generate(model, inputs)
        for b in range(2):
            alone = rows(generate(model, tiny.alone(b)))
            torch.testing.assert_close(alone[0], rows(output)[b], **CLOSE)
        with torch.no_grad():
            after = model(**inputs, use_cache=True)
    with torch.no_grad():
        before = model(**inputs, use_cache=True)
    assert handle.report is not None
    assert max(handle.report.prompt_after) > 8
    assert handle.report.kv_bytes_after == bytes_of(after)
    assert handle.report.kv_bytes_before == bytes_of(before)
    expected = rows(generate(model, inputs))
    everything = zk.ZSPAPrune(keep=1.0)(model).install()
    assert torch.equal(rows(generate(model, inputs)), expected)
    with pytest.warns(hf.NothingPrunedWarning):
        everything.remove()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava"])
def test_positions_of_one_axis_that_are_given(name: str) -> None:
    """Of three axes each is then the same, as without pruning; steps go on from the largest."""
    tiny = vlms.get(name)
    inputs = tiny.inputs()
    places = 7 + 2 * torch.arange(inputs["input_ids"].shape[1])[None]
    given = {**inputs, "position_ids": places}

    def ask(call: Any) -> None:
        with vlms.rotary_positions(tiny.model) as seen:
            call(**given, max_new_tokens=2, do_sample=False)
        for got, expected in zip(seen, (places[keep], places[:, -1] + 1), strict=True):
            assert torch.equal(got, expected.expand_as(got))

    with METHOD(tiny.model) as handle:
        tiny.model.generate(**inputs, max_new_tokens=1)
        assert handle.report is not None
        keep = reported_columns(tiny, inputs, handle.report)
        ask(tiny.model.generate)
    if vlms.VERSION >= (5, 20):
        ask(hf.ChatState(tiny.model, METHOD).generate)


def test_gradients_of_a_direct_call(tiny: vlms.Tiny) -> None:
    """Training with a pruned prompt: those of the unpruned one with the dropped tokens hidden."""
    inputs = tiny.inputs()

    def gradients(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        logits[0, -1].square().sum().backward()
        found = {n: p.grad for n, p in tiny.model.named_parameters() if p.grad is not None}
        tiny.model.zero_grad()
        return found

    tiny.model.train()
    try:
        with METHOD(tiny.model) as handle:
            got = gradients(tiny.model(**inputs).logits)
        assert handle.report is not None
        keep = reported_columns(tiny, inputs, handle.report)
        expected = gradients(hidden_with_grad(tiny, inputs, keep))
    finally:
        tiny.model.eval()
    assert set(got) == set(expected)
    largest = {name: float(one.abs().max()) for name, one in expected.items()}
    # Not those of biases of keys, which are zero but for rounding.
    names = [name for name, one in largest.items() if one > 1e-6 * max(largest.values())]
    assert any(part in name for name in names for part in ("visual", "vision", "tower"))
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4 * largest[name])


def test_ambient_modes(tiny: vlms.Tiny) -> None:
    """Inference mode changes no bit; under autocast the prompt is as short."""
    # Their merging, or their experts, mix types under autocast, unpruned as well.
    until = {"smolvlm": (5, 23), "idefics3": (5, 23), "qwen3_vl_moe": (5, 0), "ovis2": (5, 17)}
    mixes = until.get(tiny.name, (0, 0)) > vlms.VERSION
    inputs = tiny.inputs()
    with METHOD(tiny.model) as handle:
        expected = rows(generate(tiny.model, inputs))
        with torch.inference_mode():
            assert torch.equal(rows(generate(tiny.model, inputs)), expected)
            direct = tiny.model(**inputs).logits[:, -1]
        torch.testing.assert_close(direct, expected[:, 0], **CLOSE)
        with torch.autocast("cpu", torch.bfloat16, enabled=not mixes):
            rounded = rows(generate(tiny.model, inputs))
    assert handle.calls == 4
    assert rounded.isfinite().all()
    assert handle.report is not None
    assert [image.after for image in handle.report.images] == [
        zk.num_keep(image.before, 0.2) for image in handle.report.images
    ]
