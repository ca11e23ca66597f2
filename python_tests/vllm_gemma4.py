# SPDX-License-Identifier: Apache-2.0
"""Gemma 4 with its own processor, and what its encoder asks of an accelerator, for CPUs."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from python_tests import vlm_models as models

_PATCH = {"patch_size": 6, "pooling_kernel_size": 3}
#: The least that vLLM and transformers take.
TOKENS = 70
#: Samples of a sound that make a token, and how many there are in a second.
PIECE, RATE = 640, 16000
#: Its pictures and frames are large: four of these are as many tokens as three of those.
SERVED: Any = {
    "max_model_len": 512,
    "limit_mm_per_prompt": {"image": 3, "video": {"count": 2, "num_frames": 3}, "audio": 2},
}
_MARKS = ("image", "audio", "boi", "eoi", "boa", "eoa")
_FILM = "<|video|>"


def build(kind: str, **words: Any) -> tuple[Any, Any]:
    """A model and its processor."""
    merged = kind == "Gemma4Unified"
    tok = _tokenizer()
    if merged:
        vision: dict[str, Any] = {
            "mm_embed_dim": 32,
            "mm_posemb_size": 128,
            "output_proj_dims": 32,
            "num_soft_tokens": TOKENS,
        }
        audio = {"audio_embed_dim": PIECE}
    else:
        chunks = {"attention_chunk_size": 4, "attention_context_left": 3}
        audio = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **chunks}
        audio.update(subsampling_conv_channels=[models.SOUND, 4], output_proj_dims=24)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
        vision = {**sizes, **heads, "position_embedding_size": 128}
        vision["default_output_length"] = TOKENS
    ids = {f"{name}_token_id": getattr(tok, f"{name}_token_id") for name in _MARKS}
    words = {"head_dim": 32, "global_head_dim": 64, "sliding_window": 64, **words}
    config = getattr(transformers, f"{kind}Config")(
        text_config=models.text(dict, **words),
        vision_config={**vision, **_PATCH},
        audio_config=audio,
        video_token_id=tok.convert_tokens_to_ids(_FILM),
        eoa_token_index=tok.eoa_token_id,
        **ids,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    sound = {} if merged else {"feature_size": models.SOUND}
    processor = getattr(transformers, f"{kind}Processor")(
        getattr(transformers, f"{kind}AudioFeatureExtractor")(**sound),
        getattr(transformers, f"{kind}ImageProcessor")(**_PATCH, max_soft_tokens=TOKENS),
        tok,
        getattr(transformers, f"{kind}VideoProcessor")(**_PATCH, max_soft_tokens=TOKENS),
        chat_template=tok.chat_template,
        image_seq_length=TOKENS,
    )
    return model, processor


def _tokenizer() -> Any:
    marks = {f"{name}_token": f"<{name}>" for name in _MARKS}
    tok = models.tokenizer([*marks.values(), _FILM], marks["image_token"])
    tok._set_model_specific_special_tokens(special_tokens=marks)
    return tok


def install(patch: Any) -> None:
    """Patches what vLLM's encoder asks, so that it also runs on CPUs."""
    patch.setattr(torch.accelerator, "get_memory_info", lambda: (1 << 30, 1 << 31))
