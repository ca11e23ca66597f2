# SPDX-License-Identifier: Apache-2.0
"""Models of given shapes with random weights, and inputs for them: time does not depend on weights.

What a selection does depends on the tokens, and random encoders give nearly equal ones. So the
encoder runs, and its output is replaced by tokens of the model `vlm` (`zspa_kernels.testing`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zspa_kernels.hf.architectures import Target
from zspa_kernels.testing import tokens

_CLIP = {"image_size": 336, "patch_size": 14}
_CLIP_LARGE = {
    **_CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_VOCABULARY = 32064


@dataclass(frozen=True)
class Preset:
    """A model and what it is asked.

    Attributes:
        title: for tables.
        family: `"llava"`, `"llava_next"` or `"qwen2_5_vl"`.
        text: of the language model's configuration; what is missing has the default of its class.
        vision: likewise.
        tokens: visual tokens of the picture.
        size: (height, width) of the picture, in pixels (LLaVA-NeXT) or patches (Qwen2.5-VL).
        dtype: of weights.
        gpu: whether a CPU is too slow for it.
    """

    title: str
    family: str
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    tokens: int = 576
    size: tuple[int, int] = (336, 336)
    dtype: torch.dtype = torch.bfloat16
    gpu: bool = False


def _llama(width: int, inner: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 4096,
    }


_TINY = {
    **_CLIP, "image_size": 112, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip


def _qwen(sections: list[int]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    return {"vocab_size": 152064, "max_position_embeddings": 32768, "rope_parameters": rope}


_LLAMA_7B = _llama(4096, 11008, 32, 32, 32)

PRESETS = {
    "tiny": Preset(
        "tiny",
        "llava",
        _llama(64, 128, 2, 4, 2),
        _TINY,
        tokens=64,
        size=(112, 112),
    ),
    "tiny-next": Preset(
        "tiny LLaVA-NeXT",
        "llava_next",
        _llama(64, 128, 2, 4, 2),
        _TINY,
        tokens=64 + 16 * 17,
        size=(224, 224),
    ),
    "tiny-qwen": Preset(
        "tiny Qwen2.5-VL",
        "qwen2_5_vl",
        {**_llama(64, 128, 2, 4, 2), **_qwen([2, 3, 3])},
        {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
         "fullatt_block_indexes": [1], "out_hidden_size": 64},
        tokens=64,
        size=(16, 16),
    ),
    "small": Preset(
        "LLaVA-1.5, small",
        "llava",
        _llama(1024, 2816, 12, 16, 16),
        {**_CLIP, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 8},
    ),
    "1b": Preset(
        "LLaVA-1.5 around TinyLlama-1.1B",
        "llava",
        _llama(2048, 5632, 22, 32, 4),
        _CLIP_LARGE,
    ),
    "llava-1.5-7b": Preset("LLaVA-1.5-7B", "llava", _LLAMA_7B, _CLIP_LARGE, gpu=True),
    "llava-next-7b": Preset(
        "LLaVA-NeXT-7B",
        "llava_next",
        _LLAMA_7B,
        _CLIP_LARGE,
        tokens=576 + 48 * 49,  # the small picture; 2 x 2 tiles, each of their rows with a newline
        size=(672, 672),
        gpu=True,
    ),
    "qwen2.5-vl-7b": Preset(
        "Qwen2.5-VL-7B",
        "qwen2_5_vl",
        {**_llama(3584, 18944, 28, 28, 4), **_qwen([16, 24, 24])},
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
         "out_hidden_size": 3584},
        tokens=36 * 36,
        size=(72, 72),
        gpu=True,
    ),
}  # fmt: skip

#: Words before the picture and behind it, as in LLaVA-1.5's template around a short question.
_BEFORE, _BEHIND = 35, 24
_IMAGE = 32000


def build(preset: Preset, device: torch.device, seed: int = 0, attention: str | None = None) -> Any:
    """The model, on `device`; greedy decoding never stops by itself.

    `attention` is transformers' name of an implementation, None its default.
    """
    import transformers

    torch.manual_seed(seed)
    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.device(device):
        model = _class(preset)._from_config(
            _config(transformers, preset), dtype=preset.dtype, **chosen
        )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def _class(preset: Preset) -> Any:
    import transformers

    return {
        "llava": transformers.LlavaForConditionalGeneration,
        "llava_next": transformers.LlavaNextForConditionalGeneration,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    }[preset.family]


def _config(transformers: Any, preset: Preset) -> Any:
    if preset.family == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(
            text_config=preset.text, vision_config=preset.vision, image_token_id=_IMAGE
        )
    kind = {"llava": transformers.LlavaConfig, "llava_next": transformers.LlavaNextConfig}
    side = preset.vision["image_size"]
    tiled = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    config = kind[preset.family](
        **({"image_grid_pinpoints": tiled} if preset.family == "llava_next" else {}),
        vision_config=transformers.CLIPVisionConfig(**preset.vision),
        text_config=transformers.LlamaConfig(**preset.text),
        image_token_index=_IMAGE,
    )
    config.image_token_id = _IMAGE
    return config


def inputs(preset: Preset, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """What the processor would give for one picture and a short question."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 30000, (_BEFORE + _BEHIND,), generator=draw)
    picture = torch.full((preset.tokens,), _IMAGE)
    ids = torch.cat((words[:_BEFORE], picture, words[_BEFORE:]))[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if preset.family == "qwen2_5_vl":
        rows, columns = preset.size
        given["pixel_values"] = torch.randn(rows * columns, 3 * 2 * 14 * 14, generator=draw)
        given["image_grid_thw"] = torch.tensor([[1, rows, columns]])
        given["mm_token_type_ids"] = (ids == _IMAGE).int()
    else:
        side = preset.vision["image_size"]
        shape = (1, 5, 3, side, side) if preset.family == "llava_next" else (1, 3, side, side)
        given["pixel_values"] = torch.randn(shape, generator=draw)
        if preset.family == "llava_next":
            given["image_sizes"] = torch.tensor([preset.size])
    given["pixel_values"] = given["pixel_values"].to(preset.dtype)
    return {name: value.to(device) for name, value in given.items()}


class Encoder:
    """Times a model's picture encoder and puts `vlm` tokens in the place of what it gives.

    Attributes:
        seconds: of the last picture, tower and projector.
    """

    def __init__(self, model: Any, seed: int = 0) -> None:
        target = Target.of(model)
        tower = "visual" if target.arch.mrope else "vision_tower"
        self.seconds = self._start = 0.0
        self._seed = seed
        self._tokens: dict[torch.Size, Tensor] = {}
        target.inner.get_submodule(tower).register_forward_pre_hook(self._begin)
        target.projector().register_forward_hook(self._end)

    def _begin(self, module: Any, args: Any) -> None:
        synchronise()
        self._start = time.perf_counter()

    def _end(self, module: Any, args: Any, output: Tensor) -> Tensor:
        synchronise()
        self.seconds = time.perf_counter() - self._start
        if output.shape not in self._tokens:
            flat = tokens("vlm", output.shape[:-1].numel(), output.shape[-1], self._seed)
            self._tokens[output.shape] = flat.view(output.shape).to(output)
        return self._tokens[output.shape]


def synchronise() -> None:
    """Wait for the GPU, if there is one at work."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
