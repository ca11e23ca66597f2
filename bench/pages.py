# SPDX-License-Identifier: Apache-2.0
"""Pages that show results: what stands between two marks, and what every table says of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
