# SPDX-License-Identifier: Apache-2.0
"""A cache knows what it holds: a pruned prompt, or nothing of it any more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import cache_name, cache_of, generate, rows
from zspa_kernels import hf
from zspa_kernels.hf import continuation

METHOD = zk.ZSPAPrune(keep=0.2, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
WORDS = {"input_ids": torch.tensor([[0, 20, 21], [22, 23, 24]])}
WORDS["attention_mask"] = torch.tensor([[0, 1, 1], [1, 1, 1]])


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def tiny(request: pytest.FixtureRequest) -> vlms.Tiny:
    return vlms.get(request.param)


@pytest.mark.parametrize("whole", [True, False])
def test_an_emptied_cache_serves_other_prompts(tiny: vlms.Tiny, whole: bool) -> None:
    """`generate` of old versions keeps a static cache, and empties it for the next prompt."""
    model, inputs = tiny.model, tiny.inputs("ragged")
    own = transformers.StaticCache(config=model.config.get_text_config(), max_cache_len=200)
    expected = rows(generate(model, WORDS))
    with METHOD(model), torch.no_grad():
        pruned = rows(generate(model, inputs))
        for given in ({"cache_implementation": "static"}, {cache_name(model): own}):
            model.generate(**inputs, **given, max_new_tokens=2, return_dict_in_generate=whole)
            # What was written there to generate with it is wrong for whoever goes on by hand.
            note = continuation.of(vars(model).get("_cache"))
            assert note is None or not note.own_positions
            own.reset()
            torch.testing.assert_close(rows(generate(model, WORDS, **given)), expected, **CLOSE)
            own.reset()
            torch.testing.assert_close(rows(generate(model, inputs, **given)), pruned, **CLOSE)
            own.reset()
        model(**inputs, **{cache_name(model): own})
        own.reset()
        for step in range(2):  # its second token goes on from words as well
            ids, places = torch.full((2, 1), 20 + step), torch.full((2, 1), step)
            direct = model(ids, position_ids=places, **{cache_name(model): own}).logits
        two = torch.tensor([[20, 21]] * 2)
        torch.testing.assert_close(direct[:, -1], model(two).logits[:, -1], **CLOSE)


@pytest.mark.parametrize("fails", [False, True])
def test_a_cache_of_the_callers_is_known_to_hold_a_pruned_prompt(
    tiny: vlms.Tiny, fails: bool
) -> None:
    """Whatever `generate` returned: the next prompt would be cut by the wrong length."""
    cache: Any = transformers.DynamicCache(config=tiny.model.config)
    past = {cache_name(tiny.model): cache}

    def stop(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if fails:
            raise RuntimeError("stop")
        return scores

    ids = tiny.inputs()["input_ids"]
    options: dict[str, Any] = {"max_new_tokens": 2, "logits_processor": [stop]}
    with METHOD(tiny.model):
        if fails:
            with pytest.raises(RuntimeError, match="stop"):
                tiny.model.generate(**tiny.inputs(), **past, **options)
        else:
            ids = tiny.model.generate(**tiny.inputs(), **past, **options)
        longer = torch.cat((ids, torch.tensor([[5, 6, 7]])), dim=1)
        with pytest.raises(hf.CachedPromptError, match="ChatState"):
            tiny.model.generate(input_ids=longer, **past)


def test_a_cache_and_a_mask_that_do_not_fit(tiny: vlms.Tiny) -> None:
    """A mask as long as the cache would hide the new tokens; a prompt without its end is another's.

    One that has room for more, as for a static cache, is cut by the model itself.
    """
    model, inputs, name = tiny.model, tiny.inputs("ragged"), cache_name(tiny.model)
    new = torch.tensor([[20, 21]] * 2)
    whole = torch.nn.functional.pad(inputs["attention_mask"], (0, 7), value=1)
    length = inputs["input_ids"].shape[1]
    with METHOD(model), torch.no_grad():
        cache = cache_of(model(**inputs, use_cache=True))
        kept = cache.get_seq_length()
        for columns in (kept + 2, 2, length + 1):
            with pytest.raises(
                hf.UnsupportedInputError,
                match=rf"attention_mask must have .*, {length + 2}, got {columns}; .* {kept} tok",
            ):
                model(input_ids=new, attention_mask=whole[:, :columns], **{name: cache})
        expected = model(
            input_ids=new, attention_mask=whole[:, : length + 2], **{name: copy.deepcopy(cache)}
        ).logits
        longer = model(input_ids=new, attention_mask=whole, **{name: copy.deepcopy(cache)}).logits
        assert torch.equal(longer, expected)
        for layer in cache.layers:
            layer.crop(-1)
        for given in ({}, {"attention_mask": whole}):
            with pytest.raises(hf.CachedPromptError, match=rf"whole, {kept} .*, got {kept - 1};"):
                model(input_ids=new, **given, **{name: cache})
