# SPDX-License-Identifier: Apache-2.0
"""Synthetic visual tokens: five models of what vision towers produce, and one that is exact.

Each model first draws a *space* (basis, mean, cluster centres) from the seed and then its tokens,
so that `prompt` can be drawn in the same space as the tokens with the same seed. Every draw uses an
explicit generator; the global one is neither read nor moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: `iid` is the easiest for a blocked greedy selection (nothing is redundant), so never measure on
#: it alone.
MODELS = ("iid", "smooth", "clusters", "vlm", "video", "exact")

_CLUSTERS = 40
_FRAMES = 16
_SMOOTH_RANK = 64
_VLM_RANK = 256


def tokens(model: str, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw `n` tokens of width `d`.

    Models:
        iid: independent normal entries.
        smooth: a smooth field over the image (rank 64), a common mean and noise.
        clusters: 40 centres and noise.
        vlm: power-law spectrum, spatial correlation, a strong common mean and one per cent of
            outliers, to resemble projected visual features.
        video: 16 frames of one smooth scene that drifts slowly: near duplicates everywhere.
        exact: entries in {-1, 0, +1} with the same number 4**a of non-zeros in every row. Every
            dot product is an integer and every cosine a multiple of 4**-a, in any order of
            summation and in every dtype, so most picks are decided by the tie rule and all
            backends must agree.

    Args:
        model: One of `MODELS`.
        n: Number of tokens, >= 0.
        d: Width, >= 1.
        seed: Seed of the explicit generators.
        dtype: float32, float16 or bfloat16; rounded at the end.

    Returns:
        `[n, d]` on the CPU, contiguous.
    """
    space = _space(model, d, seed)
    draw = _generator(seed, 1)
    if n == 0:
        return torch.empty(0, d, dtype=dtype, device="cpu")
    return space.sample(n, draw).to(dtype).contiguous()


def prompt(model: str, m: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw `m` prompt tokens in the space of `tokens(model, ..., d, seed)`.

    They scatter around one token of the model, as words about one part of the image would. For
    `exact` all poolings are exact when the number of tokens that are not masked is a power of two:
    the rows come in pairs `t + e`, `t - e` whose supports are disjoint, so the mean is `t` itself.
    For `exact` a mask must therefore keep whole pairs.

    Args:
        model: One of `MODELS`.
        m: Number of prompt tokens, >= 0.
        d: Width, >= 1.
        seed: The seed given to `tokens`.
        dtype: float32, float16 or bfloat16; rounded at the end.

    Returns:
        `[m, d]` on the CPU, contiguous.
    """
    space = _space(model, d, seed)
    draw = _generator(seed, 2)
    if m == 0:
        return torch.empty(0, d, dtype=dtype, device="cpu")
    if model == "exact":
        return _exact_prompt(m, d, draw).to(dtype)
    anchor = space.sample(16, draw)[0]
    scale = float(anchor.square().mean().sqrt())
    return (anchor + 0.5 * scale * _randn((m, d), draw)).to(dtype)


@dataclass(frozen=True)
class _Space:
    """What all tokens of one image share."""

    model: str
    width: int
    basis: Tensor  # [rank, D]; the cluster centres of `clusters`
    mean: Tensor  # [D]
    outlier: Tensor  # [D]

    def sample(self, n: int, draw: torch.Generator) -> Tensor:
        """Draw `[n, D]` float32 tokens."""
        d = self.width
        if self.model == "iid":
            return _randn((n, d), draw)
        if self.model == "smooth":
            return self._smooth(n, draw)
        if self.model == "clusters":
            member = _randint(self.basis.shape[0], n, draw)
            return self.basis[member] + 0.5 * _randn((n, d), draw)
        if self.model == "vlm":
            return self._vlm(n, draw)
        if self.model == "video":
            return self._video(n, draw)
        return _exact_rows(n, d, draw)

    def _smooth(self, n: int, draw: torch.Generator) -> Tensor:
        field = _field(n, _SMOOTH_RANK, 8, draw) @ self.basis
        return field + self.mean + 0.3 * _randn((n, self.width), draw)

    def _vlm(self, n: int, draw: torch.Generator) -> Tensor:
        spectrum = (1 + torch.arange(_VLM_RANK, dtype=torch.float32, device="cpu")) ** -0.5
        coefficients = _field(n, _VLM_RANK, 12, draw) + 0.5 * _randn((n, _VLM_RANK), draw)
        x = (coefficients * spectrum) @ self.basis
        x = x + self.mean + 0.1 * _randn((n, self.width), draw)
        x[_randint(n, max(1, n // 100), draw)] += self.outlier
        return x

    def _video(self, n: int, draw: torch.Generator) -> Tensor:
        patches = math.ceil(n / _FRAMES)
        scene = self._smooth(patches, draw)
        drift = 0.05 * _randn((patches, self.width), draw)
        frames = [
            scene + i * drift + 0.1 * _randn((patches, self.width), draw) for i in range(_FRAMES)
        ]
        return torch.cat(frames)[:n]


def _space(model: str, d: int, seed: int) -> _Space:
    if model not in MODELS:
        raise ValueError(f"tokens: model must be one of {MODELS}, got {model!r}")
    draw = _generator(seed, 0)
    if model in ("smooth", "video"):
        basis, mean = _randn((_SMOOTH_RANK, d), draw) / 8, 0.5 * _randn((d,), draw)
    elif model == "vlm":
        basis = _randn((_VLM_RANK, d), draw) * (4 / math.sqrt(d))
        mean = 0.6 * _randn((d,), draw)
    else:
        basis, mean = _randn((_CLUSTERS, d), draw), _zeros(d)
    return _Space(model, d, basis, mean, 3 * _randn((d,), draw))


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(1000 * seed + stream)


def _randn(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu")


def _rand(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=draw, dtype=torch.float32, device="cpu")


def _randint(high: int, n: int, draw: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=draw, device="cpu")


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _signs(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.where(_rand(shape, draw) < 0.5, -1.0, 1.0)


def _field(n: int, rank: int, grid: int, draw: torch.Generator) -> Tensor:
    """`[n, rank]`: random values on a coarse grid, interpolated to a square image."""
    side = math.ceil(math.sqrt(n))
    coarse = _randn((1, rank, grid, grid), draw)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return fine[0].reshape(rank, -1).T[:n]


def _largest_power_of_four(limit: int) -> int:
    power = 1
    while 4 * power <= limit:
        power *= 4
    return power


def _exact_rows(n: int, d: int, draw: torch.Generator) -> Tensor:
    nonzeros = _largest_power_of_four(d)
    where = _rand((n, d), draw).argsort(dim=-1)[:, :nonzeros]
    return _zeros(n, d).scatter_(1, where, _signs((n, nonzeros), draw))


def _exact_prompt(m: int, d: int, draw: torch.Generator) -> Tensor:
    total = _largest_power_of_four(d)
    shared = max(1, total // 4)  # non-zeros of t; t +- e has `total` of them, a power of four too
    order = _rand((d,), draw).argsort()
    base = _zeros(d)
    base[order[:shared]] = _signs((shared,), draw)
    rows = base.repeat(m, 1)
    for pair in range(m // 2):
        where = order[shared:][_rand((d - shared,), draw).argsort()[: total - shared]]
        signs = _signs((total - shared,), draw)
        rows[2 * pair, where] = signs
        rows[2 * pair + 1, where] = -signs
    return rows
