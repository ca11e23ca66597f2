# SPDX-License-Identifier: Apache-2.0
"""Models of Liquid, Cohere, DeepSeek and AIDC for `vlms`: small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from python_tests.vlm_models import VOCABULARY, Parts, qwen_tokens, siglip, text, tokenizer
from python_tests.vlm_processors import (
    QWEN_IMAGE,
    QWEN_MARKS,
    LiquidProcessor,
    MarkedProcessor,
    QwenProcessor,
    SquareProcessor,
)


def _lfm2_vl() -> Parts:
    tok = tokenizer(["<image>", "<first>", "<second>", "<small>"], "<image>")
    kinds = ["conv", "full_attention", "conv"]
    vision = {**siglip(), "num_patches": 64, "vision_use_head": False}
    del vision["image_size"]
    config = transformers.Lfm2VlConfig(
        vision_config=transformers.Siglip2VisionConfig(**vision),
        text_config=text(transformers.Lfm2Config, num_hidden_layers=3, layer_types=kinds),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        projector_hidden_size=48,
    )
    model = transformers.Lfm2VlForConditionalGeneration(config)
    return model, LiquidProcessor(tok, 14, 140), "<image>"


def _lfm3_vl() -> Parts:
    """Pictures and videos are Qwen3-VL's; positions count the tokens of a prompt."""
    tok: Any = tokenizer(QWEN_MARKS, QWEN_IMAGE)
    kinds = ["conv", "full_attention", "conv", "sliding_attention"]
    words = {"num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 1024}
    tower = {"hidden_size": 32, "intermediate_size": 48, "layer_types": ["conv", "full_attention"]}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.Lfm3VlConfig(
        text_config=text(transformers.Lfm3Config, head_dim=16, conv_L_cache=3, **words),
        vision_config={**tower, **heads},
        projector_hidden_size=48,
        **qwen_tokens(tok),
    )
    model = transformers.Lfm3VlForConditionalGeneration(config)
    return model, QwenProcessor(tok, 16, 192 * 192, "said", types=False), QWEN_IMAGE


def _cohere2_vision() -> Parts:
    tok = tokenizer(["<image>", "<break>"], "<image>")
    kinds = ["sliding_attention", "full_attention"]
    words = {"layer_types": kinds, "sliding_window": 1024, "logit_scale": 1.0}
    config = transformers.Cohere2VisionConfig(
        vision_config=transformers.SiglipVisionConfig(**siglip(), vision_use_head=False),
        text_config=text(transformers.Cohere2Config, **words),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        alignment_intermediate_size=48,
    )
    model = transformers.Cohere2VisionForConditionalGeneration(config)
    return model, SquareProcessor(tok, "<image>", 112, 16), "<image>"


def _aya_vision() -> Parts:
    tok = tokenizer(["<image>", "<tile>"], "<image>")
    kinds = ["sliding_attention", "full_attention"]
    words = {"layer_types": kinds, "sliding_window": 1024, "logit_scale": 1.0}
    mark = tok.convert_tokens_to_ids("<image>")
    config = transformers.AyaVisionConfig(
        vision_config=transformers.SiglipVisionConfig(**siglip(), vision_use_head=False),
        text_config=text(transformers.Cohere2Config, **words),
        image_token_index=mark,
    )
    config.image_token_id = mark
    model = transformers.AyaVisionForConditionalGeneration(config)
    return model, SquareProcessor(tok, "<image>", 112, 16), "<image>"


def _deepseek_vl() -> Parts:
    tok = tokenizer(["<image>"], "<image>")
    config = transformers.DeepseekVLConfig(
        vision_config=transformers.SiglipVisionConfig(**siglip(), vision_use_head=False),
        text_config=text(transformers.LlamaConfig),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )
    model = transformers.DeepseekVLForConditionalGeneration(config)
    return model, SquareProcessor(tok, "<image>", 112, 64), "<image>"


def _ovis2() -> Parts:
    """Visual tokens are of a vocabulary of their own, which has the marks around pictures too."""
    marks = ["<start of image>", "<end of image>", "<grid>", "<column>", "<row>"]
    tok = tokenizer(["<image>", *(mark.replace(" ", "_") for mark in marks)], "<image>")
    vision = {**siglip(), "hidden_stride": 2, "vocab_size": 48, "num_visual_indicator_tokens": 5}
    image = int(tok.convert_tokens_to_ids("<image>"))
    config = transformers.Ovis2Config(
        vision_config=transformers.models.ovis2.configuration_ovis2.Ovis2VisionConfig(**vision),
        text_config=text(transformers.Qwen2Config),
        image_token_id=image,
        visual_indicator_token_ids=list(range(image + 1, image + 6)),
        hidden_size=64,
        vocab_size=VOCABULARY,
    )
    model = transformers.Ovis2ForConditionalGeneration(config)
    return model, MarkedProcessor(tok, "<image>", 112, 16), "<image>"


BUILDERS: dict[str, Callable[[], Parts]] = {
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "deepseek_vl": _deepseek_vl,
    "ovis2": _ovis2,
    "lfm2_vl": _lfm2_vl,
    "lfm3_vl": _lfm3_vl,
}
