# SPDX-License-Identifier: Apache-2.0
"""The LFM2-VL and the Cohere2 Vision of `vlms`: small, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import transformers

from python_tests.vlm_models import Parts, siglip, text, tokenizer
from python_tests.vlm_processors import LiquidProcessor, SquareProcessor


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


BUILDERS: dict[str, Callable[[], Parts]] = {
    "cohere2_vision": _cohere2_vision,
    "lfm2_vl": _lfm2_vl,
}
