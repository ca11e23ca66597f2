# SPDX-License-Identifier: Apache-2.0
"""The study of ZOO-Prune's sensitivity: `python -m bench.sensitivity [--suite cpu|smoke]`.

Agreement: every variant against a float64 run of the published formula. Cost: time, floating-point
operations and peak memory at the size of LLaVA-1.5's projector, in bfloat16, against the published
code and one forward pass of the projector. Writes sensitivity.json and sensitivity.png, and the
tables of docs/sensitivity.md.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

from bench import ceilings, pages, sensitivity_plot, sensitivity_report
from bench import sensitivity_study as study
from bench.environment import ROOT, environment
from bench.sensitivity_study import RADIUS, SIZES, SPECTRA, Problem, Size, Timed
from bench.timing import Samples, interleave, quiet, summary
from zspa_kernels import unit_directions
from zspa_kernels.sensitivity_plan import compact_output
from zspa_kernels.testing.sensitivity import published_sensitivity

#: suite -> (size of the agreement, size of the cost, numbers of directions, seconds a group)
SUITES = {
    "cpu": ("quarter", "llava15", (4, 16, 64), 14.0),
    "smoke": ("smoke", "smoke", (2, 4), 0.02),
}
FORWARD = "projector, one forward pass"
PUBLISHED = ("published", "published in float32")
#: Tokens of a timed call that are compared with float64.
CHECKED = 2
#: What their largest relative error may be.
ESTIMATE_ERROR, FORM_ERROR, HALF_ERROR = 1e-4, 1e-5, 1e-2
RANK_ERROR = 5e-2

console = Console()


@dataclass(frozen=True)
class Cost:
    """One contender.

    Attributes:
        variant: What runs.
        m: Directions; 0 for none.
        median_ms: Of the timed calls.
        p10_ms: Of the timed calls.
        p90_ms: Of the timed calls.
        calls: How many.
        gflop: Floating-point operations of its products.
        forward: Time in forward passes of the projector timed in the same group.
        error: Largest relative error of the checked tokens of a timed call; None: not checked.
    """

    variant: str
    m: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    calls: int
    gflop: float
    forward: float
    error: float | None


def groups(
    size: Size, counts: tuple[int, ...], seed: int
) -> Iterator[tuple[int, dict[str, Timed]]]:
    """(m, contenders) to be timed together; each group also times a forward pass."""
    problem = Problem.draw(size, 0.0, seed)
    single = problem.to(torch.float32)
    a, x = problem.preactivation, problem.features
    exact, ranked, diagonal = problem.plan(), problem.plan(256), problem.plan(0)
    exact32, a32 = single.plan(), single.preactivation
    rows = exact.rank
    triangular = bool(torch.equal(exact.factor, exact.factor.triu()))
    form = study.form_gflop(size, rows, False, triangular)
    checked = partial(study.closed_form64, problem, CHECKED)

    yield (
        0,
        {
            "projector in float32": Timed(
                lambda: single.project(single.features), study.forward_gflop(size)
            ),
            "closed form": Timed(lambda: exact(preactivation=a), form, checked, HALF_ERROR),
            "closed form, from the features": Timed(
                lambda: exact(x),
                study.form_gflop(size, rows, True, triangular),
                *(checked, HALF_ERROR),
            ),
            "closed form in float32": Timed(
                lambda: exact32(preactivation=a32), form, checked, FORM_ERROR
            ),
            "closed form, rank 256": Timed(
                lambda: ranked(preactivation=a),
                study.form_gflop(size, ranked.rank, False),
                *(checked, RANK_ERROR),
            ),
            "closed form, diagonal only": Timed(lambda: diagonal(preactivation=a), 0.0),
        },
    )
    compact = compact_output(problem.w2)
    wide = problem.to(torch.float64)
    for m in counts:
        u = unit_directions(m, size.d, seed)
        first = wide.features[:CHECKED]
        right = partial(published_sensitivity, first, wide.project, u.double(), RADIUS, 8)
        work, naive = study.estimate_gflop(size, m), study.published_gflop(size, m)
        half = 1e-9 * size.n * m * size.h * size.o  # what a triangular W2 spares
        yield (
            m,
            {
                "zeroth order, plan": Timed(
                    partial(problem.estimate, u, RADIUS, compact), work - half, right, HALF_ERROR
                ),
                "zeroth order": Timed(partial(problem.estimate, u), work, right, HALF_ERROR),
                "zeroth order in float32": Timed(
                    partial(single.estimate, u), work, right, ESTIMATE_ERROR
                ),
                **{
                    name: Timed(
                        partial(published_sensitivity, p.features, p.project, u, RADIUS), naive
                    )
                    for name, p in zip(PUBLISHED, (problem, single), strict=True)
                },
            },
        )


def costs(
    size: Size, counts: tuple[int, ...], seconds: float, threads: int, seed: int
) -> list[Cost]:
    """Time every group.

    A contender in float32 that took over twice as long as the same in bfloat16 is not run with more
    directions: it is the slower of two baselines, or of two variants, and costs minutes.
    """
    found: list[Cost] = []
    problem = Problem.draw(size, 0.0, seed)
    slow: set[str] = set()
    for m, every in groups(size, counts, seed):
        contenders = {name: timed for name, timed in every.items() if name not in slow}
        with quiet(threads):
            for timed in contenders.values():
                if m < max(counts) or m == 0:
                    timed.call()
            calls = {name: timed.call for name, timed in contenders.items()}
            samples = interleave(lambda: problem.project(problem.features), calls, seconds)
        middle = summary(samples[""].slots).median_ms
        if not any(cost.variant == FORWARD for cost in found):
            forward = Timed(lambda: problem.features, study.forward_gflop(size))
            found.append(_cost(FORWARD, 0, forward, samples[""], middle))
        for name, timed in contenders.items():
            found.append(_cost(name, m, timed, samples[name], middle))
            console.print(f"  {name}, m = {m}: {found[-1].median_ms:.2f} ms")
        ms = {cost.variant: cost.median_ms for cost in found if cost.m == m > 0}
        pairs = ((name, name.removesuffix(" in float32")) for name in ms)
        slow |= {name for name, half in pairs if half != name and ms[name] > 2.0 * ms[half]}
    return found


def _cost(name: str, m: int, timed: Timed, samples: Samples, forward_ms: float) -> Cost:
    times = summary(samples.slots)
    error = None
    if timed.exact is not None and samples.result is not None:
        right = timed.exact()
        error = float(((samples.result[: len(right)] - right) / right).abs().max())
        if not error <= timed.bound:
            raise RuntimeError(f"{name}, m = {m}: error {error:.2g} beyond {timed.bound}")
    return Cost(
        name,
        m,
        times.median_ms,
        times.p10_ms,
        times.p90_ms,
        times.calls,
        timed.gflop,
        times.median_ms / forward_ms,
        error,
    )


# ---- peak memory, in a process of its own --------------------------------------------------------


def peak_megabytes(variant: str, size: str, m: int, threads: int, seed: int) -> float:
    """What one call needs beside its arguments, in a fresh process."""
    command = [sys.executable, "-m", "bench.sensitivity", "--suite", size, "--peak", variant]
    command += ["--directions", str(m), "--threads", str(threads), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _peak_here(variant: str, size: Size, m: int, seed: int) -> float:
    def resident() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    problem = Problem.draw(size, 0.0, seed)
    u = unit_directions(m, size.d, seed)
    w2 = compact_output(problem.w2) if variant == "plan" else None
    few = Problem(problem.features[:4], *list(vars(problem).values())[1:])

    def run(p: Problem) -> None:
        if variant == "published":
            published_sensitivity(p.features, p.project, u, RADIUS)
        else:
            p.estimate(u, RADIUS, w2)

    with quiet(torch.get_num_threads()):
        run(few)  # what the libraries keep for themselves is paid before
        # A factorisation may have been the peak so far: what is freed is given back and filled up.
        ballast = []
        before = resident()
        while resident() <= before:
            ballast.append(torch.ones(2**18))
        before = resident()
        run(problem)
    return resident() - before


# ---- the command --------------------------------------------------------------------------------


def main(
    suite: Annotated[Literal["cpu", "smoke"], typer.Option()] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder of the two files.")] = None,
    page: Annotated[Path | None, typer.Option(help="Page whose tables are rewritten.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for torch's choice.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, tokens and directions.")] = 0,
    peak: Annotated[str | None, typer.Option(hidden=True)] = None,
    directions: Annotated[int, typer.Option(hidden=True)] = 64,
) -> None:
    """Run the study.

    The cpu suite goes to bench/results and docs/sensitivity.md; with --out, and other suites, to
    that folder or build/bench.
    """
    agreement_size, cost_size, counts, seconds = SUITES[suite]
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    if peak is not None:
        typer.echo(_peak_here(peak, SIZES[cost_size], directions, seed))
        return
    published = suite == "cpu" and out is None
    if page is None and published:
        page = ROOT / "docs" / "sensitivity.md"
    try:  # before minutes have passed
        if page is not None:
            pages.rewrite(page.read_text(), sensitivity_report.TABLE, "")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"--page: {error}") from error
    start = time.perf_counter()
    results: dict[str, Any] = {
        "schema": 1,
        "suite": suite,
        "seed": seed,
        "radius": RADIUS,
        "environment": environment(threads),
        "ceilings": asdict(ceilings.measure(threads, 256 if suite == "smoke" else 2048)),
        "sizes": {"agreement": asdict(SIZES[agreement_size]), "cost": asdict(SIZES[cost_size])},
        "participation": {},
        "agreement": [],
    }
    with torch.no_grad():
        for spectrum, decay in SPECTRA.items():
            console.print(f"agreement, {spectrum} spectrum")
            size = SIZES[agreement_size]
            problem = Problem.draw(size, decay, seed).to(torch.float64)
            results["participation"][spectrum] = problem.participation()
            for record in study.agreement(size, spectrum, counts, seed):
                results["agreement"].append(asdict(record))
    console.print("cost")
    found = costs(SIZES[cost_size], counts, seconds, threads, seed)
    results["cost"] = [asdict(cost) for cost in found]
    m = max(counts)
    results["peak_mb"] = {
        variant: peak_megabytes(variant, suite, m, threads, seed)
        for variant in ("published", "zeroth", "plan")
    }
    results["checks"] = checks(found, results["peak_mb"], m)
    results["seconds"] = time.perf_counter() - start
    folder = pages.write("sensitivity", results, published, out)
    sensitivity_plot.plot(folder / "sensitivity.png", results)
    if page is not None:
        sensitivity_report.write_page(page, results)
    console.print(sensitivity_report.tables(results), markup=False)


def checks(found: list[Cost], peak: dict[str, float], m: int) -> dict[str, float]:
    """The ratios that matter: times in forward passes, and against the published shape.

    Of the published shape's two dtypes the faster one counts.
    """
    ms = {(cost.variant, cost.m): cost for cost in found}
    published = min(
        (ms[name, m] for name in PUBLISHED if (name, m) in ms), key=lambda cost: cost.median_ms
    )
    plan = ms["zeroth order, plan", m]
    return {
        "closed form / forward": ms["closed form", 0].forward,
        "rank 256 / forward": ms["closed form, rank 256", 0].forward,
        f"published / zeroth order, m={m}": published.median_ms / ms["zeroth order", m].median_ms,
        f"published / zeroth order with a plan, m={m}": published.median_ms / plan.median_ms,
        f"published / closed form, m={m}": published.median_ms / ms["closed form", 0].median_ms,
        "memory, published / zeroth order": peak["published"] / max(peak["zeroth"], 0.1),
        "memory, published / with a plan": peak["published"] / max(peak["plan"], 0.1),
    }


if __name__ == "__main__":
    typer.run(main)
