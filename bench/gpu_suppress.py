# SPDX-License-Identifier: Apache-2.0
"""Suppression on a GPU: the picks of float64 loops, laws, and timing beside plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import zspa_kernels as zk
from bench import gpu_check
from bench.gpu_check import FIRST, alike, check, check_by_dtype, chosen, draw, picked, placed, same
from bench.method_readings import greedyprune, idselection
from zspa_kernels.testing import MODELS, SPECIAL, special, tokens
from zspa_kernels.testing.cases import DTYPES
from zspa_kernels.testing.suppression import soft_suppress64, suppress64

#: N and D of the standard cases.
CASES = ((50, 33), (420, 130), (1300, 1000))
#: Of which pairs make tokens at the threshold.
AXES = 24
#: Images, N, D and K of a timed call.
SIZES = ((1, 576, 4096, 58), (1, 2880, 4096, 288), (32, 576, 4096, 58))


def ratings(n: int, seed: int = 0) -> Tensor:
    """Scores `[n]` with ties, both zeros, and some that do not count."""
    scores = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 99).floor() / 64
    scores[::17], scores[3::19], scores[5::13] = torch.nan, -torch.inf, -0.0
    return scores


def _suppress(visual: Tensor, scores: Tensor, k: int, mask: Tensor | None, limit: float) -> None:
    got = picked(zk.suppress, visual, scores, k, threshold=limit, visual_mask=mask)
    same(got, suppress64(visual, scores, k, threshold=limit, mask=mask), (limit, k))


def _inputs(n: int, d: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    for turn, kind in enumerate((*MODELS, *SPECIAL)):
        dtype = DTYPES[turn % 3]
        if chosen([dtype]):
            visual, mask = (tokens(kind, n, d), None) if kind in MODELS else special(kind, n, d)
            yield turn, visual.to(dtype), mask


@check
def first_suppress() -> None:
    """Two calls, the first of all."""
    for case in FIRST:
        _suppress(case.visual, ratings(case.n), case.k_diverse, None, 0.7)


@check
def first_soft_suppress() -> None:
    """Two calls, the first of all."""
    for case in FIRST:
        _soft(case.visual, ratings(case.n), case.k_diverse, None, SOFT[0])


@check_by_dtype
def suppress_cases() -> None:
    """All models and special inputs, few blocks and many: each pick is that of float64."""
    for n, d in CASES:
        for turn, visual, mask in _inputs(n, d):
            for limit in (0.2, 0.9, -0.5)[: 1 + turn % 3]:
                _suppress(visual, ratings(n, turn), (n // 3, n)[turn % 2], mask, limit)


@check
def suppress_at_the_threshold() -> None:
    """Cosines of exactly one half, of rows of every length: float32 can decide none of them."""
    pairs = torch.combinations(torch.arange(AXES))
    n = len(pairs)
    rows = torch.zeros(n, AXES).scatter_(1, pairs, 1.0) * (1 + torch.arange(n)[:, None] / 7)
    for limit in (0.5, 0.5 - 2.0**-40):
        _suppress(rows, torch.zeros(n), n, None, limit)


@check
def suppress_real_sizes() -> None:
    """Thousands of channels: what matrix units cannot decide is decided in float64."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        _suppress(visual, ratings(1296), 130, None, 0.7)


@check_by_dtype
def suppress_laws() -> None:
    """A row alone, in a batch, padded in front; fewer picks; strides; the same call again."""
    for dtype in chosen(DTYPES):
        visual = draw(gpu_check.IMAGES, 300, 512, dtype)
        scores = torch.stack([ratings(300, seed) for seed in range(gpu_check.IMAGES)]).to(
            gpu_check.DEVICE
        )
        whole = zk.suppress(visual, scores, 150, threshold=0.5)
        padded, twice = torch.cat((visual.flip(1), visual), 1), torch.cat((scores, scores), 1)
        mask = torch.arange(600, device=gpu_check.DEVICE).expand(gpu_check.IMAGES, 600) >= 300
        behind = zk.suppress(padded, twice, 150, threshold=0.5, visual_mask=mask)
        alike(behind - 300, whole, "padded")
        for b in range(0, gpu_check.IMAGES, 7):
            alike(zk.suppress(visual[b], scores[b], 150, threshold=0.5), whole[b], f"alone {b}")
            few = zk.suppress(visual[b], scores[b], 13, threshold=0.5)
            alike(few, whole[b, :13], f"fewer {b}")
        view = visual.transpose(1, 2).contiguous().transpose(1, 2)
        for turn in range(gpu_check.TURNS):
            alike(zk.suppress(view, scores.double(), 150, threshold=0.5), whole, turn)


#: Of soft suppression: each rule with every pair of tokens, and with near ones only.
SOFT: tuple[dict[str, Any], ...] = (
    {"sharpness": 20.0},
    {"sharpness": 20.0, "rule": "scale"},
    {"sharpness": 2.0, "spread": 3.0},
    {"sharpness": 200.0, "rule": "scale", "spread": 1.5, "reach": 5.0},
)


def _options(turn: int, n: int) -> dict[str, Any]:
    given, place = SOFT[turn % 4], torch.arange(n)
    if "spread" not in given:
        return given
    return {**given, "positions": torch.stack((place // 25, place % 25), -1)}


def _soft(
    visual: Tensor, scores: Tensor, k: int, mask: Tensor | None, given: dict[str, Any]
) -> None:
    got = picked(zk.soft_suppress, visual, scores, k, **given, visual_mask=mask)
    told = {name: x for name, x in given.items() if name != "positions"}
    same(got, soft_suppress64(visual, scores, k, mask=mask, **given), (told, k))


@check_by_dtype
def soft_suppress_cases() -> None:
    """All models and special inputs, both rules, near tokens and all."""
    for n, d in CASES:
        for turn, visual, mask in _inputs(n, d):
            _soft(visual, ratings(n, turn), (n // 3, n // 2)[turn % 2], mask, _options(turn, n))


@check
def soft_suppress_real_sizes() -> None:
    """Thousands of channels, equal scores: cosines alone decide, and nearly all picks are close."""
    for turn, model in enumerate(MODELS):
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        for scores in (ratings(1296), torch.ones(1296)):
            _soft(visual, scores, 130, None, _options(turn, 1296))


@check_by_dtype
def soft_suppress_laws() -> None:
    """A row alone, in a batch, padded in front; fewer picks; strides; the same call again."""
    for dtype in chosen(DTYPES):
        visual = draw(gpu_check.IMAGES, 300, 512, dtype)
        scores = torch.stack([ratings(300, seed) for seed in range(gpu_check.IMAGES)]).to(
            gpu_check.DEVICE
        )
        options = _options(1 + DTYPES.index(dtype), 300)
        given = {name: placed(x) for name, x in options.items()}
        many = {**given}
        if "positions" in given:
            many["positions"] = given["positions"].expand(gpu_check.IMAGES, -1, -1)
        whole = zk.soft_suppress(visual, scores, 90, **many)
        padded, twice = torch.cat((visual.flip(1), visual), 1), torch.cat((scores, scores), 1)
        behind = {name: torch.cat((x, x), 1) for name, x in many.items() if name == "positions"}
        mask = torch.arange(600, device=gpu_check.DEVICE).expand(gpu_check.IMAGES, 600) >= 300
        got = zk.soft_suppress(padded, twice, 90, **{**many, **behind}, visual_mask=mask)
        alike(got - 300, whole, "padded")
        for b in range(0, gpu_check.IMAGES, 7):
            alike(zk.soft_suppress(visual[b], scores[b], 90, **given), whole[b], f"alone {b}")
            few = zk.soft_suppress(visual[b], scores[b], 13, **given)
            alike(few, whole[b, :13], f"fewer {b}")
        view = visual.transpose(1, 2).contiguous().transpose(1, 2)
        for again in range(20):
            alike(zk.soft_suppress(view, scores.double(), 90, **many), whole, again)


def timing(sizes: tuple[tuple[int, int, int, int], ...] = SIZES) -> Iterator[dict[str, Any]]:
    """Replays beside the faster of the published loop and the reference; bfloat16, `vlm` tokens."""
    for batch, n, d, k in sizes:
        visual = torch.stack([tokens("vlm", n, d, seed, torch.bfloat16) for seed in range(batch)])
        scores = torch.rand(batch, n, generator=torch.Generator().manual_seed(0))
        for op in ("suppress", "soft_suppress"):
            record = {"greedy": f"{op}, {batch} x {n} x {d}, k = {k}", "kind": "ours"}
            yield record | _timed(op, visual, scores, k)


def _timed(op: str, visual: Tensor, scores: Tensor, k: int) -> dict[str, Any]:
    """Milliseconds; the picks of the first image are compared, and a wrong one has no time."""
    from bench.gpu_timing import best, eager

    moved, rated = visual.to(gpu_check.DEVICE), scores.to(gpu_check.DEVICE)
    wide = moved[0].float()
    given = {"threshold": 0.9} if op == "suppress" else {"sharpness": 20.0}
    right = suppress64 if op == "suppress" else soft_suppress64

    def call() -> Tensor:
        picks: Tensor = getattr(zk, op)(moved, rated, k, **given)
        return picks

    def published() -> Tensor:
        if op == "suppress":
            return greedyprune(k, visual=wide, saliency=rated[0])
        return idselection(k, visual=wide, attention=rated[0])

    def reference() -> Tensor:
        picks: Tensor = getattr(zk, op)(moved[0], rated[0], k, **given, backend="reference")
        return picks

    try:
        same(call()[0].cpu(), right(visual[0], scores[0], k, **given), op)
    except AssertionError as error:
        return {"status": "wrong", "reason": str(error)}
    slow = min(eager(loop) for loop in (published, reference) for _ in range(3))
    return {"status": "verified", "ms": best(call), "loop_ms": slow}
