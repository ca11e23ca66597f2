# SPDX-License-Identifier: Apache-2.0
"""Faults planted in the Triton kernels of greedy ops: the judges must see each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.triton_small import Runs, with_fault
from zspa_kernels.backends.triton import (
    _exact,
    dpp,
    dpp_phases,
    dpp_steps,
    facility_location,
    facility_location_phases,
    facility_location_steps,
    min_sum,
    min_sum_phases,
    min_sum_steps,
    soft_suppress,
    soft_suppress_phases,
    soft_suppress_steps,
    suppress,
    suppress_phases,
    suppress_steps,
)
from zspa_kernels.testing import tokens
from zspa_kernels.testing.dpp import check_dpp
from zspa_kernels.testing.facility_location import check_facility_location
from zspa_kernels.testing.min_sum import check_min_sum
from zspa_kernels.testing.suppression import soft_suppress64, suppress64

#: Fault -> (what stands in dpp_phases.py, what is put there).
DPP = {
    "nothing is dependent": ("where(left <= DEPENDENT", "where(left <= -1.0"),
    "<= at the block bound": ("while (best < edge)", "while ((best >> 32) <= (edge >> 32))"),
    "a step too many": ("mask=only_if(s < last, p_ok)", "mask=only_if(s <= last, p_ok)"),
    "first columns forgotten": ("row < count, BLOCK, 0, filled,", "row < count, BLOCK, 1, filled,"),
    "picks of a pass forgotten": ("0, filled + c0, COLS", "0, filled, COLS"),
    "scale of another pick": ("scales + filled + c)", "scales + c)"),
    "weights are not squared": ("-(w * tl.sqrt_rn(residual))", "-(w * residual)"),
    "zero rows have a residual": ("(inv > 0.0, 1.0, 0.0)", "(inv >= 0.0, 1.0, 0.0)"),
}
#: The same for facility_location_phases.py.
FACILITY = {
    "losses count": ("tl.maximum(x - best[None, :], 0.0)\n    more", "x - best[None, :]\n    more"),
    "old gains are picked": ("other=version) != version", "other=version) < 0"),
    "given rows age no gain": ("rose = tl.maximum(rose, more)\n    if", "rose = rose + 0\n    if"),
    "scale of a sum": ("tl.div_rn(scale, count.to(tl.float32))", "scale"),
    "one given row is none": ("tl.where(M > 0, tl.div_rn", "tl.where(M > 1, tl.div_rn"),
    "weights ignored": ("LARGEST) * tl.load(weights + token, mask=wanted, other=0.0)", "LARGEST)"),
    "infinite benefits count": ("(x > 0.0) & (x < INF)", "x > 0.0"),
}
#: The same for min_sum_phases.py.
MIN_SUM = {
    "the forecast is trusted": ("((t == 0) | (first == 0))", "(t >= 0)"),
    "ties with lower rows": ("(s < best) | ((s == best) & (i < pick))", "s < best"),
    "the best row of all times": ("s = tl.where(added == least, s, INF)", "s = s"),
    "the best program of all times": ("tl.where((word >> 32) == count, low, INF)", "low"),
    "float32 chooses": ("tl.where(i == token, -INF, s.to(tl.float32))", "s.to(tl.float32)"),
    "float32 sums": ("s + c.to(tl.float64)), s)", "s.to(tl.float32) + c), s)"),
    "picks are picked again": ("tl.where(i == pick, INF, s + c.to(tl.float64))", "s + c"),
    "the first sums stay": ("tl.where((stage == OPEN) & (s < BEHIND), 0.0, s)", "s"),
    "the first weighs by length": ("v.to(tl.float32) * inv[:, None]", "v.to(tl.float32) / 16"),
    "masked rows are added": ("mask=(inv > 0.0)[:, None] & (d", "mask=(inv < 9.0)[:, None] & (d"),
    "zero rows have a sum of 0": (
        "tl.where(inv == 0.0, BEHIND, INF)",
        "tl.where(inv == 0.0, 0.0, INF)",
    ),
    "repeated seeds count again": ("& (before == 0)", ""),
}
#: The same for suppress_phases.py.
SUPPRESS = {
    "ties to the highest index": ("(s[None, :] < i[:, None])", "(s[None, :] > i[:, None])"),
    "-0.0 comes later": ("tl.where(score == 0.0, 0.0, score)", "score"),
    "infinite scores count": ("(tl.abs(score) < INF)", "(score == score)"),
    "masked rows count": ("usable = (inv >= 0.0)", "usable = (i < length)"),
    "zero rows are suppressed": ("(inv_i > 0.0)[:, None] &", "(inv_i >= 0.0)[:, None] &"),
    "zero rows suppress": ("& (inv_j > 0.0)[None, :]", "& (inv_j >= 0.0)[None, :]"),
    "float32 decides": ("(c >= under) & (c <= over)", "(c > over) & (c < under)"),
    "at the threshold": ("PAIRS, WIDE) > limit", "PAIRS, WIDE) >= limit"),
    "the first open pairs only": ("range(0, n, PAIRS)", "range(0, 1, PAIRS)"),
    "open pairs elsewhere": ("+ pair % COLS", "+ pair // COLS"),
    "tokens taken before are forgotten": ("free = inside & (hit == 0)", "free = inside"),
    "all but the last of them": ("hit += tl.load(", "hit = tl.load("),
    "the block is not compared with itself": ("(lane > at) & (close == 0)", "(lane > at)"),
    "only the last block is left out": ("left += tl.sum(", "left = tl.sum("),
    "never fills": ("(fill != 0)", "(fill > 1)"),
    "always fills": ("(fill != 0)", "(fill >= 0)"),
    "two blocks only": ("(count == BLOCK) & (pos <", "(pos < 2 * BLOCK) & (pos <"),
}
#: The same for _exact.py.
EXACT = {
    "not on the grid": ("return rounded(", "return ("),
    "one length": ("* tl.sqrt(tl.sum(yy, 1))", "* tl.sqrt(tl.sum(xx, 1))"),
    "the first channels only": ("range(0, D, WIDE)", "range(0, WIDE, WIDE)"),
    "products in float32": ("xy += a * b", "xy += a.to(tl.float32) * b.to(tl.float32)"),
}
#: The same for soft_suppress_phases.py.
SOFT = {
    "infinite scores count": ("(tl.abs(score) < INF) &", "(score == score) &"),
    "anywhere is a place": ("& (tl.abs(down) < INF) &", "&"),
    "half of a place": ("across = tl.load(at + 1, mask=i", "across = tl.load(at, mask=i"),
    "scores below 0 are not subtracted from": ("((scaled == 0) |", "((scaled != 0) |"),
    "masked rows count": ("other=-1.0) >= 0.0", "other=-1.0) >= -1.0"),
    "all scores are compared": ("tl.where(usable, tl.abs(score), 0.0)", "tl.abs(score)"),
    "the logarithm of 0 is none": ("rounded(part * STEPS), NOTHING", "rounded(part * STEPS), -INF"),
    "what is scaled by 0 is lost": ("other=0.0)), NOTHING)", "other=0.0)), -INF)"),
    "of one program the last row": ("top > highest, at,", "top >= highest, at,"),
    "of several programs the last row": (
        "return top, tl.min(tl.where(score == top, token, LAST_ROW), 0)",
        "return top, tl.max(tl.where(score == top, token, -1), 0)",
    ),
    "taken again": ("tl.store(start + pick, -INF)", "tl.store(start + pick, score)"),
    "scores below 0 take": ("(score > 0.0)) & (tl", "(score < 9.0)) & (tl"),
    "zero rows take": ("& (tl.load(inv_norm + pick) > 0.0)", ""),
    "zero rows lose": ("open_ & (tl.load(", "open_ | (tl.load("),
    "not at the reach": ("square <= reach", "square < reach"),
    "beyond the reach": ("touched & (square <= reach)", "touched"),
    "no spread": ("exponent = narrow * square", "exponent = exponent"),
    "the distance alone": ("((1.0 - cosine) * (1.0 - cosine))", "(1.0 - cosine)"),
    "always subtracts": ("if scaled != 0:\n            loss", "if scaled > 1:\n            loss"),
    "takes the largest score": ("loss = weight * score", "loss = weight * STEPS"),
    "only the last pick takes": ("was + loss", "loss"),
    "the first channels only": ("range(0, D, AHEAD * WIDE)", "range(0, 1, AHEAD * WIDE)"),
}


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


def _judge_dpp() -> None:
    """Tokens of rank 7, of which some do not count; then some fall to 0, lower indices wait."""
    draw = torch.Generator().manual_seed(1)
    visual = torch.randn(26, 7, generator=draw) @ torch.randn(7, 20, generator=draw)
    visual[4] = 0.0
    weights = torch.rand(26, generator=draw)
    weights[0], weights[1], weights[3], weights[6] = 0.0, torch.nan, -0.5, torch.inf
    picks = dpp.dpp(visual[None], 11, weights[None], None)[0]
    check_dpp(visual, picks, 11, weights=weights, bound=1e-6)
    rest = sorted(set(range(26)) - {1, 3, 6, *picks[:7].tolist()})
    assert picks[7:].tolist() == rest[:4]
    visual = torch.zeros(30, 6)
    visual[:20, 0] = 1.0
    visual[20:, 1:6] = torch.randn(10, 5, generator=torch.Generator().manual_seed(2))
    picks = dpp.dpp(visual[None], 11, None, None)[0]
    check_dpp(visual, picks, 11, bound=1e-6)
    assert picks[6:].tolist() == list(range(1, 6))


def _judge_facility_location() -> None:
    run = facility_location.facility_location
    n, draw = 18, torch.Generator().manual_seed(1)
    visual, weights = tokens("clusters", n, 20, seed=1), torch.rand(n, generator=draw)
    visual[3], weights[3] = 0.0, 9.0
    words = torch.rand(3, n, generator=draw) / 4
    words[1, 4] = torch.inf
    picks = run(visual[None], 7, words[None], weights[None], None, 0.0, 0.5)[0]
    given: dict[str, Any] = {"benefits": words, "weights": weights, "scale": 0.5}
    check_facility_location(visual, picks, 7, bound=1e-6, **given)
    picks = run(visual[None], 7, words[None, :1], None, None, 0.0, 0.01)[0]
    check_facility_location(visual, picks, 7, bound=1e-6, benefits=words[:1], scale=0.01)
    nothing = torch.zeros(n, 20)  # without a direction: given rows alone are covered
    picks = run(nothing[None], 4, words[None], None, None, 0.0, 1.0)[0]
    check_facility_location(nothing, picks, 4, bound=1e-6, benefits=words)


def _judge_min_sum() -> None:
    """A masked, a zero and a long row, with and without seeds; ties; ties but in float64."""
    n, run = 22, min_sum.min_sum
    visual = torch.tensor([0.9, 0.0, 0.43]).repeat(n, 1)
    visual[:, 1] = 2.0**-10 + torch.arange(n, 0, -1) * 2.0**-33
    visual[:2] = torch.eye(3)[:2]
    assert run(visual[None], 3, torch.tensor([[0, 1]]), None)[0].tolist() == [21, 20, 19]
    visual, mask = tokens("iid", n, 20, seed=1), torch.arange(n) != 5
    visual[7], visual[5] = 30 * visual[7], -40 * visual[7]
    picks = run(visual[None], 9, None, mask[None])[0]
    check_min_sum(visual, picks, 9, bound=1e-6, mask=mask)
    nothing = torch.tensor([[-1, n, 5]])  # no token, and a masked one
    assert torch.equal(run(visual[None], 9, nothing, mask[None])[0], picks)
    picks = run(visual[None], 3, torch.tensor([[0]]), mask[None])[0]
    check_min_sum(visual, picks, 3, bound=1e-6, mask=mask, seeds=torch.tensor([0]))
    visual, seeds = tokens("iid", 8, 20, seed=1), torch.tensor([6, 2, 6, 6])
    visual[3] = 0.0
    picks = run(visual[None], 1, torch.tensor([[3]]), None)[0]
    check_min_sum(visual, picks, 1, bound=0.0, seeds=torch.tensor([3]))
    picks = run(visual[None], 6, seeds[None], None)[0]
    check_min_sum(visual, picks, 6, bound=1e-6, seeds=seeds)
    visual = tokens("exact", n, 16, seed=0)
    check_min_sum(visual, run(visual[None], 5, None, None)[0], 5, bound=0.0)


def _judge_suppress() -> None:
    """Pairs at the threshold; scores that tie or do not count; zero and masked rows."""

    def check(visual: Tensor, scores: Tensor, k: int, limit: float, fill: bool) -> None:
        picks = suppress.suppress(visual[None], scores[None], k, limit, fill, None)[0]
        assert torch.equal(picks, suppress64(visual, scores, k, threshold=limit, fill=fill))

    pairs = torch.combinations(torch.arange(8)).repeat(2, 1)[:36]
    rows = torch.zeros(36, 22).scatter_(1, 3 * pairs, 1.0) * (1 + torch.arange(36)[:, None] / 7)
    for limit in (0.5, 0.5 - 2.0**-40):
        check(rows, torch.zeros(36), 34, limit, True)
    visual, scores = tokens("iid", 40, 20, seed=1), torch.arange(40) % 7 / 4 - 0.5
    visual[13], visual[36], visual[4] = 0.0, 0.0, torch.nan
    scores[6], scores[7], scores[9] = torch.inf, torch.nan, -0.0
    check(visual, scores, 38, -0.1, True)
    check(visual, scores, 38, 0.1, False)


def _judge_soft_suppress() -> None:
    """Zero rows, equal rows, scores and places that do not count; both rules, near and far."""
    n, k = 23, 22
    visual, scores = tokens("clusters", n, 20, seed=1), torch.arange(n).flip(0) % 5 / 4 - 0.25
    visual[[4, 11]], visual[9] = 0.0, torch.nan
    visual[20], visual[6] = visual[1], 9 * visual[1]
    scores[4], scores[3], scores[7] = 2.0, torch.nan, torch.inf
    places = torch.stack((torch.arange(n) // 6, torch.arange(n) % 6), -1).float()
    places[14, 0], places[17, 1] = torch.inf, torch.nan
    near: dict[str, Any] = {"positions": places, "spread": 1.5, "reach": 2.0}
    # Scores so small that all are equal, but for a step that is one of the largest; all of them 0.
    small, zero = scores * 2.0**-60, torch.zeros(n)
    scale, plain = {"rule": "scale"}, {"rule": "subtract"}
    cases = ((scores, scale), (small, plain | near), (small, plain), (zero, plain))
    for rated, given in cases:
        run: dict[str, Any] = {"sharpness": 2.0, **given}
        right = soft_suppress64(visual, rated, k, **run)
        where = given.get("positions")
        picks = soft_suppress.soft_suppress(
            *(visual[None], rated[None], k, 2.0, str(given["rule"])),
            *(None if where is None else places[None], run.get("spread", torch.inf)),
            *(run.get("reach", torch.inf), None),
        )
        assert torch.equal(picks[0], right)


@pytest.mark.parametrize("fault", [None, *DPP])
def test_dpp(fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Runs(monkeypatch, dpp, span=4, own_rows=8, own_cols=2, ahead=2)
    if fault is None:
        return _judge_dpp()
    monkeypatch.setattr(dpp_steps, "phases", with_fault(dpp_phases, DPP[fault], tmp_path))
    with pytest.raises(AssertionError):
        _judge_dpp()
    return None


@pytest.mark.parametrize("fault", [None, *FACILITY])
def test_facility_location(
    fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    greedy = {"lanes": 2, "width": 8, "words": 2, "own": 2}
    Runs(monkeypatch, facility_location, list_block=16, **greedy)
    if fault is None:
        return _judge_facility_location()
    mutant = with_fault(facility_location_phases, FACILITY[fault], tmp_path)
    monkeypatch.setattr(facility_location_steps, "phases", mutant)
    with pytest.raises(AssertionError):
        _judge_facility_location()
    return None


@pytest.mark.parametrize("fault", [None, *MIN_SUM])
def test_min_sum(fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"own_rows": 8, "ahead": 2, "sum_rows": 8, "channels": 32}
    Runs(monkeypatch, min_sum, forecast=8, **small).programs = 2
    if fault is None:
        return _judge_min_sum()
    mutant = with_fault(min_sum_phases, MIN_SUM[fault], tmp_path)
    monkeypatch.setattr(min_sum_steps, "phases", mutant)
    with pytest.raises(AssertionError):
        _judge_min_sum()
    return None


@pytest.mark.parametrize("fault", [None, *SUPPRESS, *EXACT])
def test_suppress(fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"rank_rows": 16, "rank_cols": 64, "pairs": 16, "wide": 16}
    Runs(monkeypatch, suppress, **small).programs = 2
    if fault is None:
        return _judge_suppress()
    if fault in EXACT:
        mutant = with_fault(_exact, EXACT[fault], tmp_path)
        monkeypatch.setattr(suppress_phases, "exact_cosines", mutant.exact_cosines)
    else:
        mutant = with_fault(suppress_phases, SUPPRESS[fault], tmp_path)
        monkeypatch.setattr(suppress_steps, "phases", mutant)
    with pytest.raises(AssertionError):
        _judge_suppress()
    return None


@pytest.mark.parametrize("fault", [None, *SOFT])
def test_soft_suppress(fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"lanes": 4, "own_rows": 16, "wide": 8, "ahead": 2}
    Runs(monkeypatch, soft_suppress, **small).programs = 2
    if fault is None:
        return _judge_soft_suppress()
    mutant = with_fault(soft_suppress_phases, SOFT[fault], tmp_path)
    monkeypatch.setattr(soft_suppress_steps, "phases", mutant)
    with pytest.raises(AssertionError):
        _judge_soft_suppress()
    return None
