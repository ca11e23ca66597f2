# SPDX-License-Identifier: Apache-2.0
"""`python -m zspa_kernels.methods [PAGE]`: the table of all methods, or its update in a page."""

from __future__ import annotations

import sys
from pathlib import Path

from . import about, available

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
_PACKAGE = Path(__file__).resolve().parent.parent
_HEAD = ("name", "method", "paper", "inputs", "composed of", "cost", "backends", "tested against")


def table() -> str:
    """A row for each registered method, in Markdown; inputs in brackets are optional."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for name in available():
        facts = about(name)
        inputs = [x.name if x.required else f"({x.name})" for x in facts.inputs]
        primitives = [f"`{p}`" for p in facts.primitives]
        cells = (f"`{name}`", facts.title, facts.paper, ", ".join(inputs), ", ".join(primitives))
        lines.append(_line((*cells, facts.cost, backends(facts.primitives), facts.against)))
    return "\n".join(lines)


def backends(primitives: tuple[str, ...]) -> str:
    """Where all of these run: on the backends that have a file for the ops among them."""
    files = [list(_PACKAGE.glob(f"backends/*/{name}.py")) for name in primitives]
    ops = [{path.parent.name for path in found} for found in files if found]
    return ", ".join(sorted(set.intersection(*ops))) if ops else "any"


def rewrite(text: str) -> str:
    """A page with the table between its two marks replaced.

    Raises:
        ValueError: the page does not have both marks, once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"page must have {BEGIN} and {END}, once each and in this order")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> None:
    """Prints the table, or updates the page that is named."""
    if not arguments:
        sys.stdout.write(table() + "\n")
    for page in map(Path, arguments):
        page.write_text(rewrite(page.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
