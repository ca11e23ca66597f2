# SPDX-License-Identifier: Apache-2.0
"""The command `zspa methods` (extra `demo`)."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zspa_kernels.methods import About, about, available


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them: what its inputs are, and where models have them."),
    ] = None,
) -> None:
    """List the published methods, with what they need besides the visual tokens."""
    if name is None:
        console = Console(highlight=False)
        console.print(_table(), Text("zspa methods NAME says what the inputs are."))
        return
    try:
        facts = about(name)
    except ValueError as error:
        typer.echo(f"zspa methods: {str(error).removeprefix('about: ')}", err=True)
        raise typer.Exit(2) from None
    print(_text(facts))


def _table() -> Table:
    table = Table(header_style="bold", caption="in brackets: optional")
    table.add_column("name", no_wrap=True)
    for head in ("needs", "paper"):
        table.add_column(head, overflow="fold")  # nothing is left out where a terminal is narrow
    for name in available():
        facts = about(name)
        needs = [
            x.name if x.required else f"({x.name})" for x in facts.inputs if x.name != "visual"
        ]
        table.add_row(name, Text(", ".join(needs)), Text(facts.paper))
    return table


def _text(facts: About) -> str:
    lines = [f"{facts.title}, {facts.paper}; cost of an image: {facts.cost}"]
    for x in facts.inputs:
        need = "" if x.required else ", optional"
        lines.append(f"  {x.name} {x.shape}{need}: {x.source}")
    return "\n".join(lines)
