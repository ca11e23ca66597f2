# SPDX-License-Identifier: Apache-2.0
"""The model is left as it was, and what would give wrong results is refused with advice."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import zspa_kernels as zk
from python_tests import vlm_models, vlms
from python_tests.hf_oracle import NEW, cache_name, cache_of, generate, rows
from zspa_kernels import hf
from zspa_kernels.hf import continuation
from zspa_kernels.hf.encode import _parts

METHOD = zk.ZSPAPrune(keep=0.2, core_ratio=0.4)
needs_inputs = pytest.mark.skipif(
    vlms.VERSION < (5, 20), reason="transformers >= 5.20 (mm_encoder_outputs)"
)


@pytest.fixture(params=vlms.BUILDERS)
def tiny(request: pytest.FixtureRequest) -> vlms.Tiny:
    return vlms.get(request.param)


def state(model: nn.Module) -> list[Any]:
    """Everything that pruning could leave behind: attributes and hooks of every module."""
    return [
        (
            name,
            sorted(vars(part)),
            [len(x) for x in vars(part).values() if isinstance(x, dict)],
        )
        for name, part in model.named_modules()
    ]


def test_the_model_is_unchanged_afterwards(tiny: vlms.Tiny) -> None:
    inputs = tiny.inputs()
    expected = generate(tiny.model, inputs)  # transformers installs hooks of its own the first time
    before = state(tiny.model)
    with METHOD(tiny.model) as handle:
        assert state(tiny.model) != before
        generate(tiny.model, inputs)
    assert state(tiny.model) == before
    with pytest.raises(RuntimeError, match="mine"), METHOD(tiny.model):
        raise RuntimeError("mine")
    assert state(tiny.model) == before
    handle.install()
    with pytest.warns(hf.NothingPrunedWarning, match="no call had a picture"):
        handle.remove()
    handle.remove()
    assert state(tiny.model) == before
    assert torch.equal(rows(generate(tiny.model, inputs)), rows(expected))


def test_an_error_inside_a_call_leaves_nothing_behind(tiny: vlms.Tiny) -> None:
    inputs = tiny.inputs()

    @torch.no_grad()
    def features() -> int:
        """Visual tokens that the model's own encoder gives."""
        names = inspect.signature(type(tiny.model.model).get_image_features).parameters
        given = {name: inputs[name] for name in names if name in inputs}
        pooled, _ = _parts(tiny.model.model.get_image_features(**given))
        return sum(one.reshape(-1, one.shape[-1]).shape[0] for one in pooled)

    count = features()
    with METHOD(tiny.model):
        expected = rows(generate(tiny.model, inputs))
        for _ in range(2):
            handle = vlms.text_model(tiny.model).register_forward_pre_hook(_fail)
            with pytest.raises(RuntimeError, match="inside"):
                tiny.model(**inputs)
            assert features() == count
            with pytest.raises(RuntimeError, match="inside"):
                generate(tiny.model, inputs)
            handle.remove()
        words = {"input_ids": inputs["input_ids"][:, -5:]}
        with torch.no_grad():
            assert tiny.model(**words).logits.shape[1] == 5
        assert torch.equal(rows(generate(tiny.model, inputs)), expected)


def _fail(*args: Any) -> None:
    raise RuntimeError("inside")


def test_functions_of_ones_own_come_back(tiny: vlms.Tiny) -> None:
    own = {name: getattr(tiny.model, name) for name in ("generate", "forward")}
    vars(tiny.model).update(own)
    try:
        with METHOD(tiny.model):
            for name, function in own.items():
                assert inspect.signature(getattr(tiny.model, name)) == inspect.signature(function)
            generate(tiny.model, tiny.inputs())
        assert all(vars(tiny.model)[name] is function for name, function in own.items())
    finally:
        del tiny.model.generate, tiny.model.forward


def test_a_generate_of_ones_own_passes_on_what_it_is_given() -> None:
    """Its arguments have no names of their own: a prompt given by position is pruned as well."""
    model = vlms.get("llava").model
    own = model.generate
    given = dict(vlms.get("llava").inputs(), max_new_tokens=2, do_sample=False)
    with METHOD(model):
        expected = model.generate(**given)
    ids = given.pop("input_ids")

    def passing(*everything: Any, **options: Any) -> Any:
        return own(*everything, **options)

    try:
        model.generate = passing
        with METHOD(model) as handle:
            assert torch.equal(model.generate(ids, **given), expected)
            assert torch.equal(model.generate(input_ids=ids, **given), expected)
        assert handle.calls == 2
        model.generate = lambda input_ids, **options: own(input_ids, **options)
        with METHOD(model):
            assert torch.equal(model.generate(ids, **given), expected)
    finally:
        del model.generate


def test_two_models_at_once() -> None:
    one, two = vlms.get("llava"), vlms.get("qwen2_5_vl")
    expected = []
    for tiny, method in ((one, METHOD), (two, zk.DivPrune(keep=0.4))):
        with method(tiny.model):
            expected.append(rows(generate(tiny.model, tiny.inputs())))
    with METHOD(one.model) as first, zk.DivPrune(keep=0.4)(two.model) as second:
        assert torch.equal(rows(generate(one.model, one.inputs())), expected[0])
        assert torch.equal(rows(generate(two.model, two.inputs())), expected[1])
    assert (first.calls, second.calls) == (1, 1)


def test_prompts_without_a_picture_pass_untouched(tiny: vlms.Tiny) -> None:
    words = dict(tiny.processor.tokenizer(["what is this", "who are you"], return_tensors="pt"))
    expected = generate(tiny.model, words)
    handle = METHOD(tiny.model).install()
    got = generate(tiny.model, words)
    with torch.no_grad():
        direct = tiny.model(**words).logits
    with pytest.warns(hf.NothingPrunedWarning, match="no call had a picture") as caught:
        handle.remove()
    idle = pytest.warns(hf.NothingPrunedWarning, match="no call had a picture")
    with idle as again, METHOD(tiny.model):
        pass
    assert [one[0].filename for one in (caught, again)] == [__file__] * 2
    assert torch.equal(rows(got), rows(expected))
    assert torch.equal(got.sequences, expected.sequences)
    with torch.no_grad():
        assert torch.equal(direct, tiny.model(**words).logits)
    assert (handle.report, handle.calls) == (None, 0)
    with handle:
        generate(tiny.model, tiny.inputs())
    with pytest.warns(hf.NothingPrunedWarning, match="no call had a picture"), handle:
        generate(tiny.model, words)


@needs_inputs
def test_nothing_pruned_is_said(tiny: vlms.Tiny) -> None:
    words = dict(tiny.processor.tokenizer(["what is this"], return_tensors="pt"))
    with pytest.warns(hf.NothingPrunedWarning, match="no image, nothing pruned") as caught:
        same = hf.prune_inputs(tiny.model, words, METHOD)
    assert caught[0].filename == __file__
    assert same["input_ids"] is words["input_ids"]
    assert same.index.tolist() == [[0, 1, 2]]
    assert same.report.prompt_before == [3]
    longer = torch.cat((words["input_ids"], torch.tensor([[7]])), dim=1).repeat(2, 1)
    assert torch.equal(same.restore(longer), longer)
    with pytest.warns(hf.NothingPrunedWarning, match="nothing was pruned: DivPrune"):
        hf.prune_inputs(tiny.model, tiny.inputs(), zk.DivPrune(keep=10**6))


def test_nested_blocks(tiny: vlms.Tiny) -> None:
    """P12: the inner one would silently do nothing."""
    before = state(tiny.model)
    with METHOD(tiny.model) as handle:
        with pytest.raises(hf.AlreadyPrunedError, match="leave its block or call its remove"):
            zk.DivPrune(keep=0.5)(tiny.model).install()
        generate(tiny.model, tiny.inputs())
        with pytest.raises(hf.AlreadyPrunedError, match=r"got <PruneHandle of .*, installed"):
            handle.install()
    assert state(tiny.model) == before
    with METHOD(tiny.model) as handle:
        generate(tiny.model, tiny.inputs())
        handle.remove()
        other = METHOD(tiny.model).install()  # is not removed by the end of the first one's block
    handle.remove()
    generate(tiny.model, tiny.inputs())
    other.remove()
    assert (handle.calls, other.calls) == (1, 1)
    assert state(tiny.model) == before


def test_copies_of_a_pruned_model(tiny: vlms.Tiny, tmp_path: Path) -> None:
    """A copy would answer with the original's `generate`; a file holds weights only."""
    with METHOD(tiny.model):
        for copying in (copy.deepcopy, pickle.dumps):
            with pytest.raises(hf.PruningError, match="must not be copied or saved whole while"):
                copying(tiny.model)  # type: ignore[operator]
        if tiny.name == "llava":
            tiny.model.save_pretrained(tmp_path)
            again = type(tiny.model).from_pretrained(tmp_path)
            assert "generate" not in vars(again)
        generate(tiny.model, tiny.inputs())
    assert "generate" not in vars(copy.deepcopy(tiny.model))


def test_a_handle_that_is_never_installed(tiny: vlms.Tiny) -> None:
    """`method(model)` without `with` prunes nothing, and does not do so in silence."""
    handle = METHOD(tiny.model)
    generate(tiny.model, tiny.inputs())
    with pytest.warns(
        hf.NothingPrunedWarning, match="not installed: ZSPA.* was never installed; write `with m"
    ):
        del handle


def test_what_is_no_method(tiny: vlms.Tiny) -> None:
    for wrong in ("zspaprune", 0.1, zk.ZSPAPrune, None):
        with pytest.raises(TypeError, match=r"^prune: method must be an object with `select`"):
            hf.prune(tiny.model, wrong)


def test_labels_and_chosen_columns(tiny: vlms.Tiny) -> None:
    """P15: they are of the unpruned prompt."""
    inputs = {**tiny.inputs()}
    names = [*inspect.signature(type(tiny.model).forward).parameters][1:]
    count = names.index(tiny.pixels) + 1

    def placed(**given: Any) -> Any:
        first = [given.get(name) for name in names[:count]]
        return tiny.model(*first, **{k: v for k, v in given.items() if k not in names[:count]})

    with METHOD(tiny.model) as handle:
        for ask in (tiny.model, tiny.model.forward, placed):  # PEFT's adapters call the second
            with pytest.raises(hf.LabelsError, match="labels must be None"):
                ask(**inputs, labels=inputs["input_ids"])
            with pytest.raises(hf.UnsupportedInputError, match="logits_to_keep must be an int"):
                ask(**inputs, logits_to_keep=torch.tensor([0]))
        # The last ones are those of both prompts. Without a cache there is none to remember them.
        tiny.model(**inputs, logits_to_keep=2, use_cache=False)
        words = torch.tensor([[20, 21, 22]])  # without pictures labels are as long as the prompt
        kinds = {"token_type_ids": torch.zeros_like(words)} if tiny.name == "gemma3" else {}
        assert tiny.model(input_ids=words, labels=words, **kinds).loss > 0
        generate(tiny.model, inputs)
    assert handle.calls == 2


def test_going_on_from_a_pruned_cache(tiny: vlms.Tiny) -> None:
    """P9: generate would cut the next prompt by the length of the pruned one."""
    inputs = tiny.inputs()
    empty = {cache_name(tiny.model): transformers.DynamicCache(config=tiny.model.config)}
    with METHOD(tiny.model):
        first = generate(tiny.model, inputs, **empty)
        more = rows(generate(tiny.model, inputs, max_new_tokens=NEW + 1))
        longer = torch.cat((first.sequences, torch.tensor([[5, 6, 7]])), dim=1)
        past = {cache_name(tiny.model): cache_of(first)}
        for given in ({}, {tiny.pixels: inputs[tiny.pixels]}):
            with pytest.raises(hf.CachedPromptError, match="ChatState"):
                tiny.model.generate(input_ids=longer, **past, **given)
        with pytest.raises(hf.CachedPromptError, match="the cache must be empty, got one of"):
            tiny.model(**inputs, **past)
        # By hand it goes on, with masks of the whole prompt.
        note = continuation.of(cache_of(first))
        assert note is not None
        assert note.length == inputs["input_ids"].shape[1]
        mask = torch.ones_like(first.sequences)
        with torch.no_grad():
            step = tiny.model(input_ids=first.sequences[:, -1:], attention_mask=mask, **past)
    torch.testing.assert_close(step.logits[:, -1], more[:, -1], rtol=1e-4, atol=1e-4)


def test_going_on_by_hand(tiny: vlms.Tiny) -> None:
    """The cache may be given by position; one of some of the prompts is refused."""
    inputs, inner, name = tiny.inputs("ragged"), tiny.model.model, cache_name(tiny.model)
    new = torch.tensor([[20, 21]] * 2)  # words
    given = {"input_ids": new, "attention_mask": torch.ones(2, inputs["input_ids"].shape[1] + 2)}
    given["attention_mask"][:, :-2] = inputs["attention_mask"]
    slots = {"cache_position": torch.arange(inputs["input_ids"].shape[1])}  # of the whole prompt
    slots = {
        k: v for k, v in slots.items() if k in inspect.signature(type(inner).forward).parameters
    }
    with METHOD(tiny.model), torch.no_grad():
        first = cache_of(tiny.model(**inputs, **slots, use_cache=True))
        bare = tiny.model(**inputs, **slots, use_cache=True, return_dict=False)
        assert any(continuation.of(one) is not None for one in bare)
        caches = {name: copy.deepcopy(first)}
        expected = inner(**given, **caches)[0]
        caches = {name: copy.deepcopy(first)}
        names = list(inspect.signature(type(inner).forward).parameters)[1:]
        args = [{**given, **caches}.get(one) for one in names[: names.index(name) + 1]]
        assert torch.equal(inner(*args)[0], expected)
        words = {"inputs_embeds": tiny.model.get_input_embeddings()(new)}
        caches = {name: copy.deepcopy(first)}
        embedded = inner(**words, attention_mask=given["attention_mask"], **caches)[0]
        torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-4)
        caches = {name: copy.deepcopy(first)}
        caches[name].reorder_cache(torch.arange(2).repeat_interleave(2))
        twice = inner(**{k: v.repeat_interleave(2, 0) for k, v in given.items()}, **caches)[0]
        wanted = expected.repeat_interleave(2, 0)
        torch.testing.assert_close(twice, wanted, rtol=1e-4, atol=1e-4)
        with pytest.raises(hf.UnsupportedInputError, match="cache of 2 pruned prompts, got"):
            tiny.model(input_ids=new[:1], **{name: first})
        four = given["attention_mask"][:, None, None].expand(-1, -1, 2, -1)
        with pytest.raises(
            hf.UnsupportedInputError, match=r"must be \[B, tokens\] when .* \[2, 1, 2"
        ):
            tiny.model(input_ids=new, attention_mask=four, **{name: first})
    if tiny.name in (*vlms.FILMS, *vlms.MROPE):
        return
    # Positions of the caller count the columns of the whole prompt.
    columns = inputs["input_ids"].shape[1] + torch.arange(2)[None]
    for positions in ("original", "compact"):
        with METHOD(tiny.model, positions=positions), torch.no_grad():
            first = cache_of(tiny.model(**inputs, use_cache=True))
            expected = inner(**given, **{name: copy.deepcopy(first)})[0]
            placed = inner(**given, position_ids=columns, **{name: first})[0]
        assert torch.equal(placed, expected)


@pytest.mark.parametrize(
    ("given", "error", "advice"),
    [
        ({"use_cache": False}, hf.UnsupportedInputError, "use_cache must be True"),
        (
            {"generation_config": transformers.GenerationConfig(use_cache=False)},
            hf.UnsupportedInputError,
            "use_cache must be True",
        ),
        ({"assistant_model": object()}, hf.UnsupportedInputError, "prompt_lookup_num_tokens works"),
        ({"assistant_early_exit": 1}, hf.UnsupportedInputError, "early_exit must be None, got one"),
        ({"inputs_embeds": torch.zeros(1)}, hf.UnsupportedInputError, "pictures are pruned that"),
        ({"mm_encoder_outputs": {}}, hf.UnsupportedInputError, "neither encoded nor pruned"),
        ({"cache_implementation": "paged"}, hf.UnsupportedInputError, "must not be 'paged'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_ways_of_generating_that_are_refused(
    tiny: vlms.Tiny, given: dict[str, Any], error: type[Exception], advice: str
) -> None:
    handle = METHOD(tiny.model).install()
    with pytest.raises(error, match=advice):
        tiny.model.generate(**tiny.inputs(), **given, max_new_tokens=NEW)
    if "mm_encoder_outputs" in given:
        with pytest.raises(error, match=advice):
            tiny.model.generate(input_ids=tiny.inputs()["input_ids"], **given)
    if "inputs_embeds" in given:
        for ask in (tiny.model, tiny.model.generate):
            with pytest.raises(error, match=advice):
                ask(**{tiny.pixels: tiny.inputs()[tiny.pixels]}, **given)
    with pytest.warns(hf.NothingPrunedWarning):
        handle.remove()


@pytest.mark.skipif(vlms.VERSION >= (5, 23), reason="transformers < 5.23: test_oldest_transformers")
def test_chunked_prefill_is_refused(tiny: vlms.Tiny) -> None:
    """P10: only the first chunk would be pruned."""
    with METHOD(tiny.model):
        with pytest.raises(hf.ChunkedPrefillError, match="prefill_chunk_size must be None"):
            tiny.model.generate(**tiny.inputs(), prefill_chunk_size=8)
        generate(tiny.model, tiny.inputs())


def test_unknown_models(monkeypatch: pytest.MonkeyPatch) -> None:
    config = vlm_models.text(transformers.LlamaConfig)
    model = transformers.LlamaForCausalLM(config)
    with pytest.raises(hf.UnsupportedModelError, match=r"gemma3, gemma4, gemma.*got LlamaForC"):
        METHOD(model)
    with pytest.raises(hf.UnsupportedModelError, match="got Linear"):
        METHOD(nn.Linear(2, 2))
    ours = vlms.get("llava").model
    monkeypatch.delitem(sys.modules, "transformers")  # it looks like one of its models
    with pytest.raises(hf.UnsupportedModelError, match=r"must be transformers' .*got LlavaForC"):
        METHOD(ours)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scope": "video"}, ValueError, "scope must be one of 'image', 'tile', 'sample'"),
        ({"positions": "new"}, ValueError, "positions must be one of 'original', 'compact'"),
        ({"keep_newline": 1}, TypeError, "keep_newline must be a bool, got 1"),
        ({"query": "what is it"}, ValueError, 'query must be "question", "all", a list of'),
        ({"query": ["what is it"]}, TypeError, "processor must be given for a query in words"),
        ({"query": torch.ones(3)}, TypeError, "query must be a bool mask, got torch.float32"),
        ({"query": torch.ones(3).long()}, TypeError, "query must be a bool mask, got torch.int64"),
        ({"query": 7}, TypeError, "query must be a list of texts or a bool mask, got 7"),
        (
            {"processor": "llava"},
            TypeError,
            "processor must be a processor or a tokenizer, got 'll",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^prune: {text}"):
        METHOD(vlms.get("llava").model, **options)


@needs_inputs
def test_bad_inputs() -> None:
    tiny = vlms.get("llava")
    inputs = dict(tiny.inputs())
    ids = inputs["input_ids"]
    fewer = {**inputs, "input_ids": ids[:, :-20], "attention_mask": ids[:, :-20] * 0 + 1}
    with pytest.raises(hf.PlaceholderMismatchError, match="one call of the model's processor") as e:
        hf.prune_inputs(tiny.model, fewer, METHOD)
    assert e.value.features == 64
    assert e.value.placeholders < 64
    again = pickle.loads(pickle.dumps(e.value))  # as a pool of processes hands it over
    assert (str(again), vars(again)) == (str(e.value), vars(e.value))
    for wrong, error, text in (
        ({"input_ids": None}, TypeError, r"input_ids must be an int tensor \[B, L\], got NoneType"),
        (
            {"input_ids": ids[0]},
            TypeError,
            r"input_ids must be an int tensor \[B, L\], got \[\d+\]",
        ),
        ({"input_ids": ids.float()}, TypeError, r"input_ids must be an int tensor \[B, L\], got "),
        ({"attention_mask": ids[:, 1:]}, ValueError, "attention_mask must be"),
        ({"attention_mask": ids[None]}, ValueError, r"attention_mask must be .* got \[1, 1, \d+\]"),
        ({"attention_mask": {}}, ValueError, "attention_mask must be .* got dict"),
        (
            {"attention_mask": (ids != tiny.model.config.image_token_id).long()},
            hf.UnsupportedInputError,
            "attention_mask must be 1 at the tokens of pictures and videos, got 0 at some",
        ),
        ({"mm_encoder_outputs": {}}, hf.UnsupportedInputError, "that come as pixel_values beside"),
        ({"labels": ids}, hf.LabelsError, "labels must be None, got a tensor as long as the unpr"),
    ):
        with pytest.raises(error, match=text):
            hf.prune_inputs(tiny.model, {**inputs, **wrong}, METHOD)
    with pytest.raises(TypeError, match="inputs must be what the processor returned, a mapping"):
        hf.prune_inputs(tiny.model, ids, METHOD)
    once = hf.prune_inputs(tiny.model, inputs, METHOD)
    with pytest.raises(hf.AlreadyPrunedError, match="inputs must not be pruned already"):
        hf.prune_inputs(tiny.model, once, METHOD)


@pytest.mark.parametrize("name", [name for name in vlms.BUILDERS if name not in vlms.FILMS])
def test_videos_for_a_model_that_takes_none(name: str) -> None:
    model = vlms.get(name).model
    words = torch.tensor([[5, 6, 7]])
    with METHOD(model) as handle:
        for ask in (model, model.generate):
            with pytest.raises(hf.UnsupportedInputError, match="frames of a video as pictures"):
                ask(input_ids=words, pixel_values_videos=torch.zeros(1))
        generate(model, vlms.get(name).inputs())
    assert handle.calls == 1


@needs_inputs
@pytest.mark.parametrize("name", vlms.FILMS)
def test_videos_and_their_placeholders(name: str) -> None:
    tiny = vlms.get(name)
    inputs = dict(tiny.videos(0))
    film = inputs["input_ids"] == tiny.model.config.video_token_id
    inputs["input_ids"] = inputs["input_ids"].masked_fill(film, 30)
    with pytest.raises(hf.PlaceholderMismatchError, match="must have a video token for each") as e:
        hf.prune_inputs(tiny.model, inputs, METHOD)
    assert (e.value.placeholders, e.value.features) == (0, int(film.sum()))


@needs_inputs
def test_an_image_in_two_prompts() -> None:
    """The counts add up, and yet the second prompt would show a part of the first picture."""
    tiny = vlms.get("llava")
    once = tiny.inputs()
    twice = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in once.items()}
    mark = tiny.model.config.image_token_id
    places = (once["input_ids"][0] == mark).nonzero().flatten()
    twice["input_ids"][0, places[:3]] = 5
    twice["input_ids"][1, places[-1] + 1 : places[-1] + 4] = mark
    with pytest.raises(hf.UnsupportedInputError, match="an image that spans two"):
        hf.prune_inputs(tiny.model, twice, METHOD)


@pytest.mark.skipif(vlms.VERSION >= (5, 20), reason="transformers < 5.20: test_oldest_transformers")
def test_prune_inputs_says_what_to_do_on_old_versions() -> None:
    tiny = vlms.get("llava")
    with pytest.raises(hf.UnsupportedModelError, match=r"use `with method\(model\):` instead"):
        hf.prune_inputs(tiny.model, tiny.inputs(), METHOD)
