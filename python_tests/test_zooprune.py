# SPDX-License-Identifier: Apache-2.0
"""ZOOPrune: the published selection, its scaling, tiles, and bad calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zspa_kernels as zk
from zspa_kernels.primitives import ascending, min_max, quotas
from zspa_kernels.testing import tokens
from zspa_kernels.testing.sensitivity import published_sensitivity

N, D, C = 60, 33, 24


def published_selection(visual: Tensor, scores: Tensor, k: int) -> list[int]:
    """Most sensitive first, then the largest (scaled sensitivity) x (distance to the picks)."""
    x = torch.nn.functional.normalize(visual.double(), dim=1)
    s = scores.double()
    w = (s - s.min()) / (s.max() - s.min() + 1e-8)
    picks = [int(w.argmax())]
    nearest = x @ x[picks[0]]
    while len(picks) < k:
        gain = w * (1.0 - nearest)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
        nearest = torch.maximum(nearest, x @ x[picks[-1]])
    return picks


def scores_of(n: int = N, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.5


def projector() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(C, 40), nn.GELU(), nn.Linear(40, D))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


@pytest.mark.parametrize("model", ["iid", "vlm", "clusters"])
def test_published_selection(model: str) -> None:
    visual, scores = tokens(model, N, D), scores_of()
    method = zk.ZOOPrune(keep=15, sorted=False)
    picked = method.select(visual, sensitivity=scores)
    assert picked.indices.tolist() == published_selection(visual, scores, 15)
    assert torch.equal(picked.scores, scores)
    assert not picked.core_mask.any()
    assert picked.core_mask.shape == picked.indices.shape
    ordered = zk.ZOOPrune(keep=15).select(visual, sensitivity=scores).indices
    assert torch.equal(ordered, picked.indices.sort().values)


def test_published_sensitivity_and_selection() -> None:
    module, x = projector(), torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    u = zk.unit_directions(5, C, seed=9)
    exact = published_sensitivity(x.double(), projector().double(), u.double(), 0.01)
    method = zk.ZOOPrune(10, module, score="zeroth_order", directions=u, sorted=False)
    with torch.no_grad():
        visual = module(x)
    picked = method.select(visual, features=x)
    assert picked.scores is not None
    assert torch.allclose(picked.scores.double(), exact.detach(), rtol=1e-4)
    assert picked.indices.tolist() == published_selection(visual, exact.detach(), 10)


@pytest.mark.parametrize("score", ["closed_form", "zeroth_order", "linearised", "norm"])
def test_every_score(score: str) -> None:
    module, x = projector(), torch.randn(2, N, C, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        visual = module(x)
    method = zk.ZOOPrune(0.2, module, score=score, directions=6, seed=3)
    picked = method.select(visual, features=x)
    right = zk.sensitivity(module, x, score=score, directions=6, seed=3)
    assert torch.allclose(picked.scores, right, rtol=1e-5)
    assert picked.indices.shape == (2, 12)
    for b in range(2):  # each image by itself
        alone = method.select(visual[b], features=x[b])
        assert torch.equal(alone.indices, picked.indices[b])
    if score == "norm":
        assert torch.equal(method.select(visual).indices, picked.indices)
        assert torch.equal(zk.ZOOPrune(0.2, score="norm").select(visual).indices, picked.indices)


def test_a_plan_or_a_rank_serve_as_well() -> None:
    module, x = projector(), torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        visual = module(x)
    plan = zk.SensitivityPlan(module[0].weight, module[0].bias, module[2].weight, "gelu")
    whole = zk.ZOOPrune(12, module).select(visual, features=x)
    planned = zk.ZOOPrune(12, plan).select(visual, features=x)
    assert torch.equal(planned.indices, whole.indices)
    ranked = zk.ZOOPrune(12, module, rank=4).select(visual, features=x).scores
    assert not torch.equal(ranked, whole.scores)
    assert torch.allclose(ranked, whole.scores, rtol=0.1)


def test_a_seed_fixes_the_directions_and_touches_no_generator() -> None:
    module, x = projector(), torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    scores = [
        zk.ZOOPrune(3, module, score="linearised", directions=4, seed=seed)
        .select(torch.zeros(N, D), features=x)
        .scores
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_counts_are_floored() -> None:
    visual, scores = tokens("iid", 576, 8), scores_of(576)
    for keep, k in ((0.1112, 64), (0.2223, 128), (0.3334, 192)):  # the published settings
        assert zk.ZOOPrune(keep).select(visual, sensitivity=scores).indices.shape == (k,)
    rounded = zk.ZOOPrune(0.1119, rounding="round").select(visual, sensitivity=scores)
    assert rounded.indices.shape == (64,)
    floored = zk.ZOOPrune(0.1109, rounding="floor").select(visual, sensitivity=scores)
    assert floored.indices.shape == (63,)


# ---- scaling ------------------------------------------------------------------------------------


def test_scaling_is_per_image_over_valid_tokens() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 100.0, 0.0], [7.0, 5.0, torch.nan, 9.0, 7.0]])
    valid = scores.isfinite()
    valid[0, 3:] = False
    w = min_max(scores, valid)
    assert w[0, :3].tolist() == [0.0, 1.0, 0.5]
    assert w[1, [0, 1, 3, 4]].tolist() == [0.5, 0.0, 1.0, 0.5]
    assert w.isnan().sum() == 3


def test_equal_sensitivities_weigh_nothing() -> None:
    noise = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 1e-4
    assert min_max(2.0 + noise, noise >= 0).tolist() == [1.0] * N
    assert min_max(2.0 + 100 * noise, noise >= 0).unique().numel() == N
    visual = tokens("vlm", N, D)
    flat = zk.ZOOPrune(9, sorted=False).select(visual, sensitivity=2.0 + noise).indices
    assert torch.equal(flat, zk.diversity(visual, 9, weights=torch.ones(N)))
    module = nn.Linear(C, D)
    x = torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    linear = zk.ZOOPrune(9, module, sorted=False).select(visual, features=x).indices
    assert torch.equal(linear, flat)


def test_no_valid_token_and_no_token() -> None:
    visual = tokens("iid", 5, D)
    nothing = zk.ZOOPrune(2).select(visual, sensitivity=torch.full((5,), torch.nan))
    assert nothing.indices.tolist() == [-1, -1]
    empty = zk.ZOOPrune(0.5).select(visual[:0], sensitivity=torch.empty(0))
    assert empty.indices.shape == (0,)
    assert zk.ZOOPrune(1).select(visual[:1], sensitivity=torch.ones(1)).indices.tolist() == [0]


def test_invalid_and_masked_tokens_are_never_selected() -> None:
    visual, scores = tokens("iid", N, D), scores_of()
    scores[3] = 50.0
    scores[7] = torch.nan
    scores[9] = torch.inf
    mask = torch.arange(N) != 3
    picked = zk.ZOOPrune(57, sorted=False).select(visual, sensitivity=scores, visual_mask=mask)
    assert sorted(picked.indices.tolist()) == [i for i in range(N) if i not in (3, 7, 9)]
    keep = torch.tensor([i for i in range(N) if i not in (3, 7, 9)])
    alone = zk.ZOOPrune(57, sorted=False).select(visual[keep], sensitivity=scores[keep])
    assert torch.equal(keep[alone.indices], picked.indices)  # they scaled nobody either
    few = zk.ZOOPrune(N).select(visual, sensitivity=scores, visual_mask=mask).indices
    assert few[-3:].tolist() == [-1] * 3
    assert torch.equal(few[:-3], keep)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 2.0**41])
def test_an_invalid_visual_token_scales_nobody(value: float) -> None:
    """As if it were masked, although its sensitivity is finite, and the smallest of all."""
    visual, scores = tokens("iid", N, D), scores_of()
    visual[4, 2], scores[4] = value, -10.0
    method, keep = zk.ZOOPrune(9, sorted=False), torch.arange(N) != 4
    picked = method.select(visual, sensitivity=scores).indices
    alone = method.select(visual[keep], sensitivity=scores[keep]).indices
    assert torch.equal(picked, keep.nonzero()[:, 0][alone])
    masked = method.select(visual, sensitivity=scores, visual_mask=keep).indices
    assert torch.equal(picked, masked)
    # As long as a token may be it is one, and so scales the others.
    longest, scores[4] = visual.clone(), 90.0
    longest[4] = 0.0
    longest[4, 2] = 2.0**40
    assert method.select(longest, sensitivity=scores).indices[0] == 4


def test_ascending() -> None:
    assert ascending(torch.tensor([[4, -1, 2], [0, 3, 1]]), 5).tolist() == [[2, 4, -1], [0, 1, 3]]


# ---- tiles --------------------------------------------------------------------------------------


def next_layout(rows: int = 4, columns: int = 6) -> list[int]:
    """LLaVA-NeXT: the base image, then 2 x 2 crops row by row, a newline behind every row."""
    labels = [0] * 9
    for row in range(rows):
        labels += [1 + 2 * (row >= rows // 2) + (c >= columns // 2) for c in range(columns)]
        labels += [-1]
    return labels


@pytest.mark.parametrize("as_tensor", [False, True])
def test_tiles_are_selected_by_themselves(as_tensor: bool) -> None:
    labels = next_layout()
    n = len(labels)
    visual = tokens("vlm", n, D)
    scores = scores_of(n) * (1.0 + 9.0 * torch.tensor(labels))  # one tile far above another
    tiles = torch.tensor(labels) if as_tensor else labels
    picked = zk.ZOOPrune(12).select(visual, sensitivity=scores, tiles=tiles)
    expected: list[int] = [i for i, tile in enumerate(labels) if tile == -1]
    assert len(expected) == 4
    for tile, k in ((0, 3), (1, 3), (2, 2), (3, 2), (4, 2)):
        members = torch.tensor([i for i, label in enumerate(labels) if label == tile])
        alone = zk.ZOOPrune(k).select(visual[members], sensitivity=scores[members])
        expected += members[alone.indices].tolist()
    assert picked.indices.tolist() == sorted(expected)
    assert picked.indices.shape == (16,)  # the budget, and the newlines beside it
    assert picked.core_mask.shape == (16,)
    assert torch.equal(picked.gather(visual), visual[picked.indices])


def test_a_share_is_of_the_tokens_that_compete() -> None:
    labels = next_layout()
    picked = zk.ZOOPrune(0.5).select(
        tokens("iid", len(labels), D), sensitivity=scores_of(len(labels)), tiles=labels
    )
    assert picked.indices.shape == (int(0.5 * 33) + 4,)


def test_quotas() -> None:
    assert quotas(640, [576] * 3) == [214, 213, 213]  # the published code keeps 639
    assert quotas(160, [576] * 5) == [32] * 5
    assert quotas(10, [2, 9, 9]) == [2, 4, 4]
    assert quotas(11, [0, 1, 20, 3]) == [0, 1, 7, 3]
    assert quotas(3, [5, 5, 5, 5]) == [1, 1, 1, 0]
    assert quotas(11, [9, 1, 9]) == [5, 1, 5]  # what a small one leaves is spread as evenly
    assert quotas(14, [9, 1, 9, 1, 9]) == [4, 1, 4, 1, 4]
    assert quotas(15, [3, 9, 1, 9, 9]) == [3, 4, 1, 4, 3]
    assert quotas(99, [4, 5]) == [4, 5]
    assert quotas(0, [4]) == [0]
    assert quotas(0, []) == []


def test_a_tile_of_invalid_tokens_leaves_its_slots_empty() -> None:
    visual, scores = tokens("iid", 12, D), scores_of(12)
    scores[:6] = torch.nan
    picked = zk.ZOOPrune(6).select(visual, sensitivity=scores, tiles=[0] * 6 + [1] * 6)
    assert picked.indices[3:].tolist() == [-1] * 3
    assert (picked.indices[:3] >= 6).all()


def test_only_newlines() -> None:
    visual = tokens("iid", 4, D)
    picked = zk.ZOOPrune(3).select(visual, sensitivity=scores_of(4), tiles=[-1] * 4)
    assert picked.indices.tolist() == [0, 1, 2, 3]
    visual[2] = torch.inf  # newlines as well are left out where they are invalid or masked
    picked = zk.ZOOPrune(3).select(
        visual,
        sensitivity=torch.full((4,), torch.nan),  # they have none
        tiles=[-1] * 4,
        visual_mask=torch.tensor([False, True, True, True]),
    )
    assert picked.indices.tolist() == [1, 3, -1, -1]


# ---- bad calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"keep": 0.0}, ValueError, "keep must be a share in"),
        ({"keep": True}, TypeError, "keep must be a float .a share. or an int"),
        ({"keep": 3, "rounding": "up"}, ValueError, "rounding must be one of round, floor"),
        ({"keep": 3, "score": "l2"}, ValueError, "ZOOPrune: score must be one of closed_form, "),
        ({"keep": 3, "projector": "p"}, TypeError, "ZOOPrune: projector must be a torch.nn.Module"),
    ],
)
def test_bad_methods(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        zk.ZOOPrune(**options)


def test_bad_options_of_the_projector() -> None:
    module = projector()
    for options, kind, text in (
        ({"score": "zeroth_order", "radius": -1.0}, ValueError, "radius must be finite and at lea"),
        ({"score": "zeroth_order", "directions": 0}, ValueError, "directions must be at least 1"),
        ({"rank": -1}, ValueError, "rank must be at least 0"),
    ):
        with pytest.raises(kind, match=text):
            zk.ZOOPrune(3, module, **options)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({}, TypeError, 'projector must be given, or sensitivity, or score="norm", got None'),
        ({"visual": None}, TypeError, "visual must be a tensor, got None"),
        ({"visual": torch.zeros(3)}, ValueError, r"visual must be \[N, D\] or \[B, N, D\], got"),
        ({"sensitivity": torch.zeros(4)}, ValueError, r"sensitivity must have shape \[6\], got \["),
        ({"sensitivity": [1.0]}, TypeError, "sensitivity must be a tensor, got list"),
        (
            {"sensitivity": torch.zeros(6).long()},
            TypeError,
            "sensitivity must be float32, float16, bfloat16 or float64",
        ),
        ({"visual_mask": torch.ones(6)}, TypeError, "visual_mask must be bool"),
        ({"visual_mask": torch.ones(5) > 0}, ValueError, r"visual_mask must have shape \[6\]"),
        ({"tiles": [0] * 5}, ValueError, "tiles must be one int per token, 6, got 5 values"),
        ({"tiles": [0.0] * 6}, ValueError, "tiles must be one int per token"),
        ({"tiles": [0] * 5 + [-2]}, ValueError, "tiles must be at least -1, got -2"),
        (
            {"visual": torch.zeros(1, 6, 2), "sensitivity": torch.ones(1, 6), "tiles": [0] * 6},
            ValueError,
            r"tiles must be None for a batch, got \[1, 6, 2\]",
        ),
    ],
)
def test_bad_calls(arguments: dict[str, Any], kind: type[Exception], text: str) -> None:
    scores = torch.ones(6) if arguments else None
    given = {"visual": torch.zeros(6, 2), "sensitivity": scores, **arguments}
    with pytest.raises(kind, match=text):
        zk.ZOOPrune(3).select(**given)


def test_features_are_needed() -> None:
    method = zk.ZOOPrune(3, projector())
    with pytest.raises(TypeError, match="ZOOPrune: features must be given, or sensitivity, got"):
        method.select(torch.zeros(6, D))
    with pytest.raises(TypeError, match="ZOOPrune: projector must be given, or sensitivity, or"):
        zk.ZOOPrune(3).select(torch.zeros(6, D), features=torch.zeros(6, C))
    with pytest.raises(ValueError, match="ZOOPrune: features must have D=24 channels"):
        method.select(torch.zeros(6, D), features=torch.zeros(6, C - 1))
    with pytest.raises(ValueError, match=r"features must make one score per token, \[6\], "):
        method.select(torch.zeros(6, D), features=torch.zeros(5, C))
