# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong, the error begins with the name of what the user called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import zspa_kernels as zk
from python_tests import scenes
from zspa_kernels import primitives
from zspa_kernels.projectors import read_projector

B, N, D = 2, 6, 5
#: What no argument is or can be, and tensors of every wrong kind, dtype, rank, shape and device.
BAD: tuple[Any, ...] = (
    *(object(), -3, 10**30, "x", [1], [torch.ones(2, 2), 3]),
    *(torch.ones(B, N, D, 1), torch.ones(B, N, D + 1), torch.ones(B + 1, N, D), torch.tensor(1.0)),
    *(torch.ones(B, N, D, dtype=kind) for kind in (torch.float64, torch.int64, torch.bool)),
    *(torch.ones(B, N, D, device="meta"), torch.ones(B, N, device="meta"), torch.ones(B, N, 0)),
    *(torch.ones(B, N).to_sparse(), torch.ones(B, N, D).to_sparse()),
)
Call = tuple[str, Callable[..., Any], dict[str, Any]]


def calls() -> list[Call]:
    visual, mask = scenes.inputs("divprune", B, N, D)["visual"], torch.ones(B, N, dtype=torch.bool)
    prompt, scores, kept = visual[:, :2], visual[..., 0].abs(), torch.tensor([[0, 1], [2, 3]])
    module = nn.Sequential(nn.Linear(D, 4), nn.GELU(), nn.Linear(4, 3)).requires_grad_(False)
    given = {"projector": module, "features": visual, "backend": "auto"}
    plan = zk.SensitivityPlan(module[0].weight, None, module[2].weight, "gelu")
    own = {"visual": visual, "visual_mask": mask}
    found: list[Call] = [
        ("select", zk.select, {**own, "prompt": prompt, "keep": 2}),
        ("relevance_topk", zk.relevance_topk, {**own, "prompt": prompt, "k": 2}),
        ("diversity", zk.diversity, {**own, "k": 2, "seeds": kept, "weights": scores}),
        ("dpp", zk.dpp, {**own, "k": 2, "weights": scores}),
        ("min_sum", zk.min_sum, {**own, "k": 2, "seeds": kept}),
        ("facility_location", zk.facility_location, {**own, "k": 2, "weights": scores}),
        ("suppress", zk.suppress, {**own, "k": 2, "scores": scores, "threshold": 0.5}),
        ("soft_suppress", zk.soft_suppress, {**own, "k": 2, "scores": scores, "sharpness": 1.0}),
        ("sensitivity", zk.sensitivity, {**given, "rank": 2}),
        *(
            ("sensitivity", zk.sensitivity, {**given, "score": score, "directions": 3, "seed": 0})
            for score in ("zeroth_order", "norm")
        ),
        ("sensitivity", zk.sensitivity, {**given, "projector": module[0], "features": visual}),
        ("sensitivity", zk.sensitivity, {**given, "projector": plan}),
        ("SensitivityPlan", plan, {"features": visual, "backend": "auto"}),
        ("SensitivityPlan", plan, {"preactivation": visual[..., :4]}),
        ("read_projector", read_projector, {"projector": module}),
        ("alignment", primitives.alignment, {**own, "prompt": prompt}),
        ("assign", primitives.assign, {"features": visual, "kept": kept, "mask": mask}),
        ("centred", primitives.centred, own),
        ("distinctiveness", primitives.distinctiveness, own),
        ("match", primitives.match, {"features": visual, "k": 2, "mask": mask}),
        ("topk", primitives.topk, {"scores": scores, "k": 2, "mask": mask}),
    ]
    rated = zk.ZOOPrune(3, module)
    found += [
        ("ZOOPrune", zk.ZOOPrune, {"keep": 3, "projector": module, "rank": 2}),
        ("ZOOPrune", zk.ZOOPrune, {"keep": 3, "projector": module, "score": "linearised"}),
        ("ZOOPrune", rated.select, {"visual": visual, "features": visual}),
        ("ZOOPrune", rated.rate, {"features": visual}),
    ]
    for name in zk.methods.available():
        title = zk.methods.about(name).title
        method: Any = zk.methods.get(name, keep=3)
        inputs = scenes.inputs(name, B, N, D)
        if name == "zooprune":
            del inputs["features"]  # for a projector
        found.append((title, method.select, {**inputs, "visual_mask": mask}))
        each = {key: list(x) for key, x in inputs.items()}
        found.append((title, method.select_varlen, each))
    return found


@pytest.mark.parametrize("call", calls(), ids=lambda call: call[0])
def test_errors_name_what_was_called(call: Call) -> None:
    name, function, given = call
    function(**given)
    said = []
    for argument in given:
        for bad in BAD:
            try:
                function(**{**given, argument: bad})
            except (TypeError, ValueError) as error:
                said.append(f"{error} ({argument}={bad!r:.60})")
    assert len(said) >= len(BAD) // 2
    assert [text for text in said if not text.startswith(f"{name}: ")] == []
