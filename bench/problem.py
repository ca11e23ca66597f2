# SPDX-License-Identifier: Apache-2.0
"""The tensors of a workload."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bench.registry import DTYPES, Workload
from zspa_kernels.testing import MODELS, prompt, special, tokens

#: Words of a question.
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Image:
    """Tokens of one image, its prompt, and what is asked for."""

    visual: Tensor  # [N, D]
    prompt: Tensor  # [M, D]
    k_core: int
    k_diverse: int

    @property
    def k(self) -> int:
        """Tokens kept."""
        return self.k_core + self.k_diverse

    def float(self) -> Image:
        """The same values in float32: what baselines are given."""
        return Image(self.visual.float(), self.prompt.float(), self.k_core, self.k_diverse)


@dataclass(frozen=True)
class Problem:
    """All images of a workload."""

    workload: Workload
    images: list[Image]

    @cached_property
    def floats(self) -> list[Image]:
        """Float32 copies, made once and never inside a timed call."""
        return [image.float() for image in self.images]

    @property
    def plain_dots(self) -> int:
        """N K, summed over the images: one similarity of every token with every pick."""
        return sum(len(image.visual) * image.k for image in self.images)

    @property
    def bytes(self) -> int:
        """Size of the tokens."""
        return sum(image.visual.nbytes for image in self.images)


def draw(workload: Workload, seed: int = 0) -> Problem:
    """Draw the images of a workload; image i of a batch has the seed `seed + i`."""
    dtype: torch.dtype = getattr(torch, DTYPES[workload.dtype])
    images = []
    for i, (n, k_core, k_diverse) in enumerate(workload.images):
        if workload.tokens in MODELS:
            model, visual = workload.tokens, tokens(workload.tokens, n, workload.d, seed + i, dtype)
        else:
            model = "iid"
            visual = special(workload.tokens, n, workload.d, seed + i).visual.to(dtype)
        words = prompt(model, PROMPT_TOKENS, workload.d, seed + i, dtype)
        images.append(Image(visual, words, k_core, k_diverse))
    return Problem(workload, images)
