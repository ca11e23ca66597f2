# SPDX-License-Identifier: Apache-2.0
"""The methods against plain float64 readings of their formulas, in `oracles`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.oracles.cases import ATTENTION, FAN, INPUTS, PROMPT, SCORES
from python_tests.oracles.cases import CASES as FANS
from python_tests.oracles.cenprune import check_cenprune
from python_tests.oracles.greedyprune import greedyprune
from python_tests.oracles.scoredtopk import scoredtopk
from python_tests.oracles.soft import soft_suppression
from python_tests.oracles.todre import check_todre
from python_tests.oracles.tome import tome
from python_tests.oracles.trimtokenator import remaining
from python_tests.oracles.visionzip import visionzip
from python_tests.oracles.vispruner import vispruner
from python_tests.scenes import draw, inputs
from zspa_kernels.methods import (
    AdaptPrune,
    CenPrune,
    GreedyPrune,
    IDSelection,
    ScoredTopK,
    ToDRE,
    ToMe,
    TrimTokenator,
    VisionZip,
    VisPruner,
)
from zspa_kernels.testing import prompt, special, tokens

N, D = 30, 16
COUNTS = (1, 2, 9, 16, N)
#: Ordinary tokens, ties of every kind, one cluster, duplicates, masks, rows without a direction.
CASES = ("vlm", "iid", "exact", "narrow", "constant", "duplicates", "zero_rows", "masked_exact")
ODD = ("nonfinite_rows", "one_valid", "all_masked", "all_zero", "antipodal")


def case(name: str) -> tuple[Tensor, Tensor | None]:
    if name in ("vlm", "iid", "exact"):
        return tokens(name, N, D), None
    return special(name, N, D)


def error(name: str) -> float:
    """Of a float32 cosine; those of exact tokens have none."""
    return 0.0 if "exact" in name else 1e-6


def kept(picks: list[int]) -> list[int]:
    return [i for i in picks if i >= 0]


def levels(n: int = N) -> Tensor:
    """Scores with ties."""
    return (8 * draw("levels", (1, n))[0]).floor() / 8


@pytest.mark.parametrize("name", CASES + ODD)
def test_todre(name: str) -> None:
    visual, mask = case(name)
    decided = 0
    for k in COUNTS:
        picked = ToDRE(k, sorted=False).select(visual, visual_mask=mask)
        decided += check_todre(visual, picked.indices.tolist(), k, mask, cosine=error(name))
        ascending = ToDRE(k).select(visual, visual_mask=mask).indices.tolist()
        assert kept(ascending) == sorted(kept(picked.indices.tolist()))
    assert decided > 50 or name not in ("vlm", "iid")


def test_min_sum_with_seeds() -> None:
    visual = torch.stack([tokens("vlm", N, D), tokens("exact", N, D)])
    seeds = torch.tensor([[7, -1, 3, 7, N], [2, 1, 0, -5, 29]])
    got = zk.primitives.min_sum(visual, 9, seeds=seeds)
    for b in range(2):
        check_todre(visual[b], got[b].tolist(), 9, None, tuple(seeds[b].tolist()), 1e-6 * (b == 0))
    assert zk.primitives.min_sum(visual, 0, seeds=seeds).shape == (2, 0)
    everything = torch.arange(N).expand(2, N)
    assert (zk.primitives.min_sum(visual, 4, seeds=everything) == -1).all()


@pytest.mark.parametrize("name", CASES + ODD)
def test_trimtokenator(name: str) -> None:
    visual, mask = case(name)
    words = prompt("vlm", 4, D)
    words[2] = torch.nan
    real = torch.tensor([True, True, True, False])
    for k, align in ((1, 0.8), (9, 0.5), (9, 5), (N, 0.1)):
        valid = int((visual.double().square().sum(-1) <= 2.0**80).sum())
        if mask is not None:
            valid = int((mask & (visual.double().square().sum(-1) <= 2.0**80)).sum())
        stay = round(align * valid) if isinstance(align, float) else align
        method = TrimTokenator(k, align, sorted=False)
        picked = method.select(visual, words, visual_mask=mask, prompt_mask=real)
        rated = zk.primitives.alignment(visual, words, visual_mask=mask, prompt_mask=real)
        assert picked.scores is not None
        assert torch.equal(picked.scores, rated.float())
        left = remaining(visual, words, max(k, stay), mask, real)
        check_todre(visual, picked.indices.tolist(), k, left, cosine=error(name))
    nothing = TrimTokenator(9, sorted=False).select(
        visual, words, visual_mask=mask, prompt_mask=real & False
    )
    check_todre(visual, nothing.indices.tolist(), 9, mask, cosine=error(name))


@pytest.mark.parametrize("name", CASES + ODD)
def test_greedyprune(name: str) -> None:
    visual, mask = case(name)
    saliency = levels()
    saliency[4], saliency[5] = torch.nan, torch.inf
    for k in COUNTS:
        for threshold, fill in ((0.9, True), (0.25, True), (0.25, False), (-1.0, False)):
            method = GreedyPrune(k, threshold, fill, sorted=False)
            picked = method.select(visual, saliency=saliency, visual_mask=mask)
            right = greedyprune(visual, saliency, k, threshold, fill, mask)
            assert picked.indices.tolist() == right
    assert picked.scores is not None
    assert torch.equal(picked.scores.nan_to_num(), saliency.nan_to_num())


@pytest.mark.parametrize("name", CASES + ODD)
def test_idselection(name: str) -> None:
    visual, mask = case(name)
    attention = levels()
    attention[4], attention[5] = torch.nan, torch.inf
    for k, gamma in ((1, 20.0), (9, 20.0), (N, 20.0), (N, 2.0)):
        method = IDSelection(k, gamma, sorted=False)
        picked = method.select(visual, attention=attention, visual_mask=mask)
        scaled = picked.scores
        assert scaled is not None
        assert picked.indices.tolist() == soft_suppression(visual, scaled, k, gamma, mask=mask)
        known = scaled.isfinite()
        if int(known.sum()) > 1:
            own = attention[known] - attention[known].min()
            assert torch.equal(scaled[known], own / own.max() if own.max() > 0 else own + 1)


@pytest.mark.parametrize("name", CASES + ODD)
def test_adaptprune(name: str) -> None:
    """Five rows of six tokens; keys in place of the tokens, and without."""
    visual, mask = case(name)
    keys = tokens("clusters", N, 10, seed=4) if name in ("vlm", "masked_exact") else None
    attention = levels()
    attention[:4], attention[4], attention[5] = -0.5, torch.nan, torch.inf  # all of a row
    places = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    if name == "vlm":  # of tokens that are not there, which are not in the middle of anything
        places = places.float()
        places[0, 1], places[N - 1, 0] = torch.nan, torch.inf
    valid = (visual.double().square().sum(-1) <= 2.0**80) & attention.isfinite() & (attention >= 0)
    valid = (valid if mask is None else valid & mask) & places.isfinite().all(-1)
    for k, sigma, center in ((9, 0.05, 1.0), (N, 0.05, 0.4), (N, 0.05, 0.5), (N, 0.5, torch.inf)):
        method = AdaptPrune(k, sigma, distance_limit=3.0, center_sigma=center, sorted=False)
        given = {"attention": attention, "positions": places, "keys": keys}
        picked = method.select(visual, visual_mask=mask, **given)
        space = visual if keys is None else keys
        own = places[valid].double()
        rated = attention.double()
        if len(own) and center < torch.inf:
            half = (own.amax(0) - own.amin(0)) / 2
            apart = (places - (own.amax(0) + own.amin(0)) / 2) / half.clamp_min(0.25)
            rated = rated * (-0.5 / center**2 * apart.square().sum(-1)).exp()
        right = soft_suppression(space, rated, k, 0.5 / sigma**2, "scale", places, 1.5, 3.0, valid)
        assert picked.indices.tolist() == right


@pytest.mark.parametrize("name", CASES + ODD)
def test_tome(name: str) -> None:
    keys, mask = case(name)
    visual = draw("visual", (N, 3, 1))[..., 0]
    for k in (0, *COUNTS):
        if k:
            merging = ToMe(k).assign(visual, keys=keys, visual_mask=mask)
            indices, owner = merging.selection.indices, merging.owner
        else:
            indices, owner = zk.primitives.match(keys, 0, mask=mask)
        groups = tome(keys, k, mask)
        assert kept(indices.tolist()) == sorted(groups)
        for slot, head in enumerate(sorted(groups)):
            assert (owner == slot).nonzero()[:, 0].tolist() == sorted(groups[head])
        assert int((owner >= 0).sum()) == sum(map(len, groups.values()))
        if k:
            assert not merging.weights[owner < 0].any()
            means = torch.zeros(k, 3, dtype=torch.float64)
            for slot, head in enumerate(sorted(groups)):
                means[slot] = visual[groups[head]].double().mean(0)
            assert torch.allclose(merging.merge(visual).double(), means, atol=1e-6)


@pytest.mark.parametrize("name", CASES + ODD)
def test_visionzip(name: str) -> None:
    keys, mask = case(name)
    visual = draw("visual", (N, 3, 1))[..., 0]
    keys = keys.nan_to_num(0.5, 0.5, 0.5).clamp(-(2.0**30), 2.0**30)
    attention = levels()
    attention[3] = torch.nan
    for k, share in ((1, 0.5), (2, 0.5), (9, 10 / 64), (9, 0.0), (9, 1.0), (20, 0.3), (N, 0.5)):
        method = VisionZip(k, share, sorted=False)
        merging = method.assign(visual, attention=attention, keys=keys, visual_mask=mask)
        right = visionzip(attention, keys, k, round(share * k), mask)
        picked = merging.selection
        assert kept(picked.indices.tolist()) == right.dominant + right.targets
        assert kept(picked.indices[picked.core_mask].tolist()) == right.dominant
        rows = right.merged(visual)
        merged = merging.merge(visual).double()
        for slot, i in enumerate(kept(picked.indices.tolist())):
            assert torch.allclose(merged[slot], rows[i], atol=1e-6)
            own = {i, *right.assigned.get(i, [])}
            assert set((merging.owner == slot).nonzero()[:, 0].tolist()) == own
        ordered = VisionZip(k, share).select(visual, attention=attention, visual_mask=mask)
        assert kept(ordered.indices.tolist()) == sorted(right.dominant + right.targets)
        assert set(ordered.indices[ordered.core_mask].tolist()) == set(right.dominant)


@pytest.mark.parametrize("name", CASES + ODD)
def test_vispruner(name: str) -> None:
    features, mask = case(name)
    visual = draw("visual", (N, 3, 1))[..., 0]
    attention = levels()
    attention[3] = torch.nan
    for k, share, step in (
        (1, 0.5, 8),
        (2, 0.5, 1),
        (9, 0.5, 3),
        (9, 0.0, 8),
        (9, 1.0, 8),
        (16, 0.3, 2),
    ):
        method = VisPruner(k, share, step, sorted=False)
        given = {"attention": attention, "features": features, "visual_mask": mask}
        core, others = vispruner(features, attention, k, share, step, mask)
        picked = method.select(visual, **given)
        assert kept(picked.indices.tolist()) == core + others
        assert kept(picked.indices[picked.core_mask].tolist()) == core
        ordered = VisPruner(k, share, step).select(visual, **given)
        assert kept(ordered.indices.tolist()) == sorted(core + others)
        assert set(ordered.indices[ordered.core_mask].tolist()) == set(core)
        assert int(ordered.core_mask.sum()) == len(core)


def test_visionzip_merges_only_with_keys() -> None:
    method = VisionZip(4)
    method.select(torch.eye(9), attention=torch.ones(9))
    with pytest.raises(TypeError, match=r"VisionZip: keys must be a tensor \[B, N, C\] \(keys of"):
        method.assign(torch.eye(9), attention=torch.ones(9))


@pytest.mark.parametrize("name", ["vlm", "iid", "narrow", "duplicates", "zero_rows", "masked"])
def test_cenprune(name: str) -> None:
    visual, mask = case(name)
    decided = 0
    for k in (1, 9, N):
        for importance in (None, draw("importance", (1, N))[0]):
            method = CenPrune(k, sorted=False)
            picked = method.select(visual, importance=importance, visual_mask=mask)
            picks = kept(picked.indices.tolist())
            assert len(picks) == min(k, N if mask is None else int(mask.sum()))
            decided += check_cenprune(visual, picks, mask, importance)
    assert decided > 20, "a replay in which every token is right proves nothing"


def test_cenprune_with_a_determinantal_process() -> None:
    """Each pick makes the determinant of diag(w) cos(centred) diag(w) over the picks largest."""
    visual, importance = tokens("vlm", 14, D), draw("importance", (1, 14))[0] + 0.1
    picked = CenPrune(6, process="dpp", sorted=False).select(visual, importance=importance)
    assert picked.scores is not None
    middle = visual.double() - visual.double().mean(0)
    unit = middle / middle.norm(dim=-1, keepdim=True)
    weights = picked.scores.double()
    kernel = weights[:, None] * (unit @ unit.T) * weights
    picks: list[int] = []
    for pick in picked.indices.tolist():
        volume = {
            i: float(torch.linalg.det(kernel[[*picks, i]][:, [*picks, i]]))
            for i in range(14)
            if i not in picks
        }
        assert volume[pick] >= max(volume.values()) * (1 - 1e-4)
        picks.append(pick)
    assert picks != CenPrune(6, sorted=False).select(visual, importance=importance).indices.tolist()
    with pytest.raises(
        ValueError, match="CenPrune: process must be one of distance, dpp, got str 'x'"
    ):
        CenPrune(6, process="x")


def test_cenprune_leaves_out_what_has_no_importance() -> None:
    visual, importance = tokens("vlm", N, D), draw("importance", (1, N))[0]
    importance[:2], importance[2:4] = torch.nan, torch.inf
    picked = CenPrune(N).select(visual, importance=importance)
    assert picked.indices.tolist() == [*range(4, N), -1, -1, -1, -1]


def test_the_mean_itself_is_chosen_late() -> None:
    """A token that is the mean has no direction once the mean is gone."""
    spread = torch.tensor([[1.0, 2.0], [1.0, -2.0], [3.0, 0.0], [-1.0, 0.0]]) + 5.0
    visual = torch.cat((spread.mean(0, keepdim=True), spread))
    assert zk.primitives.centred(visual)[0].tolist() == [0.0, 0.0]
    order = zk.primitives.centred(torch.full((3, 2), 0.1))
    assert (order == 0.0).all()
    # Their mean is the first but for the rounding of the others.
    middle, off = torch.tensor([0.1, 0.7, 0.3]), torch.linspace(0.013, 3.7, 24).reshape(8, 3)
    rows = torch.cat((middle[None], middle + off, middle - off))
    assert (rows.double().mean(0).float() != middle).any()
    assert zk.primitives.centred(rows)[0].tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scoredtopk(dtype: torch.dtype) -> None:
    scores = levels().to(dtype)
    scores[2], scores[9], scores[11], scores[12] = torch.nan, torch.inf, -0.0, 0.0
    segments = torch.arange(N) % 4 - 1  # -1: of none
    force = torch.arange(N) % 11 == 10
    mask = torch.arange(N) % 7 != 3
    visual = torch.zeros(N, 1)
    for k in COUNTS:
        for options in (
            {},
            {"mask": mask},
            {"force_keep": force},
            {"mask": mask, "force_keep": force, "segments": segments, "quotas": [k, 0, 0]},
            {"segments": segments, "quotas": [k // 3, k - k // 3, 0]},
            {"force_keep": force, "segments": segments, "quotas": [k, 0, 0]},
        ):
            given = {("visual_mask" if x == "mask" else x): v for x, v in options.items()}
            method = ScoredTopK(k, sorted=False)
            picked = method.select(visual, scores=scores, **given)
            assert picked.indices.tolist() == scoredtopk(scores, k, **options)
            assert torch.equal(picked.core_mask, picked.indices >= 0)


def test_presets_name_their_tensor() -> None:
    for name, preset in zk.methods.PRESETS.items():
        method = zk.methods.get(name, keep=2)
        assert method == ScoredTopK(2, name)
        with pytest.raises(TypeError) as raised:
            method.select(torch.eye(3))
        assert preset.title in str(raised.value)
        assert preset.scores in str(raised.value)
        assert preset.how in str(raised.value)
    with pytest.raises(ValueError, match="ScoredTopK: preset must be one of fastervlm, fastv,"):
        ScoredTopK(2, "other")


# ---- one case for each method, which no other method solves ------------------------------------


def on_the_fan(name: str, k: int) -> set[int]:
    """What a method keeps of the fan."""
    given = {x: v[0] for x, v in inputs(name, 1, len(FAN), 2).items()}  # for what the fan lacks
    fan = {"visual": FAN, "prompt": PROMPT, "scores": SCORES.get(name), **INPUTS}
    fan["attention"] = ATTENTION.get(name, fan["attention"])
    given |= {x: fan[x] for x in given if fan.get(x) is not None}
    # The host's importance is an extra of CenPrune, as keys are of DART.
    given.pop({"cenprune": "importance", "dart": "keys"}.get(name, ""), None)
    options = FANS[name].options if name in FANS else {}
    return set(zk.methods.get(name, keep=k, **options).select(**given).indices.tolist())


@pytest.mark.parametrize("name", zk.methods.available())
def test_no_other_method_keeps_the_same(name: str) -> None:
    assert name in FANS, "a new method needs a case of its own in oracles/cases.py"
    keep, why, _ = FANS[name]
    assert on_the_fan(name, len(keep)) == keep, why
    others = {other: on_the_fan(other, len(keep)) for other in zk.methods.available()}
    del others[name]
    assert keep not in others.values(), [other for other, kept in others.items() if kept == keep]
