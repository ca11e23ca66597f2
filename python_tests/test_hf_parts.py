# SPDX-License-Identifier: Apache-2.0
"""What is where: the parts of a model, the tokens of a picture, the times of a video."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate, rows
from zspa_kernels import hf
from zspa_kernels.hf.architectures import ARCHITECTURES, Target
from zspa_kernels.hf.layout import Layout, _squares
from zspa_kernels.hf.marks import marks


def images(tiny: vlms.Tiny, inputs: Any) -> list[Any]:
    """What is reported of each."""
    with zk.DivPrune(keep=2)(tiny.model) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    assert handle.report is not None
    return handle.report.images


def test_models_in_wrappers(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT around a compiled model or inside of one; a compiled inner model."""
    model = vlms.get("llava").model
    inner, compiled = model.model, torch.compile(model, backend="eager")
    peft = [SimpleNamespace(get_base_model=lambda one=one: one) for one in (model, compiled)]
    wrapped = SimpleNamespace(_orig_mod=peft[0])
    monkeypatch.setitem(model._modules, "model", torch.compile(inner, backend="eager"))
    for one in (model, compiled, *peft, wrapped):
        target = Target.of(one)
        assert (target.model, target.inner) == (model, inner)
        assert target.takes_features == (vlms.VERSION >= (5, 20))


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks
def test_virtual_tokens_in_front_of_a_prompt() -> None:
    """PEFT has no positions for what stands behind them but those that it counts itself."""
    import peft

    tiny, method = vlms.build("llava"), zk.DivPrune(keep=0.3)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=64)
    config.num_layers, config.num_attention_heads = 2, 4
    model = peft.get_peft_model(tiny.model, config)
    for make in (
        lambda: method(model),
        lambda: hf.prune_inputs(model, tiny.inputs(), method),
        lambda: hf.ChatState(model, method),
    ):
        with pytest.raises(hf.UnsupportedModelError, match=r"virtual tokens \(PROMPT_TUNING\)"):
            make()
    with method(model.get_base_model()) as handle:
        tiny.model.generate(**tiny.inputs(), max_new_tokens=1)
    assert handle.calls == 1


def test_a_forward_that_is_put_around_the_model_s_inside_a_block() -> None:
    """As accelerate and `model.forward = torch.compile(model.forward)` do; it stays, and works."""
    tiny = vlms.get("llava")
    inputs, calls = tiny.inputs(), []
    try:
        with zk.DivPrune(keep=0.3)(tiny.model):
            forward = tiny.model.forward

            @functools.wraps(forward)
            def around(*args: Any, **kwargs: Any) -> Any:
                calls.append(kwargs)
                return forward(*args, **kwargs)

            tiny.model.forward = around
            with pytest.raises(hf.LabelsError):
                tiny.model(**inputs, labels=inputs["input_ids"])
            generate(tiny.model, inputs, max_new_tokens=1)
        assert tiny.model.forward is around
        assert tiny.model(**inputs, labels=inputs["input_ids"]).loss > 0
        assert len(calls) == 3
    finally:
        vars(tiny.model).pop("forward", None)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_a_model_whose_own_forward_takes_no_encoded_pictures(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one derived from an older version of its class; pruned as with older transformers."""
    tiny, method = vlms.get(name), zk.DivPrune(keep=0.3)
    inputs = tiny.inputs("ragged")
    with method(tiny.model):
        expected = rows(generate(tiny.model, inputs))
    stock = type(tiny.model)

    class Derived(stock):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    names = inspect.signature(stock.forward).parameters
    older = [one for key, one in names.items() if key != "mm_encoder_outputs"]
    vars(Derived.forward)["__signature__"] = inspect.Signature(older)
    monkeypatch.setattr(tiny.model, "__class__", Derived)
    with method(tiny.model):
        assert torch.equal(rows(generate(tiny.model, inputs)), expected)
    for make in (
        lambda: hf.prune_inputs(tiny.model, inputs, method),
        lambda: hf.ChatState(tiny.model, method),
    ):
        with pytest.raises(hf.UnsupportedModelError, match=r"must take encoded pictures .* got D"):
            make()


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("qwen3_5", "5.12.1", r"5\.13 or newer for Qwen3\.5, got 5\.12\.1,"),
        ("qwen3_5_moe", "4.57.6", r"5\.13 or newer for Qwen3\.5, got 4\.57\.6,"),
        ("lfm2_vl", "5.12.1", r"5\.13 or newer for LFM2-VL, got"),
        ("gemma4_moe", "5.16.1", r"5\.17 or newer for Gemma 4, got"),
        ("glm46v", "4.99.9", r"5\.0 or newer for GLM-V, got"),
        ("qwen2_5_omni", "5.20.2", r"5\.21 or newer for Qwen2\.5-Omni, got"),
        ("ovis2", "4.57.6", r"5\.0 or newer for Ovis2, got"),
        ("qwen3_5", "5.13.0.dev0", None),
        ("glm4v_moe", "5.0.0", None),
        ("qwen3_vl", "4.57.6", None),
    ],
)
def test_versions_that_a_model_is_too_new_for(
    name: str, version: str, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vlms.get(name).model
    # The module replaces itself when it is imported.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    if text is None:
        assert Target.of(model).model is model
        return
    with pytest.raises(zk.hf.UnsupportedModelError, match=f"transformers must be {text}"):
        Target.of(model)


def test_cells_are_places_in_the_picture() -> None:
    for name, side in (("llava", 8), ("gemma3", 4), ("internvl", 4), ("smolvlm", 4)):
        tiny = vlms.get(name)
        cell = images(tiny, tiny.inputs("ragged"))[1].cell
        expected = [[0, row, column] for row in range(side) for column in range(side)]
        assert cell.tolist() == expected
    tiny = vlms.get("qwen2_5_vl")
    _, rows, columns = (tiny.inputs()["image_grid_thw"][0] // 2).tolist()
    cell = images(tiny, tiny.inputs())[0].cell
    assert cell.tolist() == [[0, r, c] for r in range(rows) for c in range(columns)]
    # LLaVA-NeXT's tiles have 4 x 4 tokens; these stand one beside, or one below, the other.
    tiny = vlms.get("llava_next")
    for size, high, wide in (((224, 70), 1, 2), ((70, 224), 2, 1), ((112, 112), 2, 2)):
        photo = vlms.photograph("coffee", size)
        inputs = tiny.processor(images=[photo], text=tiny.prompt("who"), return_tensors="pt")
        cell = images(tiny, inputs)[0].cell
        assert cell[:16].tolist() == [[0, r, c] for r in range(4) for c in range(4)]
        number, row, column = cell[cell[:, 0] > 0].T
        assert torch.equal(number, 1 + row // 4 * wide + column // 4)
        assert number.unique().tolist() == list(range(1, 1 + high * wide))


def test_a_run_of_tiles_is_one_image() -> None:
    """InternVL's large pictures come as tiles, between which no word stands."""
    tiny = vlms.get("internvl")
    photos = [vlms.photograph(name, (112, 112)) for name in ("chelsea", "coffee", "rocket")]
    # The run of the first prompt ends where that of the second one begins.
    texts = [f"{tiny.image} {tiny.image} who" + " a" * 18, "a " * 32 + f"{tiny.image} who a a"]
    given = {"images": [photos[:2], photos[2:]], "text": texts}
    inputs = tiny.processor(**given, return_tensors="pt", padding=True)
    with zk.hf.prune(tiny.model, zk.DivPrune(keep=0.3), scope="tile") as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    assert handle.report is not None
    large, small = handle.report.images
    assert (large.before, small.before) == (32, 16)
    places = [range(2), range(4), range(4)]
    assert large.cell.tolist() == [list(cell) for cell in itertools.product(*places)]
    assert large.cell[large.indices, 0].tolist() == [0] * 5 + [1] * 5
    five = torch.zeros(5, dtype=torch.long)  # no square of tokens
    assert _squares(five, five).tolist() == [[0, -1, i] for i in range(5)]


@pytest.mark.parametrize(
    ("prompt", "places"),
    [
        # 9: a piece of the video, 7 and 8: its marks, 60 and 61: a time. As every frame has one:
        ([1, 50, 60, 7, 9, 9, 8, 60, 7, 9, 9, 8, 52], [2, 3, 6, 7, 8]),
        # The first time may be the longer one.
        ([1, 60, 50, 60, 61, 61, 61, 7, 9, 8, 60, 7, 9, 8, 60], [3, 4, 5, 6, 7, 9, 10, 11]),
        # What stands too far away is no time, and marks alone have none.
        ([60, 50, 50, 50, 50, 50, 50, 7, 9, 8, 60, 7, 9, 8], [9, 10, 11]),
        ([1, 50, 7, 9, 9, 8, 7, 9, 9, 8, 52], [5, 6]),
    ],
)
def test_where_the_times_of_frames_stand(prompt: list[int], places: list[int]) -> None:
    ids = torch.tensor([prompt])
    column = (ids[0] == 9).nonzero().flatten()
    one = torch.zeros_like(column)
    where = Layout(one, column, one, torch.zeros(len(one), 3), torch.ones(len(one)).bool())
    found = marks(ARCHITECTURES["qwen3_vl"], where, ids)
    assert found[0].nonzero().flatten().tolist() == places


def test_generate_goes_on_from_given_positions() -> None:
    """As docs/own_models.md says: before 5.3 it counts on from the length of the cache."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    columns, count = torch.tensor([[0, 1, 40, 77, 90, 91]]), 5
    whole = model.get_input_embeddings()(torch.randint(3, 100, (1, 92)))
    mask = torch.zeros(1, 92, dtype=torch.long).scatter(1, columns, 1)
    given = {"inputs_embeds": whole[:, columns[0]], "attention_mask": torch.ones_like(columns)}
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    answer = model.generate(**given, position_ids=columns, **options)
    right = []
    for _ in range(count):
        places = torch.arange(whole.shape[1])[None]
        logits = model(inputs_embeds=whole, attention_mask=mask, position_ids=places).logits
        right.append(int(logits[0, -1].argmax()))
        token = model.get_input_embeddings()(torch.tensor([right[-1:]]))
        whole, mask = torch.cat((whole, token), 1), torch.cat((mask, mask.new_ones(1, 1)), 1)
    assert (answer[0].tolist() == right) == (vlms.VERSION >= (5, 3))
