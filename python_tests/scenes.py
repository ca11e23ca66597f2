# SPDX-License-Identifier: Apache-2.0
"""Inputs for any method, made of what it says it needs."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import zspa_kernels as zk
from zspa_kernels.testing import prompt, tokens

#: Sizes of the axes that an input's shape can name.
SIZES = {"M": 3, "C": 12, "S": 4, "Dc": 10}


@st.composite
def integer_tokens(draw: st.DrawFn) -> Tensor:
    """Small integers: ties everywhere, repeated rows, zero rows."""
    n = draw(st.integers(1, 12))
    d = draw(st.integers(1, 3))
    values = st.lists(st.integers(-2, 2), min_size=n * d, max_size=n * d)
    return torch.tensor(draw(values), dtype=torch.float32).reshape(n, d)


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Numbers in [0, 1) for one score a token, normal ones for vectors."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    if len(shape) == 2:
        return torch.rand(shape, generator=generator)
    return torch.randn(shape, generator=generator)


def inputs(name: str, b: int, n: int, d: int, model: str = "vlm", seed: int = 0) -> dict[str, Any]:
    """Everything that the method called `name` can take, for `b` images of `n` tokens."""
    about = zk.methods.about(name)
    sizes = {"B": b, "N": n, "D": d, **SIZES}
    given: dict[str, Any] = {}
    for x in about.inputs:
        names = [axis.strip() for axis in x.shape.strip("[]").split(",")]
        axes = tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in names)
        if x.name == "visual":
            rows = [tokens(model, n, d, seed + i) for i in range(b)]
            given[x.name] = torch.stack(rows) if rows else torch.zeros(axes)
        elif x.name == "prompt":
            words = [prompt(model, axes[1], d, seed + i) for i in range(b)]
            given[x.name] = torch.stack(words) if words else torch.zeros(axes)
        else:
            given[x.name] = draw(f"{about.title} {x.name}", axes, seed)
    return given


def per_token(name: str) -> list[str]:
    """Inputs with one entry for each visual token."""
    return [x.name for x in zk.methods.about(name).inputs if x.shape.startswith("[B, N")]
