# SPDX-License-Identifier: Apache-2.0
"""Pages that show results: what stands between two marks, tables, and what they say of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.environment import RESULTS, SCRATCH


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind the table called `name`."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def rewrite(text: str, name: str, content: str) -> str:
    """A page with what stands between the marks of `name` replaced.

    Raises:
        ValueError: The page does not have both marks, once each and in order.
    """
    begin, end = marks(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"page must have {begin} and {end}, once each and in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def row(*cells: str) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*names), "|---" * len(names) + "|"]


def write(name: str, results: Mapping[str, Any], published: bool, out: Path | None) -> Path:
    """Write results as `name`.json into `out`, or into their place; returns the folder."""
    folder = out or (RESULTS if published else SCRATCH)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    return folder


def where(machine: Mapping[str, Any]) -> str:
    """CPU, threads, versions, commit ("+": with changes) and date of a run's `environment`."""
    return (
        f"{machine['cpu']['model']}, {machine['threads']} threads, {machine['isa']}, "
        f"torch {machine['torch']}, {commit(machine)}, {machine['date'][:10]}"
    )


def commit(machine: Mapping[str, Any]) -> str:
    """The commit of a run, "+" behind it where tracked files differed from it."""
    git = machine["git"]
    return "no commit" if git is None else git["sha"][:12] + ("+" if git["dirty"] else "")
