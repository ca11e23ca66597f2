# SPDX-License-Identifier: Apache-2.0
"""Planted faults in the greedy ops beside `diversity`: the judges must reject every one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from python_tests import faults_greedy
from python_tests.faults_greedy import DppModel, FacilityModel, MinSumModel
from zspa_kernels.testing.cases import model_cases, seed_and_weight_cases, special_cases
from zspa_kernels.testing.dpp import judge_dpp
from zspa_kernels.testing.facility_location import judge_facility_location
from zspa_kernels.testing.min_sum import judge_min_sum

#: Fault -> (standard case that must reject it, what the judge says).
DPP: dict[str, tuple[str, str]] = {
    "ties to the highest index": ("iid-float32-2x31-0+2", "ties with token 0"),
    "<= at the block bound": ("duplicates-float32-70x31-0+70", "ties with token"),
    "no bound": ("iid-float16-15x16-3+5", "better by"),
    "last pick of a block not eliminated": ("iid-bfloat16-16x33-0+16", "better by"),
    "last row of a block dropped": ("iid-float16-15x16-3+5", "better by"),
    "earlier picks forgotten": ("smooth-float32-63x64-6+20", "better by"),
    "column not scaled": ("smooth-float32-65x33-13+13", "better by"),
    "residual starts at the computed square": ("iid-float16-5x100-2+3", "pick 0 .* ties with"),
    "nothing is dependent": ("smooth-float16-128x3-20+20", "ties with token"),
    "zero rows have a residual": ("zero_rows-float32-45x33-0+20", "pick 0"),
    "weights are not squared": ("clusters-float32-70x33-0+25-weights:eighths", "better by"),
    "weight NaN is 0": ("clusters-float32-70x33-0+25-weights:bad", "not eligible"),
    "negative weights are valid": ("zero_rows-float32-33x16-0+33-weights:bad", "not eligible"),
    "TF32 products": ("narrow-float32-45x33-0+20", "better by"),
    "bfloat16 cosines": ("smooth-float32-100x31-1+40", "better by"),
    "half-precision sums": ("smooth-float32-100x31-1+40", "better by"),
    "last columns dropped": ("iid-float16-5x100-2+3", "better by"),
    "epsilon under the root": ("tiny_rows-float32-45x33-0+20", "better by"),
    "mask ignored": ("masked-float32-45x33-0+20", "not eligible"),
    "NaN rows are valid": ("huge_rows-float16-45x33-0+20", "must be -1"),
    "huge rows are valid": ("huge_rows-float32-45x33-0+20", "not eligible"),
}

#: Fault -> (how tokens are covered, standard case that must reject it, what the judge says).
FACILITY: dict[str, tuple[str, str, str]] = {
    "ties to the highest index": ("cosine", "constant-float32-45x33-0+20", "ties with token"),
    "stale gains are picked": ("cosine", "clusters-float32-70x33-0+25-weights:ones", "better by"),
    "only the last pick covers": ("cosine", "iid-float16-5x100-2+3", "better by"),
    "last row of a block dropped": ("cosine", "iid-float16-3x33-0+3", "better by"),
    "losses count": ("cosine", "iid-float16-3x33-0+3", "better by"),
    "nothing covered is minus one": (
        "words",
        "zero_rows-float32-33x16-0+33-weights:uniform",
        "pick 0",
    ),
    "a token does not cover itself": ("cosine", "iid-float16-3x33-0+3", "better by"),
    "absolute cosines": ("cosine", "iid-float16-15x16-3+5", "better by"),
    "weights ignored": ("cosine", "clusters-float32-70x33-0+25-weights:uniform", "better by"),
    "weight NaN is 0": ("cosine", "clusters-float32-70x33-0+25-weights:bad", "pick"),
    "negative weights are valid": (
        "softmax",
        "zero_rows-float32-33x16-0+33-weights:bad",
        "not eligible",
    ),
    "zero rows cover themselves": ("softmax", "zero_rows-float32-45x33-0+20", "pick"),
    "masked tokens are covered": (
        "softmax",
        "zero_rows-float32-33x16-0+33-weights:bad",
        "better by",
    ),
    "masked tokens in the softmax": ("softmax", "rescaled-float16-45x33-0+20", "better by"),
    "temperature multiplies": ("softmax", "clusters-float32-70x33-0+25-weights:ones", "better by"),
    "softmax over the covered": ("softmax", "clusters-float32-70x33-0+25-weights:ones", "better"),
    "scale of a sum": ("words", "iid-float16-15x16-3+5", "better by"),
    "TF32 products": ("cosine", "rescaled-float32-45x33-0+20", "better by"),
    "bfloat16 cosines": ("cosine", "smooth-float32-65x33-13+13", "better by"),
    "half-precision sums": ("cosine", "vlm-float32-65x33-13+13", "better by"),
    "last columns dropped": ("cosine", "iid-float16-3x33-0+3", "better by"),
    "epsilon under the root": ("softmax", "thresholds-float32-45x33-0+20", "better by"),
    "mask ignored": ("cosine", "masked-float32-45x33-0+20", "not eligible"),
    "NaN rows are valid": ("softmax", "nonfinite_rows-float32-45x33-0+20", "must be -1"),
    "huge rows are valid": ("cosine", "huge_rows-float32-45x33-0+20", "not eligible"),
}
COVER = {
    "cosine": {},
    "softmax": {"temperature": 0.2},
    "words": {"words": 5, "temperature": 0.2, "scale": 0.5},
}

#: Fault -> (standard case that must reject it, what the judge says).
MIN_SUM: dict[str, tuple[str, str]] = {
    "ties to the highest index": ("exact-float32-31x1-3+8", "pick 0 .* ties with token 0"),
    "the forecast is trusted": ("iid-float16-15x16-3+5", "better by"),
    "only the first of a forecast adds": ("clusters-float16-5x100-2+3", "pick 2 .* better by"),
    "the first is token 0": ("iid-float16-3x33-0+3", "pick 0 .* better by"),
    "the first is the loneliest": ("iid-float16-5x100-2+3", "pick 0 .* better by"),
    "the first weighs by length": ("iid-float16-15x16-3+5", "pick 0 .* better by"),
    "the first sums stay": ("iid-float16-15x16-3+5", "pick 1 .* better by"),
    "masked tokens in the seed": ("masked-float32-37x64-9+12", "pick 0 .* better by"),
    "the largest cosine counts": ("clusters-float16-5x100-2+3", "pick 1 .* better by"),
    "absolute cosines": ("clusters-float16-3x33-0+3", "better by"),
    "last row of a block dropped": ("iid-float16-5x100-2+3", "better by"),
    "zero rows have a sum of 0": ("zero_rows-float32-24x1-6+18", "better by inf"),
    "seeds can be picked": ("zero_rows-float32-33x16-0+20-seeds:some", "not eligible"),
    "seeds add nothing": ("vlm-float32-50x31-0+20-seeds:odd", "pick 0 .* better by"),
    "repeated seeds count again": ("vlm-float32-50x31-0+20-seeds:odd", "pick 1 .* better by"),
    "bfloat16 sums": ("video-bfloat16-5x100-2+3", "better by"),
    "TF32 products": ("narrow-float32-45x33-0+20", "better by"),
    "bfloat16 cosines": ("video-bfloat16-5x100-2+3", "better by"),
    "half-precision sums": ("huge_rows-float32-37x64-9+12", "better by"),
    "last columns dropped": ("iid-float16-3x33-0+3", "better by"),
    "epsilon under the root": ("tiny_rows-float32-37x64-9+12", "better by"),
    "mask ignored": ("all_masked-float32-37x64-9+12", "nothing is left"),
    "NaN rows are valid": ("all_nonfinite-float32-37x64-9+12", "nothing is left"),
    "huge rows are valid": ("huge_rows-float32-37x64-9+12", "not eligible"),
}

ALL_CASES = model_cases("small") + special_cases() + seed_and_weight_cases()
CASES = {case.name: case for case in ALL_CASES if case.seeds == "none"}
SEEDED = {case.name: case for case in ALL_CASES if case.weights == "none"}


@pytest.mark.parametrize("block", [1, 8])
def test_dpp_without_a_fault_standard_cases_pass(block: int) -> None:
    for case in list(CASES.values())[block % 2 :: 2]:
        judge_dpp(case, DppModel(block=block).dpp, "reference")


@pytest.mark.parametrize("fault", DPP)
def test_dpp_fault_is_rejected(fault: str) -> None:
    name, text = DPP[fault]
    judge_dpp(CASES[name], DppModel().dpp, "reference")
    with pytest.raises(AssertionError, match=text):
        judge_dpp(CASES[name], DppModel(fault).dpp, "reference")


@pytest.mark.parametrize("cover", COVER)
def test_facility_location_without_a_fault_standard_cases_pass(cover: str) -> None:
    model = FacilityModel()
    for case in list(CASES.values())[list(COVER).index(cover) :: 5]:
        judge_facility_location(case, model.facility_location, "reference", **COVER[cover])


@pytest.mark.parametrize("fault", FACILITY)
def test_facility_location_fault_is_rejected(fault: str) -> None:
    cover, name, text = FACILITY[fault]
    options = COVER[cover]
    model = FacilityModel().facility_location
    judge_facility_location(CASES[name], model, "reference", **options)
    broken = FacilityModel(fault).facility_location
    with pytest.raises(AssertionError, match=text):
        judge_facility_location(CASES[name], broken, "reference", **options)


@pytest.mark.parametrize("block", [1, 8])
def test_min_sum_without_a_fault_standard_cases_pass(block: int) -> None:
    for case in list(SEEDED.values())[block % 2 :: 4]:
        judge_min_sum(case, MinSumModel(block=block).min_sum, "reference")


@pytest.mark.parametrize("fault", MIN_SUM)
def test_min_sum_fault_is_rejected(fault: str) -> None:
    name, text = MIN_SUM[fault]
    judge_min_sum(SEEDED[name], MinSumModel().min_sum, "reference")
    with pytest.raises(AssertionError, match=text):
        judge_min_sum(SEEDED[name], MinSumModel(fault).min_sum, "reference")


def test_every_fault_has_a_case() -> None:
    source = Path(faults_greedy.__file__).read_text()
    parts = re.split("class (?:Facility|MinSum)Model", source)
    for part, killers in zip(parts, (DPP, FACILITY, MIN_SUM), strict=True):
        assert set(re.findall(r'self\.fault [!=]= "([^"]+)"', part)) <= set(killers)
