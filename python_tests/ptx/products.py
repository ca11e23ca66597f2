# SPDX-License-Identifier: Apache-2.0
"""`python -m python_tests.ptx.products TARGET...`: cosines of tiles on the machine, bit for bit.

Prints a JSON object a target: how many cosines are not what matrix units make of them, and how many
not what exact sums would be, rounded once a chunk.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from python_tests.matrix_units import unit_dots
from zspa_kernels.backends.triton import _scratch, diversity
from zspa_kernels.backends.triton._common import Segments
from zspa_kernels.testing import tokens

from .__main__ import use
from .machine import Launcher


def compare(target: str, n: int = 66, d: int = 1080) -> dict[str, int]:
    """The matrix of all cosines; its products are added up chunk by chunk."""
    use(Launcher(int(target)))
    diversity.few_tokens = lambda *_: True
    visual = tokens("vlm", n, d, dtype=torch.float16)[None]
    segments, picks = Segments(1, n, 0, 1), torch.full((1, 1), -1)
    scratch = _scratch.allocate(visual.device, diversity.greedy_plan(visual, segments))
    diversity.greedy(visual, segments, picks, None, None, None, scratch, False)
    i, j = torch.triu_indices(n, n, 1)
    got, inv = scratch["matrix"][0, i, j], scratch["inv_norm"][0]
    chunk = diversity._config(visual).chunk

    def differ(dots: Tensor) -> int:
        return int((got != dots.float() * (inv[i] * inv[j])).sum())

    rows = visual[0].double()
    exact = sum(part.sum(1).float() for part in (rows[i] * rows[j]).split(chunk, 1))
    units = unit_dots(rows[i], rows[j], f"sm_{target}", chunk)
    return {"units": differ(units), "exact": differ(torch.as_tensor(exact))}


def main(*targets: str) -> int:
    """Compare each."""
    for target in targets:
        print(json.dumps(compare(target)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
