# SPDX-License-Identifier: Apache-2.0
"""What a user's strict mypy says: of calls of the package, and of the examples of every page.

mypy's cache is that of `make types`: after it, this takes a second or two.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import zspa_kernels as zk
from python_tests.test_docs import BLOCK, ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# What the blocks that do not run here take from around them; in the first line, which is a heading.
GIVEN = (
    "from typing import Any; import zspa_kernels as zk; model: Any; processor: Any; inputs: Any; "
    "picture: Any; pictures: Any; prompt: Any; messages: Any; turns: Any"
)
CALLS = """
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import assert_type

import zspa_kernels as zk

images = [torch.eye(4), torch.eye(4)[:3]]
packed, lengths, weights = torch.cat(images), [4, 3], [torch.ones(4), torch.ones(3)]
each: Sequence[Tensor] = images

assert_type(zk.select_varlen(images, keep=2), list[Tensor])
assert_type(zk.select_varlen(each, images[0], k_core=1, k_diverse=[1, 0]), list[Tensor])
assert_type(zk.select_varlen(packed, lengths=lengths, keep=0.5), Tensor)
assert_type(zk.select_varlen(packed, images, lengths=lengths, keep=2), Tensor)
assert_type(zk.diversity_varlen(images, 1, weights=weights), list[Tensor])
assert_type(zk.diversity_varlen(packed, [1, 2], lengths=lengths), Tensor)
assert_type(zk.dpp_varlen(images, 1), list[Tensor])
assert_type(zk.dpp_varlen(packed, 1, lengths=lengths, weights=torch.cat(weights)), Tensor)
assert_type(zk.facility_location_varlen(images, 1, benefits=images), list[Tensor])
assert_type(zk.facility_location_varlen(packed, 1, lengths=lengths, benefits=packed.T), Tensor)
assert_type(zk.min_sum_varlen(images, 1), list[Tensor])
assert_type(zk.min_sum_varlen(packed, 1, lengths=lengths), Tensor)

kept = zk.gather(packed, zk.select_varlen(packed, lengths=lengths, keep=2))
first = zk.select_varlen(images, keep=2)[0]

# What is refused when it runs is refused here: lengths go with packed tokens, and with them only.
zk.select_varlen(packed, keep=2)  # type: ignore[call-overload]
zk.select_varlen(images, lengths=lengths, keep=2)  # type: ignore[call-overload]
zk.dpp_varlen(images, 1, weights=packed[:, 0])  # type: ignore[call-overload]
zk.diversity_varlen(packed, 1, lengths=lengths, weights=weights)  # type: ignore[call-overload]

assert_type(zk.methods.get("divprune", keep=2).select(packed).indices, Tensor)
assert_type(zk.DivPrune(keep=2).select_varlen(images), list[zk.Selection])


def prune(model: object, name: str) -> None:
    published, any_one = zk.methods.get("fastv", keep=2), zk.methods.get(name, keep=2)
    assert_type(published(model), zk.hf.PruneHandle)
    assert_type(published.select_varlen(images), list[zk.Selection])
    assert_type(zk.hf.prune(model, any_one), zk.hf.PruneHandle)
    if isinstance(any_one, zk.MethodBase):
        assert_type(any_one(model), zk.hf.PruneHandle)
    published.chosen  # type: ignore[attr-defined]
    published()  # type: ignore[call-arg]
    any_one(model)  # type: ignore[operator]
"""


def page_as_code(page: Path) -> str:
    """The blocks of a page where they are in it, so that lines of errors are the page's."""
    text = page.read_text()
    lines = [GIVEN]
    for match in BLOCK.finditer(text):
        lines += [""] * (text.count("\n", 0, match.start(2)) - len(lines))
        lines += match[2].splitlines()
    return "\n".join(lines) + "\n"


def test_strict_mypy_accepts_pages_and_calls(tmp_path: Path) -> None:
    for page in PAGES:
        (tmp_path / f"{page.stem.lower()}_page.py").write_text(page_as_code(page))
    (tmp_path / "calls.py").write_text(CALLS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, sorted(tmp_path.iterdir()))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads needs Python 3.11")
@pytest.mark.parametrize("name", [name for name in zk.__all__ if name.endswith("_varlen")])
def test_overloads_take_what_the_function_takes(name: str) -> None:
    function = getattr(zk, name)
    shapes = typing.get_overloads(function)
    assert len(shapes) == 2
    whole = inspect.signature(function)
    for shape in shapes:
        own = inspect.signature(shape)
        assert [(x.name, x.kind) for x in own.parameters.values()] == [
            (x.name, x.kind) for x in whole.parameters.values()
        ]
