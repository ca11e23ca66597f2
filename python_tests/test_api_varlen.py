# SPDX-License-Identifier: Apache-2.0
"""The ragged public functions: every form of their arguments, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import zspa_kernels as zk

LENGTHS = [5, 1, 12, 8]
WORDS = [2, 1, 0, 3]
D = 6


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


IMAGES = [draw(n, D) for n in LENGTHS]
PROMPTS = [draw(m, D) for m in WORDS]
SHARED = draw(4, D)


def packed(parts: list[Tensor]) -> Tensor:
    """Indices into each image as indices into the packed tokens."""
    starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    return torch.cat([part + start for part, start in zip(parts, starts, strict=True)])


def in_packed(visual: Tensor, **options: Any) -> Tensor:
    indices = zk.select_varlen(visual, **options)
    assert isinstance(indices, Tensor)
    return indices


def each(prompts: list[Tensor | None], **options: Any) -> list[Tensor]:
    pairs = zip(IMAGES, prompts, strict=True)
    return [zk.select(visual, prompt, **options) for visual, prompt in pairs]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert isinstance(found, list)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference", "cpp"])
def test_every_form_of_prompt_is_the_images_one_by_one(backend: str, sort: bool) -> None:
    options: dict[str, Any] = {"keep": 0.5, "core_ratio": 0.4, "sorted": sort, "backend": backend}
    visual, prompt = torch.cat(IMAGES), torch.cat(PROMPTS)

    own = each([*PROMPTS], **options)
    assert_same(zk.select_varlen(IMAGES, PROMPTS, **options), own)
    assert_same(zk.select_varlen(tuple(IMAGES), prompt, prompt_lengths=WORDS, **options), own)
    in_one = zk.select_varlen(visual, PROMPTS, lengths=LENGTHS, **options)
    assert torch.equal(in_one, packed(own))
    in_one = zk.select_varlen(visual, prompt, lengths=LENGTHS, prompt_lengths=WORDS, **options)
    assert torch.equal(in_one, packed(own))

    shared = each([SHARED] * 4, **options)
    assert_same(zk.select_varlen(IMAGES, SHARED, **options), shared)
    in_one = zk.select_varlen(visual, SHARED, lengths=LENGTHS, **options)
    assert torch.equal(in_one, packed(shared))

    del options["core_ratio"]
    assert_same(zk.select_varlen(IMAGES, **options), each([None] * 4, **options))


def test_counts_for_all_or_one_an_image() -> None:
    found = zk.select_varlen(IMAGES, SHARED, k_core=[1, 0, 3, 2], k_diverse=[4, 1, 0, 2])
    expected = [
        zk.select(visual, SHARED, k_core=core, k_diverse=diverse)
        for visual, core, diverse in zip(IMAGES, [1, 0, 3, 2], [4, 1, 0, 2], strict=True)
    ]
    assert_same(found, expected)
    found = zk.select_varlen(IMAGES, SHARED, k_core=1, k_diverse=[0, 0, 2, 1])
    assert [len(part) for part in found] == [1, 1, 3, 2]
    assert [len(part) for part in zk.select_varlen(IMAGES, keep=3)] == [3, 1, 3, 3]
    by_floor = zk.select_varlen(IMAGES, keep=0.7, rounding="floor")
    assert [len(part) for part in by_floor] == [3, 1, 8, 5]


def test_invalid_tokens_leave_minus_one_in_every_form() -> None:
    images = [draw(2, D), torch.full((3, D), float("nan")), draw(2, D)]
    found = zk.select_varlen(images, keep=2)
    assert [part.tolist() for part in found] == [[0, 1], [-1, -1], [0, 1]]
    in_one = in_packed(torch.cat(images), lengths=[2, 3, 2], keep=2)
    assert in_one.tolist() == [0, 1, -1, -1, 5, 6]
    assert zk.gather(torch.cat(images), in_one)[2:4].tolist() == [[0.0] * D] * 2


def test_nothing_to_select() -> None:
    assert zk.select_varlen([], keep=0.5) == []
    assert zk.diversity_varlen([], 3) == []
    assert in_packed(draw(0, D), lengths=[], keep=0.5).shape == (0,)
    assert in_packed(draw(0, D), prompt=[], lengths=[], keep=0.5).shape == (0,)
    assert zk.diversity_varlen(draw(0, D), [], lengths=[]).shape == (0,)
    assert_same(zk.select_varlen([draw(0, D)], SHARED, keep=0.5), [torch.empty(0).long()])


@pytest.mark.parametrize("pooling", ["max", "none_mean", "none_max"])
def test_pooling_is_that_of_each_image(pooling: str) -> None:
    options: dict[str, Any] = {"keep": 1.0, "core_ratio": 1.0, "sorted": False, "pooling": pooling}
    own = each([*PROMPTS], **options)
    assert_same(zk.select_varlen(IMAGES, PROMPTS, **options), own)
    by_mean = each([*PROMPTS], **{**options, "pooling": "mean"})
    assert any(not torch.equal(a, b) for a, b in zip(own, by_mean, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_diversity_is_the_images_one_by_one(weighted: bool) -> None:
    weights = [draw(n, 1)[:, 0].abs() if weighted else None for n in LENGTHS]
    ks = [3, 0, 12, 1]
    expected = [
        zk.diversity(visual, k, weights=w) for visual, k, w in zip(IMAGES, ks, weights, strict=True)
    ]
    given = [w for w in weights if w is not None] or None
    assert_same(zk.diversity_varlen(IMAGES, ks, weights=given), expected)
    in_one = zk.diversity_varlen(
        torch.cat(IMAGES), ks, lengths=LENGTHS, weights=torch.cat(given) if given else None
    )
    assert torch.equal(in_one, packed(expected))
    assert [len(part) for part in zk.diversity_varlen(IMAGES, 1)] == [1, 1, 1, 1]


def test_one_call_of_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told the longest image: scratch memory follows from that."""
    calls = []
    for op in ("select_varlen", "dpp_varlen"):
        real: Callable[..., Tensor] = getattr(torch.ops.zspa, op)

        def run(*arguments: Any, real: Callable[..., Tensor] = real) -> Tensor:
            calls.append(arguments)
            return real(*arguments)

        monkeypatch.setattr(torch.ops.zspa, op, run)
    zk.select_varlen(IMAGES, PROMPTS, keep=0.5)
    zk.dpp_varlen(IMAGES, 1)
    (selected, spanned) = calls
    assert selected[7] == spanned[4] == max(LENGTHS)


VISUAL = torch.cat(IMAGES)
with FakeTensorMode():  # which has every device
    ELSEWHERE = torch.empty(4, D, device="cuda")
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"visual": None}, TypeError, "visual must be a tensor or a sequence of tensors, got None"),
    ({"visual": "ab"}, TypeError, "visual must be a tensor or a sequence of tensors, got str"),
    ({"visual": [*IMAGES[:3], None]}, TypeError, "visual[3] must be a tensor, got None"),
    ({"visual": [*IMAGES[:3], draw(4, D).half()]}, TypeError, "visual[3] must be torch.float32"),
    ({"visual": [*IMAGES[:3], draw(4, D + 1)]}, ValueError, "visual[3] must be [n, D], one D"),
    ({"visual": [*IMAGES[:3], draw(D)]}, ValueError, "visual[3] must be [n, D], one D for all"),
    ({"visual": [draw(D)]}, ValueError, "visual[0] must be [n, D], one D for all, got [6]"),
    ({"visual": [x.to("meta") for x in IMAGES]}, ValueError, "visual[0] must be on a device"),
    ({"visual": [*IMAGES[:3], draw(4, D).to("meta")]}, ValueError, "visual[3] must be on a dev"),
    ({"visual": [x.to_sparse() for x in IMAGES]}, ValueError, "visual[0] must be a dense strided"),
    (
        {"visual": [*IMAGES[:3], ELSEWHERE]},
        ValueError,
        "visual[3] must be on cpu, got cuda:0",
    ),
    ({"visual": [x.double() for x in IMAGES]}, TypeError, "visual must be float32, float16 or"),
    ({"visual": VISUAL}, TypeError, "lengths must be given for packed visual, got None"),
    ({"visual": VISUAL, "lengths": 26}, TypeError, "lengths must be a sequence of ints, got int"),
    ({"visual": VISUAL, "lengths": torch.tensor(LENGTHS)}, TypeError, "lengths must be a sequence"),
    ({"visual": VISUAL, "lengths": [5.0, 21]}, TypeError, "lengths[0] must be an int, got float"),
    ({"visual": VISUAL, "lengths": [True, 25]}, TypeError, "lengths[0] must be an int, got bool"),
    ({"visual": VISUAL, "lengths": [27, -1]}, ValueError, "lengths[1] must be at least 0, got -1"),
    ({"visual": VISUAL, "lengths": [5, 5]}, ValueError, "lengths must add up to the rows of vis"),
    (
        {"visual": VISUAL.sum(), "lengths": [1]},
        ValueError,
        "lengths must add up to the rows of vis",
    ),
    ({"visual": VISUAL[None], "lengths": [1]}, ValueError, "visual must be packed tokens [T, D]"),
    ({"lengths": LENGTHS}, ValueError, "lengths must be None for a list of tensors, got [5, 1"),
    ({"prompt": 3}, TypeError, "prompt must be a tensor or a sequence of tensors, got int 3"),
    ({"prompt": PROMPTS[:3]}, ValueError, "prompt must have a part for each image, 4, got 3"),
    ({"prompt": [*PROMPTS[:3], None]}, TypeError, "prompt[3] must be a tensor, got None"),
    ({"prompt": draw(4, D + 1)}, ValueError, "prompt must be [M, D=6] like visual [26, 6], "),
    ({"prompt": PROMPTS, "prompt_lengths": WORDS}, ValueError, "prompt_lengths must be None for a"),
    ({"prompt": SHARED, "prompt_lengths": [1, 1, 1, 2]}, ValueError, "prompt_lengths must add up"),
    ({"prompt": None, "prompt_lengths": WORDS}, ValueError, "prompt_lengths must be None without"),
    (
        {"prompt": None, "core_ratio": 0.5},
        TypeError,
        "prompt must be a tensor when core_ratio=0.5 > 0",
    ),
    ({"keep": None}, TypeError, "keep must be given, or k_core and k_diverse, got None"),
    ({"keep": 0.0}, ValueError, "keep must be a share in (0, 1], or an int: a count, got 0.0"),
    ({"k_core": 1}, ValueError, "k_core must be None when keep is given, got 1"),
    ({"keep": None, "k_core": 1}, TypeError, "k_diverse must be given with k_core, got None"),
    ({"keep": None, "k_core": 1, "k_diverse": 1}, ValueError, "k_core + k_diverse must be in [0, "),
    ({"keep": None, "k_core": -1, "k_diverse": 1}, ValueError, "k_core must be at least 0, got -1"),
    (
        {"keep": None, "k_core": [1], "k_diverse": 0},
        ValueError,
        "k_core must have a count for each",
    ),
    ({"keep": None, "k_core": True, "k_diverse": 0}, TypeError, "k_core must be an int, got bool"),
    ({"keep": None, "k_core": "1", "k_diverse": 0}, TypeError, "k_core must be a sequence of ints"),
    (
        {"pooling": None},
        TypeError,
        "pooling must be one of mean, max, none_mean, none_max, got None",
    ),
    ({"pooling": "sum"}, ValueError, "pooling must be one of mean, max, none_mean, none_max, got"),
    ({"sorted": None}, TypeError, "sorted must be a bool, got None"),
    ({"rounding": "up"}, ValueError, "rounding must be one of round, floor, got str 'up'"),
    ({"backend": "fast"}, ValueError, "backend must be one of auto, reference, cpp, triton, got"),
]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_select_varlen_errors(
    change: dict[str, Any], error: type[Exception], text: str, backend: str
) -> None:
    arguments = {"visual": IMAGES, "prompt": SHARED, "keep": 0.5, "backend": backend, **change}
    with pytest.raises(error) as caught:
        zk.select_varlen(**arguments)
    assert caught.type is error
    assert str(caught.value).startswith(f"select_varlen: {text}")


def test_ambient_state_changes_nothing() -> None:
    images = [x.half() for x in IMAGES]
    expected = zk.select_varlen(images, keep=0.5)
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        found = zk.select_varlen(images, keep=0.5)
    for ours, right in zip(found, expected, strict=True):
        assert torch.equal(ours, right)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_packed_tokens_are_no_nested_tensor() -> None:
    nested = torch.nested.as_nested_tensor([*IMAGES])
    text = "^select_varlen: visual must be a dense strided tensor, got a nested tensor"
    with pytest.raises(ValueError, match=text):
        zk.select_varlen(nested, lengths=LENGTHS, keep=1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"k": None}, TypeError, "k must be an int, got None"),
        ({"k": True}, TypeError, "k must be an int, got bool True"),
        ({"k": 2}, ValueError, "k must be in [0, N=1], got 2"),
        ({"k": -1}, ValueError, "k must be in [0, N=5], got -1"),
        ({"k": [1, 1]}, ValueError, "k must have a count for each image, 4, got 2"),
        ({"k": torch.ones(4).long()}, TypeError, "k must be a sequence of ints, got Tensor"),
        ({"weights": [draw(n) for n in (5, 1, 12, 7)]}, ValueError, "weights must have lengths"),
        ({"weights": [draw(n).double() for n in LENGTHS]}, TypeError, "weights must be float32"),
        ({"weights": [draw(n, 1) for n in LENGTHS]}, ValueError, "weights[0] must be [n], got"),
        ({"weights": 3}, TypeError, "weights must be a sequence of tensors, as visual is"),
        ({"weights": draw(26)}, TypeError, "weights must be a sequence of tensors, as visual is"),
        ({"visual": VISUAL, "lengths": LENGTHS, "weights": [draw(26)]}, TypeError, "weights must"),
        ({"visual": VISUAL, "lengths": LENGTHS, "weights": draw(25)}, ValueError, "weights must"),
    ],
)
def test_diversity_varlen_errors(change: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        zk.diversity_varlen(**{"visual": IMAGES, "k": 1, **change})
    assert caught.type is error
    assert str(caught.value).startswith(f"diversity_varlen: {text}")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"temperature": "1"}, "temperature must be a float"),
        ({"scale": None}, "scale must be a float"),
        ({"visual": VISUAL, "lengths": LENGTHS, "benefits": [1.0]}, "benefits must be a tensor"),
    ],
)
def test_facility_location_varlen_errors(change: Any, text: str) -> None:
    with pytest.raises(TypeError, match=f"^facility_location_varlen: {text}"):
        zk.facility_location_varlen(**{"visual": IMAGES, "k": 1, **change})


def test_defaults() -> None:
    """What the signatures say, where another value would pick other tokens."""
    visual, scores, where = draw(30, 6), draw(30).abs(), 0.5 * draw(30, 2)
    given: dict[str, Any] = {"sharpness": 2.0, "positions": where}
    every = [
        {"rule": rule, "spread": spread, "reach": reach}
        for rule in ("subtract", "scale")
        for spread in (math.inf, 1.0)
        for reach in (math.inf, 1.0)
    ]
    found = [zk.soft_suppress(visual, scores, 20, **given, **named).tolist() for named in every]
    assert zk.soft_suppress(visual, scores, 20, **given).tolist() == found[0]
    assert len({tuple(picks) for picks in found}) == len(found)
    op = torch.ops.zspa.soft_suppress(visual, scores, 20, 2.0, positions=where)
    assert op.tolist() == found[0]
    rows = 0.5 * draw(5, 30).abs()
    found = [zk.facility_location(visual, 9, benefits=rows, scale=x).tolist() for x in (1.0, 0.5)]
    assert zk.facility_location(visual, 9, benefits=rows).tolist() == found[0] != found[1]
    ragged = zk.facility_location_varlen([visual], 9, benefits=[rows])
    assert ragged[0].tolist() == found[0]


@pytest.mark.gpu
def test_lengths_reach_the_gpu_without_a_sync(require_backend: Callable[..., None]) -> None:
    require_backend("triton", "select_varlen", "cuda")
    images, prompts = ([x.cuda() for x in group] for group in (IMAGES, PROMPTS))
    zk.select_varlen(images, prompts, keep=0.5)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = zk.select_varlen(images, prompts, keep=0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same([part.cpu() for part in found], each([*PROMPTS], keep=0.5))
