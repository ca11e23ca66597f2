# SPDX-License-Identifier: Apache-2.0
"""Parts of the pruning in vLLM that need vLLM, but no engine; see `vllm_engine`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm.utils.argparse_utils import FlexibleArgumentParser

import zspa_kernels as zk
from python_tests import vllm_models
from python_tests.vlms import photograph
from zspa_kernels.hf import UnsupportedModelError
from zspa_kernels.vllm import overrides
from zspa_kernels.vllm.batches import Batches
from zspa_kernels.vllm.model import PruningModel
from zspa_kernels.vllm.models import ZspaQwen2VLForConditionalGeneration
from zspa_kernels.vllm.options import Options
from zspa_kernels.vllm.processor import signed


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


def test_each_picture_of_a_batch_has_its_own_words_and_share() -> None:
    generator = torch.Generator().manual_seed(5)
    encoded = torch.randn(4, 8, 16, generator=generator)  # eight tokens a picture
    table = torch.randn(30, 16, generator=generator)
    words = [torch.tensor(own, dtype=torch.long) for own in ([3, 4], [5], [6, 7, 8], [])]
    asked = (0.5, 3, 0.25, 1.0)

    class Stock(torch.nn.Module):
        def embed_multimodal(self, **inputs: Any) -> Any:
            return [encoded[int(one[0, 0, 0, 0])] for one in inputs["pixel_values"]]

        def get_language_model(self) -> Any:
            language: Any = torch.nn.Module()
            language.embed_input_ids = lambda ids: table[ids]
            return language

    class Model(PruningModel, Stock):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self._options = Options.read({"core_ratio": 0.5})
            self._width, self._batches = 16, Batches(limit=20, patches=8)

    inputs = {
        "pixel_values": [torch.full((1, 1, 1, 1), float(i)) for i in range(4)],
        "zspa_keep_image": torch.tensor([signed(keep) for keep in asked], dtype=torch.float64),
        "zspa_words_image": words,
    }
    for found, visual, own, keep in zip(
        Model().embed_multimodal(**inputs), encoded, words, asked, strict=True
    ):
        method = zk.ZSPAPrune(keep=keep, core_ratio=0.5)
        (chosen,) = method.select_varlen([visual], [table[own]])
        assert found.equal(visual[chosen.indices])


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
    model.__dict__["_shown"] = [5, 7]
    ids = [1, 5, 5, 5, 2, 7, 7, 3]
    text = torch.tensor([0, 0, 0, 0, 303, 0, 0, 308])  # of pictures, nothing is known yet
    inside = torch.tensor([[0, 1, 2], [0, 2, 0], [0, 300, 301], [0, 0, 1], [3, 0, 2]])
    rows = torch.cat((torch.ones(5, 2), inside // 256, inside % 256), dim=1).bfloat16()
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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"parallel_config.pipeline_parallel_size": 2},
            "pipeline_parallel_size must be 1 .* got 2",
        ),
        ({"lora_config.enable_tower_connector_lora": True}, "enable_tower_connector_lora must be"),
        (
            {"model_config.multimodal_config.mm_processor_kwargs": {"zspa": {"keep": 9}}},
            "mm_processor_kwargs of a server must not have",
        ),
    ],
)
def test_what_no_pruned_model_can_be_served_with(config: Any, message: str) -> None:
    given = MagicMock()
    given.configure_mock(
        **{
            "model_config.multimodal_config.video_pruning_rate": None,
            "model_config.multimodal_config.mm_processor_kwargs": None,
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
