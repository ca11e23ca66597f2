# SPDX-License-Identifier: Apache-2.0
"""A model that understands colours: the core of a prompt that names one is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from python_tests import vlms

NAMES = ("red", "green", "blue")
#: (top, left, bottom, right) in patches of 14 pixels, of 8 x 8.
REGIONS = {"red": (0, 0, 2, 3), "green": (5, 1, 8, 3), "blue": (2, 5, 4, 8)}


class Colours(nn.Module):
    """A projector that copies the colour of each patch, less its grey, into three channels."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.pixels = torch.zeros(0)

    def note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.pixels = args[0] if args else kwargs["pixel_values"]

    def forward(self, features: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(self.pixels, self.patch).flatten(2).transpose(1, 2)
        chroma = means - means.mean(-1, keepdim=True)
        return nn.functional.pad(chroma.round(decimals=3), (0, self.width - 3))


def colourful(colour: str) -> tuple[vlms.Tiny, Any, dict[str, tuple[int, int, int, int]]]:
    """The model, inputs that ask for `colour`, and the regions of a photograph by colour."""
    tiny = vlms.build("llava")
    model, tokenizer = tiny.model, tiny.processor.tokenizer
    projector = Colours(14, 64)
    model.model.vision_tower.register_forward_pre_hook(projector.note, with_kwargs=True)
    model.model.multi_modal_projector = projector
    with torch.no_grad():  # a word for a colour is the colour; other words say nothing
        table = model.get_input_embeddings().weight.zero_()
        for channel, name in enumerate(NAMES):
            table[tokenizer.convert_tokens_to_ids(name), channel] = 1.0
    # A grey photograph of 8 x 8 patches, of which three regions are tinted.
    grey = np.asarray(vlms.photograph("chelsea", (112, 112)).convert("L"), dtype=np.float32)
    picture = np.repeat(grey[..., None], 3, axis=-1) / 2
    for channel, name in enumerate(NAMES):
        top, left, bottom, right = (14 * edge for edge in REGIONS[name])
        picture[top:bottom, left:right, channel] += 100
    image_processor = tiny.processor.image_processor
    image_processor.image_mean, image_processor.image_std = [0.5] * 3, [0.5] * 3
    inputs = tiny.processor(
        images=Image.fromarray(picture.astype(np.uint8)),
        text=tiny.prompt(f"where is the {colour} cup"),
        return_tensors="pt",
    )
    return tiny, inputs, REGIONS
