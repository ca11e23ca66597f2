# SPDX-License-Identifier: Apache-2.0
"""Norms and cosines to pivots: native kernels against float64, on every instruction set."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests.runners import same_bits, spread, threads
from zspa_kernels import _native
from zspa_kernels.primitives import pivots
from zspa_kernels.primitives.pivots import absolute_sums, cosines_to, directions
from zspa_kernels.testing import tokens
from zspa_kernels.testing.cases import DTYPES

Require = Callable[..., None]
STEP = 2.0**-40
#: Tokens, their width, pivots: less than a step of each loop, whole ones, and more.
SIZES = ((1, 1, 1), (33, 7, 3), (70, 64, 4), (40, 259, 5), (9, 600, 8), (65, 517, 9), (5, 24, 18))


def exact(x: Tensor, columns: Tensor) -> Tensor:
    """float64 `[P, N]`: cosines to columns of length 1, 0 of a row without direction."""
    rows, others = x.double().tolist(), columns.tolist()
    dots = [[math.fsum(map(operator.mul, row, other)) for row in rows] for other in others]
    lengths = [math.sqrt(math.fsum(value * value for value in row)) for row in rows]
    whole = torch.tensor([length or math.inf for length in lengths], dtype=torch.float64)
    return torch.tensor(dots, dtype=torch.float64) / whole


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype: torch.dtype, require_backend: Require) -> None:
    """Within a step of the grid of exact sums; the same bits on every instruction set."""
    require_backend("cpp")
    module = _native.module()
    for n, d, p in SIZES:
        visual = tokens("vlm", n, d, dtype=dtype)
        visual[n // 2] = 0.0 if n > 1 else 1.0
        columns = directions(tokens("iid", p, d, seed=1, dtype=dtype), torch.arange(p))
        found = cosines_to(visual, columns)
        assert float((found - exact(visual, columns)).abs().max()) <= 1.01 * STEP
        assert torch.equal((found / STEP).round() * STEP, found)
        sums = [math.fsum(map(abs, row)) for row in visual.double().tolist()]
        norms = absolute_sums(visual)
        assert torch.equal(norms, torch.tensor(sums, dtype=torch.float64).float())
        for isa in module.isas():
            try:
                module.use_isa(isa)
                same_bits(cosines_to(visual, columns), found)
                same_bits(absolute_sums(visual), norms)
            finally:
                module.use_isa("auto")


def test_laws(require_backend: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rows, images of a batch, strides and threads; torch computes the same."""
    require_backend("cpp")
    visual = torch.stack([tokens(name, 160, 4100) for name in ("vlm", "exact")]).bfloat16()
    visual[:, 77] = visual[:, 3]
    places = torch.tensor([[3, 77, 5, 8, 90], [77, 1, 2, 3, 4]])
    columns = directions(visual, places)
    found, norms = cosines_to(visual, columns), absolute_sums(visual)
    same_bits(found[:, :, 3], found[:, :, 77])
    same_bits(norms[:, 3], norms[:, 77])
    assert float((found[0, :2, 3] - 1.0).abs().max()) == 0.0
    for b in range(2):
        same_bits(cosines_to(visual[b], columns[b]), found[b])
        same_bits(cosines_to(visual[b, :41], columns[b, 1:3]), found[b, 1:3, :41])
        same_bits(absolute_sums(visual[b]), norms[b])
    same_bits(cosines_to(spread(visual), spread(columns)), found)
    same_bits(absolute_sums(spread(visual)), norms)
    for count in (1, 2):
        with threads(count):
            same_bits(cosines_to(visual, columns), found)
            same_bits(absolute_sums(visual), norms)
    monkeypatch.setattr(pivots, "native", lambda *x, **y: False)
    assert float((cosines_to(visual, columns) - found).abs().max()) <= STEP
    same_bits(absolute_sums(visual), norms)
