# SPDX-License-Identifier: Apache-2.0
"""One workload from its tensors to its records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator

from bench import ceilings, compiled, contenders, timing
from bench.contenders import Contender, UnavailableError
from bench.problem import Problem, draw
from bench.registry import Workload
from bench.results import Record
from bench.verify import Verifier


def measure(
    workload: Workload,
    rates: ceilings.Ceilings,
    threads: int,
    seed: int = 0,
    ours: Callable[[Problem], Contender] = contenders.ours,
) -> Iterator[Record]:
    """Time and judge all contenders of a workload.

    Args:
        workload: What to measure.
        rates: The ceilings of this run.
        threads: CPU threads of workloads that do not say.
        seed: Of the tokens.
        ours: Makes the contender that the others are interleaved with.

    Yields:
        The record of `ours`, then one for each of the others.
    """
    problem = draw(workload, seed)
    threads = workload.threads or threads
    first = ours(problem)
    absent: list[Record] = []
    with timing.quiet(threads):
        timing.warm_up(first.call)
        others = list(_others(problem, first, absent))
        calls = {other.name: other.call for other in others}
        samples = timing.interleave(first.call, calls, workload.seconds)
    load = os.getloadavg()[0]
    with timing.quiet(threads):
        verifier = Verifier(problem)
        record = _judged(workload, first, samples[""], verifier, load)
        if record.status == "verified":
            work = ceilings.count_work(problem)
            floor = ceilings.floor(problem, work, rates, threads)
            record = dataclasses.replace(record, work=work, floor=floor)
        yield record
        for other in others:
            yield _judged(workload, other, samples[other.name], verifier, load)
    yield from absent


def _others(problem: Problem, first: Contender, absent: list[Record]) -> Iterator[Contender]:
    """The contenders that can run, warmed up; a record in `absent` for each that cannot.

    Only what was timed in the warm-up can be "the best loop", so `compiled` stands last.
    """
    workload = problem.workload
    warm: dict[str, float] = {}
    for name in sorted(workload.against, key=lambda name: name == "compiled"):
        try:
            if name == "compiled":
                best = min(compiled.NAMES, key=lambda name: warm[name])
                other = contenders.compiled_loop(best, problem)
            elif name == "fpsample":
                other = contenders.farthest_points(problem, first.picks(first.call()))
            else:
                other = contenders.contender(name, problem)
        except UnavailableError as reason:
            absent.append(Record(workload.name, name, "baseline", "unavailable", str(reason)))
            continue
        if workload.warm:
            warm[name] = timing.warm_up(other.call)
        yield other


def _judged(
    workload: Workload,
    contender: Contender,
    samples: timing.Samples,
    verifier: Verifier,
    load: float,
) -> Record:
    """No verification, no figure."""
    assert samples.result is not None
    status, reason, verdict = "verified", "", None
    try:
        if contender.kind == "ours" and not samples.steady:
            raise AssertionError("two timed calls returned different picks")
        verdict = verifier.check(contender, samples.result)
    except AssertionError as error:
        status, reason = "wrong", str(error)
    if status == "wrong" and contender.kind == "inexact":
        status = "inexact"
    head = (workload.name, contender.name, contender.kind, status, reason)
    if status == "wrong":
        return Record(*head, load_average=load)
    times = timing.summary(samples.slots)
    return Record(*head, verdict, times, samples.slots, load_average=load)
