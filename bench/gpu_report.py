# SPDX-License-Identifier: Apache-2.0
"""What the files of `bench.gpu` say, as plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu_jobs import reason

#: Jobs that were not run whose names are shown.
LEFT = 8
#: Goals for an H200, microseconds of a graph replay with the tokens in L2.
GOALS = {
    "llava15-576x4096-k58-core23-vlm-bf16": 60,
    "llavanext-2880x4096-k288-core115-vlm-bf16": 300,
    "llava15-576x4096-k58-core23-vlm-bf16-b32": 200,
    "video-16384x3584-k1638-core655-vlm-bf16": 1500,
}


def summary(folder: Path) -> str:
    """All stages that have a file in `folder`."""
    lines = list(_head(folder))
    for stage in ("all", "correctness", "sanitizer", "timing", "sweep"):
        jobs = _jobs(folder, stage)
        if jobs:
            lines += [f"{stage}: {_counts(jobs)}", *_failures(jobs), *_kernels(jobs), ""]
        if stage in ("all", "timing", "sweep") and jobs:
            machine = [*_machine(jobs)]
            lines += [*machine, *[""][: len(machine)]]
            lines += [*_table(jobs), ""] if stage != "sweep" else []
    jobs = _jobs(folder, "end_to_end")
    if jobs:
        lines += [f"end_to_end: {_counts(jobs)}", *_failures(jobs), *_answers(jobs)]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def _jobs(folder: Path, stage: str) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = _read(folder / f"{stage}.json").get("jobs", [])
    return jobs


def _head(folder: Path) -> Iterator[str]:
    head = _read(folder / "environment.json")
    if head:
        sha = head["git"]["sha"][:10] if head["git"] else "unknown"
        dirty = " with changes" if head["git"] and head["git"]["dirty"] else ""
        yield f"{head['device']}, driver {head['driver']}, {head['date']}, commit {sha}{dirty}"
        yield f"torch {head['torch']}, Triton {head['triton']}, CUDA {head['cuda']}"
        yield ""


def _counts(jobs: list[dict[str, Any]]) -> str:
    status = [job["status"] for job in jobs]
    return ", ".join(f"{status.count(name)} {name}" for name in dict.fromkeys(status))


def _failures(jobs: list[dict[str, Any]]) -> Iterator[str]:
    for job in jobs:
        if job["status"] in ("failed", "too slow"):
            yield f"  {job['name']}: {job['status']}: {reason(job['tail'])}"
    left = [job["name"] for job in jobs if job["status"] in ("not run", "cut off")]
    if left:
        more = f", and {len(left) - LEFT} more" if len(left) > LEFT else ""
        yield "  left for another run: " + ", ".join(left[:LEFT]) + more


def _kernels(jobs: list[dict[str, Any]]) -> Iterator[str]:
    """How many kernels were compiled for the machine, and those that keep registers in memory."""
    kernels = [record for job in jobs for record in job["data"] if "spill" in record]
    spilling = [record for record in kernels if record["spill"] > 0]
    if kernels:
        yield f"kernels: {len(kernels)} compiled, {len(spilling)} with spills"
    for record in spilling:
        tokens = " ".join(record["tokens"])
        size = f"{record['spill']} bytes, {record['registers']} registers"
        yield f"  {record['kernel']} ({tokens}): {size}"


def _machine(jobs: list[dict[str, Any]]) -> Iterator[str]:
    for record in (record for job in jobs for record in job["data"]):
        if "ceiling" in record:
            yield f"{record['ceiling']:14} {record['value']:9.0f}"
        elif "step" in record:
            yield f"{record['step']:16} {record['ns']:9.0f} ns, {record['programs']} programs"
        elif "pick" in record:
            figure = f"{record['ns']:9.0f} ns" if "ns" in record else f" {record['error']}"
            yield f"a pick, {record['pick']:16} {figure}"
        elif "few" in record:
            figure = "no figure: the ways differ"
            if record["status"] == "verified":
                figure = ", ".join(f"{way} {record[way]:7.1f} us" for way in ("matrix", "blocks"))
            yield f"{record['few']:24} {figure}"
        elif "part" in record:
            figure = f"{record['us']:7.1f} us" if "us" in record else "no figure: it is wrong"
            yield f"{record['part']:42} {figure}"
        elif "meetings" in record:
            yield f"{record['meetings'] + ': barriers':42} {record['count']:5}"
        elif "sweep" in record:
            figure = f"{record['us']:7.1f} us" if "us" in record else f" {record['error']}"
            other = "" if record.get("equal", True) else ", other picks"
            yield f"{record['sweep'][:30]:30} {record['form']:42} {figure}{other}"
        elif "sensitivity" in record:
            figure = f"{record['ms']:9.3f} ms" if "ms" in record else "no figure: it is wrong"
            yield f"{record['sensitivity']:40} {figure}"
        elif "greedy" in record:
            figure = "no figure: it is wrong"
            if "ms" in record:
                ratio = _ratio(record["loop_ms"], record["ms"])
                figure = f"{record['ms']:9.3f} ms; the loop takes {ratio}x that for one image"
            yield f"{record['greedy']:40} {figure}"


def _table(jobs: list[dict[str, Any]]) -> Iterator[str]:
    """Microseconds; ratios are to verified baselines of the same process."""
    if not any("workload" in record for job in jobs for record in job["data"]):
        yield "no workload was timed"
        return
    yield (
        f"{'workload':54} {'graph':>8} {'cold':>8} {'eager':>8} {'goal':>6} "
        f"{'x Gram graph':>13} {'x loop eager':>13}"
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for record in (record for job in jobs for record in job["data"] if "workload" in record):
        found.setdefault(record["workload"], []).append(record)
    for name, records in found.items():
        wrong = [r for r in records if r["status"] == "wrong"]
        times = medians(records)
        ours = {mode: times.get(("zspa", mode)) for mode in MODES}
        gram, loop = rivals(times)
        cells = [_microseconds(ours[mode]) for mode in ours]
        goal = str(GOALS.get(name, ""))
        yield (
            f"{name:54} {cells[0]:>8} {cells[1]:>8} {cells[2]:>8} {goal:>6} "
            f"{_ratio(gram, ours['graph']):>13} {_ratio(loop, ours['eager']):>13}"
        )
        for record in wrong:
            name = f"{record['contender']} ({record['mode']})"
            yield f"  {name} has no figure: {record['reason'][:120]}"


#: How a call of this package is timed.
MODES = ("graph", "graph cold", "eager")
Medians = dict[tuple[str, str], float]


def medians(records: list[dict[str, Any]]) -> Medians:
    """Milliseconds by contender and mode, of what of a workload was verified."""
    verified = [record for record in records if record["status"] == "verified"]
    return {(r["contender"], r["mode"]): r["median_ms"] for r in verified}


def rivals(times: Medians) -> tuple[float | None, float | None]:
    """Gram + incremental as it is captured, and the published loop."""
    loops = [times.get((f"{name}_loop", "eager")) for name in ("divprune", "zspaprune")]
    loop = next((value for value in loops if value is not None), None)
    return times.get(("gram_incremental sync-free", "graph")), loop


def _answers(jobs: list[dict[str, Any]]) -> Iterator[str]:
    """Milliseconds of whole answers; the share is of selection in the time to the first token."""
    if not any(job["data"] for job in jobs):
        yield "no answer was timed"
        return
    yield (
        f"{'model, attention':34} {'contender':24} {'tokens':>6} {'answer':>8} {'first':>8} "
        f"{'encoder':>8} {'select':>7} {'share':>7} {'prefill':>8} {'a token':>8} {'peak MiB':>8}"
    )
    for run in (run for job in jobs for run in job["data"]):
        for record in run["records"]:
            ms, peak = record["median_ms"], record["peak_mib"]
            yield (
                f"{run['preset'] + ', ' + run['attention']:34} {record['contender']:24} "
                f"{record['visual']:6} {ms['total']:8.1f} {ms['first']:8.1f} {ms['encoder']:8.1f} "
                f"{ms['select']:7.3f} {record['select_share']:7.2%} {ms['prefill']:8.1f} "
                f"{ms['decode']:8.2f} {'-' if peak is None else format(peak, '.0f'):>8}"
            )


def _microseconds(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{1000 * milliseconds:.1f}"


def _ratio(slower: float | None, faster: float | None) -> str:
    return "-" if slower is None or faster is None else f"{slower / faster:.1f}"
