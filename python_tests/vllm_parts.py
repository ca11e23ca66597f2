# SPDX-License-Identifier: Apache-2.0
"""Parts of the pruning in vLLM that need vLLM, but no engine; see `vllm_engine`."""

from __future__ import annotations

import functools
import json
import logging
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.model_executor.models.interfaces import supports_encoder_cudagraph
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.multimodal.processing import BaseMultiModalProcessor, PromptUpdateDetails
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.worker.gpu.attn_utils import compute_mm_prefix_ranges

import zspa_kernels as zk
from python_tests import vllm_gemma4, vllm_models
from python_tests.vlms import photograph
from zspa_kernels.hf import UnsupportedModelError
from zspa_kernels.vllm import ARCHITECTURES, models, overrides, register
from zspa_kernels.vllm.batches import Batches
from zspa_kernels.vllm.model import PruningModel
from zspa_kernels.vllm.models import ZspaQwen2VLForConditionalGeneration
from zspa_kernels.vllm.options import Options
from zspa_kernels.vllm.processor import PruningProcessor, _kept_places, _spread, signed


def test_another_inner_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(self: Any, prompt: Any, mm_items: Any, hf_kwargs: Any) -> None: ...

    monkeypatch.setattr(BaseMultiModalProcessor, "_apply_hf_processor_main", main)
    with pytest.raises(UnsupportedModelError, match=r"as 0.31 to 0.33 do, got .*, prompt: "):
        runpy.run_module("zspa_kernels.vllm.processor")


def test_the_command_line(tmp_path: Path) -> None:
    vllm_models.save("llava", tmp_path)
    how = {
        "architectures": ["ZspaLlavaForConditionalGeneration"],
        "zspa": {"method": "divprune", "keep": 64},
    }
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    given = parser.parse_args(["--model", str(tmp_path), "--hf-overrides", json.dumps(how)])
    config = EngineArgs.from_cli_args(given).create_model_config().hf_config
    assert config.architectures == how["architectures"]
    assert config.zspa == how["zspa"]


def test_steps_of_an_answer_read_no_prompt() -> None:
    positions = torch.tensor([[0, 1, 1, 4], [0, 1, 2, 4], [0, 2, 1, 4]])
    model = object.__new__(ZspaQwen2VLForConditionalGeneration)
    made = model.recompute_mrope_positions(None, [], positions, 4)
    assert made == ([], positions, 1)


@pytest.mark.parametrize("runs", [1, 2])
def test_each_picture_of_a_batch_has_its_own_words_and_share(runs: int) -> None:
    """And each of two crops that text stands between."""
    generator = torch.Generator().manual_seed(5)
    encoded = torch.randn(4, 8, 16, generator=generator)  # eight tokens a picture
    table = torch.randn(30, 16, generator=generator)
    words = [torch.tensor(own, dtype=torch.long) for own in ([3, 4], [5], [6, 7, 8], [])]
    asked = (0.5, 3, 0.25, 1.0)
    model = _pruned(encoded, table, 8 // runs)
    looked_up = MagicMock(side_effect=table.__getitem__)
    language = SimpleNamespace(embed_input_ids=looked_up, modules=list)
    model.get_language_model = lambda: language
    inputs = {
        "pixel_values": torch.arange(4.0).repeat_interleave(runs)[:, None, None, None],
        "num_patches": torch.tensor([runs] * 4),
        "zspa_keep_image": torch.tensor([signed(keep) for keep in asked], dtype=torch.float64),
        "zspa_words_image": words,
    }
    for found, visual, own, keep in zip(
        model.embed_multimodal(**inputs), encoded, words, asked, strict=True
    ):
        method = zk.ZSPAPrune(keep=keep, core_ratio=0.5)
        crops = visual.split(8 // runs)
        chosen = method.select_varlen(list(crops), [table[own]] * runs)
        kept = [crop[one.indices] for crop, one in zip(crops, chosen, strict=True)]
        assert found.equal(torch.cat(kept))
    assert looked_up.call_count == 2  # once for each two pictures, which are encoded together


def test_pixels_of_one_part_are_on_the_device_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory was reserved for as many as fill a batch unpruned."""
    encoded = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(5))
    model = _pruned(encoded, encoded[0], 8)
    model._device = torch.device("meta")
    parts = []

    def embed(self: Any, **inputs: Any) -> Any:
        parts.append(inputs)
        return list(encoded[: len(inputs["pixel_values"])])

    monkeypatch.setattr(type(model).__mro__[2], "embed_multimodal", embed)
    pixels = list(torch.arange(4.0)[:, None, None, None])
    counts = {"num_patches": torch.ones(4, dtype=torch.long)}
    keep = {"zspa_keep_image": torch.full((4,), -3.0, dtype=torch.float64)}
    assert len(model.embed_multimodal(pixel_values=pixels, **counts, **keep)) == 4
    assert [len(part["pixel_values"]) for part in parts] == [2, 2]
    assert all(one.is_meta for part in parts for one in part["pixel_values"])
    assert not any(part["num_patches"].is_meta for part in parts)


def test_what_has_no_share_stays_whole() -> None:
    """Sounds."""
    encoded = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(5))
    inputs = {"pixel_values": torch.arange(3.0), "num_patches": torch.ones(3, dtype=torch.long)}
    found = _pruned(encoded, encoded[0], 8).embed_multimodal(**inputs)
    assert torch.stack(found).equal(encoded)


def test_a_sound_is_cached_for_every_question_if_no_picture_is_beside_it(tmp_path: Path) -> None:
    vllm_models.save("gemma4", tmp_path)
    given = EngineArgs(str(tmp_path), dtype="float32", hf_overrides=overrides(keep=5))
    processor = MULTIMODAL_REGISTRY.create_processor(given.create_model_config())
    sound = {"audio": [(torch.zeros(vllm_gemma4.PIECE).numpy(), vllm_gemma4.RATE)]}
    picture = {"image": [photograph("chelsea", (170, 112))]}

    def hashed(prompt: str, **data: Any) -> Any:
        items = processor.info.parse_mm_data(data)
        made = processor(prompt, items)
        assert not any(name.startswith("zspa") for name in made["mm_kwargs"]["audio"][0])
        return made["mm_hashes"]

    one, other = (hashed(f"<audio> what is {it}", **sound) for it in ("this", "that"))
    assert one == other
    one, other = (hashed(f"<audio> <image> {it}", **sound, **picture) for it in ("this", "what"))
    assert one["image"] != other["image"]


def _pruned(encoded: torch.Tensor, table: torch.Tensor, tile: int) -> Any:
    """A model that encodes the picture of number n to `encoded[n]`, in tiles of so many tokens."""

    class Stock(torch.nn.Module):
        def embed_multimodal(self, **inputs: Any) -> Any:
            assert len(inputs["pixel_values"]) == sum(inputs["num_patches"])
            return [encoded[int(one)] for one in inputs["pixel_values"].flatten().unique()]

        def get_language_model(self) -> Any:
            language: Any = torch.nn.Module()
            language.embed_input_ids = lambda ids: table[ids]
            return language

    class Model(PruningModel, Stock):
        apart = "num_patches"

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self._options = Options.read({"core_ratio": 0.5})
            self._width, self._batches = 16, Batches(limit=20, tile=tile)
            self._device = torch.device("cpu")

    return Model()


def test_places_of_kept_tokens_and_of_text_between_them() -> None:
    details = PromptUpdateDetails.select_token_id([7, 5, 5, 5, 5, 8, 5, 5, 9, 9], 5)
    options = Options.read({"method": "divprune", "keep": 2})
    found = _kept_places(details, options, inside=False)
    assert found.full == [7, 5, 5, 8, 5, 5, 9, 9]
    assert found.is_embed is not None
    assert [i for i, yes in enumerate(found.is_embed(found.full)) if yes] == [1, 2, 4, 5]
    found = _kept_places(details, options, inside=True)
    assert (found.full, found.is_embed) == ([5] * (2 + 4), None)
    assert _kept_places(PromptUpdateDetails([5] * 6), options, inside=False).full == [5] * 2


@pytest.mark.parametrize(
    ("ids", "more", "positions"),
    [
        ([5] * 16, {}, 4),  # a frame has two rows of four tokens
        ([5] * 16, {"second_per_grid_ts": 1.75}, 7),
        ([7, *[5] * 8, 8, 9, *[5] * 8, 8], {}, 4 + 2 * 4),
    ],
)
def test_positions_that_a_video_takes(ids: list[int], more: Any, positions: int) -> None:
    field = MultiModalFieldConfig.batched("video").field
    values = {"video_grid_thw": torch.tensor([2, 4, 8]), **more}
    item = {name: MultiModalFieldElem(value, field) for name, value in values.items()}
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    details = PromptUpdateDetails.select_token_id(ids, 5)
    assert _spread(details, item, "video", vision) == positions


def test_a_place_that_is_a_word_to_the_tokenizer() -> None:
    """InternVL's, whose last character may be one token with the line break behind it."""
    processor: Any = object.__new__(PruningProcessor)
    processor.info, processor.dummy_inputs = MagicMock(), MagicMock()
    processor.info.allowed_mm_limits = {"audio": 1, "image": 1, "video": 1}
    shown = {"audio": "~", "image": "<image>", "video": "<video>"}
    processor.dummy_inputs.get_dummy_text = lambda counts: "".join(shown[name] for name in counts)
    tokenizer = processor.info.get_tokenizer()

    def encode(text: str, **_: Any) -> list[int]:
        return [ord(one) for one in text.replace(">\n", "\x00")]

    def decode(ids: Any) -> str:
        return "".join(map(chr, ids)).replace("\x00", ">\n")

    tokenizer.encode, tokenizer.decode = encode, decode
    words = processor.info.ctx.model_config.hf_text_config
    words.eos_token_id = tokenizer.eos_token_id = ord(".")
    no_words = {"_special": {ord("a"), ord("~")}, "_sound": ord("~")}
    processor.__dict__.update(_shown={ord("@")}, _template=None, **no_words)
    prompt = encode("~a b<image>\nc<video>\nd @ e<f~.g")
    assert decode(processor._words(prompt, "all")) == "a b\nc\nd  e<f.g"
    assert decode(processor._words(prompt, "question")) == "\nc\nd  e<f"
    alone = encode("c>\nd.")
    assert processor._marked(alone) == alone


def test_text_inside_a_picture_stays_where_it_is() -> None:
    encoded = torch.arange(18.0).view(3, 6, 1) + torch.zeros(16)
    table = torch.arange(30.0)[:, None] + 100 * torch.ones(30, 16)
    model = _pruned(encoded, table, 6)  # two of the pictures at once
    texts = [[-1, -1, 20, -1, -1, 20, -1, -1, 21]] * 2 + [[-1, -1, -1, 22, -1, -1, -1, 23]]
    inputs = {
        "pixel_values": torch.arange(3.0)[:, None, None, None],
        "num_patches": torch.tensor([1] * 3),
        "zspa_keep_image": torch.tensor([-3.0] * 3, dtype=torch.float64),
        "zspa_words_image": [torch.tensor([3])] * 3,
        "zspa_text_image": [torch.tensor(ids) for ids in texts],
    }
    for found, visual, ids in zip(model.embed_multimodal(**inputs), encoded, texts, strict=True):
        tokens = iter(visual[:, 0].tolist())
        whole = iter([next(tokens) if i < 0 else 100 + i for i in ids])
        written = [100 + i for i in ids if i > 0]
        values = found[:, 0].tolist()
        assert [one for one in values if one > 99] == written
        assert len(values) == 3 + len(written)
        assert all(one in whole for one in values)  # in their order


def test_pictures_of_pixtral_have_ends_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its architecture is LLaVA's, whose pictures have none."""
    _, processor = vllm_models.save("pixtral", tmp_path)
    given = EngineArgs(str(tmp_path), dtype="float32", hf_overrides=overrides(keep=5))
    served = MULTIMODAL_REGISTRY.create_processor(given.create_model_config())
    stock: Any = type(served).__mro__[2]
    updates = MagicMock(side_effect=functools.partial(stock._get_prompt_updates, served))
    monkeypatch.setattr(stock, "_get_prompt_updates", updates)
    picture = photograph("chelsea", (112, 70))  # five rows of eight tokens
    made = served("[IMG] what is this", served.info.parse_mm_data({"image": [picture]}))
    mark, *ends = processor.tokenizer.convert_tokens_to_ids(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    assert made["prompt_token_ids"].count(mark) == 5 + 5
    text = made["mm_kwargs"]["image"][0]["zspa_text_image"].data
    row = [-1] * 8
    assert text.tolist() == [*(row + ends[:1]) * 4, *row, ends[1]]
    updates.assert_called_once()


def test_a_film_of_glm_is_found_between_its_marks(tmp_path: Path) -> None:
    """Where vLLM tries what fits, no token stands among them."""
    vllm_models.save("glm4v", tmp_path)
    given = EngineArgs(str(tmp_path), dtype="float32", hf_overrides=overrides(keep=5))
    processor = MULTIMODAL_REGISTRY.create_processor(given.create_model_config())
    counts = {"image": 2, "video": 1}
    places = processor.get_dummy_mm_inputs(counts)["mm_placeholders"]
    assert {name: len(found) for name, found in places.items()} == counts


def test_text_has_the_positions_of_the_whole_prompt() -> None:
    model = object.__new__(ZspaQwen2VLForConditionalGeneration)
    vision = SimpleNamespace(spatial_merge_size=2)
    model.__dict__.update(
        _batches=Batches(limit=1, merged=4), config=SimpleNamespace(vision_config=vision)
    )
    grid = MultiModalFieldElem(
        torch.tensor([1, 8, 4]), MultiModalFieldConfig.batched("image").field
    )  # four rows of two tokens
    picture = MultiModalFeatureSpec(
        data=MultiModalKwargsItem({"image_grid_thw": grid}),
        modality="image",
        identifier="",
        mm_position=PlaceholderRange(offset=1, length=2),
    )
    positions, more = model.get_mrope_input_positions([1, 5, 5, 2, 3], [picture])
    assert positions[:, [0, 3, 4]].tolist() == [[0, 5, 6]] * 3
    assert more == 7 - 5


def test_parts_of_a_prompt_are_numbered_like_the_whole() -> None:
    model = object.__new__(ZspaQwen2VLForConditionalGeneration)
    ids = [1, 5, 5, 5, 2, 7, 7, 3]
    text = torch.tensor([0, 0, 0, 0, 303, 0, 0, 308])  # of pictures, nothing is known yet
    inside = torch.tensor([[0, 1, 2], [0, 2, 0], [0, 300, 301], [0, 0, 1], [72_003, 0, 2]])
    model.__dict__.update(_shown=[5, 7], _inside=lambda *_: inside)
    rows = model._cut(torch.ones(5, 2).bfloat16(), torch.arange(5), 0, {})
    one, other = rows[:3], rows[3:]
    wanted = text.repeat(3, 1)
    wanted[:, 1:4] = inside[:3].T + 1
    wanted[:, 5:7] = inside[3:].T + 304
    for parts in (
        [(0, [one, other])],
        [(0, [one[:1]]), (2, [one[1:], other[:1]]), (6, [other[1:]])],
    ):
        positions = text.repeat(3, 1)
        for start, read in parts:
            kept, positions, more = model.recompute_mrope_positions(ids, read, positions, start)
            assert all(x.shape[1] == 2 for x in kept)
        assert positions.tolist() == wanted.tolist()
        assert more == 309 - 8


_ENCODER = {
    "model_config.multimodal_config.mm_encoder_only": True,
    "model_config.hf_config.zspa": {"method": "divprune"},
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"parallel_config.pipeline_parallel_size": 2},
            "pipeline_parallel_size must be 1 .* got 2",
        ),
        ({"model_config.enable_prompt_embeds": True}, "enable_prompt_embeds must be False"),
        ({"lora_config.enable_tower_connector_lora": True}, "enable_tower_connector_lora must be"),
        (
            {"model_config.multimodal_config.mm_processor_kwargs": {"zspa": {"keep": 9}}},
            "mm_processor_kwargs of a server must not have",
        ),
        (_ENCODER | {"model_config.hf_config.zspa": {}}, "mm_encoder_only must be False"),
        (
            _ENCODER | {"model_config.hf_config.vision_config.model_type": "pixtral"},
            "mm_encoder_only must be False",
        ),
        (  # a method without words may encode alone
            _ENCODER | {"parallel_config.pipeline_parallel_size": 2},
            "pipeline_parallel_size must be 1",
        ),
    ],
)
def test_what_no_pruned_model_can_be_served_with(config: Any, message: str) -> None:
    given = MagicMock()
    given.configure_mock(
        **{
            "model_config.multimodal_config.video_pruning_rate": None,
            "model_config.multimodal_config.mm_processor_kwargs": None,
            "model_config.multimodal_config.mm_encoder_only": False,
            "model_config.enable_prompt_embeds": False,
            "lora_config.enable_tower_connector_lora": False,
            "parallel_config.pipeline_parallel_size": 1,
            **config,
        }
    )
    with pytest.raises(ValueError, match=message):
        ZspaQwen2VLForConditionalGeneration(vllm_config=given)


def test_caches_of_servers_with_other_options_are_apart(tmp_path: Path) -> None:
    """A picture's hash may be shared by several servers."""
    vllm_models.save("llava", tmp_path)

    def hashed(**how: Any) -> Any:
        given = EngineArgs(str(tmp_path), dtype="float32", hf_overrides=overrides(**how))
        processor = MULTIMODAL_REGISTRY.create_processor(given.create_model_config())
        items = processor.info.parse_mm_data({"image": [photograph("chelsea", (170, 112))]})
        return processor("<start> user <image> what is this", items)["mm_hashes"]["image"]

    assert hashed(core_ratio=0.2) == hashed(core_ratio=0.2) != hashed(core_ratio=0.4)


@pytest.mark.parametrize(("name", "place"), [("gemma3", "<boi>"), ("gemma4_moe", "<image>")])
def test_ranges_of_gemmas_bidirectional_attention(tmp_path: Path, name: str, place: str) -> None:
    """Which vLLM has on GPUs; they must be the kept tokens of each picture, and crop."""
    vllm_models.save(name, tmp_path)
    given = EngineArgs(str(tmp_path), dtype="float32", hf_overrides=overrides(keep=5))
    config = given.create_model_config()
    assert config.is_mm_prefix_lm
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    items = processor.info.parse_mm_data({"image": [photograph("chelsea", (170, 112))] * 2})
    made = processor(f"{place} what is this {place}", items)
    mark = processor.info.get_tokenizer().convert_tokens_to_ids("<image>")
    features = [
        SimpleNamespace(modality="image", mm_position=one)
        for one in made["mm_placeholders"]["image"]
    ]
    ranges = compute_mm_prefix_ranges(["a"], {"a": features})[0]
    ids = made["prompt_token_ids"]
    assert [ids[first : last + 1] for first, last in ranges] == [[mark] * 5] * 2
    assert ids.count(mark) == 10


def test_a_vllm_without_these_parts_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It would not start, whatever model it was asked for."""
    log = logging.getLogger("vllm.zspa_kernels")
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.delattr("vllm.model_executor.models.config.MODELS_CONFIG_MAP")
    register()
    assert "prunes no model: cannot import name 'MODELS_CONFIG_MAP'" in caplog.text


def test_what_vllm_sets_for_a_model_by_its_name() -> None:
    register()
    found = [MODELS_CONFIG_MAP.get(f"Zspa{name}") for name in ARCHITECTURES]
    assert found == [MODELS_CONFIG_MAP.get(name) for name in ARCHITECTURES]
    assert any(found)


def test_no_encoder_that_returns_all_tokens_is_captured() -> None:
    for name in ARCHITECTURES:
        kind = getattr(models, f"Zspa{name}")
        assert kind.get_encoder_cudagraph_config is PruningModel.get_encoder_cudagraph_config
    gemma = object.__new__(models.ZspaGemma3ForConditionalGeneration)
    gemma.__dict__["config"] = MagicMock()
    assert supports_encoder_cudagraph(gemma)
    assert not gemma.get_encoder_cudagraph_config().modalities
    llava = object.__new__(models.ZspaLlavaForConditionalGeneration)
    assert not supports_encoder_cudagraph(llava)
