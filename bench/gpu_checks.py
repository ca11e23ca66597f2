# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: `python -m bench.gpu_checks NAME [DTYPE]` runs one check.

A check is a function that raises AssertionError.

`bench.gpu` runs each in a process of its own, because a fault on a GPU spoils the process it
happens in; `python_tests/test_gpu.py` runs the same functions under pytest. Nothing but torch,
Triton and this package is needed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import zspa_kernels as zk
from bench import (
    gpu_check,
    gpu_device_checks,  # noqa: F401  (enters its checks into CHECKS)
    gpu_greedy,  # noqa: F401
    gpu_jobs,
    gpu_sensitivity,  # noqa: F401
    gpu_suppress,  # noqa: F401
)
from bench.gpu_check import (
    CHECKS,
    FIRST,
    alike,
    check,
    check_by_dtype,
    chosen,
    draw,
    error_of,
    picked,
    placed,
    same,
)
from zspa_kernels.testing import MODELS, bound, check_diversity, tokens
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    judge_diversity,
    judge_relevance_topk,
    judge_select,
    large_special_cases,
    model_cases,
    pooling_cases,
    seed_and_weight_cases,
    special_cases,
)

# --- the cases of the tests -----------------------------------------------------------------------


def _select(*case: Any) -> Tensor:
    visual, prompt, *rest = case
    names = ("k_core", "k_diverse", "visual_mask", "prompt_mask", "pooling")
    options = dict(zip(names, rest, strict=True))
    return picked(zk.select, visual, prompt, **options, sorted=False)


def _relevance_topk(*case: Any) -> tuple[Tensor, Tensor]:
    visual, prompt, k, mask, prompt_mask, pooling = map(placed, case)
    indices, scores = zk.relevance_topk(
        visual, prompt, k, visual_mask=mask, prompt_mask=prompt_mask, pooling=pooling
    )
    return indices.cpu(), scores.cpu()


def _diversity(*case: Any) -> Tensor:
    visual, k, seeds, weights, mask = case
    return picked(zk.diversity, visual, k, seeds=seeds, weights=weights, visual_mask=mask)


def _judge(judge: Callable[..., Any], run: Callable[..., Any], cases: list[Case]) -> None:
    for case in chosen(cases):
        with case.named():
            judge(case, run, "triton")


@check
def first_relevance_topk() -> None:
    """Two calls, the first of all."""
    _judge(judge_relevance_topk, _relevance_topk, list(FIRST))


@check
def first_diversity() -> None:
    """Two calls from DivPrune's seed, by blocks and by the matrix of all cosines."""
    from zspa_kernels.backends.triton import diversity

    _judge(judge_diversity, _diversity, list(FIRST))
    with mock.patch.object(diversity, "few_tokens", return_value=False):
        _judge(judge_diversity, _diversity, list(FIRST[:1]))


@check
def first_select() -> None:
    """Two calls with a core; in ascending order the same tokens, then the slots that got none."""
    _judge(judge_select, _select, list(FIRST))
    visual = FIRST[0].visual.to(gpu_check.DEVICE)[None]
    some = (torch.arange(visual.shape[1], device=gpu_check.DEVICE) % 50 == 7)[None]
    options: dict[str, Any] = {"k_core": 0, "k_diverse": 70, "visual_mask": some}
    picks = zk.select(visual, sorted=False, **options)[0].tolist()
    ascending = zk.select(visual, **options)[0].tolist()
    assert ascending == sorted(picks, key=lambda i: (i < 0, i)), (picks, ascending)


def _models() -> list[Case]:
    return [case for tier in ("small", "wide", "large") for case in model_cases(tier)]


@check_by_dtype
def select_cases() -> None:
    """Every standard case of select against the float64 oracle."""
    _judge(judge_select, _select, _models() + special_cases() + pooling_cases())


@check_by_dtype
def relevance_topk_cases() -> None:
    """Every standard case of relevance_topk."""
    _judge(judge_relevance_topk, _relevance_topk, _models() + special_cases() + pooling_cases())


@check_by_dtype
def diversity_cases() -> None:
    """Every standard case of diversity."""
    _judge(judge_diversity, _diversity, _models() + special_cases() + seed_and_weight_cases())


@check_by_dtype
def diversity_large_cases() -> None:
    """Special inputs, seeds and weights over many passes."""
    _judge(judge_diversity, _diversity, large_special_cases())


@check_by_dtype
def exact_tokens() -> None:
    """Where every cosine is exact, the picks are those of the reference, ties included."""
    for dtype in chosen(DTYPES):
        for n, d, core, diverse in ((300, 64, 0, 60), (577, 256, 40, 50), (1300, 64, 10, 200)):
            visual, prompt = tokens("exact", n, d, 1, dtype), tokens("exact", 3, d, 2, dtype)
            words = prompt if core else None
            arguments = (visual, words, core, diverse, None, None, "none_max")
            want = zk.select(
                visual, words, k_core=core, k_diverse=diverse, pooling="none_max",
                sorted=False, backend="reference",
            )  # fmt: skip
            same(_select(*arguments), want, (dtype, n, d))


@check
def real_sizes() -> None:
    """Thousands of channels: the picks are judged with the error bound of matrix units."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        got = _diversity(visual, 130, None, None, None)
        check_diversity(visual, got, 130, bound=bound(3584, "triton"))


# --- laws, bit for bit ----------------------------------------------------------------------------


@check_by_dtype
def law_core_then_diversity() -> None:
    """Select is relevance_topk followed by diversity from its picks."""
    for dtype in chosen(DTYPES):
        visual = draw(3, 700, 256, dtype)
        prompt = visual[:, 5:9] + 1
        whole = zk.select(visual, prompt, k_core=30, k_diverse=60, sorted=False)
        core, _ = zk.relevance_topk(visual, prompt, 30)
        alike(torch.cat((core, zk.diversity(visual, 60, seeds=core)), 1), whole, dtype)


@check
def law_rows() -> None:
    """A row alone, in a batch (other groups of programs), padded, and as a ragged segment."""
    visual = draw(gpu_check.IMAGES, 300, 512)
    whole = zk.diversity(visual, 40)
    ragged = zk.diversity_varlen(list(visual), 40)
    padded = torch.cat((visual, visual.flip(1)), 1)
    mask = torch.arange(600, device=gpu_check.DEVICE).expand(gpu_check.IMAGES, 600) < 300
    alike(zk.diversity(padded, 40, visual_mask=mask), whole, "padded")
    for b in range(0, gpu_check.IMAGES, 7):
        alike(zk.diversity(visual[b], 40), whole[b], f"alone {b}")
        alike(ragged[b], whole[b], f"ragged {b}")


@check_by_dtype
def law_pairs() -> None:
    """A cosine has the same bits whichever of its tokens is the row of a tile, wherever both are.

    The matrix of few tokens has each pair once; in the opposite order it comes the other way round.
    """
    from zspa_kernels.backends.triton import _scratch, diversity
    from zspa_kernels.backends.triton._common import Segments

    def matrix(visual: Tensor) -> Tensor:
        segments = Segments(2, visual.shape[1], 0, 1)
        picks = torch.full((2, 1), -1, device=visual.device)
        with mock.patch.object(diversity, "few_tokens", return_value=True):
            scratch = _scratch.allocate(visual.device, diversity.greedy_plan(visual, segments))
            diversity.greedy(visual, segments, picks, None, None, None, scratch, False)
        return scratch["matrix"]

    for dtype in chosen(DTYPES):
        visual = draw(2, 192, 1100, dtype)  # whole blocks, so that pairs of blocks stay such pairs
        cosines = matrix(visual)
        same(cosines.mT, cosines, f"{dtype}, rows and columns exchanged")
        turned = matrix(visual.flip(1)).flip(1, 2)
        same(turned, cosines, f"{dtype}, tokens in the opposite order")
        unit = torch.nn.functional.normalize(visual.float(), dim=-1)
        off = ~torch.eye(192, dtype=torch.bool, device=visual.device)
        wrong = (cosines - unit @ unit.mT).abs()[:, off].max()
        assert wrong < 1e-3, f"{dtype}: a cosine is wrong by {wrong:.1e}"  # or nobody wrote it


@check_by_dtype
def law_seeds() -> None:
    """Picks continued from seeds are the rest of the picks: a Gram block and an update agree."""
    for dtype in chosen(DTYPES):
        visual = draw(2, 1500, 1024, dtype)
        whole = zk.diversity(visual, 200)
        for first in (1, 17, 130):
            rest = zk.diversity(visual, 200 - first, seeds=whole[:, :first])
            alike(rest, whole[:, first:], (dtype, first))
            alike(zk.diversity(visual, first), whole[:, :first], (dtype, first))


@check
def law_strides() -> None:
    """Memory order changes nothing."""
    visual = draw(2, 400, 257, torch.float16)
    want = zk.diversity(visual, 40)
    wide = torch.full((2, 400, 600), torch.nan, dtype=visual.dtype, device=gpu_check.DEVICE)
    wide[..., 3:260] = visual
    for view in (wide[..., 3:260], visual.transpose(1, 2).contiguous().transpose(1, 2)):
        alike(zk.diversity(view, 40), want, view.stride())


@check_by_dtype
def law_paths() -> None:
    """The matrix of all cosines and the blocked greedy give the same picks, however they begin."""
    from zspa_kernels.backends.triton import diversity

    for dtype, (n, d, k) in itertools.product(
        chosen(DTYPES), ((64, 40, 30), (576, 1024, 58), (1000, 300, 99))
    ):
        visual = draw(2, n, d, dtype)
        weights = torch.rand(2, n, device=gpu_check.DEVICE)
        seeds = torch.arange(12, device=gpu_check.DEVICE).expand(2, -1).contiguous()
        for given in ({}, {"weights": weights}, {"seeds": seeds}):
            found = []
            for few in (True, False):
                with mock.patch.object(diversity, "few_tokens", return_value=few):
                    found.append(zk.diversity(visual, k, **given))
            alike(found[0], found[1], (dtype, n, list(given)))


@check
def law_repetition() -> None:
    """The same call many times, at sizes with one and with many programs: a race would show."""
    for batch, n, d, k in (
        (1, 576, 512, 58),
        (1, 1300, 512, 130),
        (7, 300, 128, 60),
        (1, 5000, 128, 300),
        (150, 40, 64, 9),
    ):
        visual = draw(batch, n, d)
        want = zk.diversity(visual, k)
        for turn in range(100):
            alike(zk.diversity(visual, k), want, (batch, n, turn))


@check
def law_ambient_state() -> None:
    """Autocast, matmul precision and default dtype change nothing."""
    visual = draw(1, 500, 300, torch.float32)
    want = zk.diversity(visual, 50)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        alike(zk.diversity(visual, 50), want, "autocast")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        alike(zk.diversity(visual, 50), want, "matmul precision")
    finally:
        torch.set_float32_matmul_precision(before)


@check
def errors() -> None:
    """The texts of the contract, on tensors of this device."""
    visual = draw(1, 8, 16)
    for call, error, text in (
        (lambda: zk.diversity(visual, 9), ValueError, "diversity: k must be"),
        (lambda: zk.diversity(visual.cpu(), 1, backend="triton"), NotImplementedError, "diversity"),
        (
            lambda: zk.diversity(visual, 1, seeds=torch.tensor([[0]])),
            ValueError,
            "diversity: seeds",
        ),
        (lambda: zk.diversity(visual.double(), 1), TypeError, "diversity: visual must"),
    ):
        found = error_of(call, error)
        assert found.startswith(text), found


def main(name: str, dtype: str | None = None) -> int:
    """Run one check, of all dtypes or of one."""
    gpu_check.DTYPE = None if dtype is None else getattr(torch, dtype)
    CHECKS[name]()
    torch.cuda.synchronize()
    print(f"{name}: passed")
    return 0


if __name__ == "__main__":
    gpu_jobs.watch()
    sys.exit(main(*sys.argv[1:]))
