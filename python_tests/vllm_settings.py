# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine in other settings: parts, adapters, several devices; see `vllm_engine`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from vllm.lora.request import LoRARequest

import zspa_kernels as zk
from python_tests.vllm_engine import (
    ASKED,
    CAT,
    CUP,
    KEEP,
    QUESTIONS,
    ROCKET,
    agree,
    running,
)
from python_tests.vlm_models import QWENS, STATES
from zspa_kernels.vllm import overrides

#: Models whose prompts are read in parts, and whether by processes of vLLM's own.
IN_PARTS = [("llava", "1"), ("qwen2_5_vl", "0")]
if ASKED == "all":
    others = "mistral3 internvl gemma3 gemma4 smolvlm qwen3_5 glm4v lfm2_vl"
    IN_PARTS += [(name, "0") for name in others.split()]
one_after_another = pytest.mark.skipif(ASKED != "all", reason="one model after another: make vllm")


@pytest.mark.parametrize(("name", "processes"), IN_PARTS)
def test_a_prompt_that_is_read_in_parts(
    name: str, processes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaVA's in processes of vLLM's own, which find the pruned models by the entry point."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", processes)
    # With adapters, and more words than a part has.
    parts = {"max_num_batched_tokens": 16, "max_num_seqs": 3, "enable_lora": name not in QWENS}
    # A prompt is cached by whole blocks, of 128 tokens by default. States are not cached.
    parts |= {} if name in STATES else {"block_size": 32}
    words = " ".join(QUESTIONS * 2)
    with running(name, tmp_path, overrides(keep=KEEP), **parts) as engine:
        requests = [
            engine.request(QUESTIONS[0], CAT, keep=0.8),
            engine.request(words, ROCKET, CUP),
        ]
        for again in (False, True):  # what was read once is in caches
            first, second = engine.answers(*requests)
            assert bool(second.num_cached_tokens) == (again and name not in STATES)
            agree(first, engine.expected(zk.ZSPAPrune(keep=0.8), QUESTIONS[0], CAT))
            agree(second, engine.expected(zk.ZSPAPrune(keep=KEEP), words, ROCKET, CUP))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_picture_that_is_given_encoded(name: str, tmp_path: Path) -> None:
    """Its tokens are chosen from as those of the picture are."""
    with running(name, tmp_path, overrides(keep=KEEP), enable_mm_embeds=True) as engine:
        pixels = engine.inputs(QUESTIONS[0], CAT)
        grid = {k: pixels[k] for k in ("image_grid_thw",) if k in pixels}
        with torch.no_grad():
            found = engine.model.get_image_features(pixels["pixel_values"], **grid).pooler_output
        encoded = torch.cat(tuple(found)) if grid else found[0][None]
        request = engine.request(QUESTIONS[0], CAT, keep=0.4)
        request["multi_modal_data"] = {
            "image": {"image_embeds": encoded, **grid} if grid else encoded
        }
        (answer,) = engine.answers(request)
        agree(answer, engine.expected(zk.ZSPAPrune(keep=0.4), QUESTIONS[0], CAT))


@one_after_another
@pytest.mark.parametrize("name", ["mistral3", "gemma4", "qwen2_5_vl"])
def test_an_adapter(name: str, tmp_path: Path) -> None:
    """LoRA's changes of the language model leave the choice of tokens alone."""
    import peft

    target = r".*language_model.*\.(q_proj|v_proj|o_proj|down_proj)"
    how = peft.LoraConfig(r=8, lora_alpha=32, target_modules=target, init_lora_weights=False)
    with running(name, tmp_path, overrides(keep=KEEP), enable_lora=True) as engine:
        asked, method = engine.request(QUESTIONS[0], CAT), zk.ZSPAPrune(keep=KEEP)
        plain = engine.expected(method, QUESTIONS[0], CAT)
        torch.manual_seed(0)
        engine.model = peft.get_peft_model(engine.model, how)
        engine.model.save_pretrained(str(tmp_path / "adapter"))
        tuned = engine.expected(method, QUESTIONS[0], CAT)
        assert (tuned[1] - plain[1]).abs().max() > 0.1
        adapter = LoRARequest("adapter", 1, str(tmp_path / "adapter"))
        for more, expected in (({"lora_request": adapter}, tuned), ({}, plain)):
            [answer] = engine.answers(asked, **more)
            agree(answer, expected)


@one_after_another
@pytest.mark.parametrize(("name", "encoder"), [("mistral3", "weights"), ("qwen2_5_vl", "data")])
def test_a_model_on_two_devices(
    name: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a part of the weights, and of the encoder's weights or pictures; both choose."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores, one for each process")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, cores)))
    both = {"tensor_parallel_size": 2, "mm_encoder_tp_mode": encoder}
    with running(name, tmp_path, overrides(keep=KEEP), **both) as engine:
        first, second = engine.answers(
            engine.request(QUESTIONS[0], CAT, keep=0.8),
            engine.request(QUESTIONS[1], ROCKET, CUP),
        )
        agree(first, engine.expected(zk.ZSPAPrune(keep=0.8), QUESTIONS[0], CAT))
        agree(second, engine.expected(zk.ZSPAPrune(keep=KEEP), QUESTIONS[1], ROCKET, CUP))


def test_pruning_by_two_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(Exception, match="video_pruning_rate must be None"),
        running("qwen2_5_vl", tmp_path, overrides(keep=KEEP), video_pruning_rate=0.5),
    ):
        pass
