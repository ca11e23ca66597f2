# SPDX-License-Identifier: Apache-2.0
"""Checks of the greedy ops beside `diversity`: picks against float64 judges, and the laws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import zspa_kernels as zk
from bench import gpu_check
from bench.gpu_check import check, draw, same
from zspa_kernels.testing import MODELS, bound, tokens
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    large_special_cases,
    model_cases,
    seed_and_weight_cases,
    special_cases,
)
from zspa_kernels.testing.coverage import check_facility_location, judge_facility_location
from zspa_kernels.testing.determinantal import check_dpp, judge_dpp


def _dpp(visual: Tensor, k: int, weights: Tensor | None, mask: Tensor | None) -> Tensor:
    at = gpu_check.DEVICE
    return zk.dpp(
        visual.to(at),
        k,
        weights=None if weights is None else weights.to(at),
        visual_mask=None if mask is None else mask.to(at),
    ).cpu()


def _cases() -> list[Case]:
    weighted = [case for case in seed_and_weight_cases() if case.seeds == "none"]
    models = model_cases("small") + model_cases("wide")
    return models + special_cases() + weighted + large_special_cases()


def _facility_location(*case: Any) -> Tensor:
    visual, k, benefits, weights, mask, temperature, scale = (
        x.to(gpu_check.DEVICE) if isinstance(x, Tensor) else x for x in case
    )
    return zk.facility_location(
        visual,
        k,
        benefits=benefits,
        weights=weights,
        visual_mask=mask,
        temperature=temperature,
        scale=scale,
    ).cpu()


@check
def dpp_cases() -> None:
    """Standard cases of dpp, some of many passes."""
    for case in _cases():
        try:
            judge_dpp(case, _dpp, "triton")
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error


@check
def dpp_real_sizes() -> None:
    """Thousands of channels: the picks are judged with the error bound of matrix units."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        check_dpp(visual, _dpp(visual, 130, None, None), 130, bound=bound(3584, "triton"))


@check
def dpp_laws() -> None:
    """A row alone, in a batch, padded, ragged; fewer picks; other strides; the same call again."""
    for dtype in DTYPES:
        visual = draw(40, 300, 512, dtype)
        weights = torch.rand(40, 300, device=gpu_check.DEVICE)
        whole = zk.dpp(visual, 60, weights=weights)
        ragged = zk.dpp_varlen(list(visual), 60, weights=list(weights))
        padded = torch.cat((visual, visual.flip(1)), 1)
        mask = torch.arange(600, device=gpu_check.DEVICE).expand(40, 600) < 300
        twice = torch.cat((weights, weights), 1)
        same(zk.dpp(padded, 60, weights=twice, visual_mask=mask), whole, "padded")
        for b in range(0, 40, 7):
            alone = zk.dpp(visual[b], 60, weights=weights[b])
            same(alone, whole[b], f"alone {b}")
            same(ragged[b], whole[b], f"ragged {b}")
            same(zk.dpp(visual[b], 13, weights=weights[b]), whole[b, :13], f"fewer {b}")
        view = visual.transpose(1, 2).contiguous().transpose(1, 2)
        for turn in range(20):
            same(zk.dpp(view, 60, weights=weights), whole, turn)


COVER: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.2},
    {"words": 5, "temperature": 0.2, "scale": 0.5},
)


@check
def facility_location_cases() -> None:
    """Standard cases of facility_location: by cosines, by their softmax, beside given rows."""
    for cover in COVER:
        for case in _cases():
            try:
                judge_facility_location(case, _facility_location, "triton", **cover)
            except AssertionError as error:
                raise AssertionError(f"{case.name}: {error}") from error


@check
def facility_location_real_sizes() -> None:
    """Thousands of channels, and a matrix of many tiles."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        got = _facility_location(visual, 60, None, None, None, 0.0, 1.0)
        check_facility_location(visual, got, 60, bound=bound(3584, "triton"))


@check
def facility_location_laws() -> None:
    """A row alone, in a batch, padded in front, ragged; fewer picks; the same call again."""
    for dtype in DTYPES:
        visual = draw(40, 150, 256, dtype)
        weights = torch.rand(40, 150, device=gpu_check.DEVICE)
        words = torch.rand(40, 3, 150, device=gpu_check.DEVICE) / 150
        options: dict[str, Any] = {"temperature": 0.2 if dtype == torch.float16 else 0.0}
        given = {"benefits": words, "weights": weights, **options}
        whole = zk.facility_location(visual, 40, **given)
        split = {"benefits": list(words), "weights": list(weights), **options}
        ragged = zk.facility_location_varlen(list(visual), 40, **split)
        padded = torch.cat((visual.flip(1), visual), 1)
        mask = torch.arange(300, device=gpu_check.DEVICE).expand(40, 300) >= 150
        twice = {"benefits": torch.cat((words, words), 2), "weights": torch.cat([weights] * 2, 1)}
        behind = zk.facility_location(padded, 40, visual_mask=mask, **twice, **options)
        same(behind - 150, whole, "padded")
        for b in range(0, 40, 7):
            one = {"benefits": words[b], "weights": weights[b], **options}
            same(zk.facility_location(visual[b], 40, **one), whole[b], f"alone {b}")
            same(ragged[b], whole[b], f"ragged {b}")
            same(zk.facility_location(visual[b], 13, **one), whole[b, :13], f"fewer {b}")
        for turn in range(20):
            same(zk.facility_location(visual, 40, **given), whole, turn)
