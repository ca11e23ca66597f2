# SPDX-License-Identifier: Apache-2.0
"""facility_location: every pick against the gains in float64, and the laws of the contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.runners import each_backend, fitting, same_bits, strided_views, threads
from zspa_kernels import _native
from zspa_kernels.testing import MODELS, SPECIAL, bound, special, tokens
from zspa_kernels.testing.baselines import facility_location_loop
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    large_special_cases,
    model_cases,
    seed_and_weight_cases,
    special_cases,
)
from zspa_kernels.testing.facility_location import (
    FacilityLocation,
    check_facility_location,
    facility_location64,
    judge_facility_location,
)

Require = Callable[..., None]
on_cpu = pytest.mark.parametrize("backend", ["reference", "cpp"])
COVER: dict[str, dict[str, Any]] = {
    "cosine": {},
    "softmax": {"temperature": 0.2},
    "words": {"words": 5, "temperature": 0.2, "scale": 0.5},
    "words alone": {"words": 3, "scale": 0.0},
}


def facility_location(backend: str) -> FacilityLocation:
    def run(
        visual: Tensor,
        k: int,
        benefits: Tensor | None,
        weights: Tensor | None,
        mask: Tensor | None,
        temperature: float,
        scale: float,
    ) -> Tensor:
        return zk.facility_location(
            visual,
            k,
            benefits=benefits,
            weights=weights,
            visual_mask=mask,
            temperature=temperature,
            scale=scale,
            backend=backend,
        )

    return run


def judge_all(backend: str, cases: list[Case], cover: str) -> None:
    picks = decided = 0
    for case in fitting(backend, "facility_location", cases):
        if backend == "reference" and case.n * case.n * case.d > 2_000_000:
            continue
        run = facility_location(backend)
        with case.named():
            replay = judge_facility_location(case, run, backend, **COVER[cover])
        picks, decided = picks + replay.picks, decided + replay.decided
    assert decided > picks / 3 or cover == "words alone"  # three rows: most gains are 0


@pytest.mark.parametrize("cover", COVER)
def test_standard_cases_in_triton(cover: str, require_backend: Require) -> None:
    require_backend("triton", "facility_location")
    weighted = [case for case in seed_and_weight_cases() if case.seeds == "none"]
    cases = model_cases("small") + special_cases() + weighted
    judge_all("triton", cases[list(COVER).index(cover) :: 13], cover)


@on_cpu
@pytest.mark.parametrize("cover", COVER)
def test_models(backend: str, cover: str, require_backend: Require) -> None:
    require_backend(backend, "facility_location")
    start = list(COVER).index(cover)
    judge_all(backend, model_cases("small")[start % 2 :: 2] + model_cases("wide")[start::4], cover)


@on_cpu
@pytest.mark.parametrize("cover", ["cosine", "words"])
def test_special_inputs_and_weights(backend: str, cover: str, require_backend: Require) -> None:
    require_backend(backend, "facility_location")
    weighted = [case for case in seed_and_weight_cases() if case.seeds == "none"]
    judge_all(backend, special_cases()[:: 1 if backend == "cpp" else 3] + weighted, cover)


@pytest.mark.parametrize("cover", ["cosine", "softmax"])
def test_large(cover: str, require_backend: Require) -> None:
    """More than one block of columns of the matrix."""
    require_backend("cpp", "facility_location")
    cases = [Case(m, 700, 129, 0, 60, torch.bfloat16, weights="eighths") for m in MODELS]
    judge_all("cpp", [*cases, Case("exact", 600, 65, 0, 200)], cover)
    for case in large_special_cases()[::5]:
        judge_facility_location(case, facility_location("cpp"), "cpp", **COVER[cover])


@each_backend
def test_all_tokens_of_a_few(backend: str, require_backend: Require) -> None:
    """Every N from 1 to 12 with every k."""
    require_backend(backend, "facility_location")
    for n in range(1, 6 if backend == "triton" else 13):
        visual = tokens("iid", n, 9, seed=n)
        for k in {0, 1, n - 1, n}:
            got = zk.facility_location(visual, k, backend=backend)
            check_facility_location(visual, got, k, bound=bound(9, backend))


@each_backend
def test_exact_picks_are_the_same_everywhere(backend: str, require_backend: Require) -> None:
    """Sums of exact cosines are exact: most picks are decided by the tie rule."""
    require_backend(backend, "facility_location")
    n, k = (60, 20) if backend == "triton" else (130, 60)
    visual = tokens("exact", n, 64)
    for dtype in DTYPES[1:2] if backend == "triton" else DTYPES:
        got = zk.facility_location(visual.to(dtype), k, backend=backend)
        assert torch.equal(got, facility_location64(visual, k))


@on_cpu
def test_equals_the_published_loop(backend: str, require_backend: Require) -> None:
    require_backend(backend, "facility_location")
    visual = tokens("clusters", 150, 100, seed=5)
    weights = torch.rand(150, generator=torch.Generator().manual_seed(1))
    unit = visual / visual.norm(dim=-1, keepdim=True)
    loop = facility_location_loop((unit @ unit.T).clamp_min(0), 30, weights)
    got = zk.facility_location(visual, 30, weights=weights, backend=backend)
    replay = check_facility_location(visual, got, 30, weights=weights, bound=bound(100, backend))
    assert replay.decided == 30
    assert torch.equal(got, loop)


@each_backend
def test_a_repeated_row_is_covered(backend: str, require_backend: Require) -> None:
    """After the picks of a repetition nothing of it is left: the rest follows by index."""
    require_backend(backend, "facility_location")
    n = 7 if backend == "triton" else 20
    visual = tokens("iid", n, 50).repeat(4, 1)
    for temperature in (0.0, 0.1):
        picks = zk.facility_location(
            visual, 4 * n, temperature=temperature, backend=backend
        ).tolist()
        assert sorted(picks[:n]) == list(range(n))
        assert picks[n:] == list(range(n, 4 * n))


@each_backend
def test_benefits_that_add_up_to_infinity(backend: str, require_backend: Require) -> None:
    """A weight of 0 makes nothing of them; those of other tokens are equal."""
    require_backend(backend, "facility_location")
    rows = torch.eye(6, 8)
    benefits = torch.full((3, 6), 1e-3)
    benefits[:, 2], benefits[:, 4:] = 3e38, 2e38
    weights = torch.tensor([1.0, 1, 0, 1, 2, 1])
    picks = zk.facility_location(rows, 6, benefits=benefits, weights=weights, backend=backend)
    assert picks.tolist() == [4, 0, 1, 3, 5, 2]


@each_backend
def test_weighted_gains_that_are_equal(backend: str, require_backend: Require) -> None:
    """A tenth of seven times three is less than one of three times seven, once it is rounded."""
    require_backend(backend, "facility_location")
    visual = torch.eye(2, 16)[[0] * 7 + [1] * 3]
    weights = torch.tensor([3.0] * 7 + [7.0] * 3)
    assert zk.facility_location(visual, 2, weights=weights, backend=backend).tolist() == [0, 7]


@each_backend
def test_segments_without_benefits_or_weights(backend: str, require_backend: Require) -> None:
    require_backend(backend, "facility_location")
    images, counts = [tokens("vlm", n, 9, n) for n in (5, 1, 8)], [2, 1, 6]
    for given in ({}, {"temperature": 0.3}, {"weights": [x[:, 0].abs() for x in images]}):
        got = zk.facility_location_varlen(images, counts, **given, backend=backend)
        for i, (image, k) in enumerate(zip(images, counts, strict=True)):
            own = {name: x[i] if isinstance(x, list) else x for name, x in given.items()}
            same_bits(got[i], zk.facility_location(image, k, **own, backend=backend))


@each_backend
def test_batches_strides_and_segments(backend: str, require_backend: Require) -> None:
    """A row alone, in a batch, strided, padded with masked tokens, and as a segment: equal bits."""
    require_backend(backend, "facility_location")
    sizes = {"reference": (30, 17, 12), "cpp": (330, 65, 70), "triton": (30, 17, 7)}
    n, d, k = sizes[backend]
    kinds = list(zip((*MODELS, *SPECIAL), DTYPES * 8, strict=False))
    for kind, dtype in kinds[:: 12 if backend == "triton" else 1]:
        model = kind in MODELS
        visual = tokens(kind, n, d, 3, dtype) if model else special(kind, n, d, 3).visual.to(dtype)
        mask = None if model else special(kind, n, d, 3).mask
        mask = torch.ones(n, dtype=torch.bool) if mask is None else mask
        draw = torch.Generator().manual_seed(2)
        weights, benefits = torch.rand(n, generator=draw), torch.rand(3, n, generator=draw)
        options: dict[str, Any] = {"temperature": 0.3, "scale": 2.0}
        if kind in ("exact", "vlm", "masked"):
            options = {}
        given = {"benefits": benefits, "weights": weights, "visual_mask": mask, **options}
        alone = zk.facility_location(visual, k, **given, backend=backend)
        noise = tokens("vlm", n + 9, d, 4, dtype)
        padded, padded_mask = noise.clone(), torch.zeros(n + 9, dtype=torch.bool)
        padded[5 : 5 + n], padded_mask[5 : 5 + n] = visual, mask
        wide, rows = torch.ones(2, n + 9), torch.ones(2, 3, n + 9)
        wide[1, 5 : 5 + n], rows[1, :, 5 : 5 + n] = weights, benefits
        masks = torch.stack([torch.ones(n + 9, dtype=torch.bool), padded_mask])
        got = zk.facility_location(
            torch.stack([noise, padded]),
            k,
            benefits=rows,
            weights=wide,
            visual_mask=masks,
            **options,
            backend=backend,
        )[1]
        same_bits(torch.where(got >= 0, got - 5, got), alone)
        shown = torch.where(mask[:, None], visual, torch.nan)
        packed = zk.facility_location_varlen(
            torch.cat([noise[:7], noise[:0], shown]),
            [2, 0, k],
            lengths=[7, 0, n],
            benefits=torch.cat([rows[0, :, :7], benefits], dim=1),
            weights=torch.cat([wide[0, :7], weights]),
            **options,
            backend=backend,
        )
        assert isinstance(packed, Tensor)
        same_bits(torch.where(packed >= 0, packed - 7, packed)[2:], alone)
        listed = zk.facility_location_varlen(
            [noise[:7], shown],
            [2, k],
            benefits=[rows[0, :, :7], benefits],
            weights=[wide[0, :7], weights],
            **options,
            backend=backend,
        )
        same_bits(listed[1], alone)
        for view in list(strided_views(visual).values())[:: 2 if backend == "cpp" else 5]:
            same_bits(zk.facility_location(view, k, **given, backend=backend), alone)


def test_ragged_benefits_must_fit() -> None:
    images, rows = [torch.eye(3), torch.eye(3)[:2]], [torch.ones(2, 3), torch.ones(2, 2)]
    assert zk.facility_location_varlen([], 1, benefits=[]) == []
    for wrong, error in (
        (torch.ones(2, 5), TypeError),
        (rows[:1], ValueError),
        ([rows[0], torch.ones(1, 2)], ValueError),
        ([rows[0], torch.ones(2, 3)], ValueError),
        ([torch.ones(3), torch.ones(2)], ValueError),
        ([rows[0], rows[1].double()], TypeError),
        ([rows[0], None], TypeError),
    ):
        with pytest.raises(error, match=r"^facility_location_varlen: benefits.* must .*, got "):
            zk.facility_location_varlen(images, 1, benefits=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["iid", "video", "exact"])
def test_threads_and_counts_at_real_sizes(model: str, require_backend: Require) -> None:
    require_backend("cpp", "facility_location")
    for dtype, options in ((torch.float32, {}), (torch.bfloat16, {"temperature": 0.2})):
        visual = tokens(model, 1000, 200, dtype=dtype)
        with threads(1):
            one = zk.facility_location(visual, 150, **options)
        for count in (2, 3):
            with threads(count):
                same_bits(zk.facility_location(visual, 150, **options), one)
        for fewer in (1, 149):
            same_bits(zk.facility_location(visual, fewer, **options), one[:fewer])


def test_no_room_for_the_matrix(require_backend: Require) -> None:
    require_backend("cpp", "facility_location")
    program = """
import resource, torch, zspa_kernels as zk
tokens = torch.randn(60_000, 8)
assert zk.facility_location(tokens[:500], 9).min() >= 0
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.RLIM_INFINITY))
try:
    zk.facility_location(tokens, 9)
except MemoryError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(
        "facility_location: visual must have so few tokens that the matrix"
    )
    assert run.stdout.endswith("fits into memory, got 60000 (13 GiB)\n")


def test_scales_change_nothing(require_backend: Require) -> None:
    require_backend("cpp", "facility_location")
    visual = tokens("clusters", 300, 65)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(0)) + 0.01
    picks = zk.facility_location(visual, 60, weights=weights)
    for exponent in (-30, 30):
        same_bits(zk.facility_location(visual * 2.0**exponent, 60, weights=weights), picks)
    for exponent in (-80, 127):  # the largest weight is near the end of the range
        same_bits(zk.facility_location(visual, 60, weights=weights * 2.0**exponent), picks)
    same_bits(zk.facility_location(visual, 60, weights=weights, scale=7.0), picks)


@pytest.fixture(params=_native.module().isas() if _native.reason() is None else ["none"])
def native_isa(request: pytest.FixtureRequest, require_backend: Require) -> Iterator[str]:
    require_backend("cpp")
    _native.module().use_isa(request.param)
    yield request.param
    _native.module().use_isa("auto")


def test_instruction_sets_meet_the_oracle(native_isa: str) -> None:
    run = facility_location("cpp")
    for turn, case in enumerate(model_cases("small")[::4] + special_cases()[::6]):
        judge_facility_location(case, run, "cpp", **list(COVER.values())[turn % 3])
    visual = tokens("exact", 500, 129)
    same_bits(zk.facility_location(visual, 90), facility_location64(visual, 90))
