# SPDX-License-Identifier: Apache-2.0
"""A blocked greedy in Triton at sizes at which a few tokens take many programs and passes."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.triton_together import RaceError, Together, World
from zspa_kernels.backends.triton import _common, _scratch
from zspa_kernels.backends.triton.diversity_config import Group

SMALL = {
    "norm_block_n": 16,
    "least_rows": 4,
    "block": 16,
    "rows": 16,
    "cols": 16,
    "update_rows": 32,
    "update_own": 4,
    "block_k": 16,
    "chunk": 32,
    "finished": 2,
    "votes": 4,
    "whole_rows": 0,
}
GROUPS = (
    Group(programs=4, width=8, own=16, split=True),
    Group(programs=4, width=2, own=16, split=False),
    Group(programs=1, width=16, own=32, split=True),
)


def apart(device: torch.device, plan: _scratch.Plan) -> dict[str, Tensor]:
    """`_scratch.allocate` with memory of its own for each tensor: nothing lies behind its end."""
    return {
        name: torch.empty(math.prod(shape) * dtype.itemsize // 4, dtype=torch.int32, device=device)
        .view(dtype)
        .view(shape)
        for name, (dtype, shape) in plan.items()
    }


def shrunk(config: Any, fields: dict[str, Any]) -> Any:
    """A configuration with other values; those it shares with diversity lie in `shared`."""
    names = {field.name for field in dataclasses.fields(config)}
    own = {name: value for name, value in fields.items() if name in names}
    if "shared" in names:
        own["shared"] = shrunk(config.shared, fields)
    return dataclasses.replace(config, **own)


class Runs:
    """Small blocks, any number of programs; `rounds` counts the runs of the phases.

    Args:
        patch: undoes what is changed.
        module: of the op, with its `config`, `group_grid` and `greedy_in_steps`.
        fields: of the configuration, beside `SMALL`.
    """

    def __init__(self, patch: pytest.MonkeyPatch, module: ModuleType, **fields: Any) -> None:
        self.patch, self.module = patch, module
        self.group = GROUPS[0]
        self.programs = 3
        self.fields: dict[str, Any] = fields
        self.rounds: list[int] = []
        config, steps = module.config, module.greedy_in_steps

        def small(*args: Any, **kwargs: Any) -> Any:
            return shrunk(config(*args, **kwargs), SMALL | {"groups": (self.group,)} | self.fields)

        def grid(cfg: Any, segments: _common.Segments, device: Any) -> tuple[int, int]:
            return segments.count, min(self.programs, self.group.programs)

        def counted(*args: Any, **kwargs: Any) -> int:
            self.rounds.append(steps(*args, **kwargs))
            return self.rounds[-1]

        patch.setattr(_scratch, "allocate", apart)
        patch.setattr(module, "config", small)
        patch.setattr(module, "group_grid", grid)
        patch.setattr(module, "greedy_in_steps", counted)

    def together(self, kernel: Any, work: Callable[[], list[Tensor]], seed: int) -> list[Tensor]:
        """`work` with two groups of three programs in one launch of `kernel`, races looked for."""
        together = Together(self.patch, seed)

        def at_once(
            step: Any, launch: Any, programs: int, device: Any, *args: Any, **o: Any
        ) -> int:
            together.launch(kernel, 6, device, *args, **o)
            return 0

        with self.patch.context() as patch:
            patch.setattr(self.module, "greedy_in_steps", at_once)
            return work()

    def every_barrier_is_needed(
        self, kernel: Any, work: Callable[[], list[Tensor]], count: int
    ) -> None:
        """The picks of `work` in one launch; then with one place that no longer orders accesses.

        There programs meet as before, but a race must be found.
        """
        want = work()
        real, atomic = _common.meet, World.atomic
        places: set[int] = set()
        blind: list[int] = []

        def meet(*arguments: Any) -> None:
            place = inspect.stack()[1].lineno
            places.add(place)
            here.blind = place in blind
            real(*arguments)
            here.blind = False

        def ordered(world: World, address: int, semantics: str) -> None:
            atomic(world, address, "" if here.blind else semantics)

        here = threading.local()
        self.patch.setattr(self.module, "meet", meet)
        self.patch.setattr(World, "atomic", ordered)
        for got, expected in zip(self.together(kernel, work, seed=1), want, strict=True):
            assert torch.equal(got, expected)
        calls = re.findall(r"^ +meet\(", inspect.getsource(self.module), re.MULTILINE)
        assert len(places) == len(calls) == count
        for place in sorted(places):
            blind[:] = [place]
            with pytest.raises(RaceError):
                self.together(kernel, work, seed=1)


def with_fault(module: ModuleType, fault: tuple[str, str], folder: Path) -> ModuleType:
    """The module with one piece of its text replaced, as a module of the same package."""
    text = Path(str(module.__file__)).read_text()
    assert text.count(fault[0]) == 1, fault[0]
    path = folder / "mutant.py"
    path.write_text(text.replace(*fault))
    spec = importlib.util.spec_from_file_location(f"{module.__package__}.mutant", path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant
