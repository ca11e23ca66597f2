# SPDX-License-Identifier: Apache-2.0
"""The models of `vlms`: small, with random weights, each with its processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from python_tests.vlm_processors import (
    QWEN_IMAGE,
    QWEN_MARKS,
    VERSION,
    GemmaProcessor,
    MistralProcessor,
    QwenProcessor,
    SmolProcessor,
    SquareProcessor,
)

VOCABULARY = 320
WORDS = (
    "what is in this image picture describe the cat rocket coffee cup astronaut count objects on "
    "table and compare two photos please answer shortly user assistant system you are helpful "
    "colour of where who left right top bottom a an there how many red green blue time seconds one "
    "two three film"
)
END = 2  # id of <end>, which closes a turn of the chat template
TEMPLATE = (
    "{% for m in messages %}<start> {{ m['role'] }} "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant{% endif %}"
)

Parts = tuple[Any, Any, str]  # model, processor, how a prompt says "here is a picture"


def tokenizer(special: Sequence[str], image: str) -> PreTrainedTokenizerFast:
    words: dict[str, int] = {}
    for token in ["<pad>", "<s>", "<end>", "<unk>", *special, "<start>", *WORDS.split()]:
        words.setdefault(token, len(words))
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        additional_special_tokens=[*special, "<start>"],
    )
    made.chat_template = TEMPLATE.replace("IMAGE", image)
    return made


def text(config: Any, **more: Any) -> Any:
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": END,
    }
    return config(**{**values, **more})


def _mistral3() -> Parts:
    return _rows(transformers.Mistral3Config, transformers.Mistral3ForConditionalGeneration, 2)


def _pixtral() -> Parts:
    return _rows(transformers.LlavaConfig, transformers.LlavaForConditionalGeneration, 1)


def _rows(configuration: Any, kind: Any, merged: int) -> Parts:
    """A model whose pictures have ends of rows, and `merged` squared patches a token."""
    marks = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tok = tokenizer(marks, marks[0])
    mark = tok.convert_tokens_to_ids(marks[0])
    vision = {**siglip(), "image_size": 168}
    more: dict[str, Any] = {"spatial_merge_size": merged}
    if merged == 1:
        more = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    config = configuration(
        vision_config=transformers.PixtralVisionConfig(**vision),
        text_config=text(transformers.MistralConfig, head_dim=16, sliding_window=None),
        image_token_index=mark,
        **more,
    )
    config.image_token_id = mark
    return kind(config), MistralProcessor(tok, 14 * merged, 84 * merged), marks[0]


# These take videos.
QWENS = (
    "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"
)  # fmt: skip
GEMMAS = ("gemma4", "gemma4_moe", "gemma4_unified")
FILMS = ("llava_next_video", "llava_onevision", "video_llava", *QWENS, *GEMMAS, "lfm3_vl")
# These have layers that keep a state instead of keys and values.
STATES = ("qwen3_5", "qwen3_5_moe", "lfm2_vl", "lfm3_vl")


def qwen_tokens(tok: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    ids = tok.convert_tokens_to_ids(QWEN_MARKS)
    return dict(zip(names, ids, strict=True))


def _mrope() -> dict[str, Any]:
    sections = {"mrope_section": [2, 3, 3]}
    if VERSION >= (5, 0):
        return {"rope_parameters": dict(rope_type="default", rope_theta=1e4, **sections)}
    return {"rope_scaling": dict(type="mrope", **sections)}


def _qwen_vision(patch: int, **more: Any) -> dict[str, Any]:
    pairs = {"spatial_merge_size": 2, "temporal_patch_size": 2}
    return {"depth": 2, "num_heads": 2, "patch_size": patch, **pairs, **more}


def qwen2_5_vision(width: int = 32) -> dict[str, Any]:
    windows = {"window_size": 56, "fullatt_block_indexes": [1]}
    sizes = {"hidden_size": width, "intermediate_size": 48, "out_hidden_size": 64}
    return _qwen_vision(14, **sizes, **windows, tokens_per_second=2)


def qwen2_vision(width: int = 32) -> dict[str, Any]:
    return _qwen_vision(14, embed_dim=width, hidden_size=64, mlp_ratio=2)


def qwen3_vision(width: int = 32, patch: int = 16) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 48, "out_hidden_size": 64}
    deep = {"depth": 3, "deepstack_visual_indexes": [0, 1]}
    return _qwen_vision(patch, **sizes, **deep, num_position_embeddings=64)


def _qwen2_5_vl() -> Parts:
    kinds = (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration)
    return _qwen2(*kinds, qwen2_5_vision(), "given")


def _qwen2_vl() -> Parts:
    kinds = (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration)
    return _qwen2(*kinds, qwen2_vision(), "none")


def _qwen2(configuration: Any, kind: Any, vision: Any, times: str) -> Parts:
    tok = tokenizer(QWEN_MARKS, QWEN_IMAGE)
    config = configuration(
        text_config=text(dict, **_mrope()), vision_config=vision, **qwen_tokens(tok)
    )
    return kind(config), QwenProcessor(tok, 14, 168 * 168, times), QWEN_IMAGE


def _qwen3_vl() -> Parts:
    kinds = (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration)
    return _qwen3(*kinds, qwen3_vision())


EXPERTS = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}


def _qwen3_vl_moe() -> Parts:
    kinds = (transformers.Qwen3VLMoeConfig, transformers.Qwen3VLMoeForConditionalGeneration)
    return _qwen3(*kinds, qwen3_vision(), **EXPERTS)


# Layers with states (a gated delta rule) before and behind one with attention.
HYBRID: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _qwen3_5() -> Parts:
    kinds = (transformers.Qwen3_5Config, transformers.Qwen3_5ForConditionalGeneration)
    model, *others = _qwen3(*kinds, _qwen3_5_vision(), (2, 1, 1), **HYBRID)
    return (remembering(model), *others)


def _qwen3_5_moe() -> Parts:
    words: dict[str, Any] = {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 32}
    kinds = (transformers.Qwen3_5MoeConfig, transformers.Qwen3_5MoeForConditionalGeneration)
    model, *others = _qwen3(*kinds, _qwen3_5_vision(), (2, 1, 1), **words)
    return (remembering(model), *others)


def remembering(model: Any) -> Any:
    """A model whose states do not forget within a token or two, as they do as made by default."""
    for part in model.modules():
        if hasattr(part, "A_log"):
            torch.nn.init.uniform_(part.A_log, -5.0, -2.0)
            torch.nn.init.normal_(part.conv1d.weight, std=0.5)
    return model


def _qwen3_5_vision() -> dict[str, Any]:
    vision = {**qwen3_vision(), "depth": 2}
    del vision["deepstack_visual_indexes"]
    return vision


def _qwen3(
    configuration: Any,
    kind: Any,
    vision: dict[str, Any],
    sections: Sequence[int] = (2, 3, 3),
    **more: Any,
) -> Parts:
    tok = tokenizer(QWEN_MARKS, QWEN_IMAGE)
    rope: dict[str, Any] = {
        "rope_type": "default",
        "mrope_section": list(sections),
        "mrope_interleaved": True,
        "partial_rotary_factor": sum(sections) / 8,
    }
    if VERSION >= (5, 0):
        rope = {"rope_parameters": dict(rope_theta=1e4, **rope)}
    else:
        rope = {"rope_scaling": rope}
    config = configuration(
        text_config=text(dict, num_hidden_layers=3, head_dim=16, **rope, **more),
        vision_config=vision,
        **qwen_tokens(tok),
    )
    return kind(config), QwenProcessor(tok, 16, 192 * 192, "said"), QWEN_IMAGE


def siglip(width: int = 32) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "patch_size": 14,
    }


def _gemma3() -> Parts:
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    words = text(
        transformers.Gemma3TextConfig,
        head_dim=16,
        sliding_window=64,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = transformers.Gemma3Config(
        text_config=words,
        vision_config=transformers.SiglipVisionConfig(**siglip()),
        mm_tokens_per_image=16,
        image_token_index=mark,
    )
    config.image_token_id = mark
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    return model, SquareProcessor(tok, "<image>", 112, 16, "token_type_ids"), "<image>"


def _gemma4() -> Parts:
    """A small one: embeddings for each layer, the last layers without keys of their own."""
    return _gemma("Gemma4", **GEMMA_SMALL)


def _gemma4_moe() -> Parts:
    """A large one: experts, pictures whose tokens see one another, values that are keys."""
    return _gemma("Gemma4", **GEMMA_EXPERTS)


def _gemma4_unified() -> Parts:
    return _gemma("Gemma4Unified", **GEMMA_LARGE)


# Their language models.
GEMMA_SMALL: Any = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
GEMMA_LARGE: Any = {
    "layer_types": ["sliding_attention", "full_attention"],
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
GEMMA_EXPERTS: Any = {
    **GEMMA_LARGE,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 48,
}


SOUND = 16  # channels of what Gemma 4 hears


def _gemma(kind: str, **words: Any) -> Parts:
    marks = ["<image>", "<video>", "<audio>", "<boi>", "<eoi>"]
    tok = tokenizer(marks, "<image>")
    names = ("image_token_id", "video_token_id", "audio_token_id", "boi_token_id", "eoi_token_id")
    merged = kind == "Gemma4Unified"
    if merged:
        vision = {"mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32}
        audio = {"audio_embed_dim": SOUND}
    else:
        chunks = {"attention_chunk_size": 4, "attention_context_left": 3}
        audio = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **chunks}
        audio.update(subsampling_conv_channels=[SOUND, 4], output_proj_dims=24)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
        vision = {**sizes, **heads, "position_embedding_size": 64}
    heads = {"head_dim": 16, "global_head_dim": 32}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text(dict, **heads, sliding_window=1024, **words),
        vision_config={**vision, "patch_size": 6, "pooling_kernel_size": 3},
        audio_config=audio,
        **dict(zip(names, tok.convert_tokens_to_ids(marks), strict=True)),
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return model, GemmaProcessor(tok, 6, merged), "<image>"


def _internvl() -> Parts:
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    vision = transformers.InternVLVisionConfig(
        **{**siglip(), "image_size": [112, 112], "patch_size": [14, 14]}
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text(transformers.Qwen2Config),
        image_token_id=mark,
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    model = transformers.InternVLForConditionalGeneration(config)
    return model, SquareProcessor(tok, "<image>", 112, 16), "<image>"


def _smolvlm() -> Parts:
    return _idefics(transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration)


def _idefics3() -> Parts:
    return _idefics(transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration)


def _idefics(configuration: Any, kind: Any) -> Parts:
    crops = ["<row_1_col_1>", "<row_1_col_2>", "<global>"]
    tok = tokenizer(["<image>", "<fake>", *crops], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    config = configuration(
        vision_config=siglip(),
        text_config=text(transformers.LlamaConfig),
        image_token_id=mark,
        scale_factor=2,
    )
    return kind(config), SmolProcessor(tok, "<image>", 112, 16), "<image>"


BUILDERS: dict[str, Callable[[], Parts]] = {
    "mistral3": _mistral3,
    "pixtral": _pixtral,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "gemma4_moe": _gemma4_moe,
    "gemma4_unified": _gemma4_unified,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
}
# The first transformers with which these are pruned.
SINCE = {**dict.fromkeys(STATES, (5, 13)), **dict.fromkeys(GEMMAS, (5, 17))}
