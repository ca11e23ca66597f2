# SPDX-License-Identifier: Apache-2.0
"""Tiny vision-language models with random weights, and processors for real photographs.

Nothing is downloaded. Where the official processor needs torchvision or files of a model hub, a few
lines here prepare the same inputs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from skimage import data as photographs
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from python_tests.vlm_processors import (
    QWEN_IMAGE,
    QWEN_MARKS,
    QWEN_VIDEO,
    VERSION,
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


def photograph(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    image = Image.fromarray(getattr(photographs, name)()).convert("RGB")
    return image.resize(size) if size else image


def video(name: str, frames: int) -> list[Image.Image]:
    """A camera that moves over a photograph, in pictures of 112 x 84 pixels."""
    photo = photograph(name, (220, 140))
    return [photo.crop((18 * i, 9 * i, 18 * i + 112, 9 * i + 84)) for i in range(frames)]


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


@dataclass(frozen=True, eq=False)
class Tiny:
    """A model, and what turns photographs and words into its inputs."""

    name: str
    model: Any
    processor: Any
    image: str  # how the prompt says "here is a picture"

    def inputs(self, kind: str = "single", words: str = "what is in this picture") -> Any:
        """`"single"`: one picture. `"ragged"`: a padded batch of prompts with one and with two.

        `"right"`: the same batch with its padding behind the words, as for training.
        `"video"`: a padded batch of a prompt with a picture and a video, and one with a video.
        """
        cat = photograph("chelsea", (170, 112))
        if kind == "single":
            return self.processor(images=[cat], text=self.prompt(words), return_tensors="pt")
        if kind == "video":
            return self.videos(0, 1)
        if kind == "right":
            return padded_right(self.inputs("ragged"))
        return self.processor(
            images=[[cat], [photograph("rocket", (120, 150)), photograph("coffee", (130, 100))]],
            text=[
                self.prompt("what is in the image"),
                self.prompt("please compare the two photos shortly", pictures=2),
            ],
            return_tensors="pt",
            padding=True,
        )

    def videos(self, *chosen: int) -> Any:
        """The chosen prompts of the batch with videos."""
        if (5, 0) <= VERSION < (5, 17):
            pytest.skip("transformers >= 5.17: 5.3 finds no positions for these, unpruned as well")
        cat = photograph("chelsea", (170, 112))
        prompts: list[Any] = [
            (
                [cat],
                [video("rocket", 6)],
                f"what time is in {QWEN_VIDEO} and in {self.image} please",
            ),
            ([], [video("coffee", 4)], f"{QWEN_VIDEO} describe the cup"),
        ]
        pictures, films, texts = zip(*(prompts[i] for i in chosen), strict=True)
        return self.processor(
            images=list(pictures),
            videos=[film for one in films for film in one],
            text=[f"<start> user {text} <end> <start> assistant" for text in texts],
            return_tensors="pt",
            padding=True,
        )

    def alone(self, b: int, kind: str = "ragged") -> Any:
        """Prompt `b` of a batch, by itself."""
        if kind == "video":
            return self.videos(b)
        both: list[Any] = [
            ([photograph("chelsea", (170, 112))], self.prompt("what is in the image")),
            (
                [photograph("rocket", (120, 150)), photograph("coffee", (130, 100))],
                self.prompt("please compare the two photos shortly", pictures=2),
            ),
        ]
        pictures, words = both[b]
        return self.processor(images=[pictures], text=[words], return_tensors="pt", padding=True)

    def prompt(self, words: str, pictures: int = 1) -> str:
        shown = " and ".join([self.image] * pictures)
        return f"<start> user {shown} {words} <end> <start> assistant"


def padded_right(inputs: Any) -> dict[str, Any]:
    """A batch that is padded on the left, padded on the right."""
    mask = inputs["attention_mask"]
    order = mask.argsort(dim=1, descending=True, stable=True)
    return {k: v.gather(1, order) if v.shape == mask.shape else v for k, v in inputs.items()}


def widened(inputs: Any) -> dict[str, Any]:
    """A batch with three more columns of padding on the left than it needs."""
    shape = inputs["input_ids"].shape
    pad = torch.nn.functional.pad
    return {k: pad(v, (3, 0)) if v.shape == shape else v for k, v in inputs.items()}


def cases(*kinds: str) -> list[Any]:
    """Parameters (name, kind): every model with `kinds`, and those that take videos with these."""
    return [
        pytest.param(name, kind, id=f"{name}-{kind}")
        for name in BUILDERS
        for kind in (*kinds, *(["video"] if name in FILMS else []))
    ]


def build(name: str) -> Tiny:
    if name == "smolvlm" and VERSION == (5, 20):
        pytest.skip("transformers other than 5.20, which raises on this SmolVLM, unpruned as well")
    torch.manual_seed(0)
    tiny = BUILDERS[name](name)
    tiny.model.eval()
    tiny.model.generation_config.pad_token_id = 0
    tiny.model.generation_config.eos_token_id = None  # random models would stop at random
    # Random encoders give nearly equal tokens; spread them so that a choice is a choice.
    with torch.no_grad():
        for part in tiny.model.model.modules():
            if isinstance(part, torch.nn.Linear):
                part.weight.mul_(3.0)
    return tiny


# ---- models --------------------------------------------------------------------------------------


def _clip(size: int) -> Any:
    return transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        projection_dim=32,
    )


def _llava(name: str) -> Tiny:
    size = 112
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(
        vision_config=_clip(size),
        text_config=text(transformers.LlamaConfig),
        image_token_index=mark,
    )
    config.image_token_id = mark
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    processor = transformers.LlavaProcessor(
        image_processor=pictures,
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return Tiny(name, transformers.LlavaForConditionalGeneration(config), processor, "<image>")


def _llava_next(name: str) -> Tiny:
    size = 56
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    pins = [[size, 2 * size], [2 * size, size], [2 * size, 2 * size]]
    config = transformers.LlavaNextConfig(
        vision_config=_clip(size),
        text_config=text(transformers.LlamaConfig),
        image_token_index=mark,
        image_grid_pinpoints=pins,
    )
    config.image_token_id = mark
    pictures = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_grid_pinpoints=pins,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return Tiny(name, transformers.LlavaNextForConditionalGeneration(config), processor, "<image>")


FILMS = ("qwen2_5_vl", "qwen3_vl")  # these take videos


def _qwen_tokens(tok: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    ids = tok.convert_tokens_to_ids(QWEN_MARKS)
    return dict(zip(names, ids, strict=True))


def _qwen2_5_vl(name: str) -> Tiny:
    tok = tokenizer(QWEN_MARKS, QWEN_IMAGE)
    rope: dict[str, Any] = {"mrope_section": [2, 3, 3]}
    if VERSION >= (5, 0):
        rope = {"rope_parameters": dict(rope_type="default", rope_theta=1e4, **rope)}
    else:
        rope = {"rope_scaling": dict(type="mrope", **rope)}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 64,
        "tokens_per_second": 2,
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text(dict, **rope), vision_config=vision, **_qwen_tokens(tok)
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return Tiny(name, model, QwenProcessor(tok, 14, 168 * 168), QWEN_IMAGE)


def _qwen3_vl(name: str) -> Tiny:
    tok = tokenizer(QWEN_MARKS, QWEN_IMAGE)
    rope: dict[str, Any] = {
        "rope_type": "default",
        "mrope_section": [2, 3, 3],
        "mrope_interleaved": True,
    }
    if VERSION >= (5, 0):
        rope = {"rope_parameters": dict(rope_theta=1e4, **rope)}
    else:
        rope = {"rope_scaling": rope}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    config = transformers.Qwen3VLConfig(
        text_config=text(dict, num_hidden_layers=3, head_dim=16, **rope),
        vision_config=vision,
        **_qwen_tokens(tok),
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    return Tiny(name, model, QwenProcessor(tok, 16, 192 * 192, stamps=True), QWEN_IMAGE)


def _siglip() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "patch_size": 14,
    }


def _gemma3(name: str) -> Tiny:
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
        vision_config=transformers.SiglipVisionConfig(**_siglip()),
        mm_tokens_per_image=16,
        image_token_index=mark,
    )
    config.image_token_id = mark
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    return Tiny(name, model, SquareProcessor(tok, "<image>", 112, 16, "token_type_ids"), "<image>")


def _internvl(name: str) -> Tiny:
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    vision = transformers.InternVLVisionConfig(
        **{**_siglip(), "image_size": [112, 112], "patch_size": [14, 14]}
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text(transformers.Qwen2Config),
        image_token_id=mark,
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    model = transformers.InternVLForConditionalGeneration(config)
    return Tiny(name, model, SquareProcessor(tok, "<image>", 112, 16), "<image>")


def _smolvlm(name: str) -> Tiny:
    tok = tokenizer(["<image>"], "<image>")
    mark = tok.convert_tokens_to_ids("<image>")
    config = transformers.SmolVLMConfig(
        vision_config=_siglip(),
        text_config=text(transformers.LlamaConfig),
        image_token_id=mark,
        scale_factor=2,
    )
    model = transformers.SmolVLMForConditionalGeneration(config)
    return Tiny(name, model, SmolProcessor(tok, "<image>", 112, 16), "<image>")


BUILDERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "smolvlm": _smolvlm,
}


@functools.cache
def get(name: str) -> Tiny:
    """The model `name`, built once a session; whoever changes it changes it back."""
    return build(name)


def text_model(model: Any) -> Any:
    """The language model without its head."""
    inner = model.model
    return inner.text_model if hasattr(inner, "text_model") else inner.language_model


@contextlib.contextmanager
def rotary_positions(model: Any) -> Iterator[list[torch.Tensor]]:
    """Positions `[..., B, L]` that every forward call gives the text model's rotary embedding."""
    seen: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        if not seen or seen[-1] is not positions:  # Gemma asks once for each kind of layer
            seen.append(positions)

    handle = text_model(model).rotary_emb.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
