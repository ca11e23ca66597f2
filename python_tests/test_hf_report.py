# SPDX-License-Identifier: Apache-2.0
"""What the report of a pruned call says: images, prompts, words, memory of the cache."""

from __future__ import annotations

import json

import pytest
import torch

import zspa_kernels as zk
from python_tests import vlm_models, vlms
from python_tests.hf_oracle import cache_of, generate
from zspa_kernels.hf.architectures import ARCHITECTURES

METHOD = zk.ZSPAPrune(keep=0.2, core_ratio=0.4)


@pytest.mark.parametrize("name", vlms.BUILDERS)
def test_the_report(name: str) -> None:
    tiny = vlms.get(name)
    inputs = vlms.widened(tiny.inputs("ragged"))
    with METHOD(tiny.model) as handle:
        output = generate(tiny.model, inputs)
    report = handle.report
    assert report is not None
    assert [image.sample for image in report.images] == [0, 1, 1]
    for image in report.images:
        assert image.after == zk.num_keep(image.before, 0.2)
        assert image.core == zk.split_core(image.after, 0.4)
        assert image.core + image.diverse == image.after == len(set(image.indices.tolist()))
        assert (image.cell.shape, image.cell.dtype) == ((image.before, 3), torch.int64)
    dropped = report.before - report.after
    assert sum(report.prompt_before) - sum(report.prompt_after) == dropped
    assert report.prompt_before == inputs["attention_mask"].sum(1).tolist()
    named = ARCHITECTURES[tiny.model.config.model_type].marks == "names"
    assert report.query_tokens == [5, 6 if named else 7]  # "and" is taken for the name of a tile
    held = [one for one in cache_of(output).layers if getattr(one, "keys", None) is not None]
    count = tiny.model.config.get_text_config().num_hidden_layers
    few = {**dict.fromkeys(vlm_models.STATES, 1), "lfm3_vl": 2, "gemma4": 2}
    assert len(held) == few.get(name, count)
    # 2 heads of 16 channels, or as many channels in one head, or twice as many.
    wide = 3 if name == "gemma4" else len(held)
    slot = 2 * 2 * wide * 2 * 16 * 4  # keys and values, 2 prompts, 4 bytes
    assert report.kv_bytes_before == slot * inputs["input_ids"].shape[1]
    assert report.kv_bytes_after == slot * max(report.prompt_after)
    line = str(report)
    assert "\n" not in line
    assert f"3 images, {report.before} -> {report.after} visual tokens" in line
    assert "original positions" in line
    loaded = json.loads(report.to_json())
    assert loaded["images"][1]["indices"] == report.images[1].indices.tolist()
    assert loaded["images"][1]["core"] == report.images[1].core
    assert loaded["route"] == ("inputs" if vlms.VERSION >= (5, 20) else "hooks")
    assert loaded["select_ms"] > 0
    assert repr(handle).startswith("<PruneHandle of ")
    assert line in repr(handle)
