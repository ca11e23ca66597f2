# SPDX-License-Identifier: Apache-2.0
"""Ways of generating, all with pruned inputs: beams, samples, caches, chunks, compiled decoding."""

from __future__ import annotations

import copy
import importlib.util
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import zspa_kernels as zk
from python_tests import vlm_models, vlms
from python_tests.hf_oracle import NEW, TOGETHER, cache_of, generate, rows
from zspa_kernels import hf
from zspa_kernels.hf.architectures import Target
from zspa_kernels.hf.generating import lengths

METHOD = zk.ZSPAPrune(keep=0.2, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}


#: Every version is tried with these; the others, to save time, with the newest one and by
#: `make hf-matrix`.
ALWAYS = ("llava", "llava_next", "qwen2_5_vl")
EVERY = "ZSPA_HF_MATRIX" in os.environ
SOME = vlms.VERSION < (5, 23) and not EVERY
#: Models not compiled by `make test`, which takes ten seconds each: others decode with like parts.
TWINS = (
    "llava_next", "llava_onevision", "mistral3", "pixtral", "qwen2_vl", "qwen3_vl_moe",
    "qwen3_5_moe", *vlms.GLMS, "gemma4_moe", "gemma4_unified", "lfm2_vl", "cohere2_vision",
    "idefics3", "lfm3_vl", "llava_next_video", "video_llava", "vipllava", "aya_vision",
    "deepseek_vl", "ovis2", "qwen2_5_omni",
)  # fmt: skip
NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            SOME and name not in ALWAYS, reason="transformers >= 5.23, or `make hf-matrix`"
        ),
    )
    for name in vlms.BUILDERS
]
CASES = [
    pytest.param(*name.values, kind, marks=name.marks, id=f"{name.values[0]}-{kind}")
    for name in NAMES
    for kind in ("ragged", "video")
    if kind == "ragged" or name.values[0] in vlms.FILMS
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_beams_and_samples_of_a_batch(name: str, kind: str) -> None:
    """Every beam of a prompt sees that prompt's pictures: a prompt alone has the same beams."""
    tiny = vlms.get(name)
    options = {
        "num_beams": 3,
        "num_return_sequences": 2,
        "output_logits": False,
        "output_scores": True,
    }
    with METHOD(tiny.model):
        both = generate(tiny.model, tiny.inputs(kind), **options)
        for b in range(2):
            inputs = tiny.alone(b, kind)
            alone = generate(tiny.model, inputs, **options)
            length = inputs["input_ids"].shape[1]
            assert torch.equal(alone.sequences[:, :length], inputs["input_ids"].expand(2, -1))
            ours = both.sequences[2 * b : 2 * b + 2]
            assert torch.equal(ours[:, -NEW:], alone.sequences[:, -NEW:])
            torch.testing.assert_close(
                both.sequences_scores[2 * b : 2 * b + 2], alone.sequences_scores, **CLOSE
            )


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "num_return_sequences": 3},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 7},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", NAMES)
def test_other_ways_of_generating(name: str, options: dict[str, Any]) -> None:
    if "prefill_chunk_size" in options and vlms.VERSION < (5, 23):
        pytest.skip("transformers >= 5.23: older ones are refused, see test_hf_safety.py")
    if "prefill_chunk_size" in options and name == "ovis2":
        pytest.skip("other models: this one raises, unpruned as well")
    if "cache_implementation" in options and name in TOGETHER[1:] and vlms.VERSION < (5, 23):
        pytest.skip(
            "transformers >= 5.23: 5.20 misplaces masks in a static cache, unpruned as well"
        )
    tiny = vlms.get(name)
    # A batch with padding, where that can be: old versions miscount it in a static cache.
    inputs = tiny.inputs("single" if "prompt_lookup_num_tokens" in options else "ragged")
    if "prompt_lookup_num_tokens" in options:  # old versions look it up without asking if it is set
        options = {**options, "eos_token_id": vlm_models.VOCABULARY}
        if name == "gemma3":
            options["output_logits"] = False
        if name in vlm_models.STATES and not name.startswith(
            "lfm"
        ):  # a state cannot be taken back, unpruned as well
            with METHOD(tiny.model), pytest.raises(ValueError, match="not supported with stateful"):
                generate(tiny.model, inputs, **options)
            return
    with METHOD(tiny.model) as handle:
        expected = generate(tiny.model, inputs)
        torch.manual_seed(0)
        got = generate(tiny.model, inputs, **options)
    assert handle.calls == 2
    length = inputs["input_ids"].shape[1]
    times = len(got.sequences) // len(inputs["input_ids"])
    repeated = inputs["input_ids"].repeat_interleave(times, 0)
    assert torch.equal(got.sequences[:, :length], repeated)
    if "do_sample" in options and vlms.VERSION >= (5, 20):  # the other way in draws the same
        pruned = hf.prune_inputs(tiny.model, inputs, METHOD)
        torch.manual_seed(0)
        again = generate(tiny.model, pruned, **options)
        assert torch.equal(pruned.restore(again.sequences), got.sequences)
    if "do_sample" in options:
        first = expected.logits[0].repeat_interleave(3, 0)
        torch.testing.assert_close(got.logits[0], first, **CLOSE)
        return
    assert torch.equal(got.sequences, expected.sequences)
    if "cache_implementation" in options:
        torch.testing.assert_close(rows(got), rows(expected), **CLOSE)


def test_a_caller_may_ask_about_another_picture_meanwhile() -> None:
    """As contrastive decoding does: a logits processor calls the model, of the same thread."""
    model, inputs = vlms.get("llava").model, vlms.get("llava").inputs()
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    asked = []

    def ask(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        asked.append(model(**other).logits)
        return scores

    with METHOD(model), torch.no_grad():
        expected, by_itself = rows(generate(model, inputs)), model(**other).logits
        assert torch.equal(rows(generate(model, inputs, logits_processor=[ask])), expected)
    assert len(asked) == NEW
    assert all(torch.equal(one, by_itself) for one in asked)


class Streamer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value.flatten())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("name", NAMES)
def test_streams_begin_with_the_whole_prompt(name: str) -> None:
    tiny = vlms.get(name)
    streamer = Streamer()
    with METHOD(tiny.model):
        sequences = tiny.model.generate(
            **tiny.inputs(), max_new_tokens=NEW, do_sample=False, streamer=streamer
        )
    assert torch.equal(torch.cat(streamer.given), sequences[0])
    assert len(streamer.given) == 1 + NEW
    assert streamer.ended


@pytest.mark.parametrize("name", NAMES)
def test_lengths_that_count_the_prompt(name: str) -> None:
    """P14: `max_length` and `min_length` mean the whole prompt, as without pruning."""
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    length = inputs["input_ids"].shape[1]
    config = tiny.model.generation_config
    limited = type(config)(**{**config.to_diff_dict(), "max_length": length + 2})
    with METHOD(tiny.model):
        one = tiny.model.generate(**inputs, max_length=length + 4, min_length=length + 4)
        two = tiny.model.generate(**inputs, generation_config=limited)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*model-agnostic default", UserWarning)
            default = tiny.model.generate(**inputs)
    assert (one.shape[1], two.shape[1], default.shape[1]) == (length + 4, length + 2, length + 20)
    assert torch.equal(one[:, : length + 2], two)


def test_a_default_is_no_length_that_counts_the_prompt() -> None:
    """None, 0 and the 20 of old versions stand for "not set" in a configuration, not in a call."""
    model = copy.copy(vlms.get("llava").model)
    target, config = Target.of(model), type(model.generation_config)
    for given, call, expected in (
        (20, {}, {}),
        (21, {}, {"max_length": 16}),
        (19, {}, {"max_length": 14}),
        (20, {"max_length": 20}, {"max_length": 15}),
        (3, {}, {"max_length": 0}),
        (21, {"max_new_tokens": 4}, {}),
        (20, {"min_length": 9}, {"min_length": 4}),
        (20, {"min_length": 9, "min_new_tokens": 1}, {}),
    ):
        model.generation_config = config(max_length=given)
        assert lengths(target, call, 5) == expected


@pytest.mark.parametrize("name", [x for x in NAMES if EVERY or x.values[0] not in TWINS])
def test_compiled_decoding_has_no_new_graphs_or_breaks(name: str) -> None:
    """The hooks that wait for direct calls are followed by torch.compile, and cost it nothing."""
    tiny = vlms.get(name)
    inputs = tiny.inputs()

    config: Any = transformers.CompileConfig(backend="eager", fullgraph=True, dynamic=False)
    config._compile_all_devices = True  # by default it compiles on GPUs only
    options = {"cache_implementation": "static", "compile_config": config}

    def graphs(given: Any) -> tuple[int, int]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        tiny.model.__dict__.pop("_compiled_call", None)
        generate(tiny.model, given, **options)
        counters = torch._dynamo.utils.counters
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())

    plain = graphs(inputs)
    with METHOD(tiny.model) as handle:
        pruned = graphs(inputs)
    tiny.model.__dict__.pop("_compiled_call", None)
    torch._dynamo.reset()
    assert handle.calls == 1
    # Two kinds of masks make a second graph, with or without pruning.
    assert plain == (2 if name.startswith(("gemma", "cohere2", "aya", "lfm3")) else 1, 0)
    assert pruned == plain


def test_a_model_that_is_compiled_as_a_whole() -> None:
    """What `torch.compile` returns is pruned like the model in it, and left as it was."""
    tiny = vlms.build("llava")
    inputs = tiny.inputs()
    with METHOD(tiny.model), torch.no_grad():
        expected, direct = rows(generate(tiny.model, inputs)), tiny.model(**inputs).logits
    compiled: Any = torch.compile(tiny.model, backend="eager")
    with METHOD(compiled) as handle, torch.no_grad():
        assert torch.equal(rows(generate(compiled, inputs)), expected)
        torch.testing.assert_close(compiled(**inputs).logits, direct, **CLOSE)
    assert handle.calls == 2
    with torch.no_grad():
        assert compiled(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_meet(name: str) -> None:
    """P11: one model, one block, different prompts in three threads, through both ways in."""
    if name in ("aya_vision", "llava_onevision") and vlms.VERSION < (5, 0):
        pytest.skip("transformers >= 5.0: 4.57's SigLIP loses states in threads, unpruned as well")
    tiny = vlms.get(name)
    prompts = [tiny.inputs(words=words) for words in ("what is this", "count the cat", "who")]

    def run(inputs: Any, out: list[Any]) -> None:
        with torch.no_grad():
            out.append(tiny.model(**inputs).logits[:, -1])
        out.append(rows(generate(tiny.model, inputs)))

    with METHOD(tiny.model) as handle:
        expected: list[list[Any]] = [[] for _ in prompts]
        for inputs, out in zip(prompts, expected, strict=True):
            run(inputs, out)
        got: list[list[Any]] = [[] for _ in prompts]
        threads = [threading.Thread(target=run, args=it) for it in zip(prompts, got, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ours, theirs in zip(got, expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, **CLOSE)
    assert handle.calls == 2 * 2 * len(prompts)


@pytest.mark.parametrize("method", ["visionzip", "zooprune"])
def test_threads_do_not_note_the_pictures_of_others(method: str) -> None:
    """Hooks on the tower and the projector are called in every thread that encodes meanwhile."""
    tiny = vlms.get("llava")
    chosen = zk.methods.get(method, keep=0.3)
    prompts = []
    for name in ("chelsea", "rocket"):
        picture = vlms.photograph(name, (170, 112))
        prompts.append(
            tiny.processor(images=[picture], text=tiny.prompt("who"), return_tensors="pt")
        )
    expected = []
    for inputs in prompts:
        with hf.prune(tiny.model, chosen) as handle:
            expected.append(rows(generate(tiny.model, inputs)))
    # Both have registered their hooks before one encodes, and both have encoded before one leaves.
    meet = threading.Barrier(2, timeout=60)

    def wait(*_: Any) -> None:
        if started:
            meet.wait()

    started: list[bool] = []
    inner = tiny.model.model
    hooks = [
        inner.vision_tower.register_forward_pre_hook(wait),
        inner.multi_modal_projector.register_forward_hook(wait),
    ]
    got: dict[int, Any] = {}

    def run(number: int) -> None:
        got[number] = rows(generate(tiny.model, prompts[number]))

    try:
        with hf.prune(tiny.model, chosen) as handle:
            started.append(True)
            threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        for hook in hooks:
            hook.remove()
    assert handle.calls == 2
    for number, logits in enumerate(expected):
        torch.testing.assert_close(got[number], logits, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_padding_without_a_mask_is_what_generate_takes_it_for(name: str) -> None:
    tiny = vlms.get(name)
    inputs = dict(tiny.inputs("ragged"))
    with METHOD(tiny.model) as handle:
        expected = rows(generate(tiny.model, inputs))
        tokens = inputs.pop("attention_mask").sum(1).tolist()
        assert torch.equal(rows(generate(tiny.model, inputs)), expected)
        assert handle.report is not None
        assert handle.report.prompt_before == tokens
        # The end of a sequence may stand in a prompt.
        width = inputs["input_ids"].shape[1]
        for ends in (0, [5, 0]):
            generate(tiny.model, inputs, eos_token_id=ends)
            assert handle.report.prompt_before == [width, width]


@pytest.mark.parametrize(
    ("name", "kind"), [("llava", "ragged"), ("llava_next", "ragged"), ("qwen3_vl", "video")]
)
def test_the_default_device_may_be_another(name: str, kind: str) -> None:
    """As after `torch.set_default_device`: what is worked out on the host is made there."""
    tiny = vlms.get(name)
    inputs = tiny.inputs(kind)
    if kind == "video" and vlms.VERSION < (5, 0):
        pytest.skip("transformers >= 5.17: 4.57 copies from the default device, unpruned as well")
    with METHOD(tiny.model):
        expected = rows(generate(tiny.model, inputs))
        with torch.device("meta"):
            got = rows(generate(tiny.model, inputs))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_and_eager_attention_with_outputs(name: str) -> None:
    tiny = vlms.build(name)
    model = tiny.model.to(torch.bfloat16)
    model.set_attn_implementation("eager")
    inputs = tiny.inputs()
    inputs[tiny.pixels] = inputs[tiny.pixels].to(torch.bfloat16)
    with METHOD(model) as handle:
        output = generate(model, inputs, output_attentions=True, output_hidden_states=True)
    assert handle.report is not None
    pruned = handle.report.prompt_after[0]
    assert output.attentions[0][0].shape[-2:] == (pruned, pruned)
    assert output.hidden_states[0][0].shape[1] == pruned


@pytest.mark.parametrize("name", ["llava", "llava_next"])  # those with official processors
def test_pipeline_gives_what_generate_gives(name: str) -> None:
    tiny = vlms.get(name)
    pipe = transformers.pipeline(
        "image-text-to-text", model=tiny.model, processor=tiny.processor, device="cpu"
    )
    picture = vlms.photograph("chelsea", (170, 112))
    text = tiny.prompt("what is this")
    with METHOD(tiny.model) as handle:
        (answer,) = pipe(images=picture, text=text, max_new_tokens=NEW)
        inputs = tiny.processor(images=picture, text=text, return_tensors="pt")
        sequences = tiny.model.generate(**inputs, max_new_tokens=NEW)
    assert handle.calls == 2
    new = tiny.processor.tokenizer.decode(sequences[0, -NEW:], skip_special_tokens=True)
    assert answer["generated_text"].removeprefix(text).strip() == new.strip()


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks
@pytest.mark.parametrize("name", NAMES)
def test_peft_models(name: str) -> None:
    """The adapter counts: pruned like the model it is merged into; off, like the bare one."""
    import peft

    tiny = vlms.build(name)
    inputs = tiny.inputs("ragged")
    with METHOD(tiny.model):
        bare = rows(generate(tiny.model, inputs))
    # Random adapters in the language model and in the vision tower, whose layers Gemma 4 wraps.
    layers = [n for n, m in tiny.model.named_modules() if isinstance(m, torch.nn.Linear)]
    chosen = [one for one in layers if "q_proj" in one or one.endswith("qkv")]
    config = peft.LoraConfig(target_modules=chosen, r=2, init_lora_weights=False)
    model = peft.get_peft_model(tiny.model, config)
    with METHOD(model) as handle:
        output = generate(model, inputs)
        assert handle.report is not None
        kept = [image.indices for image in handle.report.images]
        with model.disable_adapter():
            off = rows(generate(model, inputs))
    assert handle.calls == 2
    assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + NEW
    torch.testing.assert_close(off, bare, **CLOSE)
    assert not torch.allclose(rows(output), bare, **CLOSE)
    merged = model.merge_and_unload()
    with METHOD(merged) as again:
        torch.testing.assert_close(rows(generate(merged, inputs)), rows(output), **CLOSE)
    assert again.report is not None
    for image, indices in zip(again.report.images, kept, strict=True):
        assert torch.equal(image.indices, indices)
    if vlms.VERSION >= (5, 20):
        pruned = hf.prune_inputs(model, inputs, METHOD)
        assert torch.equal(pruned.report.images[0].indices, kept[0])


needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed"
)


@needs_accelerate
@pytest.mark.parametrize("name", NAMES)
def test_accelerate_hooks(name: str) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    tiny = vlms.build(name)
    inputs = tiny.inputs()
    with METHOD(tiny.model):
        expected = generate(tiny.model, inputs)
    for part in (tiny.model, tiny.model.model, vlms.text_model(tiny.model)):
        add_hook_to_module(part, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    with METHOD(tiny.model):
        got = generate(tiny.model, inputs)
    assert torch.equal(rows(got), rows(expected))
    assert cache_of(got).get_seq_length() == cache_of(expected).get_seq_length()


# Unpruned as well, accelerate does not load the first four's own parameters, nor what GLM-V's
# encoder computes positions from or Idefics3 looks for placeholders with, and gives experts other
# last bits.
STAYING = (
    "llava_next", "llava_next_video", "llava_onevision", "gemma3", *vlms.GLMS, "idefics3",
    "qwen3_vl_moe", "qwen3_5_moe",
)  # fmt: skip


@needs_accelerate
@pytest.mark.parametrize("name", [x for x in NAMES if x.values[0] not in STAYING])
def test_weights_that_are_on_no_device(name: str, tmp_path: Path) -> None:
    """Offloaded weights, as with `device_map="auto"`: a hook loads each for its own call only."""
    import accelerate

    if name.startswith("qwen3_vl") and vlms.VERSION < (5, 17):
        pytest.skip("transformers >= 5.17: this encoder's positions are on no device, unpruned too")
    if name in ("gemma4", "lfm2_vl"):
        pytest.skip("other models: this one reads embeddings itself, unpruned as well")
    tiny = vlms.build(name)
    inputs = tiny.inputs("ragged")
    with METHOD(tiny.model) as handle:
        expected = rows(generate(tiny.model, inputs))
    model = accelerate.disk_offload(tiny.model, str(tmp_path), execution_device="cpu")
    assert model.get_input_embeddings().weight.device.type == "meta"
    with METHOD(model) as offloaded:
        got = rows(generate(model, inputs))
    # Its experts are added up in another order, unpruned as well.
    exact = {} if name == "gemma4_moe" else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(got, expected, **exact)
    assert offloaded.report is not None
    assert handle.report is not None
    for one, other in zip(offloaded.report.images, handle.report.images, strict=True):
        assert torch.equal(one.indices, other.indices)
