# SPDX-License-Identifier: Apache-2.0
"""`pytest bench --benchmark-only [--suite cpu]`: the registry under pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.contenders import OURS
from bench.environment import environment
from bench.registry import SUITES, suite


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", choices=list(SUITES), default="smoke", help="workloads to run")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # The tests of this project run with benchmarks disabled; asking for them here enables them.
    if config.getoption("benchmark_only", False):
        config.option.benchmark_disable = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workload" in metafunc.fixturenames:
        # `half` picks other tokens, so it has nothing to verify.
        pairs = [
            (workload, name)
            for workload in suite(metafunc.config.getoption("--suite"))
            for name in (OURS, *workload.against)
            if name != "half"
        ]
        ids = [f"{workload.name}-{name}" for workload, name in pairs]
        metafunc.parametrize(("workload", "name"), pairs, ids=ids)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["zspa"] = environment(torch.get_num_threads())
