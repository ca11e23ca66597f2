# SPDX-License-Identifier: Apache-2.0
"""The GLM-V models of `vlms`: small, with random weights; their prompts are written as Qwen's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from python_tests.vlm_models import Parts, qwen_tokens, text, tokenizer
from python_tests.vlm_processors import QWEN_IMAGE, QWEN_MARKS, QwenProcessor

_FILM = ["<|begin_of_video|>", "<|end_of_video|>"]


def _glm4v() -> Parts:
    return _glm("Glm4v")


def _glm46v() -> Parts:
    return _glm("Glm46V", {"model_type": "glm4v_text"}, {"model_type": "glm4v_vision"})


def _glm4v_moe() -> Parts:
    """The first layer has no experts."""
    experts = {"moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2}
    return _glm("Glm4vMoe", experts)


def _glm(kind: str, words: Any = None, vision: Any = None) -> Parts:
    tok: Any = tokenizer([*QWEN_MARKS, *_FILM], QWEN_IMAGE)
    half = {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **half}}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    places = {"depth": 2, "num_heads": 2, "image_size": 112, "patch_size": 14}
    ids = qwen_tokens(tok)
    first, last = ids.pop("vision_start_token_id"), ids.pop("vision_end_token_id")
    begins, ends = tok.convert_tokens_to_ids(_FILM)
    config = getattr(transformers, f"{kind}Config")(
        text_config=text(dict, **rope, **(words or {})),
        vision_config={**sizes, **places, **(vision or {})},
        image_start_token_id=first,
        image_end_token_id=last,
        **ids,
        video_start_token_id=begins,
        video_end_token_id=ends,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return model, QwenProcessor(tok, 14, 168 * 168, "none"), QWEN_IMAGE


BUILDERS: dict[str, Callable[[], Parts]] = {
    "glm4v": _glm4v,
    "glm4v_moe": _glm4v_moe,
    "glm46v": _glm46v,
}
GLMS = tuple(BUILDERS)
