# SPDX-License-Identifier: Apache-2.0
"""InternVL as its authors publish it: other names of weights, and a processor of vLLM's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from python_tests import vlm_models as models

_CONTEXT, _FILM = "<IMG_CONTEXT>", "<|video_pad|>"
SIZE, TOKENS = 56, 4
#: Names of a weight, by parts of what transformers calls it, in this order.
_NAMES = {
    "vision_tower.": "vision_model.",
    ".encoder.layer.": ".encoder.layers.",
    ".embeddings.cls_token": ".embeddings.class_embedding",
    ".embeddings.patch_embeddings.projection": ".embeddings.patch_embedding",
    ".embeddings.position_embeddings": ".embeddings.position_embedding",
    ".attention.projection_layer": ".attn.proj",
    ".lambda_": ".ls",
    ".layernorm_before": ".norm1",
    ".layernorm_after": ".norm2",
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
}


class ChatConfig(transformers.PretrainedConfig):
    """What the authors' own code for transformers defines."""

    model_type = "internvl_chat"

    def __init__(self, vision_config: Any = None, llm_config: Any = None, **more: Any) -> None:
        self.vision_config = transformers.PretrainedConfig(**(vision_config or {}))
        self.llm_config = transformers.Qwen2Config(**(llm_config or {}))
        super().__init__(**more)


transformers.AutoConfig.register(ChatConfig.model_type, ChatConfig)


class ChatProcessor:
    """vLLM's, for the model of transformers."""

    def __init__(self) -> None:
        marks = ["<image>", "<video>", "<img>", "</img>", _CONTEXT, _FILM]
        self.tokenizer = models.tokenizer(marks, "<image>")
        ids: Any = self.tokenizer.convert_tokens_to_ids([_CONTEXT, _FILM])
        self.context, self.film = ids

    def __call__(self, text: str, images: Any = None, videos: Any = None, **_: Any) -> Any:
        from vllm.transformers_utils.processors import internvl

        made = internvl.InternVLProcessor(
            internvl.InternVLImageProcessor(SIZE, 1, 4, True, True),
            self.tokenizer,
            internvl.InternVLVideoProcessor(SIZE),
            image_seq_length=TOKENS,
            ctx_video_token=_FILM,
        )(text, images, videos, return_tensors="pt")
        pixels = [made[name] for name in made if name.startswith("pixel_values_flat")]
        ids = made["input_ids"]
        return transformers.BatchFeature(
            {
                "input_ids": ids.masked_fill(ids == self.film, self.context),
                "attention_mask": made["attention_mask"],
                "pixel_values": torch.cat(pixels),
            }
        )

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


def as_published(folder: Path, model: Any) -> None:
    """Rewrites the configuration and the weights of a model that was saved in `folder`."""
    config = model.config
    tower = {
        **config.vision_config.to_dict(),
        "image_size": SIZE,
        "patch_size": config.vision_config.patch_size[0],
        "qkv_bias": config.vision_config.attention_bias,
        "qk_normalization": False,
        "initializer_factor": 1.0,
    }
    published = {
        "model_type": ChatConfig.model_type,
        "architectures": ["InternVLChatModel"],
        "vision_config": tower,
        "llm_config": {**config.text_config.to_dict(), "architectures": ["Qwen2ForCausalLM"]},
        "downsample_ratio": config.downsample_ratio,
        "force_image_size": SIZE,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "ps_version": "v2",
        "select_layer": -1,
    }
    (folder / "config.json").write_text(json.dumps(published))
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        weights[_named(name)] = weight
    for name in [name for name in weights if ".attention.q_proj." in name]:
        parts = [weights.pop(name.replace("q_proj", f"{one}_proj")) for one in "qkv"]
        weights[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _named(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name
