# SPDX-License-Identifier: Apache-2.0
"""dpp: every pick against Chen's algorithm in float64, and the laws of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.runners import (
    each_backend,
    fitting,
    growing_errors,
    same_bits,
    strided_views,
    threads,
)
from zspa_kernels import _native
from zspa_kernels.testing import MODELS, SPECIAL, bound, special, tokens
from zspa_kernels.testing.baselines import dpp_loop
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    large_special_cases,
    model_cases,
    seed_and_weight_cases,
    special_cases,
)
from zspa_kernels.testing.dpp import Dpp, check_dpp, dpp64, judge_dpp

Require = Callable[..., None]
on_cpu = pytest.mark.parametrize("backend", ["reference", "cpp"])


def dpp(backend: str) -> Dpp:
    def run(visual: Tensor, k: int, weights: Tensor | None, mask: Tensor | None) -> Tensor:
        return zk.dpp(visual, k, weights=weights, visual_mask=mask, backend=backend)

    return run


def judge_all(backend: str, cases: list[Case]) -> None:
    decided, fit = 0, fitting(backend, "dpp", cases)
    for case in fit:
        with case.named():
            decided += judge_dpp(case, dpp(backend), backend).decided
    assert decided > 2 * len(fit) / 3  # the tolerance does not decide everything


@on_cpu
@pytest.mark.parametrize("model", MODELS)
def test_models(backend: str, model: str, require_backend: Require) -> None:
    require_backend(backend, "dpp")
    cases = model_cases("small") + model_cases("wide")
    judge_all(backend, [case for case in cases if case.tokens == model])


def test_standard_cases_in_triton(require_backend: Require) -> None:
    require_backend("triton", "dpp")
    weighted = [case for case in seed_and_weight_cases() if case.seeds == "none"]
    judge_all("triton", model_cases("small")[::4] + special_cases()[1::5] + weighted[::2])


@on_cpu
def test_special_inputs_and_weights(backend: str, require_backend: Require) -> None:
    require_backend(backend, "dpp")
    weighted = [case for case in seed_and_weight_cases() if case.seeds == "none"]
    judge_all(backend, special_cases()[:: 2 if backend == "reference" else 1] + weighted)


@pytest.mark.parametrize("model", MODELS)
def test_large(model: str, require_backend: Require) -> None:
    """Several blocks of candidates and passes over the tokens, with more channels than picks."""
    require_backend("cpp", "dpp")
    weights = "eighths" if model == "exact" else "uniform"
    judge_all(
        "cpp",
        [
            Case(model, 900, 513, 0, 150, torch.bfloat16),
            Case(model, 1600, 200, 0, 100, weights=weights),
        ],
    )


def test_large_special_inputs(require_backend: Require) -> None:
    require_backend("cpp", "dpp")
    for case in large_special_cases()[::2]:
        judge_dpp(case, dpp("cpp"), "cpp")


@each_backend
def test_all_tokens_of_a_few(backend: str, require_backend: Require) -> None:
    """Every N from 1 to 12 with every k; where D < N most tokens depend on the picks."""
    require_backend(backend, "dpp")
    for n in range(1, 7 if backend == "triton" else 13):
        d = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33)[12 - n]
        visual = tokens("iid", n, d, seed=n)
        for k in {0, 1, n - 1, n}:
            got = zk.dpp(visual, k, backend=backend)
            check_dpp(visual, got, k, bound=bound(d, backend))


@on_cpu
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_rank_deficient_input_gives_each_token_once(
    backend: str, rank: int, require_backend: Require
) -> None:
    """After `rank` picks every residual is 0: the rest follows by index."""
    require_backend(backend, "dpp")
    n, d = 160, 64
    draw = torch.Generator().manual_seed(rank)
    basis = torch.randn(rank, d, generator=draw)
    for visual in (
        torch.randn(n, rank, generator=draw) @ basis,
        basis.repeat(n // rank + 1, 1)[:n],
    ):
        picks = zk.dpp(visual, n, backend=backend).tolist()
        assert sorted(picks) == list(range(n))
        assert picks[rank:] == sorted(picks[rank:])


@each_backend
def test_what_is_left_at_the_threshold_is_nothing(backend: str, require_backend: Require) -> None:
    """Residuals of exactly 2**-16, which counts as 0, and of 2**-15, which does not."""
    require_backend(backend, "dpp")
    visual = torch.eye(7)[[0, 1, 2, 3, 2, 0, 0, 0]]
    visual[5] = torch.tensor([255.0, 22, 5, 1, 1, 0, 0])  # of length 256, as are the next ones
    visual[6:] = torch.tensor([255.0, 22, 5, 0, 0, 1, 1])
    assert zk.dpp(visual, 8, backend=backend).tolist() == [0, 1, 2, 3, 6, 4, 5, 7]


def test_errors_that_grow_beyond_all_numbers(require_backend: Require) -> None:
    """Weights of 0 are taken by index; later rows have no residual then, and none of NaN."""
    require_backend("cpp", "dpp")
    visual, weights = growing_errors(160, 60)
    picks = zk.dpp(visual, 220, weights=weights, backend="cpp")
    assert picks.tolist() == list(range(220))


@each_backend
def test_equals_the_published_algorithm(backend: str, require_backend: Require) -> None:
    """Where no pick is a near tie, Chen's loop over the full matrix chooses the same tokens."""
    require_backend(backend, "dpp")
    visual = tokens("vlm", 150, 100, seed=5)
    weights = torch.rand(150, generator=torch.Generator().manual_seed(1))
    got = zk.dpp(visual, 30, weights=weights, backend=backend)
    assert check_dpp(visual, got, 30, weights=weights, bound=bound(100, backend)).decided == 30
    assert torch.equal(got, dpp64(visual, 30, weights=weights))
    assert torch.equal(got, dpp_loop(visual, 30, weights))


@each_backend
def test_batches_strides_and_segments(backend: str, require_backend: Require) -> None:
    """A row alone, in a batch, strided, padded with masked tokens, and as a segment: equal bits."""
    require_backend(backend, "dpp")
    sizes = {"reference": (40, 17, 12), "cpp": (450, 129, 90), "triton": (33, 17, 9)}
    n, d, k = sizes[backend]
    kinds = list(zip((*MODELS, *SPECIAL), DTYPES * 8, strict=False))
    for kind, dtype in kinds[:: 9 if backend == "triton" else 1]:
        model = kind in MODELS
        visual = tokens(kind, n, d, 3, dtype) if model else special(kind, n, d, 3).visual.to(dtype)
        mask = torch.ones(n, dtype=torch.bool) if model else special(kind, n, d, 3).mask
        mask = torch.ones(n, dtype=torch.bool) if mask is None else mask
        weights = torch.rand(n, generator=torch.Generator().manual_seed(2))
        alone = zk.dpp(visual, k, weights=weights, visual_mask=mask, backend=backend)
        noise = tokens("vlm", n + 9, d, 4, dtype)
        padded, padded_mask = noise.clone(), torch.zeros(n + 9, dtype=torch.bool)
        padded[5 : 5 + n], padded_mask[5 : 5 + n] = visual, mask
        wide = torch.ones(2, n + 9)
        wide[1, 5 : 5 + n] = weights
        masks = torch.stack([torch.ones(n + 9, dtype=torch.bool), padded_mask])
        batch = torch.stack([noise, padded])
        got = zk.dpp(batch, k, weights=wide, visual_mask=masks, backend=backend)[1]
        same_bits(torch.where(got >= 0, got - 5, got), alone)
        shown = torch.where(mask[:, None], visual, torch.nan)
        pieces = [noise[:7], shown]
        ragged = zk.dpp_varlen(pieces, [7, k], weights=[wide[0, :7], weights], backend=backend)
        same_bits(ragged[1], alone)
        for view in list(strided_views(visual).values())[:: 2 if backend == "cpp" else 5]:
            same_bits(zk.dpp(view, k, weights=weights, visual_mask=mask, backend=backend), alone)


@pytest.mark.parametrize("model", MODELS)
def test_threads_and_counts_at_real_sizes(model: str, require_backend: Require) -> None:
    """One thread or several, k picks or more: the same bits, over many passes."""
    require_backend("cpp", "dpp")
    for dtype in (torch.float32, torch.bfloat16):
        visual = tokens(model, 1300, 320, dtype=dtype)
        weights = torch.rand(1300, generator=torch.Generator().manual_seed(0))
        for given in (None, weights):
            run = dpp("cpp")
            with threads(1):
                one = run(visual, 200, given, None)
            for count in (2, 3):
                with threads(count):
                    same_bits(run(visual, 200, given, None), one)
            for fewer in (1, 37, 199):
                same_bits(run(visual, fewer, given, None), one[:fewer])
            same_bits(run(visual, 260, given, None)[:200], one)


def test_powers_of_two_change_nothing(require_backend: Require) -> None:
    require_backend("cpp", "dpp")
    visual = tokens("clusters", 300, 65)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(0)) + 0.01
    picks = zk.dpp(visual, 60, weights=weights)
    for exponent in (-30, 30):
        same_bits(zk.dpp(visual * 2.0**exponent, 60, weights=weights), picks)
    for exponent in (-119, 126):  # of weights: their squares leave the range of a float
        same_bits(zk.dpp(visual, 60, weights=weights * 2.0**exponent), picks)


@pytest.fixture(params=_native.module().isas() if _native.reason() is None else ["none"])
def native_isa(request: pytest.FixtureRequest, require_backend: Require) -> Iterator[str]:
    require_backend("cpp")
    _native.module().use_isa(request.param)
    yield request.param
    _native.module().use_isa("auto")


def test_instruction_sets_meet_the_oracle(native_isa: str) -> None:
    cases = model_cases("small")[::3] + model_cases("wide")[::2] + special_cases()[::4]
    for case in [*cases, Case("vlm", 700, 130, 0, 90, torch.bfloat16)]:
        judge_dpp(case, dpp("cpp"), "cpp")
    visual = tokens("smooth", 600, 129)
    picks = dpp("cpp")(visual, 80, None, None)
    same_bits(dpp("cpp")(visual, 33, None, None), picks[:33])


@pytest.mark.parametrize("model", ["iid", "vlm", "constant"])
def test_work_is_that_of_the_plain_greedy_at_most(model: str, require_backend: Require) -> None:
    require_backend("cpp", "dpp")
    from zspa_kernels.backends.cpp.dpp import dpp as native

    n, k = 1296, 130
    visual = tokens(model, n, 256) if model in MODELS else special(model, n, 256).visual
    stats = torch.zeros(3, dtype=torch.int64)
    picks = native(visual[None], k, None, None, stats)
    passes, dots, _ = stats.tolist()
    assert len(set(picks[0].tolist())) == k
    assert passes <= 40
    assert dots <= 1.15 * n * k
