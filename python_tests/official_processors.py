# SPDX-License-Identifier: Apache-2.0
"""The processors of transformers, whole, for the tiny models of `vlms`; they need torchvision.

Prompts are written as in the chat templates that the models were published with. Letters are the
bytes of a text, so that nothing of a prompt is unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import transformers

from python_tests import vlms
from python_tests.official_parts import TURNS, VICUNA, Official, Style, chatml, square, tokenizer
from python_tests.vlm_llava import ONEVISION, pins


@dataclass(frozen=True, eq=False)
class Model:
    """A tiny model whose ids are those of an official processor."""

    tiny: vlms.Tiny
    official: Official


@functools.cache
def get(name: str) -> Model:
    """The model `name`, built once a session."""
    built = vlms.build(name)
    official = BUILDERS[name]()
    tok = official.processor.tokenizer
    official.processor.chat_template = official.style.template
    ids = {at: tok.convert_tokens_to_ids(token) for at, token in official.tokens.items()}
    assert tok.unk_token_id not in ids.values(), ids
    config = built.model.config
    for at, number in ids.items():
        for written in (at, at.replace("_id", "_index")):
            for part in (config, built.model.model):  # Ovis2 copies those of its marks
                if hasattr(part, written):
                    setattr(part, written, number)
    config.get_text_config().eos_token_id = tok.convert_tokens_to_ids(official.style.stop)
    tiny = vlms.Tiny(name, built.model, official.processor, official.style.image)
    return Model(tiny, official)


def _llava() -> Official:
    side = {"height": 112, "width": 112}
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 112}, crop_size=side)
    return _of_clip(transformers.LlavaProcessor, VICUNA, image_processor=pictures)


def _small_pictures(kind: Any, **options: Any) -> Any:
    return kind(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, **options)


def _llava_next() -> Official:
    pictures = _small_pictures(transformers.LlavaNextImageProcessor, image_grid_pinpoints=pins(56))
    style = Style("", "[INST] ", " [/INST]", "", "<image>\n")
    return _of_clip(transformers.LlavaNextProcessor, style, image_processor=pictures)


def _llava_next_video() -> Official:
    pictures = _small_pictures(transformers.LlavaNextImageProcessor, image_grid_pinpoints=pins(56))
    films = _small_pictures(transformers.LlavaNextVideoVideoProcessor)
    parts = {"image_processor": pictures, "video_processor": films}
    return _of_clip(transformers.LlavaNextVideoProcessor, VICUNA, **parts)


def _vipllava() -> Official:
    begin = "A chat between a curious human and an artificial intelligence assistant.###"
    style = Style(begin, "Human: ", "###", "Assistant:", "<image>\n")
    return replace(_llava(), style=style)


def _video_llava() -> Official:
    pictures = _small_pictures(transformers.VideoLlavaImageProcessor)
    films = _small_pictures(transformers.VideoLlavaVideoProcessor)
    parts = {"image_processor": pictures, "video_processor": films}
    return _of_clip(transformers.VideoLlavaProcessor, VICUNA, **parts)


def _of_clip(kind: Any, style: Style, **parts: Any) -> Official:
    made = kind(
        **parts,
        tokenizer=tokenizer(["<image>", "<video>"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Official(made, style, {"image_token_id": "<image>", "video_token_id": "<video>"})


def _llava_onevision() -> Official:
    made = transformers.LlavaOnevisionProcessor(
        image_processor=square(
            transformers.LlavaOnevisionImageProcessor,
            ONEVISION,
            image_grid_pinpoints=pins(ONEVISION),
        ),
        video_processor=square(transformers.LlavaOnevisionVideoProcessor, ONEVISION),
        tokenizer=tokenizer(["<image>", "<video>", *TURNS]),
        num_image_tokens=(ONEVISION // 14) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    tokens = {"image_token_id": "<image>", "video_token_id": "<video>"}
    return Official(made, chatml("<image>\n", "<video>\n", gap=""), tokens)


def _rows(merged: int) -> Official:
    """Of Mistral 3 and Pixtral."""
    made = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            size={"longest_edge": 84 * merged}, patch_size=14
        ),
        tokenizer=tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]),
        patch_size=14,
        spatial_merge_size=merged,
    )
    style = Style("<s>", "[INST]", "[/INST]", "", "[IMG]")
    return Official(made, style, {"image_token_id": "[IMG]"})


def _qwen(kind: Any, films: Any, patch: int) -> Official:
    first, image, last, video = marks = (
        "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>",
    )  # fmt: skip
    most = (12 * patch) ** 2
    sizes = [{"shortest_edge": 56 * 56, "longest_edge": times * most} for times in (1, 4)]
    made = kind(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=patch, size=sizes[0]),
        video_processor=films(
            patch_size=patch, size=sizes[1], do_sample_frames=False, cap_pixels_per_frame=False
        ),
        tokenizer=tokenizer([*marks, *TURNS]),
    )
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    style = chatml(f"{first}{image}{last}", f"{first}{video}{last}", system)
    return Official(made, style, dict(zip(names, marks, strict=True)))


def _qwen2_vl() -> Official:
    return _qwen(transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor, 14)


def _qwen2_5_vl() -> Official:
    return _qwen(transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor, 14)


def _qwen2_5_omni() -> Official:
    """With the marks that its vocabulary has, which are not those of Qwen2.5-VL."""
    first, image, last, video = "<|vision_bos|>", "<|IMAGE|>", "<|vision_eos|>", "<|VIDEO|>"
    sound = {"audio": "<|AUDIO|>", "audio_bos": "<|audio_bos|>", "audio_eos": "<|audio_eos|>"}
    seen = {"image": image, "video": video, "vision_bos": first, "vision_eos": last}
    roles = {f"{name}_token": token for name, token in (seen | sound).items()}
    size = {"shortest_edge": 56 * 56, "longest_edge": 168 * 168}
    made = transformers.Qwen2_5OmniProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=14, size=size),
        video_processor=transformers.Qwen2VLVideoProcessor(
            patch_size=14, size=size, do_sample_frames=False, cap_pixels_per_frame=False
        ),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tokenizer(TURNS, **roles),
    )
    made.videos_kwargs = {}  # its own are for large pictures
    tokens = {"vision_start_token_id": first, "vision_end_token_id": last, "image_token_id": image}
    heard = {
        "audio_token_id": "<|AUDIO|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
    }
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    style = chatml(f"{first}{image}{last}", f"{first}{video}{last}", system)
    return Official(made, style, {**tokens, "video_token_id": video, **heard})


def _qwen3_vl() -> Official:
    return _qwen(transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, 16)


def _qwen3_5() -> Official:
    made = _qwen3_vl()
    return replace(made, style=replace(made.style, thought="<think>\n"))


def _lfm3_vl() -> Official:
    return _qwen(transformers.Lfm3VlProcessor, transformers.Qwen3VLVideoProcessor, 16)


def _glm(kind: str) -> Official:
    roles = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]
    around = {
        f"{of}_{where}_token_id": f"<|{name}_of_{of}|>"
        for of in ("image", "video")
        for where, name in (("start", "begin"), ("end", "end"))
    }
    seen = {"image_token": "<|image|>", "video_token": "<|video|>"}
    size = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 168 * 168}
    pictures, films, whole = (
        getattr(transformers, f"{kind}{part}Processor") for part in ("Image", "Video", "")
    )
    made = whole(
        image_processor=pictures(patch_size=14, size=size),
        video_processor=films(patch_size=14, size=size, do_sample_frames=False),
        tokenizer=tokenizer([*roles, *around.values()], **seen),
    )
    image, video = (f"<|begin_of_{of}|><|{of}|><|end_of_{of}|>" for of in ("image", "video"))
    style = Style("[gMASK]<sop>", "<|user|>\n", "", "<|assistant|>\n", image, video)
    return Official(made, style, {**{f"{at}_id": token for at, token in seen.items()}, **around})


def _internvl() -> Official:
    roles = {"start_image_token": "<img>", "end_image_token": "</img>"}
    context = "<IMG_CONTEXT>"
    made = transformers.InternVLProcessor(
        image_processor=square(
            transformers.GotOcr2ImageProcessor, 112, crop_to_patches=True, max_patches=4
        ),
        video_processor=square(transformers.InternVLVideoProcessor, 112),
        tokenizer=tokenizer(TURNS, **roles, context_image_token=context, video_token="<video>"),
        image_seq_length=16,
    )
    return Official(made, chatml(f"{context}\n", "<video>\n"), {"image_token_id": context})


def _gemma3() -> Official:
    roles = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    turn, end = "<start_of_turn>", "<end_of_turn>"
    made = transformers.Gemma3Processor(
        image_processor=square(transformers.Gemma3ImageProcessor, 112),
        tokenizer=tokenizer([turn, end], **roles),
        image_seq_length=16,
    )
    style = Style(
        "<s>", f"{turn}user\n", f"{end}\n", f"{turn}model\n", "<start_of_image>", stop=end
    )
    return Official(made, style, {f"{role}_id": token for role, token in roles.items()})


def _gemma4(kind: str) -> Official:
    roles = {
        f"{role}_token": token
        for of, short in (("image", "i"), ("audio", "a"))
        for role, token in (
            (of, f"<|{of}|>"), (f"bo{short}", f"<|{of}>"), (f"eo{short}", f"<{of}|>"),
        )
    }  # fmt: skip
    # As small as the tiny models; the class lets one choose among larger ones.
    sizes = {"patch_size": 6, "pooling_kernel_size": 3, "max_soft_tokens": 70}
    pictures, films, whole = (
        getattr(transformers, f"{kind}{part}Processor") for part in ("Image", "Video", "")
    )
    made = whole(
        feature_extractor=getattr(transformers, f"{kind}AudioFeatureExtractor")(),
        image_processor=pictures(**sizes),
        video_processor=films(**sizes, do_sample_frames=False),
        tokenizer=tokenizer(["<|turn>", "<turn|>"], **roles),
    )
    ids = {f"{role}_id": token for role, token in roles.items()}
    style = Style(
        "<s>", "<|turn>user\n", "<turn|>\n", "<|turn>model\n", "<|image|>", "<|video|>", "<turn|>"
    )
    return Official(made, style, {**ids, "video_token_id": "<|video|>"})


def _cohere2_vision() -> Official:
    roles = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    user, model, turn, end = marks = (
        "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    )  # fmt: skip
    made = transformers.Cohere2VisionProcessor(
        image_processor=square(
            transformers.Cohere2VisionImageProcessor, 112, patch_size=14, max_patches=4
        ),
        tokenizer=tokenizer(marks, **roles),
    )
    made.patch_size = 4  # rows and columns of tokens of a tile
    style = Style("<s>", f"{turn}{user}", end, f"{turn}{model}", "<|IMG_PATCH|>", stop=end)
    return Official(made, style, {"image_token_id": "<|IMG_PATCH|>"})


def _aya_vision() -> Official:
    made = _cohere2_vision()
    names = ["TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5))]
    tok = made.processor.tokenizer
    tok.add_tokens(names, special_tokens=True)
    processor = transformers.AyaVisionProcessor(
        image_processor=square(
            transformers.GotOcr2ImageProcessor, 112, crop_to_patches=True, max_patches=4
        ),
        tokenizer=tok,
        img_size=112,
    )
    return replace(made, processor=processor, style=replace(made.style, image="<image>"))


def _deepseek_vl() -> Official:
    pictures = transformers.DeepseekVLImageProcessor
    image = "<image_placeholder>"
    made = transformers.DeepseekVLProcessor(
        image_processor=square(pictures, 112),
        tokenizer=tokenizer([], image_token=image),
        num_image_tokens=64,
    )
    end = "{{ '\\n\\n' }}"  # a template leaves out a line break behind a block
    style = Style("<s>You are a helpful assistant.\n\n", "User: ", end, "Assistant:", image)
    return Official(made, style, {"image_token_id": image})


def _ovis2() -> Official:
    marks = ["<IMG_START>", "<IMG_END>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>"]
    made = transformers.Ovis2Processor(
        image_processor=square(transformers.Ovis2ImageProcessor, 112, max_patches=4),
        tokenizer=tokenizer([*TURNS, "<image>", "<IMG_ATOM>", *marks]),
        image_seq_length=16,
    )
    tokens = {"image_token_id": "<IMG_ATOM>", "visual_indicator_token_ids": marks}
    return Official(made, chatml("<image>\n"), tokens)


def _lfm2_vl() -> Official:
    roles = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    names = [f"<|img_row_{row}_col_{column}|>" for row in (1, 2, 3) for column in (1, 2, 3)]
    made = transformers.Lfm2VlProcessor(
        image_processor=transformers.Lfm2VlImageProcessor(
            encoder_patch_size=14,
            tile_size=56,
            min_image_tokens=4,
            max_image_tokens=16,
            max_tiles=6,
        ),
        tokenizer=tokenizer([*TURNS, *names], **roles),
    )
    return Official(made, chatml("<image>", begin="<s>"), {"image_token_id": "<image>"})


def _idefics(kind: Any, pictures: Any, **parts: Any) -> Official:
    crops = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    sides = {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 112}}
    made = kind(
        image_processor=pictures(**sides),
        tokenizer=tokenizer([*marks, "<video>", "<|im_start|>", *crops]),
        image_seq_len=16,
        **parts,
    )
    video = "<video>" if parts else ""
    end = "<end_of_utterance>"
    style = Style("<|im_start|>", "User:", f"{end}\n", "Assistant:", "<image>", video, end)
    return Official(made, style, {"image_token_id": "<image>"})


def _idefics3() -> Official:
    return _idefics(transformers.Idefics3Processor, transformers.Idefics3ImageProcessor)


def _smolvlm() -> Official:
    films = transformers.SmolVLMVideoProcessor(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 112}, do_sample_frames=False
    )
    return _idefics(
        transformers.SmolVLMProcessor, transformers.SmolVLMImageProcessor, video_processor=films
    )


BUILDERS: dict[str, Callable[[], Official]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "vipllava": _vipllava,
    "video_llava": _video_llava,
    "llava_onevision": _llava_onevision,
    "mistral3": functools.partial(_rows, 2),
    "pixtral": functools.partial(_rows, 1),
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_5_omni": _qwen2_5_omni,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "lfm3_vl": _lfm3_vl,
    "glm4v": functools.partial(_glm, "Glm4v"),
    "glm46v": functools.partial(_glm, "Glm46V"),
    "internvl": _internvl,
    "gemma3": _gemma3,
    "gemma4": functools.partial(_gemma4, "Gemma4"),
    "gemma4_unified": functools.partial(_gemma4, "Gemma4Unified"),
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "deepseek_vl": _deepseek_vl,
    "ovis2": _ovis2,
    "lfm2_vl": _lfm2_vl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
}
