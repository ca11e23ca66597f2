# SPDX-License-Identifier: Apache-2.0
"""The judges are judged: oracle, checks, token models and baselines."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.matrix_units import UNITS, unit_dots
from zspa_kernels.testing import (
    MODELS,
    bound,
    check_diversity,
    check_relevance_topk,
    check_select,
    check_sorted,
    diversity64,
    divprune_seed64,
    prompt,
    relevance64,
    select64,
    special,
    tokens,
    topk64,
)
from zspa_kernels.testing.cases import Case
from zspa_kernels.testing.dpp import check_dpp, dpp64
from zspa_kernels.testing.facility_location import check_facility_location, facility_location64
from zspa_kernels.testing.min_sum import check_min_sum, min_sum64
from zspa_kernels.testing.oracle import Geometry, relevance_of

# --- an oracle for the oracle: fractions, lists, no shortcuts -------------------------------------


def _cosine(a: list[int], b: list[int]) -> Fraction:
    """Exact, because both rows have a square number of non-zeros that are +-1."""
    length = math.isqrt(sum(x * x for x in a)) * math.isqrt(sum(x * x for x in b))
    return Fraction(sum(x * y for x, y in zip(a, b, strict=True)), length)


def _by_fractions(
    rows: list[list[int]],
    k: int,
    seeds: list[int],
    weights: list[Fraction] | None,
    valid: list[bool],
) -> list[int]:
    n = len(rows)
    zero = [not any(row) for row in rows]
    alive = [i for i in range(n) if valid[i]]
    selected = [s for s in dict.fromkeys(seeds) if 0 <= s < n and valid[s]]
    picks: list[int] = []

    def largest(j: int, among: list[int]) -> Fraction:
        if zero[j]:
            return Fraction(1)
        seen = [_cosine(rows[i], rows[j]) for i in among if i != j and not zero[i]]
        return max(seen, default=Fraction(-1))

    while len(picks) < k:
        left = [j for j in alive if j not in selected]
        if not left:
            break
        if not selected and weights is None:
            key = {j: (largest(j, alive), j) for j in left}
        elif not selected and weights is not None:
            key = {j: (-weights[j], j) for j in left}
        else:
            worth = weights or [Fraction(1)] * n
            key = {j: (-worth[j] * (1 - largest(j, selected)), j) for j in left}
        best = min(left, key=lambda j: key[j])
        selected.append(best)
        picks.append(best)
    return picks + [-1] * (k - len(picks))


@pytest.mark.parametrize("trial", range(60))
def test_diversity_oracle_equals_fractions(trial: int) -> None:
    draw = random.Random(trial)
    n, d = draw.randint(1, 14), draw.choice([1, 3, 4, 9, 16, 20])
    visual = tokens("exact", n, d, seed=trial)
    for row in range(n):
        if draw.random() < 0.15:
            visual[row] = 0.0
    mask = torch.tensor([draw.random() < 0.8 for _ in range(n)])
    seeds = [draw.randint(-2, n + 1) for _ in range(draw.randint(0, 4))]
    eighths = [Fraction(draw.randint(0, 8), 8) for _ in range(n)]
    weights = eighths if draw.random() < 0.5 else None
    k = draw.randint(0, n)
    rows = [[int(x) for x in row] for row in visual.tolist()]
    expected = _by_fractions(rows, k, seeds, weights, mask.tolist())

    seed_tensor = torch.tensor(seeds, dtype=torch.int64)
    weight_tensor = None if weights is None else torch.tensor([float(w) for w in weights])
    got = diversity64(visual, k, seeds=seed_tensor, weights=weight_tensor, mask=mask)
    assert got.tolist() == expected
    replay = check_diversity(
        visual, got, k, bound=0.0, seeds=seed_tensor, weights=weight_tensor, mask=mask
    )
    assert replay.picks == sum(p >= 0 for p in expected)


@pytest.mark.parametrize("trial", range(30))
def test_select_oracle_equals_fractions(trial: int) -> None:
    draw = random.Random(1000 + trial)
    n, d = draw.randint(1, 14), draw.choice([4, 9, 16, 20])
    visual, words = tokens("exact", n, d, seed=trial), prompt("exact", 4, d, seed=trial)
    mask = torch.tensor([draw.random() < 0.8 for _ in range(n)])
    k_core = draw.randint(0, n)
    k_diverse = draw.randint(0, n - k_core)
    rows = [[int(x) for x in row] for row in visual.tolist()]
    pooled = [int(x) for x in words.mean(0).tolist()]
    valid = [j for j in range(n) if mask[j]]
    core = sorted(valid, key=lambda j: (-_cosine(rows[j], pooled), j))[:k_core]
    rest = _by_fractions(rows, k_diverse, core, None, mask.tolist())
    picks = core + [p for p in rest if p >= 0]
    expected = picks + [-1] * (k_core + k_diverse - len(picks))

    got = select64(visual, words, k_core, k_diverse, mask=mask)
    assert got.tolist() == expected
    check_select(visual, words, k_core, k_diverse, got, bound=0.0, mask=mask)
    ascending = select64(visual, words, k_core, k_diverse, mask=mask, sort=True)
    assert ascending.tolist() == sorted(picks) + [-1] * (k_core + k_diverse - len(picks))
    check_sorted(ascending, got)


# --- by hand --------------------------------------------------------------------------------------


def _angles(*degrees: float) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1).float()


def test_oracle_on_a_circle() -> None:
    visual = _angles(0, 10, 50, 180, 175) * torch.tensor([[1.0], [2.0], [3.0], [4.0], [0.5]])
    # 50 degrees is 40 from its nearest, 0 and 10 are 10 from theirs, 180 and 175 are 5 from theirs.
    assert divprune_seed64(visual) == 2
    # From 50: 180 is farthest (130), then 0 (50), then 10 (10), then 175 (5).
    assert diversity64(visual, 5).tolist() == [2, 3, 0, 1, 4]
    assert diversity64(visual, 2, seeds=torch.tensor([0])).tolist() == [3, 2]
    score = relevance64(visual, _angles(90))
    expected = torch.tensor([0, 10, 50, 180, 175]).double().deg2rad().sin()
    torch.testing.assert_close(score, expected, atol=1e-7, rtol=0)
    assert topk64(score, 3).tolist() == [2, 1, 4]
    assert select64(visual, _angles(90), 1, 2).tolist() == [2, 3, 0]


def test_oracle_fixed_values() -> None:
    nan, inf = math.nan, math.inf
    visual = torch.tensor(
        [[0.0, 0.0], [1.0, 0.0], [nan, 1.0], [0.0, 2.0], [inf, 0.0], [2.0**41, 0]]
    )
    scores = relevance64(visual, torch.tensor([[0.0, 3.0]]))
    assert scores.tolist() == [-1.0, 0.0, -inf, 1.0, -inf, -inf]
    assert diversity64(visual, 6).tolist() == [1, 3, 0, -1, -1, -1]
    assert diversity64(visual, 6, seeds=torch.tensor([0])).tolist() == [1, 3, -1, -1, -1, -1]
    zero = relevance64(visual, torch.tensor([[0.0, 3.0], [0.0, -3.0]]))
    assert zero.tolist() == [-1.0, 0.0, -inf, 0.0, -inf, -inf]
    nothing = select64(visual, torch.full((2, 2), nan), 2, 1)
    assert nothing.tolist() == [1, 3, 0]
    assert select64(visual, torch.ones(0, 2), 2, 0).tolist() == [1, 3]


def test_oracle_poolings() -> None:
    visual = _angles(0, 90)
    words = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    got = {p: relevance64(visual, words, pooling=p) for p in ("mean", "max", "none_mean")}
    torch.testing.assert_close(got["mean"], torch.tensor([0.0, 1.0]).double(), atol=1e-7, rtol=0)
    root = 1 / math.sqrt(10)
    expected = torch.tensor([root, 3 * root]).double()
    torch.testing.assert_close(got["max"], expected, atol=1e-7, rtol=0)
    third = torch.tensor([0.0, 1 / 3]).double()
    torch.testing.assert_close(got["none_mean"], third, atol=1e-7, rtol=0)
    best = relevance64(visual, words, pooling="none_max")
    torch.testing.assert_close(best, torch.ones(2).double(), atol=1e-7, rtol=0)
    kept = relevance64(visual, words, prompt_mask=torch.tensor([True, False, True]))
    assert kept.tolist() == [0.0, 0.0]


def test_oracle_weights_by_hand() -> None:
    visual = _angles(0, 60, 90, 180)
    weights = torch.tensor([0.5, 1.0, 0.75, 0.25])
    # First the largest weight (60); then 0.5*0.5, 0.75*(1-0.866), 0.25*1.5; then ...
    assert diversity64(visual, 4, weights=weights).tolist() == [1, 3, 0, 2]
    odd = torch.tensor([math.nan, 1.0, -1.0, math.inf])
    assert diversity64(visual, 4, weights=odd).tolist() == [1, -1, -1, -1]
    none = diversity64(visual, 3, weights=torch.zeros(4), seeds=torch.tensor([1]))
    assert none.tolist() == [0, 2, 3]


# --- the checks accept what is right and reject what is wrong ------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_checks_accept_the_oracle_and_see_decided_picks(model: str) -> None:
    visual, words = tokens(model, 90, 33), prompt(model, 4, 33)
    got = select64(visual, words, 10, 30)
    replay = check_select(visual, words, 10, 30, got, bound=bound(33))
    assert replay.picks == 40
    if model != "exact":
        # A tolerance under which everything passes would be no test.
        assert replay.decided >= 38
    scores = relevance64(visual, words).float()
    check_relevance_topk(visual, words, 10, topk64(scores, 10), scores, bound=bound(33))


def _exchange(picks: Tensor, a: int, b: int) -> Tensor:
    picks = picks.clone()
    picks[[a, b]] = picks[[b, a]]
    return picks


@pytest.mark.parametrize("model", MODELS)
def test_check_select_rejects(model: str) -> None:
    visual, words = tokens(model, 90, 33), prompt(model, 4, 33)
    right = select64(visual, words, 10, 30)
    exact = 0.0 if model == "exact" else bound(33)

    def rejected(picks: Tensor, text: str) -> None:
        with pytest.raises(AssertionError, match=text):
            check_select(visual, words, 10, 30, picks, bound=exact)

    rejected(_exchange(right, 0, 1), "pick 0")
    rejected(_exchange(right, 9, 10), "pick 9")
    rejected(_exchange(right, 10, 11), "pick 0")
    rejected(_exchange(right, 38, 39), "pick 28")
    repeated = right.clone()
    repeated[39] = right[3]
    rejected(repeated, "picked before")
    early = right.clone()
    early[39] = -1
    rejected(early, "pick 39 is -1")
    far = right.clone()
    far[39] = 90
    rejected(far, "pick 39 is 90")
    rejected(right.int(), "must be int64")
    rejected(right[:39], "must be int64")
    rejected(right.sort().values, "pick")


def test_check_diversity_rejects_masked_seeds_and_weights() -> None:
    visual = tokens("vlm", 40, 16)
    mask = torch.ones(40, dtype=torch.bool)
    mask[7] = False
    seeds, weights = torch.tensor([3, 5]), torch.ones(40)
    weights[8] = math.nan
    right = diversity64(visual, 5, seeds=seeds, weights=weights, mask=mask)
    for token, text in ((7, "not eligible"), (8, "not eligible"), (3, "not eligible")):
        wrong = right.clone()
        wrong[2] = token
        with pytest.raises(AssertionError, match=text):
            check_diversity(visual, wrong, 5, bound=1e-6, seeds=seeds, weights=weights, mask=mask)
    with pytest.raises(AssertionError, match="pick 0"):
        check_diversity(visual, diversity64(visual, 5), 5, bound=1e-6, seeds=seeds)
    with pytest.raises(AssertionError, match=r"must be int64 \[6\]"):
        check_diversity(visual, right, 6, bound=1e-6, seeds=seeds, weights=weights, mask=mask)


@pytest.mark.parametrize("name", ["constant", "all_zero", "duplicates", "zero_rows"])
def test_ties_of_identical_rows_admit_no_tolerance(name: str) -> None:
    visual = special(name, 30, 16).visual
    right = diversity64(visual, 30)
    check_diversity(visual, right, 30, bound=1e-6)
    backwards = 29 - diversity64(visual.flip(0), 30)  # the highest index wins every tie
    with pytest.raises(AssertionError, match=r"lowest index|better by"):
        check_diversity(visual, backwards, 30, bound=1e-6)


def test_untouched_tokens_tie_exactly() -> None:
    visual = tokens("iid", 5, 8)
    visual[0] = 0.0
    seeds = torch.tensor([0])  # has no direction, so every other token is still at -1
    right = diversity64(visual, 4, seeds=seeds)
    assert right[0] == 1
    wrong = torch.cat([torch.tensor([2]), diversity64(visual, 3, seeds=torch.tensor([0, 2]))])
    with pytest.raises(AssertionError, match="ties with token 1"):
        check_diversity(visual, wrong, 4, bound=1e-6, seeds=seeds)


def test_near_ties_are_accepted_once_and_only_within_the_bound() -> None:
    # Tokens 1 and 2 are equally far from token 0 but for 1e-7; token 3 is nearer by 1e-5.
    first = math.acos(0.5)
    angles = [0.0, first, -math.acos(0.5 + 1e-7), math.acos(0.5 + 1e-5)]
    visual = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)
    seeds = torch.tensor([0])

    def check(*picks: int) -> None:
        check_diversity(visual, torch.tensor(picks), len(picks), bound=1e-6, seeds=seeds)

    check(1, 2, 3)
    check(2, 1, 3)  # not the oracle's first pick, but within the bound of it
    with pytest.raises(AssertionError, match=r"better by 1\.0"):
        check(3, 2, 1)


def test_check_relevance_topk_rejects() -> None:
    visual, words = special("zero_rows", 20, 16).visual, prompt("smooth", 4, 16)
    visual[5] = math.nan
    scores = relevance64(visual, words).float()
    right = topk64(scores, 20)

    def rejected(indices: Tensor, got: Tensor, text: str) -> None:
        with pytest.raises(AssertionError, match=text):
            check_relevance_topk(visual, words, 20, indices, got, bound=1e-6)

    check_relevance_topk(visual, words, 20, right, scores, bound=1e-6)
    moved = scores.clone()
    moved[int(right[0])] += 1e-5
    rejected(right, moved, "score of token")
    hidden = scores.clone()
    hidden[5] = 0.0
    rejected(topk64(hidden, 20), hidden, "score of token 5")
    zero = scores.clone()
    zero[0] = -1 + 1e-7
    rejected(topk64(zero, 20), zero, "score of token 0")
    rejected(_exchange(right, 0, 1), scores, "index 0")
    rejected(_exchange(right, 17, 18), scores, "index 17")
    rejected(right, scores.double(), "must be float32")
    rejected(right, scores[:-1], r"scores must be float32 \[20\], got torch.float32 \(19,\)")
    rejected(right[:-1], scores, r"indices must be int64 \[20\], got torch.int64 \(19,\)")
    rejected(right.int(), scores, r"indices must be int64 \[20\], got torch.int32")


def test_exact_scores_are_rounded_once() -> None:
    visual, words = tokens("exact", 20, 16), prompt("exact", 4, 16)
    scores = relevance64(visual, words).float()
    right = topk64(scores, 20)
    check_relevance_topk(visual, words, 20, right, scores, bound=0.0)
    token = int(scores.abs().sub(0.25).abs().argmin())
    assert 0.2 < abs(float(scores[token])) < 0.5
    for _ in range(8):
        scores[token] = scores[token].nextafter(torch.tensor(0.0))
    with pytest.raises(AssertionError, match=f"score of token {token}"):
        check_relevance_topk(visual, words, 20, topk64(scores, 20), scores, bound=0.0)


def test_what_rounding_leaves_of_a_mean_is_allowed() -> None:
    """Words of length 3 and 2 in opposite directions: their mean is 0.5 long, its parts 2.5."""
    geometry = Geometry(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), None)
    words = torch.tensor([[3.0, 0.0], [-2.0, 0.0]])
    for bound_, pooling, width in (
        (1e-6, "mean", 1e-6 + 5 * 2.0**-23),
        (1e-6, "max", 1e-6),
        (1e-6, "none_mean", 1e-6),
        (0.0, "mean", 0.0),
    ):
        allowed = relevance_of(geometry, words, None, pooling, bound_).width
        assert allowed.tolist() == pytest.approx([width, 0.0], rel=1e-12)


@pytest.mark.parametrize("op", ["dpp", "min_sum", "facility_location"])
def test_greedy_judges_want_the_first_of_identical_rows(op: str) -> None:
    judges: dict[str, tuple[Any, Any]] = {
        "dpp": (dpp64, check_dpp),
        "min_sum": (min_sum64, check_min_sum),
        "facility_location": (facility_location64, check_facility_location),
    }
    oracle, check = judges[op]
    visual = tokens("vlm", 12, 16)
    visual[7] = visual[3]
    right = oracle(visual, 12)
    check(visual, right, 12, bound=1e-6)
    places = [right.tolist().index(i) for i in (3, 7)]
    assert places == sorted(places)
    with pytest.raises(AssertionError, match="is token 7, which ties with token 3: the lowest"):
        check(visual, _exchange(right, *places), 12, bound=1e-6)


def test_what_is_no_case_for_the_oracle() -> None:
    with pytest.raises(ValueError, match=r"oracle: visual must be \[N, D\], got shape \(2, 3, 4\)"):
        diversity64(torch.ones(2, 3, 4), 1)
    with pytest.raises(ValueError, match=r"oracle: pooling must be one of .*, got 'sum'"):
        relevance64(torch.ones(3, 4), torch.ones(2, 4), pooling="sum")
    case = Case("exact", 9, 16, 1, 2, pooling="max")
    text = r"^exact-float32-9x16-1[+]2-pooling:max: wrong$"
    with pytest.raises(AssertionError, match=text), case.named():
        raise AssertionError("wrong")


def test_check_sorted_rejects() -> None:
    check_sorted(torch.tensor([1, 4, 9, -1]), torch.tensor([9, 1, 4, -1]))
    for wrong in ([1, 9, 4, -1], [-1, 1, 4, 9], [1, 4, 8, -1]):
        with pytest.raises(AssertionError, match="sorted"):
            check_sorted(torch.tensor(wrong), torch.tensor([9, 1, 4, -1]))


def test_bounds() -> None:
    assert bound(1) == bound(4096) == bound(4096, "cpp") == 1e-6
    assert bound(16384) == pytest.approx(2e-6)
    assert bound(4096, "triton") == pytest.approx(512 * 2**-23)
    assert bound(64, "triton") == 1e-6
    with pytest.raises(ValueError, match="backend"):
        bound(64, "tpu")


@pytest.mark.parametrize("target", UNITS)
def test_matrix_units_keep_to_the_bound(target: str) -> None:
    for model, dtype in itertools.product(MODELS, (torch.bfloat16, torch.float16)):
        rows = tokens(model, 60, 1000, dtype=dtype).double()
        i, j = torch.triu_indices(60, 60, 1)
        one, other, norms = rows[i], rows[j], rows.norm(dim=1)
        error = unit_dots(one, other, target, 1024) - (one * other).sum(1)
        assert (error.abs() / (norms[i] * norms[j])).max() < bound(1000, "triton"), (model, dtype)


def test_large_inputs_take_the_path_without_a_gram_matrix() -> None:
    visual = tokens("video", 3100, 8)
    got = diversity64(visual, 12)
    assert check_diversity(visual, got, 12, bound=1e-6).picks == 12
    small = torch.cat([visual[int(got[0])][None], visual[:2000]])
    rest = diversity64(small, 5, seeds=torch.tensor([0]))
    assert check_diversity(small, rest, 5, bound=1e-6, seeds=torch.tensor([0])).decided == 5
    unit = torch.nn.functional.normalize(visual.double(), dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-1).amax(-1)
    assert int(nearest.argmin()) == int(got[0])
