# SPDX-License-Identifier: Apache-2.0
"""DART and HoloV, which divide what they keep among pivots and crops, against float64 readings."""

from __future__ import annotations

import pytest
import torch

from python_tests.oracles.dart import dart
from python_tests.oracles.holov import holov
from python_tests.scenes import draw
from python_tests.test_method_rules import CASES, ODD, D, N, case, kept, levels
from zspa_kernels.methods import DART, HoloV
from zspa_kernels.primitives import sharing
from zspa_kernels.testing import prompt, tokens


@pytest.mark.parametrize("name", CASES + ODD)
def test_dart(name: str) -> None:
    """Norms tie where rows are repeated, and in keys of integers; words are invalid or zero."""
    visual, mask = case(name)
    words = prompt("vlm", 7, D)
    words[1], words[4] = torch.nan, 0.0
    real = torch.arange(7) != 5
    keys = draw("keys", (N, 3, 1))[..., 0].mul(2).round()
    keys[8] = torch.inf
    for k, pivots, text_pivots, by_keys, said in (
        (1, 4, 4, False, True),
        (4, 4, 4, False, True),
        (9, 4, 4, False, True),
        (9, 4, 4, True, False),
        (16, 3, 2, True, True),
        (16, 1, 9, False, True),
        (20, 2, 0, False, True),
        (N, 30, 1, False, False),
    ):
        text, own = words if said else None, keys if by_keys else None
        core, others = dart(visual, k, text, own, pivots, text_pivots, mask, real)
        given = {"keys": own, "visual_mask": mask, "prompt_mask": real if said else None}
        picked = DART(k, pivots, text_pivots, by_keys, sorted=False).select(visual, text, **given)
        assert kept(picked.indices.tolist()) == core + others
        assert kept(picked.indices[picked.core_mask].tolist()) == core
        ordered = DART(k, pivots, text_pivots).select(visual, text, **given)
        assert kept(ordered.indices.tolist()) == sorted(core + others)
        assert set(ordered.indices[ordered.core_mask].tolist()) == set(core)
        assert int(ordered.core_mask.sum()) == len(core)


def test_dart_without_words_is_dart_without_a_prompt() -> None:
    """Words that are masked, invalid or zero take nothing; an image may have fewer than another."""
    visual = torch.stack([tokens("vlm", N, D), tokens("iid", N, D)])
    words = torch.stack([prompt("vlm", 5, D), torch.zeros(5, D)])
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    words[1, 3:] = 1e3
    method = DART(12, text_pivots=2, sorted=False)
    both = method.select(visual, words, prompt_mask=real)
    assert both.indices[0].tolist() == method.select(visual[0], words[0]).indices.tolist()
    assert both.indices[1].tolist() == method.select(visual[1]).indices.tolist()
    assert both.indices[0].tolist() != method.select(visual[0]).indices.tolist()


def test_dart_decides_in_float64() -> None:
    """Cosines to the pivot differ by less than a float32 can say; norms are equal in any order."""
    angles = 1.0 + 1e-9 * torch.tensor([0.0, 3.0, 2.0, 5.0, 4.0, 1.0], dtype=torch.float64)
    lengths = 2.0 ** torch.arange(6) / torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0, 11.0])
    rows = torch.stack((angles.cos(), angles.sin()), -1).mul(lengths[:, None]).float()
    visual = torch.cat((torch.tensor([[1e3, 0.0]]), rows))
    exact = visual.double()
    cosine = exact[:, 0] / exact.norm(dim=1)
    right = cosine[1:].argsort(stable=True)[:3].add(1).sort().values
    assert DART(4, 1).select(visual).indices.tolist() == [0, *right.tolist()]
    row = draw("row", (1, 1000))[0]
    orders = [torch.randperm(1000, generator=torch.Generator().manual_seed(i)) for i in range(9)]
    picked = DART(3, 3).select(torch.stack([row[order] for order in orders]))
    assert picked.indices.tolist() == [0, 1, 2]
    assert picked.scores is not None
    assert picked.scores.tolist() == [float(row.double().sum().float())] * 9


@pytest.mark.parametrize("name", CASES + ODD)
def test_holov(name: str) -> None:
    """Levels of attention tie, as shares do; more crops than tokens, one crop, full crops."""
    visual, mask = case(name)
    attention = levels()
    attention[3], attention[9], attention[21:] = torch.nan, -1.0, attention[21:] / 64
    for k, crops, sharpness in (
        (1, 16, 1.0),
        (9, 4, 1.0),
        (9, 7, 0.0),
        (16, 5, 3.0),
        (12, 1, 1.0),
        (20, 40, 1.0),
        (N, 3, 0.5),
    ):
        for variance in (0.0, 1.0, 40.0):
            given = {"attention": attention, "visual_mask": mask}
            right = holov(visual, attention, k, crops, variance, sharpness, mask)
            options = (k, crops, variance, sharpness, "round")
            picked = HoloV(*options, sorted=False).select(visual, **given)
            assert picked.indices.tolist() == right
            ordered = HoloV(*options).select(visual, **given).indices.tolist()
            assert kept(ordered) == sorted(kept(right))


def test_holov_counts() -> None:
    """Means of crops, not sums; whole shares stay whole, whatever a float makes of them."""
    tokens = torch.ones(30, 2)
    unequal = HoloV(1, 2).select(tokens[:3], attention=torch.tensor([0.2, 0.2, 0.3]))
    assert unequal.indices.tolist() == [2]
    for value in (0.1, 0.0, 3e-30, 7e30):
        even = HoloV(9, 3).select(tokens, attention=torch.full((30,), value))
        assert even.indices.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    for shares, k in (((1, 2, 7), 10), ((1, 5, 7), 13), ((2, 4, 7), 13)):
        attention = torch.tensor(shares).repeat_interleave(10) / 8
        each = [10 * c + i for c, share in enumerate(shares) for i in range(share)]
        assert HoloV(k, 3).select(tokens, attention=attention).indices.tolist() == each


@pytest.mark.parametrize("native", [True, False])
def test_holov_of_crops_with_the_same_tokens(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order, their means are equal; a sharp power shows any difference."""
    if not native:
        monkeypatch.setattr(sharing, "native", lambda *x, **y: False)
    n, count = 300, 90
    for seed in range(12):
        own = draw("attention", (1, n), seed)[0] ** 8
        orders = [draw(f"order {i}", (1, n), seed)[0].argsort() for i in range(4)]
        best = [own[order].argsort(descending=True)[:count].sort().values for order in orders]
        right = torch.cat([i * n + picks for i, picks in enumerate(best)])
        attention = torch.cat([own[order] for order in orders])
        method = HoloV(4 * count, 4, sharpness=100.0)
        picked = method.select(torch.ones(4 * n, 1), attention=attention)
        assert torch.equal(picked.indices, right)


def test_holov_prefers_what_varies_where_variance_counts() -> None:
    """Of tokens that are attended to alike; the similarity of a token to itself counts as 0."""
    visual = torch.eye(4)[[0, 1, 2, 2, 3, 3, 3, 3]]
    attention = torch.full((8,), 0.5)
    plain = HoloV(4, 2).select(visual, attention=attention)
    assert plain.indices.tolist() == [0, 1, 4, 5]
    assert plain.scores is not None
    assert torch.equal(plain.scores, attention)
    varied = HoloV(4, 2, variance=1.0).select(visual, attention=attention)
    assert varied.indices.tolist() == [2, 3, 4, 5]
    assert varied.scores is not None
    # The first two are similar to nothing; the means of variance and attention are equal.
    assert varied.scores.tolist() == [0.5, 0.5, 1.5, 1.5, 1.0, 1.0, 1.0, 1.0]
    largest = torch.finfo(torch.float32).max
    varied = HoloV(3, 2, variance=9.0).select(visual, attention=attention * largest)
    assert varied.scores is not None
    assert varied.scores.tolist() == [0.5 * largest] * 2 + [largest] * 6
    assert varied.indices.tolist() == [2, 3, 4]


def test_holov_with_variance_in_a_batch() -> None:
    visual = torch.stack([tokens("vlm", N, D), tokens("clusters", N, D)])
    mask = draw("mask", (2, N)) > 0.3
    attention = draw("attention", (2, N))
    method = HoloV(9, 4, variance=1.0)
    both = method.select(visual, attention=attention, visual_mask=mask)
    for b in range(2):
        alone = method.select(visual[b], attention=attention[b], visual_mask=mask[b])
        short = method.select(visual[b][mask[b]], attention=attention[b][mask[b]])
        assert both.indices[b].tolist() == alone.indices.tolist()
        assert alone.indices.tolist() == mask[b].nonzero()[:, 0][short.indices].tolist()
        assert both.scores is not None
        assert torch.equal(both.scores[b], alone.scores)
