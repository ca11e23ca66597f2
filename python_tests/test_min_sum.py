# SPDX-License-Identifier: Apache-2.0
"""min_sum: every pick against the greedy in float64, and the laws of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.runners import each_backend, fitting, same_bits, strided_views, threads
from zspa_kernels import _native
from zspa_kernels.testing import MODELS, SPECIAL, bound, special, tokens
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    large_special_cases,
    model_cases,
    seed_and_weight_cases,
    special_cases,
)
from zspa_kernels.testing.min_sum import MinSum, check_min_sum, judge_min_sum, min_sum64

Require = Callable[..., None]
on_cpu = pytest.mark.parametrize("backend", ["reference", "cpp"])


def min_sum(backend: str) -> MinSum:
    def run(visual: Tensor, k: int, seeds: Tensor | None, mask: Tensor | None) -> Tensor:
        return zk.min_sum(visual, k, seeds=seeds, visual_mask=mask, backend=backend)

    return run


def judge_all(backend: str, cases: list[Case]) -> None:
    decided = picks = 0
    for case in fitting(backend, "min_sum", cases):
        with case.named():
            replay = judge_min_sum(case, min_sum(backend), backend)
        decided, picks = decided + replay.decided, picks + replay.picks
    assert decided > picks / 3  # the tolerance does not decide everything


@on_cpu
@pytest.mark.parametrize("model", MODELS)
def test_models(backend: str, model: str, require_backend: Require) -> None:
    require_backend(backend, "min_sum")
    cases = [case for case in model_cases("small") + model_cases("wide") if case.tokens == model]
    judge_all(backend, cases[:: 2 if backend == "reference" else 1])


def test_standard_cases_in_triton(require_backend: Require) -> None:
    require_backend("triton", "min_sum")
    seeded = [case for case in seed_and_weight_cases() if case.weights == "none"]
    judge_all("triton", model_cases("small")[::4] + special_cases()[1::5] + seeded[::2])


@on_cpu
def test_special_inputs_and_seeds(backend: str, require_backend: Require) -> None:
    require_backend(backend, "min_sum")
    seeded = [case for case in seed_and_weight_cases() if case.weights == "none"]
    judge_all(backend, special_cases()[:: 4 if backend == "reference" else 2] + seeded)


@pytest.mark.parametrize("model", MODELS)
def test_large(model: str, require_backend: Require) -> None:
    """Many passes, both block sizes, columns that are kept and columns that make room."""
    require_backend("cpp", "min_sum")
    judge_all(
        "cpp",
        [
            Case(model, 900, 513, 0, 300, torch.bfloat16),
            Case(model, 1600, 200, 0, 200),
            Case(model, 1600, 100, 0, 40, torch.float16, seeds="some"),  # 200 of them
        ],
    )


def test_large_special_inputs(require_backend: Require) -> None:
    require_backend("cpp", "min_sum")
    for case in large_special_cases()[1::2]:
        judge_min_sum(case, min_sum("cpp"), "cpp")


@each_backend
def test_all_tokens_of_a_few(backend: str, require_backend: Require) -> None:
    """Every N from 1 to 12 with every k."""
    require_backend(backend, "min_sum")
    for n in range(1, 7 if backend == "triton" else 13):
        d = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33)[12 - n]
        visual = tokens("iid", n, d, seed=n)
        for k in {0, 1, n - 1, n}:
            got = zk.min_sum(visual, k, backend=backend)
            check_min_sum(visual, got, k, bound=bound(d, backend))


@pytest.mark.parametrize("n", [48, 49, 50, 97])
def test_around_the_number_of_candidates(n: int, require_backend: Require) -> None:
    """All tokens are candidates, or one is not; each is picked once."""
    require_backend("cpp", "min_sum")
    for model in ("iid", "exact"):
        visual = tokens(model, n, 40)
        for k in (n - 1, n):
            picks = zk.min_sum(visual, k)
            check_min_sum(visual, picks, k, bound=0.0 if model == "exact" else bound(40))
        assert sorted(picks.tolist()) == list(range(n))


@each_backend
def test_equals_the_oracle(backend: str, require_backend: Require) -> None:
    """Where no pick is a near tie, these are the tokens of the float64 greedy."""
    require_backend(backend, "min_sum")
    visual = tokens("vlm", 150, 100, seed=5)
    for seeds in (None, torch.tensor([9, 140, 9, -1])):
        got = zk.min_sum(visual, 20, seeds=seeds, backend=backend)
        replay = check_min_sum(visual, got, 20, seeds=seeds, bound=bound(100, backend))
        assert replay.decided == 20
        assert torch.equal(got, min_sum64(visual, 20, seeds=seeds))


@each_backend
def test_batches_strides_and_segments(backend: str, require_backend: Require) -> None:
    """A row alone, in a batch, strided, padded with masked tokens, and as a segment: equal bits."""
    require_backend(backend, "min_sum")
    sizes = {"reference": (40, 17, 12), "cpp": (450, 129, 90), "triton": (33, 17, 9)}
    n, d, k = sizes[backend]
    kinds = list(zip((*MODELS, *SPECIAL), DTYPES * 8, strict=False))
    for kind, dtype in kinds[:: 9 if backend == "triton" else 1]:
        model = kind in MODELS
        visual = tokens(kind, n, d, 3, dtype) if model else special(kind, n, d, 3).visual.to(dtype)
        mask = torch.ones(n, dtype=torch.bool) if model else special(kind, n, d, 3).mask
        mask = torch.ones(n, dtype=torch.bool) if mask is None else mask
        both_ways = (None, torch.tensor([7, 11, 7]))
        for chosen in both_ways if backend != "triton" else both_ways[model::2]:
            alone = zk.min_sum(visual, k, seeds=chosen, visual_mask=mask, backend=backend)
            noise = tokens("vlm", n + 9, d, 4, dtype)
            padded, padded_mask = noise.clone(), torch.zeros(n + 9, dtype=torch.bool)
            padded[5 : 5 + n], padded_mask[5 : 5 + n] = visual, mask
            masks = torch.stack([torch.ones(n + 9, dtype=torch.bool), padded_mask])
            both = None if chosen is None else torch.stack([chosen, chosen + 5])
            batch = torch.stack([noise, padded])
            got = zk.min_sum(batch, k, seeds=both, visual_mask=masks, backend=backend)[1]
            same_bits(torch.where(got >= 0, got - 5, got), alone)
        alone = zk.min_sum(visual, k, visual_mask=mask, backend=backend)
        shown = torch.where(mask[:, None], visual, torch.nan)
        same_bits(zk.min_sum_varlen([noise[:7], shown], [7, k], backend=backend)[1], alone)
        for view in list(strided_views(visual).values())[:: 2 if backend == "cpp" else 5]:
            same_bits(zk.min_sum(view, k, visual_mask=mask, backend=backend), alone)


@pytest.mark.parametrize("model", MODELS)
def test_threads_and_counts_at_real_sizes(model: str, require_backend: Require) -> None:
    """One thread or several, k picks or more: the same bits, over many passes."""
    require_backend("cpp", "min_sum")
    for n, dtype in ((1300, torch.float32), (1600, torch.bfloat16)):
        visual = tokens(model, n, 320, dtype=dtype)
        run = min_sum("cpp")
        with threads(1):
            one = run(visual, 200, None, None)
        for count in (2, 3):
            with threads(count):
                same_bits(run(visual, 200, None, None), one)
        for fewer in (1, 2, 37, 199):
            same_bits(run(visual, fewer, None, None), one[:fewer])
        # Picks go on from picks that are given as seeds.
        same_bits(run(visual, 60, one[:140], None), one[140:])


def test_powers_of_two_change_nothing(require_backend: Require) -> None:
    require_backend("cpp", "min_sum")
    visual = tokens("clusters", 300, 65)
    picks = zk.min_sum(visual, 60)
    for exponent in (-30, 30):
        same_bits(zk.min_sum(visual * 2.0**exponent, 60), picks)


@pytest.fixture(params=_native.module().isas() if _native.reason() is None else ["none"])
def native_isa(request: pytest.FixtureRequest, require_backend: Require) -> Iterator[str]:
    require_backend("cpp")
    _native.module().use_isa(request.param)
    yield request.param
    _native.module().use_isa("auto")


def test_instruction_sets_meet_the_oracle(native_isa: str) -> None:
    cases = model_cases("small")[::6] + model_cases("wide")[::3] + special_cases()[1::12]
    for case in [*cases, Case("vlm", 700, 130, 0, 90, torch.bfloat16)]:
        judge_min_sum(case, min_sum("cpp"), "cpp")
    visual = tokens("smooth", 600, 129)
    picks = min_sum("cpp")(visual, 80, None, None)
    same_bits(min_sum("cpp")(visual, 33, None, None), picks[:33])


@pytest.mark.parametrize(
    ("model", "d", "most"),
    [
        ("iid", 256, 2.1),
        ("vlm", 256, 1.3),
        ("clusters", 256, 2.2),
        ("constant", 256, 1.3),
        ("iid", 8, 5.0),  # most forecasts fail at once
        ("iid", 64, 3.2),
    ],
)
def test_work_is_little_more_than_that_of_the_plain_greedy(
    model: str, d: int, most: float, require_backend: Require
) -> None:
    """Dots beside N k: the forecasts hold, and columns that were left over are used."""
    require_backend("cpp", "min_sum")
    from zspa_kernels.backends.cpp.min_sum import min_sum as native

    n, k = 1296, 130
    visual = tokens(model, n, d) if model in MODELS else special(model, n, d).visual
    stats = torch.zeros(3, dtype=torch.int64)
    picks = native(visual[None], k, None, None, stats)
    _, dots, _ = stats.tolist()
    assert len(set(picks[0].tolist())) == k
    assert dots <= most * n * k
