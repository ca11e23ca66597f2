# SPDX-License-Identifier: Apache-2.0
"""The tensors of a workload."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bench.registry import DTYPES, Workload
from zspa_kernels.testing import MODELS, prompt, special, tokens
from zspa_kernels.testing.oracle import Geometry

#: Words of a question.
PROMPT_TOKENS = 32


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of one image and of its prompt, with what is made of them once."""

    visual: Tensor  # [N, D]
    prompt: Tensor  # [M, D]

    @cached_property
    def floats(self) -> Tokens:
        """The same values in float32: what baselines are given."""
        return Tokens(self.visual.float(), self.prompt.float())

    @cached_property
    def geometry(self) -> Geometry:
        """The oracle's float64 directions."""
        return Geometry(self.visual, None)


@dataclass(frozen=True)
class Image:
    """One image and what is asked for."""

    tokens: Tokens
    k_core: int
    k_diverse: int

    @property
    def visual(self) -> Tensor:
        """`[N, D]`."""
        return self.tokens.visual

    @property
    def prompt(self) -> Tensor:
        """`[M, D]`."""
        return self.tokens.prompt

    @property
    def k(self) -> int:
        """Tokens kept."""
        return self.k_core + self.k_diverse

    def float(self) -> Image:
        """The same in float32."""
        return Image(self.tokens.floats, self.k_core, self.k_diverse)


@dataclass(frozen=True)
class Problem:
    """All images of a workload."""

    workload: Workload
    images: list[Image]

    @cached_property
    def floats(self) -> list[Image]:
        """Float32 copies, never made inside a timed call."""
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
    return Problem(
        workload,
        [
            Image(_draw(workload.tokens, n, workload.d, seed + i, workload.dtype), core, diverse)
            for i, (n, core, diverse) in enumerate(workload.images)
        ],
    )


# Suites name workloads of the same tokens one after another.
@functools.lru_cache(maxsize=1)
def _draw(name: str, n: int, d: int, seed: int, dtype_name: str) -> Tokens:
    dtype: torch.dtype = getattr(torch, DTYPES[dtype_name])
    if name in MODELS:
        visual = tokens(name, n, d, seed, dtype)
        return Tokens(visual, prompt(name, PROMPT_TOKENS, d, seed, dtype))
    if ":" in name:
        from bench import photographs  # needs transformers

        return Tokens(*photographs.draw(name, n, d, dtype))
    visual = special(name, n, d, seed).visual.to(dtype)
    return Tokens(visual, prompt("iid", PROMPT_TOKENS, d, seed, dtype))
