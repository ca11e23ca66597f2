# SPDX-License-Identifier: Apache-2.0
"""The published methods: what each keeps, which of it is core, and its scores."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk

B, N, D, M = 2, 40, 8, 3
METHODS = (zk.ZSPAPrune, zk.DivPrune, zk.AllInRelevance)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[-2]))


VISUAL, PROMPT = draw(B, N, D), draw(B, M, D)


@pytest.mark.parametrize("sort", [True, False])
def test_zspaprune(sort: bool) -> None:
    method = zk.ZSPAPrune(keep=0.25, core_ratio=0.4, sorted=sort)
    picked = method.select(VISUAL, PROMPT)
    expected = zk.select(VISUAL, PROMPT, keep=0.25, core_ratio=0.4, sorted=sort)
    core, scores = zk.relevance_topk(VISUAL, PROMPT, 4)
    assert torch.equal(picked.indices, expected)
    assert picked.scores is not None
    assert torch.equal(picked.scores, scores)
    for b in range(B):
        assert set(picked.indices[b][picked.core_mask[b]].tolist()) == set(core[b].tolist())
    if not sort:
        assert picked.core_mask.tolist() == [[True] * 4 + [False] * 6] * B


def test_the_core_of_zspaprune_is_that_of_select() -> None:
    picked = zk.ZSPAPrune(keep=9).select(VISUAL, PROMPT)
    assert torch.equal(picked.indices, zk.select(VISUAL, PROMPT, keep=9))


def test_zspaprune_without_a_prompt_is_divprune() -> None:
    picked = zk.ZSPAPrune(keep=0.25, core_ratio=0.4).select(VISUAL)
    assert torch.equal(picked.indices, zk.DivPrune(keep=0.25).select(VISUAL).indices)
    assert picked.scores is None
    assert not picked.core_mask.any()


def test_divprune() -> None:
    for prompt in (None, PROMPT):  # plays no part
        picked = zk.DivPrune(keep=9, sorted=False).select(VISUAL, prompt)
        assert torch.equal(picked.indices, zk.diversity(VISUAL, 9))
        assert picked.scores is None
        assert picked.core_mask.dtype == torch.bool
        assert picked.core_mask.shape == (B, 9)
        assert not picked.core_mask.any()


@pytest.mark.parametrize("sort", [True, False])
def test_all_in_relevance(sort: bool) -> None:
    picked = zk.AllInRelevance(keep=9, pooling="none_max", sorted=sort).select(VISUAL, PROMPT)
    core, scores = zk.relevance_topk(VISUAL, PROMPT, 9, pooling="none_max")
    assert torch.equal(picked.indices, core.sort().values if sort else core)
    assert picked.scores is not None
    assert torch.equal(picked.scores, scores)
    assert picked.core_mask.all()


def test_all_in_relevance_needs_a_prompt() -> None:
    with pytest.raises(
        TypeError, match=r"AllInRelevance: prompt must be a tensor \[B, M, D\] \(.*\), got None"
    ):
        zk.AllInRelevance(keep=9).select(VISUAL)
    with pytest.raises(
        TypeError, match="AllInRelevance: prompt must be a sequence of tensors, got"
    ):
        zk.AllInRelevance(keep=9).select_varlen([VISUAL[0]])


@pytest.mark.parametrize("method", [zk.ZSPAPrune(0.5, 0.5), zk.AllInRelevance(0.5)])
@pytest.mark.parametrize("sort", [True, False])
def test_masks_and_rows_without_a_prompt(method: Any, sort: bool) -> None:
    """Row 0 has 3 valid tokens; row 1 has no valid prompt token, so nothing of it is core."""
    visual_mask = torch.ones(B, N, dtype=torch.bool)
    visual_mask[0, 3:] = False
    prompt_mask = torch.tensor([[True] * M, [False] * M])
    method = dataclasses.replace(method, sorted=sort)
    picked = method.select(VISUAL, PROMPT, visual_mask=visual_mask, prompt_mask=prompt_mask)
    assert sorted(picked.indices[0].tolist()) == [-1] * 17 + [0, 1, 2]
    assert picked.core_mask[0].tolist() == [True] * 3 + [False] * 17
    assert not picked.core_mask[1].any()
    assert (picked.indices[1] >= 0).all()
    assert (picked.scores[0, 3:] == -torch.inf).all()
    kept = picked.gather(VISUAL)
    assert torch.equal(kept[0, 3:], torch.zeros(17, D))


@pytest.mark.parametrize("method", METHODS)
def test_unbatched_is_the_row_alone(method: Any) -> None:
    batched = method(keep=0.3).select(VISUAL, PROMPT)
    alone = method(keep=0.3).select(VISUAL[1], PROMPT[1])
    for one, all_rows in zip(alone, batched, strict=True):
        assert one is None if all_rows is None else torch.equal(one, all_rows[1])
    assert torch.equal(alone.gather(VISUAL[1]), batched.gather(VISUAL)[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("keep", "error"), [(0.0, ValueError), (0, ValueError), (True, TypeError)])
def test_bad_options_fail_at_once(method: Any, keep: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{method.about.title}: keep must be"):
        method(keep=keep)


def test_bad_core_ratio_fails_at_once() -> None:
    with pytest.raises(ValueError, match="core_ratio must be finite and at least 0, got -1"):
        zk.ZSPAPrune(keep=0.5, core_ratio=-1)


@pytest.mark.parametrize("method", METHODS)
def test_bad_tensors_fail_in_the_words_of_the_contract(method: Any) -> None:
    with pytest.raises(TypeError, match=f"^{method.about.title}: visual must be a tensor"):
        method(keep=0.5).select(None, PROMPT)
    with pytest.raises(TypeError, match=rf"^{method.about.title}: model must be .*`select`\), got"):
        method(keep=0.5)(VISUAL)  # which is called with a model


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_values(method: Any) -> None:
    one = method(keep=0.5)
    assert one == method(keep=0.5)
    assert one != method(keep=0.25)
    assert hash(one) == hash(method(keep=0.5))
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.keep = 0.1


def test_a_selection_unpacks() -> None:
    indices, core_mask, scores = zk.ZSPAPrune(keep=0.5).select(VISUAL, PROMPT)
    assert indices.shape == core_mask.shape == (B, 20)
    assert scores is not None
    assert scores.shape == (B, N)


class EveryOther(zk.MethodBase):
    """A user's own method defines `select` alone: every other token, from the first word on."""

    def select(self, visual: Tensor, prompt: Tensor | None = None) -> zk.Selection:
        indices = torch.arange(0 if prompt is None else int(prompt[0]), visual.shape[-2], 2)
        return zk.Selection(indices, torch.zeros_like(indices, dtype=torch.bool))


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize(
    "method",
    [
        zk.ZSPAPrune(0.3, 0.4),
        zk.DivPrune(0.3),
        zk.AllInRelevance(5, pooling="none_max"),
        zk.ZOOPrune(0.3, score="norm"),
    ],
)
def test_select_varlen_is_select_on_each_image(method: Any, sort: bool) -> None:
    """Of four lengths; one prompt is empty, two have no valid token, one image has NaN rows."""
    images = [draw(n, D) for n in (7, 40, 12, 9, 12, 12)]
    images[3][2:] = torch.nan
    prompts = [draw(3, D), draw(0, D), torch.full((2, D), torch.nan), draw(4, D)]
    prompts += [torch.eye(1, D) * 2.0**40, torch.eye(1, D) * 1.0001 * 2.0**40]
    method = dataclasses.replace(method, sorted=sort)
    for texts in (prompts, None):
        if texts is None and isinstance(method, zk.AllInRelevance):
            continue
        picked = method.select_varlen(images, texts)
        for i, image in enumerate(images):
            alone = method.select(image, texts and texts[i])
            assert torch.equal(picked[i].indices, alone.indices)
            assert torch.equal(picked[i].core_mask, alone.core_mask)


def test_a_method_of_ones_own_inherits_the_ragged_form() -> None:
    images = [draw(5, D), draw(2, D)]
    picked = EveryOther().select_varlen(images)
    assert [one.indices.tolist() for one in picked] == [[0, 2, 4], [0]]
    picked = EveryOther().select_varlen(images, [torch.tensor([2]), torch.tensor([1])])
    assert [one.indices.tolist() for one in picked] == [[2, 4], [1]]
    with pytest.raises(ValueError, match="shorter"):
        EveryOther().select_varlen(images, [torch.tensor([2])])
    with pytest.raises(NotImplementedError, match="MethodBase must define select or select_varlen"):
        zk.MethodBase().select_varlen([draw(5, D)])
    assert not EveryOther().needs_features
    assert EveryOther().model_inputs == ()
    with pytest.raises(NotImplementedError, match=r"^EveryOther rates no tokens$"):
        EveryOther().rate(draw(5, D))


def test_sensitivity_of_each_image() -> None:
    images = [draw(7, D), draw(40, D)]
    scores = [image[:, 0].abs() for image in images]
    method = zk.ZOOPrune(0.3)
    assert method.needs_features
    for i, picked in enumerate(method.select_varlen(images, sensitivity=scores)):
        assert torch.equal(picked.indices, method.select(images[i], sensitivity=scores[i]).indices)
