# SPDX-License-Identifier: Apache-2.0
"""CDPruner, SCOPE and MMTok against plain float64 readings of their papers, in `oracles`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.oracles.anchorprune import anchor_of, check_expansion
from python_tests.oracles.cdpruner import check_cdpruner, weights_of
from python_tests.oracles.common import valid_tokens
from python_tests.oracles.coverage import check_coverage, token_rows, word_rows
from python_tests.scenes import draw
from zspa_kernels import Selection
from zspa_kernels.methods import SCOPE, AnchorPrune, CDPruner, CenPrune, MMTok
from zspa_kernels.testing import prompt, special, tokens

N, D = 24, 16
COUNTS = (1, 9, N)
#: Ordinary tokens, ties of every kind, one cluster, duplicates, masks, rows without a direction.
CASES = (
    "vlm",
    "clusters",
    "exact",
    "narrow",
    "constant",
    "duplicates",
    "zero_rows",
    "masked_exact",
)
ODD = ("nonfinite_rows", "one_valid", "all_masked", "all_zero")


def case(name: str) -> tuple[Tensor, Tensor | None]:
    if name in ("vlm", "clusters", "exact"):
        return tokens(name, N, D), None
    return special(name, N, D)


def kept(picks: Tensor) -> list[int]:
    return [i for i in picks.tolist() if i >= 0]


def scores(picked: Selection) -> Tensor:
    assert picked.scores is not None
    return picked.scores


def decisive(name: str) -> bool:
    """Whether most picks have only one right answer."""
    return name in ("vlm", "clusters")


@pytest.mark.parametrize("name", CASES + ODD)
def test_cdpruner(name: str) -> None:
    visual, mask = case(name)
    image, text = draw("image", (N, 10, 1))[..., 0], draw("text", (4, 10, 1))[..., 0]
    words = prompt("vlm", 4, D)
    allowed = valid_tokens(visual, mask)
    decided = 0
    for k in COUNTS:
        for space in ("clip", "llm"):
            method = CDPruner(k, space=space, sorted=False)
            given = {"image_embeds": image, "text_embeds": text} if space == "clip" else {}
            picked = method.select(visual, words, visual_mask=mask, **given)
            picks = kept(picked.indices)
            assert len(picks) == min(k, len(allowed))
            assert not picked.core_mask.any()
            if not allowed:
                continue
            source = (image, text, allowed, -1) if space == "clip" else (visual, words, allowed, 1)
            weights = weights_of(*source)
            got = {i: float(scores(picked)[i]) for i in allowed}
            # Where the range of the relevance is small, its rounding is large beside it.
            error = max(abs(weights[i] - got[i]) for i in allowed)
            assert error < (1e-5 if space == "clip" or decisive(name) else 1e-2)
            decided += check_cdpruner(visual, picks, got)
            ascending = CDPruner(k, space=space).select(visual, words, visual_mask=mask, **given)
            assert kept(ascending.indices) == sorted(picks)
    assert decided > 30 or not decisive(name)


def test_cdpruner_emphasis() -> None:
    """Theta -> exp(alpha r); 0 leaves relevance out, and the first tie goes to token 0."""
    visual, words = tokens("vlm", N, D), prompt("vlm", 4, D)
    plain = CDPruner(9, space="llm").select(visual, words)
    for theta in (0.0, 0.5, 0.9):
        picked = CDPruner(9, space="llm", emphasis=theta, sorted=False).select(visual, words)
        right = torch.exp(theta / (2 * (1 - theta)) * scores(plain))
        assert torch.allclose(scores(picked), right)
        check_cdpruner(visual, kept(picked.indices), dict(enumerate(scores(picked).tolist())))
        assert picked.indices[0] == 0 or theta


def test_cdpruner_compat_scales_over_the_call() -> None:
    """The published scaling: extremes over all images, so a row depends on the batch it is in."""
    visual = torch.stack([tokens("vlm", N, D, seed) for seed in range(2)])
    image, text = draw("image", (2, N, 10)), draw("text", (2, 4, 10))
    text[1] += 3 * image[1].mean(0)
    given = {"image_embeds": image, "text_embeds": text}
    both = scores(CDPruner(5, compat=True).select(visual, **given))
    cosine = torch.nn.functional.cosine_similarity(image[:, :, None], text[:, None], dim=-1)
    relevance = -cosine.mean(-1)
    right = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    assert torch.allclose(both, right, atol=1e-5)
    alone = CDPruner(5, compat=True).select(visual[1], image_embeds=image[1], text_embeds=text[1])
    assert not torch.allclose(scores(alone), both[1], atol=1e-3)
    own = scores(CDPruner(5).select(visual, **given))
    assert (own.amin(-1) == 0).all()
    assert (own.amax(-1) == 1).all()
    # Tokens that are not there do not scale the others.
    mask = (relevance > relevance.min()) & (relevance < relevance.max())
    got = scores(CDPruner(5, compat=True).select(visual, visual_mask=mask, **given))
    left = relevance[mask]
    right = (left - left.min() + 1e-6) / (left.max() - left.min())
    assert torch.allclose(got[mask], right, atol=1e-5)
    assert got[~mask].isnan().all()
    own_space = CDPruner(5, space="llm", compat=True)
    got = scores(own_space.select(visual, draw("words", (2, 4, D)), visual_mask=mask))
    assert got[mask].min() < 1e-4
    assert got[mask].max() == pytest.approx(1.0, abs=1e-4)
    # One token alone, whose scale is no number.
    one = {"image_embeds": image[0, :1], "text_embeds": text[0]}
    assert CDPruner(1, compat=True).select(visual[0, :1], **one).indices.tolist() == [0]
    nothing = {"image_embeds": image[:, :0], "text_embeds": text}
    assert scores(CDPruner(5, compat=True).select(visual[:, :0], **nothing)).shape == (2, 0)


def test_image_embeddings_that_have_no_direction_or_are_not_finite() -> None:
    """In CLIP's space: cosine 0 with every word, or no token."""
    visual, text = tokens("iid", 6, D), torch.tensor([[1.0, 0.0]])
    image = torch.tensor(
        [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [torch.nan, 0.0], [-1.0, 0.0], [9, 9]]
    )
    picked = CDPruner(6, sorted=False).select(visual, image_embeds=image, text_embeds=text)
    half = (1.0 - 0.5**0.5) / 2
    got = scores(picked)[[0, 1, 2, 4, 5]]
    assert torch.allclose(got, torch.tensor([half, 0.5, 0.0, 1.0, half]), atol=1e-6)
    assert scores(picked)[3].isnan()
    assert sorted(kept(picked.indices)) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("name", CASES + ODD)
@pytest.mark.parametrize("compat", [False, True])
def test_anchorprune(name: str, compat: bool) -> None:
    visual, mask = case(name)
    image, text = draw("image", (N, 10, 1))[..., 0], draw("text", (4, 10, 1))[..., 0]
    words = prompt("vlm", 4, D)
    attention = draw("attention", (1, N))[0]
    attention[3], attention[5], attention[7] = torch.nan, -0.5, 0.0
    allowed = [i for i in valid_tokens(visual, mask) if i not in (3, 5)]
    weights = {i: float(attention[i]) for i in allowed}
    decided, sizes = 0, set()
    for k in COUNTS:
        for space, patience in (("clip", 3), ("llm", 1), ("clip", 1)):
            method = AnchorPrune(k, space, 0.2, 0.7, 0.3, patience, sorted=False, compat=compat)
            given = {"image_embeds": image, "text_embeds": text} if space == "clip" else {}
            picked = method.select(visual, words, attention=attention, visual_mask=mask, **given)
            picks, inside = kept(picked.indices), int(picked.core_mask.sum())
            assert len(picks) == min(k, len(allowed))
            assert picked.core_mask[:inside].all()
            relevance = {i: float(scores(picked)[i]) for i in allowed}
            least, most = max(1, round(0.2 * k)), max(1, round(0.2 * k), int(0.7 * k))
            own = image if space == "clip" else visual
            anchor = anchor_of(own, relevance, least, most, 0.3, patience)
            assert picks[:inside] == anchor
            sizes.add(inside)
            if not allowed:
                continue
            decided += check_expansion(
                visual, anchor, picks[inside:], weights, 1.0 if compat else 2.0
            )
            if space == "clip":
                cosine = torch.nn.functional.cosine_similarity(image[:, None], text, dim=-1)
                right = -cosine.mean(-1)
            else:
                rows = [[torch.cosine_similarity(v, w, 0) for w in words] for v in visual]
                right = torch.tensor(rows).amax(-1)
            if decisive(name):
                assert torch.allclose(scores(picked)[allowed], right[allowed], atol=1e-6)
    assert (decided > 30 and len(sizes) > 4) or not decisive(name)


def test_anchorprune_counts_novelty_exactly() -> None:
    """Directions at 0, 60 and 90 degrees: a distance of one half is not above one half."""
    visual = torch.tensor([[4.0, 0, 0, 0], [2, 2, 2, 2], [0, 4, 0, 0], [0, 0, 0, 4]])
    words, attention = torch.tensor([[9.0, 3, 1, 0]]), torch.tensor([0.1, 0.2, 0.3, 0.9])
    for novelty, anchor in ((0.5, [0, 1, 2]), (0.4999, [0, 1])):
        method = AnchorPrune(3, "llm", 0.0, 1.0, novelty, patience=1, sorted=False)
        picked = method.select(visual, words, attention=attention)
        assert picked.indices[picked.core_mask].tolist() == anchor
    silent = AnchorPrune(3, "llm", sorted=False).select(visual, words[:0], attention=attention)
    assert not silent.core_mask.any()
    assert silent.indices[0] == 3, "the most important token, as nothing was asked"


def test_anchorprune_of_what_clip_says_nothing_about() -> None:
    """A patch without direction is the last; an image that was asked nothing has no anchor.

    A token of infinite or negative attention is none.
    """
    visual, image, text = (
        draw("visual", (2, N, 8)),
        draw("image", (2, N, 10)),
        draw("text", (2, 3, 10)),
    )
    image[:, 4] = 0.0
    attention, asked = draw("attention", (2, N)).abs(), torch.tensor([[True] * 3, [False] * 3])
    attention[0, 6], attention[0, 7] = torch.inf, -1.0
    method = AnchorPrune(9, sorted=False)
    given = {"image_embeds": image, "text_embeds": text, "attention": attention}
    picked = method.select(visual, prompt_mask=asked, **given)
    rated = scores(picked)
    assert rated[0].argsort(stable=True)[:3].tolist() == [6, 7, 4]
    assert rated[0, 4] == -1.0
    assert (rated[0, 6:8] == -torch.inf).all()
    assert (rated[1, torch.arange(N) != 4] == 0.0).all()
    assert picked.core_mask.any(-1).tolist() == [True, False]
    assert picked.indices[1, 0] == attention[1].argmax()
    for b in range(2):
        own = {name: x[b] for name, x in given.items()}
        alone = method.select(visual[b], prompt_mask=asked[b], **own)
        assert torch.equal(alone.indices, picked.indices[b])
        assert torch.equal(alone.core_mask, picked.core_mask[b])
        assert torch.equal(scores(alone), rated[b])


@pytest.mark.parametrize("name", CASES + ODD)
def test_scope(name: str) -> None:
    visual, mask = case(name)
    features = tokens("vlm", N, 10, seed=4) if name == "duplicates" else None
    attention = (8 * draw("attention", (1, N))[0]).floor() / 8
    attention[3], attention[5], attention[6] = torch.nan, -0.5, torch.inf
    space = visual if features is None else features
    allowed = [i for i in valid_tokens(space, mask) if i not in (3, 5, 6)]
    rows = token_rows(space, allowed, 0.0)
    decided = 0
    for k in COUNTS:
        for alpha in (0.5, 1.0, 0.0):
            method = SCOPE(k, alpha, sorted=False)
            picked = method.select(visual, attention=attention, features=features, visual_mask=mask)
            picks = kept(picked.indices)
            assert len(picks) == min(k, len(allowed))
            weights = {i: float(attention[i]) ** alpha for i in allowed}
            decided += check_coverage(picks, allowed, rows, weights, 1e-6, 0.0)
    assert decided > 50 or not decisive(name)


@pytest.mark.parametrize("name", CASES + ODD)
def test_mmtok(name: str) -> None:
    visual, mask = case(name)
    features = tokens("clusters", N, 10, seed=4) if name == "duplicates" else None
    space = visual if features is None else features
    words = prompt("vlm", 5, D)
    words[1] = torch.nan
    real = torch.arange(5) != 4
    allowed = valid_tokens(visual, mask)
    decided = 0
    for k in COUNTS:
        for heat, balance in ((0.02, 0.5), (0.1, 0.0), (0.1, 3.0)):
            method = MMTok(k, heat, balance=balance, sorted=False)
            picked = method.select(
                visual, words, features=features, visual_mask=mask, prompt_mask=real
            )
            picks = kept(picked.indices)
            assert len(picks) == min(k, len(allowed))
            given = scores(picked).tolist()
            assert all(given[i] == 0.0 for i in range(N) if i not in allowed)
            assert sum(given) == pytest.approx(1.0 if allowed else 0.0, abs=1e-5)
            if not allowed:
                continue
            rows = word_rows(visual, words[real], allowed, heat)
            about = [[balance * x for x in row] for row in token_rows(space, allowed, 0.2)]
            weights = dict.fromkeys(allowed, 1.0)
            decided += check_coverage(picks, allowed, rows + about, weights, 0.0, 3e-6 / heat)
    assert decided > 50 or not decisive(name)


def test_mmtok_without_words_covers_the_tokens() -> None:
    visual = tokens("clusters", N, D)
    allowed = list(range(N))
    rows = token_rows(visual, allowed, 0.2)
    for words, real in (
        (prompt("vlm", 3, D), torch.zeros(3, dtype=torch.bool)),
        (torch.empty(0, D), None),
    ):
        picked = MMTok(9, sorted=False).select(visual, words, prompt_mask=real)
        picks = kept(picked.indices)
        check_coverage(picks, allowed, rows, dict.fromkeys(allowed, 1.0), 0.0, 2e-5)
        assert not scores(picked).any()


def test_the_three_rules_differ() -> None:
    """A repeated region, a word about one token, a salient token: each method picks its own first.

    Tokens 0 to 5 repeat one direction, 6 is named by the prompt, 7 is the one that attention marks.
    """
    visual = torch.eye(4)[[0, 0, 0, 0, 0, 0, 1, 2]] + 0.01 * tokens("iid", 8, 4)
    named = torch.eye(4)[1:2]
    attention = torch.tensor([0.01] * 7 + [1.0])
    assert MMTok(1, balance=0.0).select(visual, named).indices.tolist() == [6]
    assert CDPruner(1, space="llm").select(visual, named).indices.tolist() == [6]
    assert SCOPE(1, 1.0).select(visual, attention=attention).indices.tolist() == [7]
    assert SCOPE(1, 0.0).select(visual, attention=attention).indices.item() < 6
    first = CDPruner(2, space="llm", sorted=False).select(visual, named).indices.tolist()
    second = MMTok(2, balance=3.0, sorted=False).select(visual, named).indices.tolist()
    assert set(first) != set(second)


#: Images of four lengths; one has rows that are not finite, one is a repeated row.
SIZES = (7, 24, 12, 9)
RAGGED: list[tuple[str, Any, tuple[str, ...]]] = [
    ("dpp", CDPruner(0.3, space="llm"), ()),
    ("dpp", CDPruner(0.3, compat=True), ("image_embeds", "text_embeds")),
    ("dpp", CenPrune(0.3, process="dpp"), ()),
    ("diversity", CenPrune(5), ("importance",)),
    ("facility_location", SCOPE(0.3), ("attention",)),
    ("facility_location", SCOPE(5), ("attention", "features")),
    ("facility_location", MMTok(0.3), ()),
    ("facility_location", MMTok(5, balance=3.0), ("features",)),
    ("facility_location", MMTok(5, balance=0.0), ()),
]


def ragged_inputs(names: tuple[str, ...]) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    images = [tokens("vlm", n, D, seed) for seed, n in enumerate(SIZES)]
    images[2][:] = images[2][0]
    images[3][2:4] = torch.nan
    # Words of every number: some, none, no valid one, more than a vector.
    prompts = [draw("words", (1, m, D))[0] for m in (3, 0, 2, 17)]
    prompts[2][:] = torch.nan
    widths = {"importance": (), "attention": (), "features": (6,), "image_embeds": (6,)}
    given: dict[str, Any] = {}
    for name in names:
        if name == "text_embeds":
            given[name] = [draw(name, (1, 2, 6), i)[0] for i in range(4)]
        else:
            shapes = [(1, n, *widths[name]) for n in SIZES]
            given[name] = [draw(name, shape, i)[0] for i, shape in enumerate(shapes)]
    return images, prompts, given


@pytest.mark.parametrize(("op", "method", "names"), RAGGED)
def test_one_ragged_call_is_select_on_each_image(
    op: str, method: Any, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, prompts, given = ragged_inputs(names)
    ragged, calls = getattr(zk.api, f"{op}_varlen"), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(op)
        return ragged(*arguments, **options)

    for sort in (True, False):
        one = dataclasses.replace(method, sorted=sort)
        rows = [{x: values[i] for x, values in given.items()} for i in range(4)]
        right = [one.select(images[i], prompts[i], **rows[i]) for i in range(4)]
        with monkeypatch.context() as patch:
            patch.delattr(zk.api, op)
            patch.setattr(zk.api, f"{op}_varlen", counted)
            picked = one.select_varlen(images, prompts, **given)
        for got, alone in zip(picked, right, strict=True):
            assert torch.equal(got.indices, alone.indices)
            assert torch.equal(got.core_mask, alone.core_mask)
            assert torch.equal(scores(got).nan_to_num(), scores(alone).nan_to_num())
    assert calls == [op, op]
    assert method.select_varlen([], [], **{x: [] for x in given}) == []


def test_bad_ragged_inputs() -> None:
    images, prompts, given = ragged_inputs(("attention",))
    with pytest.raises(TypeError, match=r"SCOPE: attention must be a tensor \[B, N\] \(.*got None"):
        SCOPE(0.5).select_varlen(images)
    with pytest.raises(TypeError, match="SCOPE: attention must be a sequence of tensors, got Tens"):
        SCOPE(0.5).select_varlen(images, attention=torch.ones(7))
    with pytest.raises(ValueError, match="MMTok: prompt must have a tensor for each image, 4, "):
        MMTok(0.5).select_varlen(images, prompts[:3])
    with pytest.raises(TypeError, match=r"CDPruner: image_embeds must be a tensor \[B, N, Dc\]"):
        CDPruner(0.5).select_varlen(images, prompts)
    given["attention"][1] = torch.ones(3)
    with pytest.raises(ValueError, match=r"SCOPE: attention must have shape \[24\], got \[3\]"):
        SCOPE(0.5).select_varlen(images, **given)
    with pytest.raises(ValueError, match=r"SCOPE: features must have shape \[9, C\], got \[9\]"):
        SCOPE(2).select(torch.ones(9, 4), attention=torch.ones(9), features=torch.ones(9))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CDPruner(0.5, space="word"), "CDPruner: space must be one of"),
        (lambda: CDPruner(0.5, emphasis=1.0), "CDPruner: emphasis must be"),
        (lambda: AnchorPrune(0.5, "word"), "AnchorPrune: space must be one of clip, llm"),
        (lambda: AnchorPrune(0.5, novelty=3.0), r"AnchorPrune: novelty must be in \[0, 2\]"),
        (lambda: AnchorPrune(0.5, patience=0), "AnchorPrune: patience must be at least 1"),
        (lambda: SCOPE(0.5, -1.0), "SCOPE: alpha must be"),
        (lambda: MMTok(0.5, 0.0), "MMTok: text_temperature must be"),
        (lambda: MMTok(0.5, balance=-1.0), "MMTok: balance must be"),
        (lambda: MMTok(0.0), "keep must be"),
    ],
)
def test_bad_options_fail_at_once(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(TypeError, match=r"CDPruner: prompt must be a tensor \[B, M, D\] \(with"):
        CDPruner(0.5, space="llm").select(torch.eye(4))
