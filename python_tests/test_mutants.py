# SPDX-License-Identifier: Apache-2.0
"""Planted faults: the standard cases and the judges must reject every one of them.

Without a fault the model of `faults` passes every standard case; with one, the cases named beside
that fault must fail.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from python_tests import faults
from python_tests.faults import Model
from zspa_kernels.testing.cases import (
    Case,
    judge_diversity,
    judge_relevance_topk,
    judge_select,
    model_cases,
    pooling_cases,
    seed_and_weight_cases,
    special_cases,
)


def _standard() -> list[tuple[str, Case]]:
    """Every (op, case) a backend of the small tier is judged by."""
    small = model_cases("small") + special_cases()
    cases = [(op, case) for op in ("relevance_topk", "select") for case in small]
    cases += [(op, case) for op in ("relevance_topk", "select") for case in pooling_cases()]
    return cases + [("diversity", case) for case in small + seed_and_weight_cases()]


def _judge(model: Model, op: str, case: Case) -> None:
    if op == "relevance_topk":
        judge_relevance_topk(case, model.relevance_topk, "reference")
    elif op == "diversity":
        judge_diversity(case, model.diversity, "reference")
    else:
        judge_select(case, model.select, "reference")


#: Fault -> (op, standard case that must reject it, what the judge says). Masks, special values and
#: ties have a case of their own; arithmetic that is merely less accurate must be seen as well.
KILLERS: dict[str, list[tuple[str, str, str]]] = {
    "ties to the highest index": [
        ("relevance_topk", "exact-bfloat16-130x64-60+6-m8", "index 1 is 124"),
        ("select", "exact-float32-130x64-60+6-m8", "ties with token|better by"),
        ("diversity", "duplicates-float32-45x33-0+20", "ties with token"),
        ("diversity", "constant-float16-45x33-0+20", "ties with token"),
        ("diversity", "all_zero-float32-45x33-0+20", "ties with token"),
    ],
    "<= at the block bound": [
        ("diversity", "exact-bfloat16-66x33-0+20-seeds:some", "ties with token"),
        ("diversity", "masked_exact-float32-70x31-0+70", "ties with token"),
    ],
    "no bound": [("diversity", "vlm-float32-50x31-0+20-seeds:empty", "better by")],
    "tail is no candidate": [("diversity", "masked_exact-float32-45x33-0+20", "better by")],
    "last row of a block dropped": [
        ("diversity", "rescaled-float16-45x33-0+20", "is token 15"),
        ("select", "exact-bfloat16-130x64-60+6-m8", "is token 15"),
    ],
    "set does not grow": [("diversity", "nonfinite_rows-float16-45x33-0+20", "better by")],
    "TF32 products": [
        ("diversity", "narrow-float32-45x33-0+20", "better by"),
        ("select", "narrow-float32-130x128-20+60", "better by"),
        ("select", "narrow-float32-200x100-0+100", "better by"),
    ],
    "bfloat16 cosines": [
        ("diversity", "narrow-bfloat16-45x33-0+20", "better by"),
        ("select", "smooth-float16-127x128-0+20", "better by"),
    ],
    "half-precision sums": [("diversity", "narrow-float16-45x33-0+20", "better by")],
    "last columns dropped": [("diversity", "zero_rows-bfloat16-45x33-0+20", "better by")],
    "epsilon under the root": [
        ("relevance_topk", "tiny_rows-float32-37x64-9+12", "score of token"),
        ("diversity", "tiny_rows-float32-37x64-9+12", "better by"),
    ],
    "seed is token 0": [("diversity", "masked_exact-bfloat16-45x33-0+20", "pick 0")],
    "seed sees itself": [("diversity", "huge_rows-float32-45x33-0+20", "pick 0")],
    "masked tokens in the seed": [
        ("select", "masked-float32-45x33-0+20", "pick 0"),
        ("diversity", "masked_exact-float16-45x33-0+20", "pick 0"),
    ],
    "seeds not excluded": [
        ("select", "masked-bfloat16-37x64-9+12", "must be -1|picked before"),
        ("diversity", "vlm-float32-50x31-0+20-seeds:all", "must be -1"),
    ],
    "negative seeds wrap": [("diversity", "vlm-float32-50x31-0+20-seeds:invalid", "pick 0")],
    "mask ignored": [
        ("relevance_topk", "masked-float32-37x64-9+12", "must be -inf"),
        ("diversity", "masked-float16-45x33-0+20", "not eligible"),
    ],
    "NaN rows are valid": [
        ("relevance_topk", "nonfinite_rows-float32-45x33-0+20", "must be -inf"),
        ("diversity", "all_nonfinite-float16-45x33-0+20", "must be -1"),
    ],
    "huge rows are valid": [
        ("select", "huge_rows-bfloat16-37x64-9+12", "not eligible"),
        ("diversity", "thresholds-float32-37x64-9+12", "not eligible"),
    ],
    "zero rows are far from everything": [("select", "zero_rows-float32-45x33-0+20", "better by")],
    "zero rows have relevance 0": [
        ("relevance_topk", "zero_rows-float32-37x64-9+12", "must be -1.0")
    ],
    "zero rows touch others": [
        ("diversity", "zero_rows-float32-33x16-0+33-weights:ones", "better by|ties with"),
    ],
    "maximum starts at 0": [("diversity", "masked_exact-float32-45x33-0+20", "better by")],
    "absolute cosines": [("diversity", "antipodal-float32-45x33-0+20", "better by")],
    "equal to no weights": [
        ("diversity", "clusters-float32-70x33-0+25-weights:ones", "pick 0"),
        ("diversity", "clusters-float32-70x33-0+25-weights:scales", "pick 0"),
    ],
    "weight minus similarity": [
        ("diversity", "clusters-float32-70x33-0+25-weights:eighths", "better by"),
        ("diversity", "clusters-float32-70x33-0+25-seeds:some-weights:zeros", "ties with token"),
    ],
    "weight NaN is 0": [
        ("diversity", "clusters-float32-70x33-0+25-weights:bad", "not eligible"),
    ],
    "negative weights are valid": [
        ("diversity", "zero_rows-float32-33x16-0+33-weights:bad", "not eligible"),
    ],
    "mean of directions": [("relevance_topk", "vlm-float32-64x100-0+9", "score of token")],
    "pooled prompt in half precision": [
        ("relevance_topk", "vlm-bfloat16-100x33-30+6-m7", "score of token"),
    ],
    "prompt mask ignored": [("relevance_topk", "vlm-float32-100x33-30+6-m7", "score of token")],
    "prompt mask divides by all": [
        ("relevance_topk", "vlm-float32-100x33-30+6-pooling:none_mean-m7", "score of token"),
    ],
    "max pooling with zeros for masked": [
        ("relevance_topk", "vlm-float32-100x33-30+6-pooling:max-m7", "score of token"),
    ],
    "none_max starts at 0": [
        ("relevance_topk", "vlm-float32-100x33-30+6-pooling:none_max-m7", "score of token"),
    ],
    "no prompt, no core, no more": [
        ("select", "clusters-float32-40x33-10+6-m3", "tokens could be picked"),
    ],
}


@pytest.mark.parametrize("block", [1, 8, 64])
def test_without_a_fault_standard_cases_pass(block: int) -> None:
    """Half of them here, and all that are named above beside the fault they reject."""
    model = Model(block=block)
    cases = _standard()
    assert len({(op, case.name) for op, case in cases}) == len(cases)
    for turn, (op, case) in enumerate(cases):
        if turn % 6 == 2 * (1, 8, 64).index(block) + turn // 6 % 2:
            _judge(model, op, case)


@pytest.mark.parametrize("fault", KILLERS)
def test_fault_is_rejected(fault: str) -> None:
    cases = {(op, case.name): case for op, case in _standard()}
    for op, name, text in KILLERS[fault]:
        case = cases[op, name]
        _judge(Model(), op, case)
        with pytest.raises(AssertionError, match=text):
            _judge(Model(fault), op, case)


def test_every_fault_has_a_case() -> None:
    """A fault that is planted in the model but never tried would prove nothing."""
    source = Path(faults.__file__).read_text()
    planted = set(re.findall(r'self\.fault [!=]= "([^"]+)"', source))
    assert planted == set(KILLERS)


@pytest.mark.parametrize("block", [64, 128, 256, 512])
def test_block_bounds_of_real_sizes(block: int) -> None:
    """The large exact cases see `<=` at the bound whatever the size of a block of candidates."""
    case = next(c for c in model_cases("large") if c.tokens == "exact" and c.n == 1200)
    judge_diversity(case, Model(block=block).diversity, "reference")
    with pytest.raises(AssertionError, match="ties with token"):
        judge_diversity(case, Model("<= at the block bound", block).diversity, "reference")
