# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights for vLLM, each in a folder like those of a model hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from python_tests import vlm_models as models

# vLLM's attention on CPUs wants heads of at least 32 channels; these towers have two.
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
_WIDTH = 64
_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 168 * 168}
_QWEN3 = {"num_hidden_layers": 3, "head_dim": 32, "interleaved": True}

Pair = tuple[Any, Any]  # model, processor


def _llava() -> Pair:
    return _with_template(models.llava(_WIDTH, **_HEADS))


def _llava_next() -> Pair:
    return _with_template(models.llava_next(_WIDTH, **_HEADS))


def _with_template(parts: models.Parts) -> Pair:
    model, processor, _ = parts
    processor.chat_template = processor.tokenizer.chat_template
    return model, processor


def _llava_onevision() -> Pair:
    size, ratio = models.ONEVISION, "anyres_max_9"
    tok, square = (
        models.tokenizer(["<image>", "<video>"], "<image>"),
        dict.fromkeys(("height", "width"), size),
    )
    pictures = transformers.LlavaOnevisionImageProcessor(
        size=square, image_grid_pinpoints=models.pins(size)
    )
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=pictures,
        tokenizer=tok,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=(size // 14) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ratio,
        chat_template=tok.chat_template,
    )
    return models.onevision(tok, ratio, _WIDTH, **_HEADS), processor


def _qwen2_5_vl() -> Pair:
    return _qwen("Qwen2_5_VL", models.qwen2_5_vision(_WIDTH))


def _qwen2_vl() -> Pair:
    return _qwen("Qwen2VL", models.qwen2_vision(_WIDTH))


def _qwen3_vl() -> Pair:
    return _qwen("Qwen3VL", models.qwen3_vision(_WIDTH, 14), **_QWEN3)


def _qwen3_vl_moe() -> Pair:
    experts = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
    experts["norm_topk_prob"] = True  # which vLLM asks for
    return _qwen("Qwen3VLMoe", models.qwen3_vision(_WIDTH, 14), **_QWEN3, **experts)


def _qwen(name: str, vision: dict[str, Any], interleaved: bool = False, **text: Any) -> Pair:
    tok = models.tokenizer(models.QWEN_MARKS, models.QWEN_IMAGE)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    if interleaved:
        rope["mrope_interleaved"] = True
    config = getattr(transformers, f"{name}Config")(
        text_config=models.text(dict, **_HEADS, **text, rope_parameters=rope),
        vision_config=vision,
        **models.qwen_tokens(tok),
    )
    family = name.removesuffix("Moe")
    films = "Qwen3VLVideoProcessor" if interleaved else "Qwen2VLVideoProcessor"
    sizes = {"patch_size": vision["patch_size"], "merge_size": 2, **_PIXELS}
    processor = getattr(transformers, f"{family}Processor")(
        transformers.Qwen2VLImageProcessor(**sizes),
        tok,
        getattr(transformers, films)(**sizes),
        chat_template=tok.chat_template,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


BUILDERS: dict[str, Callable[[], Pair]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
}


def save(name: str, folder: Path) -> Pair:
    """A model and its processor, which also lie in `folder`, for vLLM."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    _as_published(folder / "model.safetensors")
    return model, processor


def _as_published(file: Path) -> None:
    """Weights named and laid out as in published models, which is what vLLM expects."""
    tower = "vision_tower."

    def published(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
        if name.startswith(tower) and "vision_model." not in name:
            name = f"{tower}vision_model.{name.removeprefix(tower)}"
        if ".experts." in name:
            weight = weight.transpose(1, 2).contiguous()
        return name, weight

    weights = dict(published(*item) for item in load_file(file).items())
    save_file(weights, file, metadata={"format": "pt"})
