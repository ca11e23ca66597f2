# SPDX-License-Identifier: Apache-2.0
"""The inputs and the baselines that tests and benchmarks share."""

from __future__ import annotations

import math

import pytest
import torch

from zspa_kernels.testing import (
    BASELINES,
    MODELS,
    SPECIAL,
    bound,
    check_diversity,
    check_select,
    diversity64,
    prompt,
    relevance64,
    select64,
    special,
    tokens,
    two_textures,
)

# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_token_models(model: str) -> None:
    before = torch.random.get_rng_state()
    for n, d in ((0, 3), (1, 1), (2, 31), (50, 33), (577, 16)):
        for dtype in (torch.float32, torch.bfloat16):
            rows = tokens(model, n, d, seed=3, dtype=dtype)
            assert rows.shape == (n, d)
            assert rows.dtype == dtype
            assert rows.isfinite().all()
            assert torch.equal(rows, tokens(model, n, d, seed=3, dtype=dtype))
            assert prompt(model, 5, d, seed=3, dtype=dtype).shape == (5, d)
    assert not torch.equal(tokens(model, 50, 33, seed=3), tokens(model, 50, 33, seed=4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert prompt(model, 0, 4).shape == (0, 4)


def test_prompts_lie_in_the_space_of_the_tokens() -> None:
    for model in ("smooth", "clusters", "vlm", "video"):
        near = relevance64(tokens(model, 400, 256), prompt(model, 4, 256)).max()
        far = relevance64(tokens(model, 400, 256), prompt(model, 4, 256, seed=1)).max()
        assert near > 0.4
        assert near > far + 0.1


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="model"):
        tokens("gaussian", 3, 3)
    with pytest.raises(ValueError, match="name"):
        special("nothing", 3, 3)


@pytest.mark.parametrize("d", [1, 3, 4, 16, 33, 100, 1000])
def test_exact_tokens_are_exact(d: int) -> None:
    visual, words = tokens("exact", 60, d), prompt("exact", 8, d)
    for rows in (visual, words):
        assert set(rows.unique().tolist()) <= {-1.0, 0.0, 1.0}
    counts = visual.square().sum(-1).unique().tolist()
    assert len(counts) == 1
    assert math.log(counts[0], 4).is_integer()
    pooled = words.mean(0)
    assert set(pooled.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert math.log(float(pooled.square().sum()), 4).is_integer()
    assert torch.equal(pooled, prompt("exact", 2, d).mean(0)) or d < 4
    assert torch.equal(visual, tokens("exact", 60, d, dtype=torch.bfloat16).float())
    if d >= 16:  # ties decide most picks
        got = diversity64(visual, 40)
        assert check_diversity(visual, got, 40, bound=0.0).decided < 20


@pytest.mark.parametrize("name", SPECIAL)
def test_special_inputs(name: str) -> None:
    visual, mask = special(name, 47, 16)
    assert visual.shape == (47, 16)
    assert visual.dtype == torch.float32
    assert mask is None or mask.shape == (47,)
    again = special(name, 47, 16)
    assert torch.equal(visual.view(torch.int32), again.visual.view(torch.int32))
    square = visual.double().square().sum(-1)
    valid = (square <= 2.0**80) if mask is None else (square <= 2.0**80) & mask
    zero = valid & (square < 2.0**-80)
    got = diversity64(visual, 47, mask=mask)
    assert int((got >= 0).sum()) == int(valid.sum())
    if zero.any() and name != "thresholds":  # zero rows come last, lowest index first
        last = got[got >= 0][-int(zero.sum()) :]
        assert last.tolist() == zero.nonzero()[:, 0].tolist()
    expect = {"all_nonfinite": 0, "all_masked": 0, "one_valid": 1, "constant": 47, "all_zero": 47}
    assert expect.get(name, int(valid.sum())) == int(valid.sum())
    mixed = {"zero_rows", "tiny_rows", "thresholds", "all_zero", "masked_exact"}
    assert bool(zero.any()) == (name in mixed)


def test_two_textures() -> None:
    picture = two_textures()
    n = picture.visual.shape[0]
    assert n == 144
    assert int(picture.region.sum()) == 36
    core = select64(picture.visual, picture.prompt, 30, 0)
    assert bool(picture.region[core].all())
    # Diversity alone looks everywhere.
    assert not bool(picture.region[select64(picture.visual, None, 0, 30)].all())


# --- baselines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_pick_what_the_oracle_picks(name: str, model: str) -> None:
    for n, d, k_core, k_diverse in (
        (200, 33, 0, 40),
        (130, 64, 20, 30),
        (40, 100, 12, 28),
        (1, 4, 0, 1),
    ):
        if name == "divprune_loop":
            k_core, k_diverse = 0, k_core + k_diverse
        visual, words = tokens(model, n, d), prompt(model, 4, d)
        got = BASELINES[name](visual, words if k_core else None, k_core, k_diverse)
        exact = 0.0 if model == "exact" else bound(d)
        check_select(visual, words if k_core else None, k_core, k_diverse, got, bound=exact)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_at_the_ends(name: str) -> None:
    visual, words = tokens("vlm", 20, 8), prompt("vlm", 2, 8)
    assert BASELINES[name](visual, None, 0, 0).tolist() == []
    if name == "divprune_loop":
        with pytest.raises(ValueError, match="k_core"):
            BASELINES[name](visual, words, 3, 0)
        return
    assert BASELINES[name](visual, words, 7, 0).tolist() == select64(visual, words, 7, 0).tolist()
    with pytest.raises(ValueError, match="prompt"):
        BASELINES[name](visual, None, 3, 0)


def test_blockwise_first_pick() -> None:
    visual = tokens("vlm", 2100, 16)
    got = BASELINES["incremental"](visual, None, 0, 1)
    check_select(visual, None, 0, 1, got, bound=bound(16))
