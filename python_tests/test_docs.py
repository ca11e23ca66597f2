# SPDX-License-Identifier: Apache-2.0
"""Every example in README.md, in docs and in the public docstrings runs, on CPU."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import zspa_kernels
from zspa_kernels import _api_page

ROOT = Path(__file__).resolve().parent.parent
# Every file with an example: `doctest.testmod` leaves out what a module has only imported.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "zspa_kernels").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
# A block that cannot run here (another package, a GPU) is preceded by `<!-- not run: why -->`.
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/api.md",
        "docs/greedy.md",
        "docs/methods.md",
        "docs/own_models.md",
        "docs/sensitivity.md",
    ],
)
def test_pages(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are one session, read from top to bottom."""
    text = (ROOT / page).read_text()
    blocks = [(match.start(2), match[2]) for match in BLOCK.finditer(text) if not match[1]]
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for start, block in blocks:
        # Line numbers of a traceback are those of the page.
        padding = "\n" * text.count("\n", 0, start)
        code = compile(padding + block, str(ROOT / page), "exec", dont_inherit=True)
        exec(code, namespace)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_page_of_the_api_is_current() -> None:
    text = _api_page.page()
    command = "python -m zspa_kernels._api_page docs/api.md"
    assert text == (ROOT / "docs" / "api.md").read_text(), f"run {command}"
    listed = set(re.findall(r"^- \[?`zk\.(\w+)`", text, re.MULTILINE))
    assert listed | {"__version__", "hf", "methods", "primitives"} == set(zspa_kernels.__all__)
    for module in ("hf", "methods", "primitives"):
        names = {*re.findall(rf"`zk\.{module}\.(\w+)`", text), *listed}
        assert set(getattr(zspa_kernels, module).__all__) <= names
    own = {x for x in torch._C._dispatch_get_all_op_names() if x.startswith("zspa::")}
    assert set(re.findall(r"^zspa::\w+", text, re.MULTILINE)) == own


def test_public_functions_have_examples() -> None:
    names = [name for name in zspa_kernels.__all__ if not name.startswith("_")]
    bare = [name for name in names if ">>>" not in (getattr(zspa_kernels, name).__doc__ or "")]
    assert not bare
