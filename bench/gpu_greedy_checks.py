# SPDX-License-Identifier: Apache-2.0
"""Checks of the greedy ops beside `diversity`: picks against float64 judges, and the laws."""

from __future__ import annotations

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
