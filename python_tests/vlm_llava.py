# SPDX-License-Identifier: Apache-2.0
"""The LLaVA models of `vlms`: small, with random weights; but for Pixtral, in `vlm_models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from python_tests.vlm_models import Parts, siglip, text, tokenizer
from python_tests.vlm_processors import (
    FramesProcessor,
    OneVisionProcessor,
    SquareProcessor,
    TilesProcessor,
)


def _clip(size: int, width: int) -> Any:
    return transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        projection_dim=32,
    )


def llava(width: int = 32, **words: int) -> Parts:
    """`width` of the vision tower; `words` are options of the language model's configuration."""
    size = 112
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    kinds = (transformers.LlavaConfig, transformers.LlavaForConditionalGeneration)
    vision, text_config = _clip(size, width), text(transformers.LlamaConfig, **words)
    return _of_clip(*kinds, transformers.LlavaProcessor, pictures, vision, text_config)


def pins(size: int) -> list[list[int]]:
    """How large pictures may be that are cut into tiles."""
    return [[size, 2 * size], [2 * size, size], [2 * size, 2 * size]]


def llava_next(width: int = 32, **words: int) -> Parts:
    """As `llava`."""
    size = 56
    pictures = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_grid_pinpoints=pins(size),
    )
    kinds = (transformers.LlavaNextConfig, transformers.LlavaNextForConditionalGeneration)
    processor = transformers.LlavaNextProcessor
    vision, text_config = _clip(size, width), text(transformers.LlamaConfig, **words)
    more = {"image_grid_pinpoints": pins(size)}
    return _of_clip(*kinds, processor, pictures, vision, text_config, **more)


def _of_clip(
    configuration: Any,
    kind: Any,
    processor: Any,
    pictures: Any,
    vision: Any,
    words: Any,
    **more: Any,
) -> Parts:
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    config = configuration(
        vision_config=vision,
        text_config=words,
        image_token_index=mark,
        **more,
    )
    config.image_token_id = mark
    made = processor(
        image_processor=pictures,
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return kind(config), made, "<image>"


def _llava_next_video() -> Parts:
    tok = tokenizer(["<image>", "<video>"], "<image>")
    image, video = (tok.convert_tokens_to_ids(mark) for mark in ("<image>", "<video>"))
    size = 56
    config = transformers.LlavaNextVideoConfig(
        vision_config=_clip(size, 32),
        text_config=text(transformers.LlamaConfig),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=pins(size),
    )
    model = transformers.LlavaNextVideoForConditionalGeneration(config)
    return model, TilesProcessor(tok, size, 14, pins(size)), "<image>"


def _vipllava() -> Parts:
    """The projector is given the features of three layers."""
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    config = transformers.VipLlavaConfig(
        vision_config=_clip(112, 32),
        text_config=text(transformers.LlamaConfig),
        image_token_index=mark,
    )
    config.image_token_id, config.vision_feature_layers = mark, [-2, -3, 1]
    model = transformers.VipLlavaForConditionalGeneration(config)
    return model, SquareProcessor(tok, "<image>", 112, 64), "<image>"


def _video_llava() -> Parts:
    """Pictures have no [CLS], frames have."""
    tok = tokenizer(["<image>", "<video>"], "<image>")
    image, video = (tok.convert_tokens_to_ids(mark) for mark in ("<image>", "<video>"))
    config = transformers.VideoLlavaConfig(
        vision_config=_clip(56, 32),
        text_config=text(transformers.LlamaConfig),
        image_token_index=image,
        video_token_index=video,
    )
    config.image_token_id, config.video_token_id = image, video
    model = transformers.VideoLlavaForConditionalGeneration(config)
    return model, FramesProcessor(tok, "<image>", 56, 16), "<image>"


def _llava_onevision() -> Parts:
    tok = tokenizer(["<image>", "<video>"], "<image>")
    ratio = "anyres_max_2"  # four tiles are made smaller, two are not
    model = onevision(tok, ratio)
    return model, OneVisionProcessor(tok, ONEVISION, 14, pins(ONEVISION), ratio), "<image>"


ONEVISION = 56  # rows and columns of a tile


def onevision(tok: Any, ratio: str, width: int = 32, **words: int) -> Any:
    """A LLaVA-OneVision for a tokenizer with `<image>` and `<video>`; else as `llava`."""
    image, video = (tok.convert_tokens_to_ids(mark) for mark in ("<image>", "<video>"))
    tower = {**siglip(width), "image_size": ONEVISION, "vision_use_head": False}
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**tower),
        text_config=text(transformers.Qwen2Config, **words),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=pins(ONEVISION),
        vision_aspect_ratio=ratio,
    )
    config.image_token_id, config.video_token_id = image, video
    return transformers.LlavaOnevisionForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[], Parts]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_next_video": _llava_next_video,
    "vipllava": _vipllava,
    "video_llava": _video_llava,
    "llava_onevision": _llava_onevision,
}
