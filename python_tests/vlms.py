# SPDX-License-Identifier: Apache-2.0
"""Tiny vision-language models with random weights, and processors for real photographs.

Nothing is downloaded. Where the official processor needs torchvision or files of a model hub, a few
lines here prepare the same inputs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data as photographs

from python_tests import vlm_glm, vlm_liquid, vlm_llava, vlm_models, vlm_omni
from python_tests.vlm_glm import GLMS
from python_tests.vlm_models import FILMS, GEMMAS, QWENS
from python_tests.vlm_processors import QWEN_IMAGE, QWEN_VIDEO, VERSION

BUILDERS = {
    **vlm_llava.BUILDERS, **vlm_models.BUILDERS, **vlm_glm.BUILDERS, **vlm_liquid.BUILDERS,
    **vlm_omni.BUILDERS,
}  # fmt: skip
#: The first transformers with which a model is pruned; not said of those that all versions prune.
SINCE = {
    **vlm_models.SINCE,
    **dict.fromkeys(GLMS, (5, 0)),
    "lfm3_vl": (5, 24),
    "ovis2": (5, 0),
    "qwen2_5_omni": (5, 21),
}
#: Their positions have three axes.
MROPE = (*QWENS, *GLMS)


def photograph(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    image = Image.fromarray(getattr(photographs, name)()).convert("RGB")
    return image.resize(size) if size else image


def video(name: str, frames: int) -> list[Image.Image]:
    """A camera that moves over a photograph, in pictures of 112 x 84 pixels."""
    photo = photograph(name, (220, 140))
    return [photo.crop((18 * i, 9 * i, 18 * i + 112, 9 * i + 84)) for i in range(frames)]


@dataclass(frozen=True, eq=False)
class Tiny:
    """A model, and what turns photographs and words into its inputs."""

    name: str
    model: Any
    processor: Any
    image: str  # how the prompt says "here is a picture"

    @property
    def film(self) -> str:
        """How it says "here is a video"."""
        return QWEN_VIDEO if self.image == QWEN_IMAGE else "<video>"

    @property
    def pixels(self) -> str:
        """What its processor calls pictures."""
        return "pixel_values_images" if self.name == "video_llava" else "pixel_values"

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
        if self.name in ("llava_next_video", "llava_onevision", *GEMMAS) and VERSION < (5, 20):
            pytest.skip("transformers >= 5.20: older ones are refused, see test_hf_tiles.py")
        if self.name in GEMMAS and VERSION < (5, 23):
            pytest.skip("transformers >= 5.23: 5.20 forgets the number of frames, unpruned as well")
        cat = photograph("chelsea", (170, 112))
        prompts: list[Any] = [
            (
                [cat],
                [video("rocket", 6)],
                f"what time is in {self.film} and in {self.image} please",
            ),
            ([], [video("coffee", 4)], f"{self.film} describe the cup"),
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
    if SINCE.get(name, VERSION) > VERSION:
        first = ".".join(map(str, SINCE[name]))
        pytest.skip(f"transformers >= {first}: older ones have no such model, or no right one")
    torch.manual_seed(0)
    tiny = Tiny(name, *BUILDERS[name]())
    tiny.model.eval()
    tiny.model.generation_config.pad_token_id = 0
    tiny.model.generation_config.eos_token_id = None  # random models would stop at random
    # Random encoders give nearly equal tokens; spread them so that a choice is a choice.
    with torch.no_grad():
        for part in tiny.model.model.modules():
            if isinstance(part, torch.nn.Linear):
                part.weight.mul_(3.0)
    return tiny


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
