# SPDX-License-Identifier: Apache-2.0
"""Every workload and contender of a suite as a benchmark; with benchmarks disabled, as a test."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import pytest
import torch

from bench import compiled, contenders, timing
from bench.ceilings import count_work
from bench.contenders import OURS, Contender, UnavailableError
from bench.problem import Problem, draw
from bench.registry import Workload
from bench.verify import Verifier


@functools.lru_cache(maxsize=1)
def _problem(workload: Workload) -> tuple[Problem, Verifier]:
    """The contenders of a workload follow each other and share its tensors."""
    problem = draw(workload)
    return problem, Verifier(problem)


def _contender(name: str, problem: Problem) -> Contender:
    ours = contenders.ours(problem)
    if name == OURS:
        return ours
    if name == "fpsample":
        return contenders.farthest_points(problem, ours.picks(ours.call()))
    if name == "compiled":
        return contenders.compiled_loop(compiled.NAMES[-1], problem)
    return contenders.contender(name, problem)


def test_select(workload: Workload, name: str, benchmark: Any) -> None:
    problem, verifier = _problem(workload)
    try:
        contender = _contender(name, problem)
    except UnavailableError as reason:
        pytest.skip(f"{name}: {reason}")
    with timing.quiet(workload.threads or torch.get_num_threads()):
        # Verified before it is timed: a wrong selection has no figure here either.
        expected = contender.call()
        verdict = verifier.check(contender, expected)
        benchmark.group = workload.name
        benchmark.extra_info["verdict"] = asdict(verdict)
        if name == OURS:
            benchmark.extra_info["work"] = asdict(count_work(problem))
        result = benchmark(contender.call)
    assert torch.equal(result, expected)
