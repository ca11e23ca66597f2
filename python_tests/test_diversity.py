# SPDX-License-Identifier: Apache-2.0
"""diversity: every pick against the float64 oracle, on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import zspa_kernels as zk
from python_tests.runners import (
    BACKENDS,
    diversity,
    each_backend,
    each_backend_and_dtype,
    fitting,
    strided_views,
)
from zspa_kernels.testing import (
    MODELS,
    bound,
    check_diversity,
    diversity64,
    divprune_loop,
    tokens,
)
from zspa_kernels.testing.cases import (
    Case,
    judge_diversity,
    large_special_cases,
    model_cases,
    seed_and_weight_cases,
    special_cases,
)

Require = Callable[..., None]


def _judge_all(backend: str, cases: list[Case]) -> None:
    run = diversity(backend)
    for case in fitting(backend, "diversity", cases):
        with case.named():
            judge_diversity(case, run, backend)


@each_backend
@pytest.mark.parametrize("model", MODELS)
def test_models(backend: str, model: str, require_backend: Require) -> None:
    require_backend(backend, "diversity")
    cases = model_cases("small") + model_cases("wide")
    _judge_all(backend, [case for case in cases if case.tokens == model])


@each_backend
def test_special_inputs(backend: str, require_backend: Require) -> None:
    require_backend(backend, "diversity")
    _judge_all(backend, special_cases())


@each_backend
def test_seeds_and_weights(backend: str, require_backend: Require) -> None:
    require_backend(backend, "diversity")
    _judge_all(backend, seed_and_weight_cases())


@pytest.mark.parametrize("model", ["exact", "video"])
def test_large(model: str, require_backend: Require) -> None:
    """Several blocks of candidates and passes over the tokens; more of it in test_select."""
    require_backend("cpp", "diversity")
    _judge_all("cpp", [case for case in model_cases("large") if case.tokens == model])


def test_large_special_inputs(require_backend: Require) -> None:
    require_backend("cpp", "diversity")
    _judge_all("cpp", large_special_cases())


@pytest.mark.parametrize("model", MODELS)
def test_large_with_seeds_and_weights(model: str, require_backend: Require) -> None:
    require_backend("cpp", "diversity")
    weights = "eighths" if model == "exact" else "uniform"
    _judge_all(
        "cpp",
        [
            Case(model, 900, 65, 0, 200, torch.bfloat16, seeds="some", weights=weights),
            Case(model, 777, 100, 0, 300, weights=weights),
            Case(model, 1100, 33, 0, 250, torch.float16, seeds="odd"),
        ],
    )


@each_backend
def test_all_tokens_of_a_few(backend: str, require_backend: Require) -> None:
    """Every N from 1 to 12 with every k, and widths around a vector register."""
    require_backend(backend, "diversity")
    for n in range(1, 13, 4 if backend == "triton" else 1):
        d = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33)[n - 1]
        visual = tokens("iid", n, d, seed=n)
        for k in {0, 1, n - 1, n}:
            got = zk.diversity(visual, k, backend=backend)
            check_diversity(visual, got, k, bound=bound(d, backend))


@each_backend
def test_no_weights_are_not_equal_weights(backend: str, require_backend: Require) -> None:
    """Without weights the first pick is the most isolated token, with them the heaviest."""
    require_backend(backend, "diversity")
    visual = tokens("clusters", 60, 33)
    isolated = zk.diversity(visual, 1, backend=backend)
    assert torch.equal(isolated, diversity64(visual, 1))
    heaviest = zk.diversity(visual, 5, weights=torch.ones(60), backend=backend)
    assert int(heaviest[0]) == 0
    assert int(isolated[0]) != 0
    after = zk.diversity(visual, 5, seeds=torch.tensor([0]), backend=backend)
    assert torch.equal(heaviest[1:], after[:4])


@each_backend
def test_seed_with_a_bad_weight_is_no_seed(backend: str, require_backend: Require) -> None:
    require_backend(backend, "diversity")
    visual, weights = tokens("vlm", 30, 16), torch.ones(30)
    weights[[4, 9]] = torch.tensor([math.nan, -1.0])
    weights[17] = 2.0
    got = zk.diversity(visual, 4, seeds=torch.tensor([4, 9]), weights=weights, backend=backend)
    assert int(got[0]) == 17
    check_diversity(visual, got, 4, weights=weights, bound=bound(16, backend))


@each_backend
def test_seeds_may_leave_fewer_than_k(backend: str, require_backend: Require) -> None:
    require_backend(backend, "diversity")
    visual = tokens("iid", 9, 5)
    got = zk.diversity(visual, 9, seeds=torch.tensor([0, 2, 3, 2, 8]), backend=backend)
    assert sorted(got[:5].tolist()) == [1, 4, 5, 6, 7]
    assert got[5:].tolist() == [-1] * 4


@each_backend
def test_batches(backend: str, require_backend: Require) -> None:
    require_backend(backend, "diversity")
    batch, n, d = 4, 14, 33
    visual = torch.stack([tokens("video", n, d, seed=s) for s in range(batch)])
    mask = torch.stack([torch.arange(n) % (s + 2) != 1 for s in range(batch)])
    mask[3] = False
    seeds = torch.tensor([[5, 1, 5], [-1, 99, -1], [0, 2, 3], [1, 2, 3]])
    weights = torch.rand(batch, n, generator=torch.Generator().manual_seed(0))
    for given in (None, weights):
        got = zk.diversity(
            visual, 10, seeds=seeds, weights=given, visual_mask=mask, backend=backend
        )
        assert got.shape == (batch, 10)
        for b in range(batch):
            check_diversity(
                visual[b],
                got[b],
                10,
                seeds=seeds[b],
                weights=None if given is None else given[b],
                mask=mask[b],
                bound=bound(d, backend),
            )
        assert got[3].tolist() == [-1] * 10
    assert zk.diversity(visual[:0], 5, backend=backend).shape == (0, 5)
    assert zk.diversity(visual[:, :0], 0, backend=backend).shape == (batch, 0)
    assert zk.diversity(visual, 0, backend=backend).shape == (batch, 0)


@each_backend_and_dtype
def test_strides(backend: str, dtype: torch.dtype, require_backend: Require) -> None:
    require_backend(backend, "diversity")
    visual = torch.stack([tokens("vlm", 23, 19, seed=s, dtype=dtype) for s in range(2)])
    plain = zk.diversity(visual, 6, backend=backend)
    for name, view in strided_views(visual).items():
        assert torch.equal(zk.diversity(view, 6, backend=backend), plain), name
    shared = zk.diversity(visual[:1].expand(3, -1, -1), 6, backend=backend)
    assert torch.equal(shared, plain[:1].expand(3, -1))
    one_row = visual[0, :1].expand(9, -1)  # stride 0 between tokens
    assert zk.diversity(one_row, 9, backend=backend).tolist() == list(range(9))


def test_exact_picks_are_the_same_everywhere(require_backend: Require) -> None:
    for n, d, k, dtype in ((300, 64, 24, torch.bfloat16), (40, 100, 40, torch.float32)):
        visual = tokens("exact", n, d, dtype=dtype)
        right = diversity64(visual, k).tolist()
        seeded = diversity64(visual, k // 2, seeds=torch.tensor([7, 3])).tolist()
        for backend in BACKENDS:
            require_backend(backend, "diversity")
            assert zk.diversity(visual, k, backend=backend).tolist() == right, backend
            got = zk.diversity(visual, k // 2, seeds=torch.tensor([7, 3]), backend=backend)
            assert got.tolist() == seeded, backend


@each_backend
def test_equals_the_published_loop(backend: str, require_backend: Require) -> None:
    """Where no pick is a near tie, DivPrune's own loop chooses the same tokens."""
    require_backend(backend, "diversity")
    visual = tokens("iid", 120, 100, seed=5)
    got = zk.diversity(visual, 30, backend=backend)
    assert check_diversity(visual, got, 30, bound=bound(100, backend)).decided == 30
    assert torch.equal(got, divprune_loop(visual, None, 0, 30))
