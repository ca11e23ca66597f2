# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights for vLLM, each in a folder like those of a model hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from python_tests import vllm_gemma4, vlm_llava
from python_tests import vlm_models as models
from python_tests.vllm_internvl import SIZE, TOKENS, ChatProcessor, as_published

# vLLM's attention on CPUs wants heads of at least 32 channels; these towers have two.
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
_WIDTH = 64
_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 168 * 168}
_QWEN3 = {"num_hidden_layers": 3, "head_dim": 32, "interleaved": True}
_EXPERTS = {**models.EXPERTS, "norm_topk_prob": True}  # which vLLM asks for
_STATES = {**models.HYBRID, "linear_key_head_dim": 32, "linear_value_head_dim": 32}

Pair = tuple[Any, Any]  # model, processor


def _llava() -> Pair:
    return _with_template(vlm_llava.llava(_WIDTH, **_HEADS))


def _llava_next() -> Pair:
    return _with_template(vlm_llava.llava_next(_WIDTH, **_HEADS))


def _with_template(parts: models.Parts) -> Pair:
    model, processor, _ = parts
    processor.chat_template = processor.tokenizer.chat_template
    return model, processor


def _llava_onevision() -> Pair:
    size, ratio = vlm_llava.ONEVISION, "anyres_max_9"
    tok, square = (
        models.tokenizer(["<image>", "<video>"], "<image>"),
        dict.fromkeys(("height", "width"), size),
    )
    pictures = transformers.LlavaOnevisionImageProcessor(
        size=square, image_grid_pinpoints=vlm_llava.pins(size)
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
    return vlm_llava.onevision(tok, ratio, _WIDTH, **_HEADS), processor


def _gemma3() -> Pair:
    marks = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    # vLLM looks for these, which pictures have around them.
    lines = ["\n" * count for count in (1, 2, 3, 4)]
    tok = models.tokenizer([*marks.values(), *lines], marks["boi_token"])
    tok._set_model_specific_special_tokens(special_tokens=marks)
    text = models.text(
        transformers.Gemma3TextConfig,
        **_HEADS,
        head_dim=32,
        sliding_window=64,
        query_pre_attn_scalar=32,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=transformers.SiglipVisionConfig(**models.siglip(_WIDTH)),
        mm_tokens_per_image=16,
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        image_token_index=tok.image_token_id,
    )
    config.image_token_id = tok.image_token_id
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    pictures = transformers.Gemma3ImageProcessor(size={"height": 112, "width": 112})
    processor = transformers.Gemma3Processor(
        pictures, tok, chat_template=tok.chat_template, image_seq_length=16
    )
    return model, processor


def _gemma4() -> Pair:
    return vllm_gemma4.build("Gemma4", **_HEADS, **models.GEMMA_SMALL)


def _gemma4_moe() -> Pair:
    return vllm_gemma4.build("Gemma4", **_HEADS, **models.GEMMA_EXPERTS)


def _gemma4_unified() -> Pair:
    return vllm_gemma4.build("Gemma4Unified", **_HEADS, **models.GEMMA_LARGE)


def _idefics3() -> Pair:
    return _idefics("Idefics3")


def _smolvlm() -> Pair:
    return _idefics("SmolVLM")


def _idefics(name: str) -> Pair:
    crops = [f"<row_{i}_col_{j}>" for i in (1, 2, 3) for j in (1, 2, 3)]
    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tok = models.tokenizer(["<image>", *marks, *crops], "<image>")
    config = getattr(transformers, f"{name}Config")(
        vision_config={**models.siglip(_WIDTH), "image_size": 56},
        text_config=models.text(transformers.LlamaConfig, **_HEADS),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    pictures = getattr(transformers, f"{name}ImageProcessor")(**sizes)
    films = [transformers.SmolVLMVideoProcessor(**sizes)] if name == "SmolVLM" else []
    processor = getattr(transformers, f"{name}Processor")(
        pictures, tok, *films, chat_template=tok.chat_template, image_seq_len=4
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


def _cohere2_vision() -> Pair:
    roles = {
        "image_token": "<image>",
        "boi_token": "<boi>",
        "eoi_token": "<eoi>",
        "img_line_break_token": "<break>",
    }
    tok = models.tokenizer(list(roles.values()), "<image>")
    tok._set_model_specific_special_tokens(special_tokens=roles)
    kinds = ["sliding_attention", "full_attention"]
    words = {"layer_types": kinds, "sliding_window": 1024, "logit_scale": 1.0}
    tower = {**models.siglip(_WIDTH), "image_size": 56, "vision_use_head": False}
    config = transformers.Cohere2VisionConfig(
        vision_config=transformers.SiglipVisionConfig(**tower),
        text_config=models.text(transformers.Cohere2Config, **_HEADS, **words),
        image_token_id=tok.image_token_id,
        alignment_intermediate_size=48,
    )
    # The processor's patches are the tokens of a tile.
    sizes: dict[str, Any] = {"size": {"height": 56, "width": 56}, "patch_size": 2}
    pictures = transformers.Cohere2VisionImageProcessor(**sizes, max_patches=4)
    processor = transformers.Cohere2VisionProcessor(pictures, tok, chat_template=tok.chat_template)
    return transformers.Cohere2VisionForConditionalGeneration(config), processor


def _lfm2_vl() -> Pair:
    roles = {f"image{name}_token": f"<image{name}>" for name in ("", "_start", "_end")}
    roles["image_thumbnail_token"] = "<small>"
    names = [f"<|img_row_{i}_col_{j}|>" for i in (1, 2, 3) for j in (1, 2, 3)]
    tok = models.tokenizer([*roles.values(), *names], "<image>")
    tok._set_model_specific_special_tokens(special_tokens=roles)
    vision = {**models.siglip(_WIDTH), "num_patches": 64, "vision_use_head": False}
    del vision["image_size"]
    kinds = ["conv", "full_attention", "conv"]
    # vLLM 0.32 on CPUs takes wrong rows for the norms of several heads.
    head = dict.fromkeys(_HEADS, 1)
    words = models.text(transformers.Lfm2Config, **head, num_hidden_layers=3, layer_types=kinds)
    words.conv_dim = words.block_dim = words.hidden_size  # as published; vLLM asks for them
    config = transformers.Lfm2VlConfig(
        vision_config=transformers.Siglip2VisionConfig(**vision),
        text_config=words,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        projector_hidden_size=48,
    )
    sizes: dict[str, Any] = {
        "min_image_tokens": 4,
        "max_image_tokens": 16,
        "tile_size": 56,
        "max_tiles": 4,
    }
    sizes["max_pixels_tolerance"] = 1  # most pictures are split
    pictures = transformers.Lfm2VlImageProcessor(encoder_patch_size=14, **sizes)
    processor = transformers.Lfm2VlProcessor(pictures, tok, chat_template=tok.chat_template)
    return transformers.Lfm2VlForConditionalGeneration(config), processor


def _mistral3() -> Pair:
    return _rows("Mistral3", 2)


def _pixtral() -> Pair:
    return _rows("Llava", 1)


def _rows(name: str, merged: int) -> Pair:
    """A model whose pictures have ends of rows."""
    marks = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tok = models.tokenizer(marks, marks[0])
    vision = {**models.siglip(_WIDTH), "image_size": 112, "head_dim": 32}
    more = {"spatial_merge_size": merged} if merged > 1 else {}
    config = getattr(transformers, f"{name}Config")(
        vision_config=transformers.PixtralVisionConfig(**vision),
        text_config=models.text(
            transformers.MistralConfig, **_HEADS, head_dim=32, sliding_window=None
        ),
        image_token_index=tok.convert_tokens_to_ids(marks[0]),
        vision_feature_layer=-1,
        **more,
    )
    config.image_token_id = config.image_token_index
    if name == "Llava":
        config.vision_feature_select_strategy = "full"
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(size={"longest_edge": 112}, patch_size=14),
        tok,
        patch_size=14,
        spatial_merge_size=merged,
        chat_template=tok.chat_template,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


def _internvl_chat() -> Pair:
    processor = ChatProcessor()
    return _internvl_model(processor.context), processor


def _internvl_model(mark: int) -> Any:
    tower = {**models.siglip(_WIDTH), "image_size": [SIZE, SIZE], "patch_size": [14, 14]}
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**tower),
        text_config=models.text(transformers.Qwen2Config, **_HEADS),
        image_token_id=mark,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    return transformers.InternVLForConditionalGeneration(config)


def _internvl() -> Pair:
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    marks = dict(zip(names, ("<img>", "</img>", "<image>", "<video>"), strict=True))
    tok = models.tokenizer(list(marks.values()), "<image>")
    tok._set_model_specific_special_tokens(special_tokens=marks)
    square = {"height": SIZE, "width": SIZE}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=square, max_patches=4, crop_to_patches=True),
        tok,
        transformers.InternVLVideoProcessor(size=square),
        image_seq_length=TOKENS,
        chat_template=tok.chat_template,
    )
    return _internvl_model(tok.context_image_token_id), processor


def _qwen2_5_vl() -> Pair:
    return _qwen("Qwen2_5_VL", models.qwen2_5_vision(_WIDTH))


def _qwen2_vl() -> Pair:
    return _qwen("Qwen2VL", models.qwen2_vision(_WIDTH))


def _qwen3_vl() -> Pair:
    return _qwen("Qwen3VL", models.qwen3_vision(_WIDTH, 14), **_QWEN3)


def _qwen3_vl_moe() -> Pair:
    return _qwen("Qwen3VLMoe", models.qwen3_vision(_WIDTH, 14), **_QWEN3, **_EXPERTS)


def _qwen3_5() -> Pair:
    return _hybrid("Qwen3_5")


def _qwen3_5_moe() -> Pair:
    return _hybrid("Qwen3_5Moe", **_EXPERTS, shared_expert_intermediate_size=32)


def _hybrid(name: str, **words: Any) -> Pair:
    vision = {**models.qwen3_vision(_WIDTH, 14), "depth": 2}
    del vision["deepstack_visual_indexes"]
    part = {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
    model, processor = _qwen(name, vision, part, **_QWEN3, **_STATES, **words)
    return models.remembering(model), processor


def _qwen(
    name: str,
    vision: dict[str, Any],
    rotary: Mapping[str, Any] | None = None,
    interleaved: bool = False,
    **text: Any,
) -> Pair:
    tok = models.tokenizer(models.QWEN_MARKS, models.QWEN_IMAGE)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    if interleaved:
        rope["mrope_interleaved"] = True
    rope.update(rotary or {})
    config = getattr(transformers, f"{name}Config")(
        text_config=models.text(dict, **_HEADS, **text, rope_parameters=rope),
        vision_config=vision,
        **models.qwen_tokens(tok),
    )
    family = "Qwen3VL" if interleaved else name
    films = "Qwen3VLVideoProcessor" if interleaved else "Qwen2VLVideoProcessor"
    sizes = {"patch_size": vision["patch_size"], "merge_size": 2, **_PIXELS}
    if interleaved:  # vLLM takes those of pictures for videos, too, which published models allow
        sizes |= dict.fromkeys(("image_mean", "image_std"), [0.5] * 3)
    processor = getattr(transformers, f"{family}Processor")(
        transformers.Qwen2VLImageProcessor(**sizes),
        tok,
        getattr(transformers, films)(**sizes),
        chat_template=tok.chat_template,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


def _glm4v() -> Pair:
    return _glm("Glm4v")


def _glm4v_moe() -> Pair:
    """The first layer has no experts."""
    experts = {"moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2}
    # The last is in published configurations, and vLLM asks for it.
    return _glm("Glm4vMoe", first_k_dense_replace=1, **experts, use_qk_norm=False)


def _glm(name: str, **text: Any) -> Pair:
    marks = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    tok = models.tokenizer([*marks, "<|image|>", "<|video|>"], GLM_IMAGE)
    tok._set_model_specific_special_tokens(
        special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"}
    )
    half = {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
    rope = {"rope_type": "default", "rope_theta": 1e4, **half}
    names = [f"{of}_{where}_token_id" for of in ("image", "video") for where in ("start", "end")]
    config = getattr(transformers, f"{name}Config")(
        text_config=models.text(dict, **_HEADS, head_dim=32, **text, rope_parameters=rope),
        vision_config={
            "hidden_size": _WIDTH,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "depth": 2,
            "num_heads": 2,
            "image_size": 112,
            "patch_size": 14,
        },
        image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id,
        **dict(zip(names, tok.convert_tokens_to_ids(marks), strict=True)),
    )
    limits = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 168 * 168}
    sizes: dict[str, Any] = {"patch_size": 14, "size": limits}
    processor = transformers.Glm4vProcessor(
        transformers.Glm4vImageProcessor(**sizes),
        tok,
        transformers.Glm4vVideoProcessor(**sizes),
        chat_template=tok.chat_template,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


GLMS = ("glm4v", "glm4v_moe")
#: How a prompt of GLM-V says that here is a picture.
GLM_IMAGE = "<|begin_of_image|> <|image|> <|end_of_image|>"
BUILDERS: dict[str, Callable[[], Pair]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "mistral3": _mistral3,
    "pixtral": _pixtral,
    "internvl": _internvl,
    "internvl_chat": _internvl_chat,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "gemma4_moe": _gemma4_moe,
    "gemma4_unified": _gemma4_unified,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "cohere2_vision": _cohere2_vision,
    "lfm2_vl": _lfm2_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
    "glm4v": _glm4v,
    "glm4v_moe": _glm4v_moe,
}


#: What a model's engine is started with.
SERVED: dict[str, dict[str, Any]] = dict.fromkeys(
    ("gemma4", "gemma4_moe", "gemma4_unified"), vllm_gemma4.SERVED
)


def save(name: str, folder: Path) -> Pair:
    """A model and its processor, which also lie in `folder`, for vLLM."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    _as_published(folder / "model.safetensors", model.config.vision_config.model_type)
    if name == "internvl_chat":
        as_published(folder, model)
    return model, processor


def _as_published(file: Path, kind: str) -> None:
    """Weights named and laid out as in published models, which is what vLLM expects."""
    tower = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
    wrapped = kind in ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")

    def published(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
        if wrapped:
            name = tower.sub(r"\1vision_model.", name)
        if ".experts." in name and weight.ndim == 3 and kind != "gemma4_vision":
            weight = weight.transpose(1, 2).contiguous()
        return name, weight

    weights = dict(published(*item) for item in load_file(file).items())
    save_file(weights, file, metadata={"format": "pt"})
