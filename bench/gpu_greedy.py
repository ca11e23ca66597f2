# SPDX-License-Identifier: Apache-2.0
"""The greedy ops beside `diversity` on a GPU: picks against float64 judges, laws, timing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import zspa_kernels as zk
from bench import gpu_check
from bench.gpu_check import FIRST, alike, check, check_by_dtype, chosen, draw, picked
from bench.method_readings import todre
from zspa_kernels.testing import MODELS, bound, tokens
from zspa_kernels.testing.baselines import dpp_loop, facility_location_loop
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    large_special_cases,
    model_cases,
    seed_and_weight_cases,
    special_cases,
)
from zspa_kernels.testing.dpp import check_dpp, judge_dpp
from zspa_kernels.testing.facility_location import check_facility_location, judge_facility_location
from zspa_kernels.testing.min_sum import check_min_sum, judge_min_sum

#: Images, N, D and K of a timed call.
SIZES = ((1, 576, 4096, 58), (1, 2880, 4096, 288), (32, 576, 4096, 58))
#: Picks of a timed call that are replayed.
REPLAYED = 48


def _dpp(visual: Tensor, k: int, weights: Tensor | None, mask: Tensor | None) -> Tensor:
    return picked(zk.dpp, visual, k, weights=weights, visual_mask=mask)


def _cases(absent: str = "seeds") -> list[Case]:
    """Standard cases for an op that takes no seeds, or no weights."""
    given = [case for case in seed_and_weight_cases() if getattr(case, absent) == "none"]
    models = model_cases("small") + model_cases("wide")
    return models + special_cases() + given + large_special_cases()


def _facility_location(*case: Any) -> Tensor:
    names = ("benefits", "weights", "visual_mask", "temperature", "scale")
    return picked(zk.facility_location, *case[:2], **dict(zip(names, case[2:], strict=True)))


@check
def first_dpp() -> None:
    """Two calls, the first of all."""
    for case in FIRST:
        judge_dpp(case, _dpp, "triton")


@check_by_dtype
def dpp_cases() -> None:
    """Standard cases of dpp, some of many passes."""
    for case in chosen(_cases()):
        with case.named():
            judge_dpp(case, _dpp, "triton")


@check
def dpp_real_sizes() -> None:
    """Thousands of channels: the picks are judged with the error bound of matrix units."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        check_dpp(visual, _dpp(visual, 130, None, None), 130, bound=bound(3584, "triton"))


@check_by_dtype
def dpp_laws() -> None:
    """A row alone, in a batch, padded, ragged; fewer picks; other strides; the same call again."""
    for dtype in chosen(DTYPES):
        visual = draw(gpu_check.IMAGES, 300, 512, dtype)
        weights = torch.rand(gpu_check.IMAGES, 300, device=gpu_check.DEVICE)
        whole = zk.dpp(visual, 60, weights=weights)
        ragged = zk.dpp_varlen(list(visual), 60, weights=list(weights))
        padded = torch.cat((visual, visual.flip(1)), 1)
        mask = torch.arange(600, device=gpu_check.DEVICE).expand(gpu_check.IMAGES, 600) < 300
        twice = torch.cat((weights, weights), 1)
        alike(zk.dpp(padded, 60, weights=twice, visual_mask=mask), whole, "padded")
        for b in range(0, gpu_check.IMAGES, 7):
            alone = zk.dpp(visual[b], 60, weights=weights[b])
            alike(alone, whole[b], f"alone {b}")
            alike(ragged[b], whole[b], f"ragged {b}")
            alike(zk.dpp(visual[b], 13, weights=weights[b]), whole[b, :13], f"fewer {b}")
        view = visual.transpose(1, 2).contiguous().transpose(1, 2)
        for turn in range(gpu_check.TURNS):
            alike(zk.dpp(view, 60, weights=weights), whole, turn)


COVER: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.2},
    {"words": 5, "temperature": 0.2, "scale": 0.5},
)


@check
def first_facility_location() -> None:
    """Two calls, the first of all."""
    for case in FIRST:
        judge_facility_location(case, _facility_location, "triton")


@check_by_dtype
def facility_location_cases() -> None:
    """Standard cases of facility_location: by cosines, by their softmax, beside given rows."""
    for cover in COVER:
        for case in chosen(_cases()):
            with case.named():
                judge_facility_location(case, _facility_location, "triton", **cover)


@check
def facility_location_real_sizes() -> None:
    """Thousands of channels, and a matrix of many tiles."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        got = _facility_location(visual, 60, None, None, None, 0.0, 1.0)
        check_facility_location(visual, got, 60, bound=bound(3584, "triton"))


@check_by_dtype
def facility_location_laws() -> None:
    """A row alone, in a batch, padded in front, ragged; fewer picks; the same call again."""
    for dtype in chosen(DTYPES):
        visual = draw(gpu_check.IMAGES, 150, 256, dtype)
        weights = torch.rand(gpu_check.IMAGES, 150, device=gpu_check.DEVICE)
        words = torch.rand(gpu_check.IMAGES, 3, 150, device=gpu_check.DEVICE) / 150
        options: dict[str, Any] = {"temperature": 0.2 if dtype == torch.float16 else 0.0}
        given = {"benefits": words, "weights": weights, **options}
        whole = zk.facility_location(visual, 40, **given)
        split = {"benefits": list(words), "weights": list(weights), **options}
        ragged = zk.facility_location_varlen(list(visual), 40, **split)
        padded = torch.cat((visual.flip(1), visual), 1)
        mask = torch.arange(300, device=gpu_check.DEVICE).expand(gpu_check.IMAGES, 300) >= 150
        twice = {"benefits": torch.cat((words, words), 2), "weights": torch.cat([weights] * 2, 1)}
        behind = zk.facility_location(padded, 40, visual_mask=mask, **twice, **options)
        alike(behind - 150, whole, "padded")
        for b in range(0, gpu_check.IMAGES, 7):
            one = {"benefits": words[b], "weights": weights[b], **options}
            alike(zk.facility_location(visual[b], 40, **one), whole[b], f"alone {b}")
            alike(ragged[b], whole[b], f"ragged {b}")
            alike(zk.facility_location(visual[b], 13, **one), whole[b, :13], f"fewer {b}")
        for turn in range(gpu_check.TURNS):
            alike(zk.facility_location(visual, 40, **given), whole, turn)


def _min_sum(visual: Tensor, k: int, seeds: Tensor | None, mask: Tensor | None) -> Tensor:
    return picked(zk.min_sum, visual, k, seeds=seeds, visual_mask=mask)


@check
def facility_location_turns() -> None:
    """Images whose matrices take more than the bound take turns: the same picks, less memory."""
    visual = draw(24, 2048, 128)  # 16 MiB each
    first, last = (zk.facility_location(visual[at], 40) for at in (slice(0, 5), slice(19, 24)))
    zk.facility_location(visual, 40)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole = zk.facility_location(visual, 40)
    used = torch.cuda.max_memory_allocated() - before
    alike(whole[:5], first, "the first images")
    alike(whole[19:], last, "the last images")
    assert used < 272 * 2**20, f"{used} bytes"


@check
def first_min_sum() -> None:
    """Two calls, the first of all."""
    for case in FIRST:
        judge_min_sum(case, _min_sum, "triton")


@check_by_dtype
def min_sum_cases() -> None:
    """Standard cases of min_sum, with and without seeds, some of many passes."""
    for case in chosen(_cases("weights")):
        with case.named():
            judge_min_sum(case, _min_sum, "triton")


@check
def min_sum_real_sizes() -> None:
    """Thousands of channels: the picks are judged with the error bound of matrix units."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        check_min_sum(visual, _min_sum(visual, 130, None, None), 130, bound=bound(3584, "triton"))


@check_by_dtype
def min_sum_laws() -> None:
    """A row alone, in a batch, padded in front, ragged; seeds; fewer picks; strides; again."""
    for dtype in chosen(DTYPES):
        visual = draw(gpu_check.IMAGES, 300, 512, dtype)
        whole = zk.min_sum(visual, 60)
        ragged = zk.min_sum_varlen(list(visual), 60)
        padded = torch.cat((visual.flip(1), visual), 1)
        mask = torch.arange(600, device=gpu_check.DEVICE).expand(gpu_check.IMAGES, 600) >= 300
        alike(zk.min_sum(padded, 60, visual_mask=mask) - 300, whole, "padded")
        alike(zk.min_sum(visual, 11, seeds=whole[:, :49]), whole[:, 49:], "seeds")
        for b in range(0, gpu_check.IMAGES, 7):
            alike(zk.min_sum(visual[b], 60), whole[b], f"alone {b}")
            alike(ragged[b], whole[b], f"ragged {b}")
            alike(zk.min_sum(visual[b], 13), whole[b, :13], f"fewer {b}")
        view = visual.transpose(1, 2).contiguous().transpose(1, 2)
        for turn in range(gpu_check.TURNS):
            alike(zk.min_sum(view, 60), whole, turn)


def timing(sizes: tuple[tuple[int, int, int, int], ...] = SIZES) -> Iterator[dict[str, Any]]:
    """Replays of all three ops, beside the published loops of one image; bfloat16, `vlm` tokens.

    The first picks of the first image are replayed in float64; where one is wrong there is no time.
    """
    for batch, n, d, k in sizes:
        visual = torch.stack([tokens("vlm", n, d, seed, torch.bfloat16) for seed in range(batch)])
        weights = torch.rand(batch, n, generator=torch.Generator().manual_seed(0))
        for op in ("dpp", "facility_location", "min_sum"):
            record = {"greedy": f"{op}, {batch} x {n} x {d}, k = {k}", "kind": "ours"}
            yield record | _timed(op, visual, weights, k)


def _timed(op: str, visual: Tensor, weights: Tensor, k: int) -> dict[str, Any]:
    from bench.gpu_timing import best, eager

    moved, heavy = visual.to(gpu_check.DEVICE), weights.to(gpu_check.DEVICE)
    wide, few = moved[0].float(), min(k, REPLAYED)
    unit = torch.nn.functional.normalize(wide, dim=-1)
    weighted = op != "min_sum"
    judges: dict[str, Callable[..., Any]] = {
        "dpp": check_dpp,
        "facility_location": check_facility_location,
        "min_sum": check_min_sum,
    }

    def call() -> Tensor:
        picks: Tensor = getattr(zk, op)(moved, k, **({"weights": heavy} if weighted else {}))
        return picks

    def loop() -> Tensor:
        if op == "dpp":
            return dpp_loop(wide, k, heavy[0])
        if op == "min_sum":
            return todre(k, visual=wide)
        return facility_location_loop((unit @ unit.T).clamp_min(0), k, heavy[0])

    given = {"weights": weights[0]} if weighted else {}
    error_bound = bound(visual.shape[-1], "triton")
    try:
        judges[op](visual[0], call()[0, :few].cpu(), few, bound=error_bound, **given)
    except AssertionError as error:
        return {"status": "wrong", "reason": str(error)}
    loops = min(eager(loop) for _ in range(3))
    return {"status": "verified", "ms": best(call), "loop_ms": loops}
