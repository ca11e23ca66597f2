# SPDX-License-Identifier: Apache-2.0
"""The Qwen2.5-Omni of `vlms`, as far as it reads and writes text: small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from python_tests.vlm_models import Parts, qwen2_5_vision, qwen_tokens, text, tokenizer
from python_tests.vlm_processors import QWEN_IMAGE, QWEN_MARKS, QwenProcessor

AUDIO = ["<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
MELS = 16  # channels of what it hears


def _qwen2_5_omni() -> Parts:
    tok: Any = tokenizer([*QWEN_MARKS, *AUDIO], QWEN_IMAGE)
    first, audio, last = tok.convert_tokens_to_ids(AUDIO)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    heads = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    vision = qwen2_5_vision()
    del vision["tokens_per_second"]
    ids = qwen_tokens(tok)
    config = transformers.Qwen2_5OmniThinkerConfig(
        text_config=text(dict, rope_parameters=rope),
        vision_config=vision,
        audio_config={**heads, "d_model": 16, "num_mel_bins": MELS, "output_dim": 64},
        image_token_index=ids["image_token_id"],
        video_token_index=ids["video_token_id"],
        audio_token_index=audio,
        audio_start_token_id=first,
        audio_end_token_id=last,
        **{f"vision_{side}_token_id": ids[f"vision_{side}_token_id"] for side in ("start", "end")},
        position_id_per_seconds=2,
    )
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    return model, QwenProcessor(tok, 14, 168 * 168, "omni", types=False), QWEN_IMAGE


BUILDERS: dict[str, Callable[[], Parts]] = {"qwen2_5_omni": _qwen2_5_omni}
