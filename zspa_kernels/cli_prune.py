# SPDX-License-Identifier: Apache-2.0
"""The command `zspa prune` (extras `demo` and `hf`)."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from zspa_kernels.cli import missing
from zspa_kernels.demo.errors import DemoError, UsageError, share_or_count

if TYPE_CHECKING:
    from zspa_kernels import ask


KEEP = "Share of the visual tokens, such as 0.1, or a count, such as 64."
_SHARE = "0.1"


def prune(
    model: Annotated[
        str, typer.Option(help="A folder with a model's files, or its name on the hub.")
    ],
    image: Annotated[list[Path], typer.Option(metavar="<path>", help="A picture.")],
    prompt: Annotated[str, typer.Option(help="The question.")],
    method: Annotated[
        str, typer.Option(help="What chooses the tokens; `zspa methods` lists them.")
    ] = "zspaprune",
    keep: Annotated[
        str | None, typer.Option(metavar="SHARE|COUNT", show_default=_SHARE, help=KEEP)
    ] = None,
    core_ratio: Annotated[
        float | None,
        typer.Option(help="Share of those taken for relevance, where the method has one."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Any other option of the method, as its class takes it; once for each.",
        ),
    ] = None,
    scope: Annotated[
        str, typer.Option(help="What shares a budget: image, tile or sample (the prompt).")
    ] = "image",
    positions: Annotated[
        str, typer.Option(help="Of kept tokens: original, or compact (renumbered).")
    ] = "original",
    query: Annotated[
        str,
        typer.Option(help="What relevance is measured against: question, all (words), or a text."),
    ] = "question",
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answer at most.")] = 64,
    full: Annotated[
        bool,
        typer.Option("--full", help="Answer without pruning as well, to compare; both once warm."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A PNG of what was kept.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a vision-language model about a picture, with most of its visual tokens dropped.

    Any model that transformers loads and this package prunes; weights are found and loaded as
    transformers does. Set HF_HUB_OFFLINE=1 to use only what is on this machine.
    """
    try:
        from zspa_kernels import ask

        if len(image) > 1:
            raise UsageError(f"--image must be given once, got {', '.join(map(str, image))}")
        with _progress() as progress:
            answer = ask.ask(
                model,
                image[0],
                prompt,
                method,
                _options(keep, core_ratio, option or ()),
                scope=scope,
                positions=positions,
                query=query,
                max_new_tokens=max_new_tokens,
                full=full,
                out=out,
                device=device,
                progress=progress,
            )
    except DemoError as error:
        typer.echo(f"zspa prune: {str(error).removeprefix('prune: ')}", err=True)
        raise typer.Exit(error.exit_code) from None
    except ModuleNotFoundError as error:
        message = missing(error)
        if message is None:
            raise
        typer.echo(message, err=True)
        raise typer.Exit(1) from None
    print(answer.to_json() if as_json else _text(answer))


def _options(keep: str | None, core_ratio: float | None, more: Iterable[str]) -> dict[str, Any]:
    """Options of the method, each of which has one value."""
    found: dict[str, Any] = {}
    said: dict[str, str] = {}  # by the name of an option, how it was given
    if keep is not None:
        found["keep"], said["keep"] = share_or_count(keep), f"--keep {keep}"
    if core_ratio is not None:
        found["core_ratio"], said["core_ratio"] = core_ratio, f"--core-ratio {core_ratio}"
    for text in more:
        name, value = _option(text)
        given = f"--option {text}"
        if name in said:
            raise UsageError(f"{name} must be given once, got {said[name]} and {given}")
        found[name], said[name] = value, given
    return {"keep": share_or_count(_SHARE), **found}


def _option(text: str) -> tuple[str, Any]:
    """Name and value of `space=llm` or `alpha=0.5`: Python's own literals, else a string."""
    name, given, value = text.partition("=")
    if not given or not name.isidentifier():
        raise UsageError(f"--option must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@contextlib.contextmanager
def _progress() -> Iterator[ask.Progress]:
    """A bar on standard error, gone at the end; none while transformers shows its own."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=1.0)
    started = False

    def show(what: str, share: float | None) -> None:
        nonlocal started
        if share is not None and not started:
            bar.start()
            started = True
        bar.update(task, description=what, completed=share or 0.0)

    try:
        yield show
    finally:
        if started:
            bar.stop()


def _text(answer: ask.Answer) -> str:
    report = answer.report
    size = answer.parameters
    amount = f"{size / 1e9:.2g} billion" if size >= 1e8 else f"{size / 1e6:.2g} million"
    width, height = answer.picture
    where = f"{answer.dtype} on {answer.device}, loaded in {answer.load_s:.1f} s"
    visual = f"visual {report.before} -> {report.after}"
    share = report.select_ms / answer.pruned.first_s / 10
    lines = [
        f"model    {answer.architecture}, {amount} parameters, {where}",
        f"picture  {width} x {height} pixels",
        f"pruned   {report}",
        f"tokens   {visual}, prompt {sum(report.prompt_before)} -> {sum(report.prompt_after)}",
        f"answer   {answer.pruned.text}",
        f"time     {_times(answer.pruned)}",
        f"         selection {report.select_ms:.2g} ms, {share:.2g} % of the first token",
    ]
    if report.after == report.before:
        lines.insert(4, "warning  nothing was pruned")
    if answer.full is not None:
        lines += [f"unpruned {answer.full.text}", f"time     {_times(answer.full)}"]
    if answer.out is not None:
        lines.append(f"written  {answer.out}")
    return "\n".join(lines)


def _times(run: ask.Run) -> str:
    text = f"first token {run.first_s * 1e3:.0f} ms"
    if run.token_s is not None:
        text += f", then {run.token_s * 1e3:.3g} ms a token"
    return f"{text}, {run.tokens} tokens in {run.total_s:.2f} s"
