# SPDX-License-Identifier: Apache-2.0
"""The commands of `zspa`, on Typer and Rich (extra `demo`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from zspa_kernels import __version__, _doctor
from zspa_kernels.cli import missing
from zspa_kernels.cli_methods import methods
from zspa_kernels.cli_prune import KEEP, prune
from zspa_kernels.demo.errors import DemoError, share_or_count

if TYPE_CHECKING:
    from zspa_kernels.demo.choices import Choice
    from zspa_kernels.demo.run import Report

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Exact, fast selection of visual tokens for vision-language models.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"zspa_kernels {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print versions, backends, and why a backend cannot run here; paste it into bug reports."""
    print(_doctor.report(as_json=as_json))


app.command()(prune)
app.command()(methods)


@app.command()
def demo(
    image: Annotated[
        Path | None,
        typer.Argument(help="A picture; by default the astronaut that comes with scikit-image."),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1",
            help="The prompt: a box in pixels. By default the face; of your own picture, the "
            "middle third each way.",
        ),
    ] = None,
    keep: Annotated[str, typer.Option(metavar="SHARE|COUNT", help=KEEP)] = "0.1",
    core_ratio: Annotated[
        float, typer.Option(help="Share of those taken for relevance, in [0, 1].")
    ] = 0.4,
    patch: Annotated[int, typer.Option(help="Side of a patch in pixels, 8 to 256.")] = 16,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("kept.png"),
) -> None:
    """Select patches of a photograph in three ways; draw and measure them.

    No model is involved: the tokens are colour and gradient histograms of patches,
    classical features, and those in the region are the prompt.
    """
    try:
        from zspa_kernels.demo.run import run

        report = run(image, region, share_or_count(keep), core_ratio, patch, out)
    except DemoError as error:
        typer.echo(f"zspa demo: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except ModuleNotFoundError as error:
        message = missing(error)
        if message is None:
            raise
        typer.echo(message, err=True)
        raise typer.Exit(1) from None
    _print(report)


def _print(report: Report) -> None:
    console = Console(highlight=False)

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    line(f"picture  {report.picture}: {report.patches.describe()}")
    line(
        f"tokens   {report.dim} values each: colour (Lab) and gradient (HOG) histograms from "
        "scikit-image, classical features and not a VLM's"
    )
    box = ",".join(map(str, report.region))
    line(f"prompt   {report.prompt_tokens} of these tokens: {report.region_name}, pixels {box}")
    line(f"op       torch.ops.zspa.select, backend {report.backend}, threads {report.threads}")
    console.print(_table(report.choices))
    line(f"written  {report.out}")


def _table(choices: tuple[Choice, ...]) -> Table:
    """One column a method, one row a measure."""
    table = Table(
        header_style="bold",
        caption="x: times as long as the op. Medians, measured in turn in this process.",
    )
    table.add_column("", overflow="fold")
    for choice in choices:
        table.add_column(choice.name, justify="right", overflow="fold")

    def share(choice: Choice) -> str:
        if choice.k_core == 0:
            return "-"
        return f"{choice.core_inside} ({choice.core_inside / choice.k_core:.0%})"

    def cosine(choice: Choice) -> str:
        return "-" if choice.mean_cosine is None else f"{choice.mean_cosine:.3f}"

    def picks(choice: Choice) -> str:
        if choice.first_difference is None:
            return "yes"
        return f"no, from pick {choice.first_difference}"

    def number(value: float) -> str:
        decimals = 3 if value < 0.1 else 2 if value < 1 else 1 if value < 100 else 0
        return f"{value:.{decimals}f}"

    def milliseconds(seconds: float) -> str:
        return f"{number(seconds * 1e3)} ms"

    def against(choice: Choice, seconds: float) -> str:
        return f"{milliseconds(seconds)}  {number(seconds / choice.op_seconds)}x"

    rows = {
        "core tokens": [str(c.k_core) for c in choices],
        "diversity tokens": [str(c.k_diverse) for c in choices],
        "core in the region": [share(c) for c in choices],
        "mean pairwise cosine": [cosine(c) for c in choices],
        "time of the op": [milliseconds(c.op_seconds) for c in choices],
        "plain PyTorch loop": [against(c, c.loop_seconds) for c in choices],
        "  picks the same": [picks(c) for c in choices],
        "fastest PyTorch": [against(c, c.fastest_seconds) for c in choices],
        "  which is": [c.fastest_name for c in choices],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table
