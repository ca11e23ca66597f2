# SPDX-License-Identifier: Apache-2.0
"""relevance_topk: scores and order against the float64 oracle, on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import zspa_kernels as zk
from python_tests.runners import (
    BACKENDS,
    each_backend,
    each_backend_and_dtype,
    fitting,
    relevance_topk,
    strided_views,
)
from zspa_kernels.testing import (
    MODELS,
    bound,
    check_relevance_topk,
    prompt,
    relevance64,
    tokens,
    topk64,
)
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    judge_relevance_topk,
    model_cases,
    pooling_cases,
    special_cases,
)

Require = Callable[..., None]


def _judge_all(backend: str, cases: list[Case]) -> None:
    run = relevance_topk(backend)
    for case in fitting(backend, "relevance_topk", cases):
        with case.named():
            judge_relevance_topk(case, run, backend)


@each_backend
@pytest.mark.parametrize("model", MODELS)
def test_models(backend: str, model: str, require_backend: Require) -> None:
    require_backend(backend, "relevance_topk")
    cases = model_cases("small") + model_cases("wide")
    _judge_all(backend, [case for case in cases if case.tokens == model])


@each_backend
def test_poolings(backend: str, require_backend: Require) -> None:
    require_backend(backend, "relevance_topk")
    _judge_all(backend, pooling_cases())


@each_backend
def test_special_inputs(backend: str, require_backend: Require) -> None:
    require_backend(backend, "relevance_topk")
    _judge_all(backend, special_cases())


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_large(backend: str, require_backend: Require) -> None:
    require_backend(backend, "relevance_topk")
    _judge_all(backend, model_cases("large"))


@each_backend
@pytest.mark.parametrize("pooling", ["mean", "max", "none_mean", "none_max"])
def test_prompt_tokens_that_do_not_count(
    backend: str, pooling: str, require_backend: Require
) -> None:
    require_backend(backend, "relevance_topk")
    visual, words = tokens("vlm", 30, 33), prompt("vlm", 3, 33)
    nan, inf = math.nan, math.inf
    bad = torch.stack([torch.full((33,), x) for x in (nan, inf, -inf, 2.0**41, 3e38)])
    bad[0, 1:] = 0.0
    plain = zk.relevance_topk(visual, words, 9, pooling=pooling, backend=backend)
    mixed = torch.cat([bad[:2], words[:1], bad[2:4], words[1:], bad[4:]])
    mask = torch.ones(8, dtype=torch.bool)
    for given in (mask, None):
        got = zk.relevance_topk(
            visual, mixed, 9, prompt_mask=given, pooling=pooling, backend=backend
        )
        assert torch.equal(got[0], plain[0])
        torch.testing.assert_close(got[1], plain[1], atol=2 * bound(33, backend), rtol=0)
    masked = torch.cat([words, tokens("iid", 2, 33)])
    mask = torch.tensor([True, True, True, False, False])
    indices, scores = zk.relevance_topk(
        visual, masked, 9, prompt_mask=mask, pooling=pooling, backend=backend
    )
    check_relevance_topk(
        visual,
        masked,
        9,
        indices,
        scores,
        prompt_mask=mask,
        pooling=pooling,
        bound=bound(33, backend),
    )


@each_backend
@pytest.mark.parametrize("pooling", ["mean", "max", "none_mean", "none_max"])
def test_prompts_without_direction(backend: str, pooling: str, require_backend: Require) -> None:
    """No valid prompt token: no core. A zero prompt: relevance 0 everywhere, so index order."""
    require_backend(backend, "relevance_topk")
    visual = tokens("iid", 12, 7)
    visual[3], visual[5] = 0.0, math.nan
    fixed = [0.0] * 3 + [-1.0, 0.0, -math.inf] + [0.0] * 6
    nothing = (
        (torch.empty(0, 7), None),
        (torch.full((2, 7), math.nan), None),
        (torch.ones(2, 7), torch.zeros(2, dtype=torch.bool)),
    )
    for words, mask in nothing:
        indices, scores = zk.relevance_topk(
            visual, words, 4, prompt_mask=mask, pooling=pooling, backend=backend
        )
        assert scores.tolist() == fixed
        assert indices.tolist() == [-1] * 4
    zero = torch.full((3, 7), 2.0**-45)
    indices, scores = zk.relevance_topk(visual, zero, 12, pooling=pooling, backend=backend)
    assert scores.tolist() == fixed
    assert indices.tolist() == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11, 3, -1]
    if pooling == "mean":
        opposite = torch.stack([torch.ones(7), -torch.ones(7)])
        indices, scores = zk.relevance_topk(visual, opposite, 2, backend=backend)
        assert scores.tolist() == fixed
        assert indices.tolist() == [0, 1]
    if pooling == "none_mean":  # a zero prompt token counts as a cosine of 0
        words = torch.stack([visual[0], torch.zeros(7)])
        indices, scores = zk.relevance_topk(visual, words, 1, pooling=pooling, backend=backend)
        assert indices.tolist() == [0]
        assert float(scores[0]) == pytest.approx(0.5, abs=1e-6)
    if pooling == "none_max":  # ... also where all other cosines are negative
        words = torch.stack([-visual[0], torch.zeros(7)])
        indices, scores = zk.relevance_topk(visual, words, 12, pooling=pooling, backend=backend)
        assert float(scores[0]) == 0.0
        check_relevance_topk(
            visual, words, 12, indices, scores, pooling=pooling, bound=bound(7, backend)
        )
        _, alone = zk.relevance_topk(visual, words[:1], 1, pooling=pooling, backend=backend)
        assert float(alone[0]) == pytest.approx(-1.0, abs=1e-6)


@each_backend
@pytest.mark.parametrize("visual_dtype", DTYPES)
@pytest.mark.parametrize("prompt_dtype", DTYPES)
def test_dtypes_may_differ(
    backend: str,
    visual_dtype: torch.dtype,
    prompt_dtype: torch.dtype,
    require_backend: Require,
) -> None:
    require_backend(backend, "relevance_topk")
    visual = tokens("smooth", 40, 33, dtype=visual_dtype)
    words = prompt("smooth", 5, 33, dtype=prompt_dtype)
    for pooling in ("mean", "none_max"):
        indices, scores = zk.relevance_topk(visual, words, 7, pooling=pooling, backend=backend)
        check_relevance_topk(
            visual, words, 7, indices, scores, pooling=pooling, bound=bound(33, backend)
        )


@each_backend
def test_batches(backend: str, require_backend: Require) -> None:
    require_backend(backend, "relevance_topk")
    batch, n, d = 3, 50, 33
    visual = torch.stack([tokens("clusters", n, d, seed=s) for s in range(batch)])
    words = torch.stack([prompt("clusters", 4, d, seed=s) for s in range(batch)])
    mask = torch.stack([torch.arange(n) % (s + 2) != 1 for s in range(batch)])
    words_mask = torch.stack([torch.arange(4) >= s for s in range(batch)])
    indices, scores = zk.relevance_topk(
        visual, words, 45, visual_mask=mask, prompt_mask=words_mask, backend=backend
    )
    assert indices.shape == (batch, 45)
    assert scores.shape == (batch, n)
    for b in range(batch):
        check_relevance_topk(
            visual[b],
            words[b],
            45,
            indices[b],
            scores[b],
            mask=mask[b],
            prompt_mask=words_mask[b],
            bound=bound(d, backend),
        )
    empty_batch = zk.relevance_topk(visual[:0], words[:0], 5, backend=backend)
    assert [tuple(x.shape) for x in empty_batch] == [(0, 5), (0, n)]
    no_tokens = zk.relevance_topk(visual[:, :0], words, 0, backend=backend)
    assert [tuple(x.shape) for x in no_tokens] == [(3, 0), (3, 0)]


@each_backend_and_dtype
def test_strides(backend: str, dtype: torch.dtype, require_backend: Require) -> None:
    require_backend(backend, "relevance_topk")
    visual = torch.stack([tokens("vlm", 37, 19, seed=s, dtype=dtype) for s in range(2)])
    words = torch.stack([prompt("vlm", 5, 19, seed=s, dtype=dtype) for s in range(2)])
    plain = zk.relevance_topk(visual, words, 11, backend=backend)
    for name, view in strided_views(visual).items():
        got = zk.relevance_topk(view, words, 11, backend=backend)
        assert torch.equal(got[0], plain[0]), name
        assert torch.equal(got[1], plain[1]), name
    for name, view in strided_views(words).items():
        got = zk.relevance_topk(visual, view, 11, backend=backend)
        assert torch.equal(got[1], plain[1]), name
    shared = zk.relevance_topk(
        visual[:1].expand(3, -1, -1), words[:1].expand(3, -1, -1), 11, backend=backend
    )
    assert torch.equal(shared[1], plain[1][:1].expand(3, -1))


@each_backend
def test_lengths_do_not_matter(backend: str, require_backend: Require) -> None:
    """Tokens and prompt scaled by powers of two: the same bits."""
    require_backend(backend, "relevance_topk")
    visual, words = tokens("iid", 30, 33), prompt("iid", 1, 33)
    plain = zk.relevance_topk(visual, words, 9, backend=backend)
    scale = torch.exp2(torch.randint(-20, 20, (30, 1), generator=torch.Generator()).float())
    scaled = zk.relevance_topk(visual * scale, words * 2.0**30, 9, backend=backend)
    torch.testing.assert_close(scaled[1], plain[1], atol=2 * bound(33, backend), rtol=0)


def test_exact_picks_are_the_same_everywhere(require_backend: Require) -> None:
    for n, d, dtype in ((300, 64, torch.bfloat16), (129, 100, torch.float32)):
        visual, words = tokens("exact", n, d, dtype=dtype), prompt("exact", 4, d, dtype=dtype)
        right = topk64(relevance64(visual, words), n).tolist()
        for backend in BACKENDS:
            require_backend(backend, "relevance_topk")
            got, _ = zk.relevance_topk(visual, words, n, backend=backend)
            assert got.tolist() == right, backend


@each_backend
def test_half_precision_scores_are_not_rounded(backend: str, require_backend: Require) -> None:
    """bfloat16 tokens have float32 scores: more than 256 different values in a binade."""
    require_backend(backend, "relevance_topk")
    visual = tokens("iid", 300, 64, dtype=torch.bfloat16)
    _, scores = zk.relevance_topk(visual, visual[:1], 1, backend=backend)
    assert scores.dtype == torch.float32
    assert scores.unique().numel() > 295
    assert not torch.equal(scores, scores.bfloat16().float())
