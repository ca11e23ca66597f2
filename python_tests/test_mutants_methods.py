# SPDX-License-Identifier: Apache-2.0
"""Planted faults in methods: the proof beside each rejects it."""

from __future__ import annotations

import pytest

from python_tests import test_dart_and_holov as shared
from python_tests.faults_primitives import Fault, Proof, of, plant, reject
from zspa_kernels import methods

HOLO = shared.test_holov
DART = shared.test_dart

#: What is wrong -> module, what stands there once, what stands there instead; the proof.
MUTANTS: dict[str, tuple[tuple[str, str, str], Proof]] = {
    "dart: zero rows are pivots": (
        ("primitives.pivots", ".masked_fill(stands < 0.0, -1.0)", ""),
        of(DART, "zero_rows"),
    ),
    "dart: zero rows are like nothing": (
        (
            "primitives.pivots",
            "(stands < 0.0).unsqueeze(-2), 2.0)",
            "(stands < 0.0).unsqueeze(-2), 0.0)",
        ),
        of(DART, "zero_rows"),
    ),
    "dart: what is invalid is free": (
        ("primitives.pivots", "valid & ~members(", "~members("),
        of(DART, "masked_exact"),
    ),
    "dart: pivots are free": (
        ("primitives.pivots", "valid & ~members(core, visual.shape[-2])", "valid"),
        of(DART, "vlm"),
    ),
    "dart: words without direction": (
        (
            "primitives.pivots",
            "standing(prompt, prompt_mask) == 0.0",
            "standing(prompt, prompt_mask).isfinite()",
        ),
        of(DART, "vlm"),
    ),
    "dart: words that there are not": (
        ("primitives.pivots", "live + (text >= 0).sum(-1, keepdim=True)", "live + text.shape[-1]"),
        shared.test_dart_without_words_is_dart_without_a_prompt,
    ),
    "dart: words first": (
        (
            "primitives.pivots",
            "torch.cat((pivots, _directions(prompt, text)), dim=-2)",
            "torch.cat((_directions(prompt, text), pivots), dim=-2)",
        ),
        of(DART, "vlm"),
    ),
    "dart: L2 norms": (
        ("primitives.pivots", "part.double().abs_()", "part.double().square_()"),
        of(DART, "vlm"),
    ),
    "dart: norms in float32": (
        ("primitives.pivots", "part.double().abs_().sum(-1)", "part.float().abs().sum(-1)"),
        shared.test_dart_decides_in_float64,
    ),
    "dart: cosines in float32": (
        ("primitives.pivots", "_length(rows).unsqueeze(-2)", "_length(rows).float().unsqueeze(-2)"),
        shared.test_dart_decides_in_float64,
    ),
    "dart: cosines as they are computed": (
        ("primitives.pivots", "on_grid(torch.cat(cosines, dim=-1))", "torch.cat(cosines, dim=-1)"),
        of(DART, "constant"),
    ),
    "holov: variance of the image": (
        (
            "methods.holov",
            "own = scale.gather(-1, crop.clamp_max(self.crops - 1))",
            "own = scale.mean()",
        ),
        of(HOLO, "vlm"),
    ),
    "holov: similar to itself": (
        ("methods.holov", "torch.eye(len(place)", "torch.zeros(len(place), len(place)"),
        of(HOLO, "vlm"),
    ),
    "holov: places of smaller crops vary": (
        ("methods.holov", ".masked_fill(~inside.unsqueeze(-2), 0.0)", ""),
        of(HOLO, "vlm"),
    ),
    "holov: zero rows have a direction": (
        ("methods.holov", ".where(length >= SHORTEST, torch.inf)", ""),
        of(HOLO, "zero_rows"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, proof = MUTANTS[name]
    reject(fault, proof, monkeypatch)


def test_a_fault_is_gone_with_its_test() -> None:
    fault, _ = MUTANTS["holov: similar to itself"]
    right = type(methods.get("holov", keep=2))
    with pytest.MonkeyPatch.context() as patch:
        plant(Fault(*fault), patch)
        assert type(methods.get("holov", keep=2)) is methods.HoloV is not right
    assert type(methods.get("holov", keep=2)) is methods.HoloV is right
