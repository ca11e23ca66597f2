# SPDX-License-Identifier: Apache-2.0
"""The efficiency table and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench import pages

TABLE = "end_to_end"
_HEADS = (
    "", "visual tokens", "end to end, ms", "speed-up", "first token, ms", "encoder", "selection",
    "share of first token", "prefill", "decode, ms a token", "KV, MiB", "peak, MiB",
    "picks verified",
)  # fmt: skip
#: Okabe and Ito's colours, told apart by everybody.
_PARTS = {"encoder": "#999999", "select": "#D55E00", "prefill": "#0072B2", "decode": "#56B4E9"}
_LABELS = {
    "encoder": "picture encoder",
    "select": "selection",
    "prefill": "rest of the first token (prefill)",
    "decode": "further tokens",
}


def tables(results: dict[str, Any]) -> str:
    """One table a model, in Markdown."""
    return "\n\n".join(_table(name, run) for name, run in results["runs"].items()) + "\n"


def _table(name: str, run: dict[str, Any]) -> str:
    head = (
        f"**{run['title']}**, {run['parameters'] / 1e9:.2f} billion parameters, {run['dtype']} "
        f"({run['weights_mib']:.0f} MiB), one picture of {run['visual_tokens']} tokens, "
        f"{run['new_tokens']} new tokens, medians of {run['rounds']} answers in turn; "
        f"{_where(name, run)}."
    )
    lines = pages.head(*_HEADS)
    full = run["records"][0]["median_ms"]["total"]
    for record in run["records"]:
        ms = record["median_ms"]
        seen = record["verified"]
        pruned = seen is not None
        peak = record["peak_mib"]
        lines.append(
            pages.row(
                record["contender"],
                str(record["visual"]),
                _digits(ms["total"]),
                f"{full / ms['total']:.2f}x",
                _digits(ms["first"]),
                _digits(ms["encoder"]),
                f"{ms['select']:.2f}" if pruned else "-",
                f"{record['select_share']:.2%}" if pruned else "-",
                _digits(ms["prefill"]),
                _digits(ms["decode"]),
                f"{record['kv_mib']:.1f}",
                "-" if peak is None else f"{peak:.0f}",
                f"{seen['picks']} ({seen['decided']} decided)" if pruned else "-",
            )
        )
    return "\n".join([head, "", *lines])


def _where(name: str, run: dict[str, Any]) -> str:
    """The command, the machine and the versions of a run."""
    machine = run["environment"]
    if run["device"] == "cpu":
        command = f"bench.end_to_end --preset {name}"
        device = f"{machine['cpu']['model']}, {machine['threads']} threads, {machine['isa']}"
    elif "attention" in run:
        command = "bench.gpu --stage end_to_end"
        device = f"{run['device']}, driver {machine['driver']}, attention {run['attention']}"
    else:
        command, device = f"bench.end_to_end --preset {name}", str(run["device"])
    return (
        f"`python -m {command}`: {device}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, {pages.commit(machine)}, {machine['date'][:10]}"
    )


def added(results: dict[str, Any], stage: dict[str, Any]) -> list[str]:
    """Add the models that a file of `bench.gpu` measured to `results`; returns their names."""
    head = {name: value for name, value in stage.items() if name != "jobs"}
    names = []
    for run in (run for job in stage["jobs"] if job["status"] == "passed" for run in job["data"]):
        if run["preset"].startswith("tiny"):
            continue  # they show that it works, not what it saves
        rest = dict(run)
        name = f"{rest.pop('preset')} {run['attention']}"
        machine = {**head, "transformers": rest.pop("transformers")}
        results["runs"][name] = {**rest, "environment": machine}
        names.append(name)
    return names


def write_page(path: Path, results: dict[str, Any]) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        ValueError: If the page has no marks.
    """
    path.write_text(pages.rewrite(path.read_text(), TABLE, f"\n{tables(results)}"))


def plot(path: Path, results: dict[str, Any]) -> None:
    """Write the picture: what an answer's time is made of."""
    runs = list(results["runs"].values())
    figure = Figure(figsize=(10, 0.8 + 2.2 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    for at, run in zip(figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs, strict=True):
        records = run["records"]
        left = [0.0] * len(records)
        for part, color in _PARTS.items():
            times = 1 if part != "decode" else run["new_tokens"] - 1
            widths = [times * record["median_ms"][part] / 1e3 for record in records]
            at.barh(range(len(records)), widths, left=left, color=color, label=_LABELS[part])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for i, record in enumerate(records):
            share = record["select_share"]
            total = record["median_ms"]["total"] / 1e3
            text = f" {total:.2f} s" + (f", selection {share:.2%} of the first" if share else "")
            at.text(left[i], i, text, va="center", fontsize=8)
        at.set_yticks(range(len(records)), [record["contender"] for record in records], fontsize=8)
        at.invert_yaxis()
        at.set_xlim(right=1.35 * max(left))
        at.set_title(f"{run['title']}, {run['device']}", fontsize=10)
        at.grid(True, axis="x", alpha=0.3)
        at.set_xlabel(f"seconds to {run['new_tokens']} new tokens, medians")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    # No version of matplotlib in the file: the same results give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _digits(x: float) -> str:
    return f"{x:.0f}" if x >= 100.0 else f"{x:.3g}"
