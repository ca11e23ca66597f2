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

# vLLM's attention on CPUs wants heads of at least 32 channels.
_TEXT = {"num_attention_heads": 2, "num_key_value_heads": 1}
_WIDTH = 64
_QWEN_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 168 * 168}


def _clip(size: int) -> Any:
    return transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        projection_dim=32,
    )


def _llava() -> tuple[Any, Any]:
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}
    )
    return _of_clip("Llava", pictures, 112)


def _llava_next() -> tuple[Any, Any]:
    pins = [[56, 112], [112, 56], [112, 112]]
    pictures = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pins
    )
    return _of_clip("LlavaNext", pictures, 56, image_grid_pinpoints=pins)


def _llava_onevision() -> tuple[Any, Any]:
    size, pins, ratio = 56, [[56, 112], [112, 56], [112, 112]], "anyres_max_9"
    tok = models.tokenizer(["<image>", "<video>"], "<image>")
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=size,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=models.text(transformers.Qwen2Config, **_TEXT),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pins,
        vision_aspect_ratio=ratio,
    )
    square = {"height": size, "width": size}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=square, image_grid_pinpoints=pins
        ),
        tokenizer=tok,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=(size // 14) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ratio,
        chat_template=tok.chat_template,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def _of_clip(name: str, pictures: Any, size: int, **more: Any) -> tuple[Any, Any]:
    tok = models.tokenizer(["<image>"], "<image>")
    config = getattr(transformers, f"{name}Config")(
        vision_config=_clip(size),
        text_config=models.text(transformers.LlamaConfig, **_TEXT),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        **more,
    )
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=pictures,
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=tok.chat_template,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "out_hidden_size": _WIDTH,
        "tokens_per_second": 2,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    return _qwen("Qwen2_5_VL", vision, rope_parameters=rope)


def _qwen2_vl() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": _WIDTH,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    return _qwen("Qwen2VL", vision, rope_parameters=rope)


def _qwen3_vl() -> tuple[Any, Any]:
    return _qwen3("Qwen3VL")


def _qwen3_vl_moe() -> tuple[Any, Any]:
    experts = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
    experts["norm_topk_prob"] = True  # which vLLM asks for
    return _qwen3("Qwen3VLMoe", **experts)


def _qwen3(name: str, **more: Any) -> tuple[Any, Any]:
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": _WIDTH,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 6, 6],
        "mrope_interleaved": True,
    }
    more = {"num_hidden_layers": 3, "head_dim": 32, **more}
    return _qwen(name, vision, rope_parameters=rope, **more)


def _qwen(name: str, vision: dict[str, Any], **text: Any) -> tuple[Any, Any]:
    tok = models.tokenizer(models.QWEN_MARKS, models.QWEN_IMAGE)
    config = getattr(transformers, f"{name}Config")(
        text_config=models.text(dict, **_TEXT, **text),
        vision_config=vision,
        **models._qwen_tokens(tok),
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    third = name.startswith("Qwen3")
    processor = getattr(transformers, "Qwen3VLProcessor" if third else "Qwen2_5_VLProcessor")
    films = transformers.Qwen3VLVideoProcessor if third else transformers.Qwen2VLVideoProcessor
    if name == "Qwen2VL":
        processor = transformers.Qwen2VLProcessor
    return model, processor(
        transformers.Qwen2VLImageProcessor(patch_size=14, merge_size=2, **_QWEN_PIXELS),
        tok,
        films(patch_size=14, merge_size=2, **_QWEN_PIXELS),
        chat_template=tok.chat_template,
    )


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
}


def save(name: str, folder: Path) -> tuple[Any, Any]:
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
