# SPDX-License-Identifier: Apache-2.0
"""What holds for every method by name, whatever its rule is."""

from __future__ import annotations

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.scenes import inputs, per_token

B, N, D = 2, 36, 16
METHODS = zk.methods.available()


def same(one: zk.Selection, other: zk.Selection) -> None:
    for a, b in zip(one[:2], other[:2], strict=True):
        assert torch.equal(a, b)


def row(given: dict[str, Tensor], b: int) -> dict[str, Tensor]:
    return {name: x[b] for name, x in given.items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_row_alone_is_the_row_in_a_batch(name: str) -> None:
    given = inputs(name, B, N, D)
    method: Any = zk.methods.get(name, keep=0.25)
    picked = method.select(**given)
    assert picked.indices.shape == picked.core_mask.shape == (B, 9)
    if name == "zooprune":
        given.pop("features")  # which its list does not take
    ragged = method.select_varlen(**given)  # a batch is a sequence of images as well
    for b in range(B):
        alone = method.select(**row(given, b))
        for one in (alone, ragged[b]):
            same(one, zk.Selection(picked.indices[b], picked.core_mask[b]))
        assert (picked.scores is None) == (alone.scores is None)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "zooprune"])
def test_images_of_a_list_are_each_alone(name: str) -> None:
    """Of two lengths; every input by its name, one tensor an image.

    ZOO-Prune's list takes sensitivities and no features; see test_methods.py.
    """
    given = inputs(name, B, N, D)
    images = [row(given, b) for b in range(B)]
    images[1].update({x: images[1][x][: N // 2] for x in per_token(name)})
    images[1].update({x: images[1][x][:2] for x in ("prompt", "text_embeds") if x in given})
    method: Any = zk.methods.get(name, keep=0.25)
    lists = {x: [image[x] for image in images] for x in given}
    picked = method.select_varlen(lists.pop("visual"), lists.pop("prompt", None), **lists)
    for got, image in zip(picked, images, strict=True):
        alone = method.select(**image)
        same(got, alone)
        if got.scores is not None:
            assert alone.scores is not None
            assert torch.equal(got.scores, alone.scores)


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_nothing(name: str) -> None:
    """Masked tokens in between, NaN among them, and the same tokens without them."""
    given = row(inputs(name, 1, N, D), 0)
    place = torch.arange(N) + torch.arange(N) // 4  # a hole behind every fourth
    mask = torch.zeros(int(place[-1]) + 3, dtype=torch.bool)
    mask[place] = True
    wide = dict(given)
    for x in per_token(name):
        values = given[x].new_full((len(mask), *given[x].shape[1:]), 7.0)
        values[::3] = torch.nan
        values[place] = given[x]
        wide[x] = values
    method = zk.methods.get(name, keep=11)
    right = method.select(**given)
    got = method.select(**wide, visual_mask=mask)
    assert torch.equal(got.indices, place[right.indices])
    assert torch.equal(got.core_mask, right.core_mask)
    if got.scores is not None and right.scores is not None:
        assert torch.equal(got.scores[place], right.scores)


@pytest.mark.parametrize("name", METHODS)
def test_a_token_that_one_input_leaves_out_is_not_there(name: str) -> None:
    """Whichever input it is: the others do not see what the token has there."""
    given = row(inputs(name, 1, N, D), 0)
    mask = torch.arange(N) % 6 != 1
    if "positions" in given:
        given["positions"][~mask] *= 5  # so that the middle of the others is another one
    without = {x: value[mask] if x in per_token(name) else value for x, value in given.items()}
    method = zk.methods.get(name, keep=11)
    right = method.select(**without)
    # Top-k, HoloV, ToMe, VisionZip look at scores or keys alone, ZOO-Prune at either of two inputs.
    alone = {"tome": "keys", "holov": "attention", "visionzip": "attention", "scoredtopk": "scores"}
    alone |= dict.fromkeys(zk.methods.PRESETS, "scores")
    unread = {"zooprune": "features"}.get(name)
    for x in [alone[name]] if name in alone else per_token(name):
        if x != unread:
            holes = ~mask.view(-1, *[1] * (given[x].ndim - 1))
            got = method.select(**{**given, x: given[x].float().masked_fill(holes, torch.nan)})
            assert torch.equal(got.indices, mask.nonzero()[:, 0][right.indices]), x
            if got.scores is not None and right.scores is not None:
                assert torch.equal(got.scores[mask], right.scores), x


@pytest.mark.parametrize(
    ("name", "space"),
    [
        *((name, None) for name in ("allinrelevance", "dart", "mmtok")),
        *((name, None) for name in ("trimtokenator", "zspaprune")),
        *((name, space) for name in ("anchorprune", "cdpruner") for space in ("clip", "llm")),
    ],
)
def test_masked_words_are_not_there(name: str, space: str | None) -> None:
    """In the text that a method reads: the prompt, or what CLIP makes of it."""
    given = inputs(name, B, N, D)
    text = "text_embeds" if space == "clip" else "prompt"
    few = given[text]
    wide = few.new_full((B, 2 * few.shape[1], few.shape[2]), 7.0)
    wide[:, ::2] = few
    mask = (torch.arange(wide.shape[1]) % 2 == 0).expand(B, -1)
    method = zk.methods.get(name, keep=9, **({"space": space} if space else {}))
    right = method.select(**given)
    same(method.select(**{**given, text: wide}, prompt_mask=mask), right)
    assert not torch.equal(method.select(**{**given, text: wide}).indices, right.indices)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_selection_is(name: str) -> None:
    given = row(inputs(name, 1, N, D), 0)
    keep_everything = zk.methods.get(name, keep=N).select(**given)
    assert keep_everything.indices.tolist() == list(range(N))
    for keep in (1, 7):
        indices = zk.methods.get(name, keep=keep).select(**given).indices
        assert indices.dtype == torch.int64
        assert len(set(indices.tolist())) == keep
        assert indices.tolist() == sorted(indices.tolist())
        assert indices[0] >= 0
        assert indices[-1] < N
    few = torch.arange(N) < 3
    picked = zk.methods.get(name, keep=5).select(**given, visual_mask=few)
    assert picked.indices.tolist() == [0, 1, 2, -1, -1]
    assert not picked.core_mask[3:].any()
    nobody = zk.methods.get(name, keep=5).select(**given, visual_mask=torch.zeros_like(few))
    assert nobody.indices.tolist() == [-1] * 5


@pytest.mark.parametrize("name", METHODS)
def test_no_token_and_no_image(name: str) -> None:
    empty = row(inputs(name, 1, 0, D), 0)
    assert zk.methods.get(name, keep=0.5).select(**empty).indices.shape == (0,)
    none = inputs(name, 0, N, D)
    assert zk.methods.get(name, keep=0.5).select(**none).indices.shape == (0, N // 2)


@pytest.mark.parametrize("name", METHODS)
def test_degenerate_tokens(name: str) -> None:
    """All equal, zero, or without a valid value: every pick is defined, none comes twice."""
    given = row(inputs(name, 1, N, D), 0)
    for value in (1.0, 0.0):
        equal = {**given, "visual": torch.full((N, D), value)}
        equal |= {x: torch.ones_like(given[x]) for x in per_token(name) if x != "visual"}
        indices = zk.methods.get(name, keep=9).select(**equal).indices
        assert len(set(indices.tolist())) == 9
        assert indices.min() >= 0
        # Ties go to the lowest index, apart from where places decide.
        if name not in ("holov", "tome", "visionzip", "vispruner"):
            assert indices.tolist() == list(range(9))
    nan = {**given, "visual": torch.full((N, D), torch.nan)}
    if set(per_token(name)) == {"visual"}:
        assert (zk.methods.get(name, keep=9).select(**nan).indices == -1).all()


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_strides_and_gradients(name: str) -> None:
    given = inputs(name, B, N, D, model="clusters")
    method = zk.methods.get(name, keep=10)
    half = {**given, "visual": given["visual"].bfloat16()}
    rounded = {**given, "visual": half["visual"].float()}
    same(method.select(**half), method.select(**rounded))
    right = method.select(**given)
    before = {x: value.clone() for x, value in given.items()}
    strided = {x: torch.stack((value, value), -1)[..., 0] for x, value in given.items()}
    same(method.select(**strided), right)
    mask = torch.arange(B * N).view(B, N) % 5 != 0
    wide = torch.stack((mask, ~mask), -1)[..., 0]
    same(method.select(**given, visual_mask=wide), method.select(**given, visual_mask=mask))
    leaves = {x: value.requires_grad_() for x, value in given.items()}
    picked = method.select(**leaves)
    same(picked, right)
    assert picked.scores is None or not picked.scores.requires_grad
    assert all(torch.equal(given[x], before[x]) for x in given)


@pytest.mark.parametrize("name", METHODS)
def test_ambient_state_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(name, B, N, D)
    method = zk.methods.get(name, keep=10)
    right = method.select(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(method.select(**given), right)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        same(method.select(**given), right)
    finally:
        torch.set_default_dtype(default)
    with torch.device("meta"):
        same(method.select(**given), right)
    with torch.inference_mode():
        same(method.select(**given), right)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_values(name: str) -> None:
    one = zk.methods.get(name, keep=0.5)
    assert one == one
    given = inputs(name, 1, N, D)
    copy: Any = pickle.loads(pickle.dumps(one))
    same(copy.select(**given), one.select(**given))
    with pytest.raises(ValueError, match="keep must be a share"):
        zk.methods.get(name, keep=1.5)
    with pytest.raises(TypeError, match="visual must be a tensor"):
        one.select(None, **{x: v for x, v in given.items() if x != "visual"})
    with pytest.raises(ValueError, match="visual must be"):
        one.select(given["visual"][0, 0], **{x: v for x, v in given.items() if x != "visual"})


@pytest.mark.parametrize("name", METHODS)
def test_options_are_numbers_of_any_kind(name: str) -> None:
    given = inputs(name, B, N, D)
    for option, value in vars(zk.methods.get(name, keep=0.25)).items():
        if not isinstance(value, float):
            continue
        for number in (np.float16(value), Fraction(value)):
            plain: Any = zk.methods.get(name, **{"keep": 0.25, option: float(number)})
            other: Any = zk.methods.get(name, **{"keep": 0.25, option: number})
            same(other.select(**given), plain.select(**given))
            assert repr(other) == repr(plain)
    assert repr(zk.methods.get(name, keep=np.int16(9))) == repr(zk.methods.get(name, keep=9))
