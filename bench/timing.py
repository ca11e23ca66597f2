# SPDX-License-Identifier: Apache-2.0
"""Timed calls: interleaved, poisoned, and summarised without estimating anything."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: No selection has this index, so a slot that a call does not write is seen.
POISON = -(2**62)

Call = Callable[[], Tensor]


#: Cores that others may keep busy during a run whose figures are published.
_OTHERS = 0.1


class Machine:
    """What other processes take of the machine, from the making of this object on."""

    def __init__(self) -> None:
        self._start = _used()

    def others(self) -> float:
        """How many cores other processes kept busy, on average."""
        seconds, busy, own = (now - then for now, then in zip(_used(), self._start, strict=True))
        return max(0.0, busy - own) / max(seconds, 1e-9)

    def refusal(self) -> str:
        """Why figures are not published; empty if they can be."""
        others = self.others()
        if others <= _OTHERS:
            return ""
        return (
            f"other processes kept {others:.2f} cores busy meanwhile: these figures are not "
            "published; leave the machine alone"
        )


def _used() -> tuple[float, float, float]:
    """Seconds: on a clock, of all CPUs at work, of this process and its children at work."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _waiting, irq, softirq = map(int, file.readline().split()[1:8])
    ticks = os.sysconf("SC_CLK_TCK")
    own = sum(os.times()[:4])
    return time.monotonic(), (user + nice + system + irq + softirq) / ticks, own


@dataclass
class Samples:
    """The timed calls of one contender, slot by slot.

    Attributes:
        slots: Milliseconds; the calls of a slot ran one after another.
        result: What the last timed call returned.
        steady: Whether every timed call returned the same.
    """

    slots: list[list[float]] = field(default_factory=list)
    result: Tensor | None = None
    steady: bool = True

    def add(self, call: Call, calls: int) -> None:
        """Time one slot."""
        times = []
        for _ in range(calls):
            milliseconds, output = _timed(call)
            times.append(milliseconds)
            if self.result is not None and not torch.equal(self.result, output):
                self.steady = False
            self.result = output.clone()
            # The next call is likely to get this memory: what it does not write is not right.
            output.fill_(POISON)
        self.slots.append(times)


@dataclass(frozen=True)
class Summary:
    """Milliseconds of one contender.

    `noise` is how far the medians of its slots lie apart (from the tenth to the ninetieth
    percentile, relative to the median): between two slots other code ran, so a difference of this
    size says nothing. With one slot it is unknown.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    noise: float | None
    calls: int


def summary(slots: list[list[float]]) -> Summary:
    """Summarise the slots of one contender."""
    calls = [time for slot in slots for time in slot]
    middle = statistics.median(calls)
    noise = None
    if len(slots) > 1:
        medians = [statistics.median(slot) for slot in slots]
        noise = (quantile(medians, 0.9) - quantile(medians, 0.1)) / middle
    return Summary(middle, quantile(calls, 0.1), quantile(calls, 0.9), noise, len(calls))


def quantile(values: list[float], q: float) -> float:
    """Quantile by linear interpolation."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = math.ceil(at)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _timed(call: Call) -> tuple[float, Tensor]:
    start = time.perf_counter_ns()
    output = call()
    return (time.perf_counter_ns() - start) * 1e-6, output


@contextlib.contextmanager
def quiet(threads: int) -> Iterator[None]:
    """A fixed number of torch threads, no autograd and no garbage collection."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def warm_up(call: Call, seconds: float = 0.02) -> float:
    """Call until `seconds` have passed, at least once; returns the milliseconds of the last."""
    end = time.perf_counter() + seconds
    while True:
        milliseconds, _ = _timed(call)
        if time.perf_counter() >= end:
            return milliseconds


#: Longest slot of calls shorter than it, in milliseconds, and most calls of a slot.
SLOT_MS = 20.0
SLOT_CALLS = 20
MOST_ROUNDS = 10


def interleave(first: Call, others: Mapping[str, Call], seconds: float) -> dict[str, Samples]:
    """Time `first` against `others` in the order A B A C A B A C A ...

    Every round gives each of the others one slot between two slots of the first, so a machine that
    slows down slows all of them, and the slots of the first show by how much. There is at least one
    round, and no new one after `seconds`.

    Returns:
        By name; the first under "".
    """
    samples = {name: Samples() for name in ("", *others)}
    end = time.perf_counter() + seconds
    _slot(samples[""], first)
    for _ in range(MOST_ROUNDS):
        for name, call in others.items():
            _slot(samples[name], call)
            _slot(samples[""], first)
        if not others:
            _slot(samples[""], first)
        if time.perf_counter() >= end:
            break
    return samples


def _slot(samples: Samples, call: Call) -> None:
    calls = 1
    if samples.slots:
        one = max(samples.slots[-1][-1], 1e-3)
        calls = max(1, min(SLOT_CALLS, round(SLOT_MS / one)))
    samples.add(call, calls)
