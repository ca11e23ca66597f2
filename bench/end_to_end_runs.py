# SPDX-License-Identifier: Apache-2.0
"""One model, with and without pruning: whole answers, timed in turn, and what proves them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zspa_kernels as zk
from bench.end_to_end_models import Encoder, Preset, build, inputs, synchronise
from bench.problem import Image, Tokens
from bench.timing import quantile
from bench.verify import replay
from zspa_kernels.testing import bound, check_sorted, divprune_loop

KEEP, CORE_RATIO = 0.1, 0.2
MIB = 2.0**-20


@dataclass(frozen=True)
class Loop(zk.MethodBase):
    """DivPrune as published: a Python loop over a matrix of distances, in float32."""

    keep: float
    sorted: bool = True

    def select(self, visual: Tensor, prompt: Tensor | None = None) -> zk.Selection:
        k = zk.num_keep(len(visual), self.keep)
        picks = divprune_loop(visual.float(), None, 0, k)
        if self.sorted:
            picks = picks.sort().values
        return zk.Selection(picks, torch.zeros_like(picks, dtype=torch.bool))


@dataclass(frozen=True)
class Contender:
    """A way to answer.

    Attributes:
        name: for tables.
        make: makes the method, told whether its picks are sorted; None: nothing is pruned.
        core_ratio: share of its picks that are core.
        ours: whether ties must go to the lowest index.
    """

    name: str
    make: Callable[[bool], Any] | None = None
    core_ratio: float = 0.0
    ours: bool = False


FULL = "full"
CONTENDERS = (
    Contender(FULL),
    Contender("DivPrune, published loop", lambda sort: Loop(KEEP, sort)),
    Contender("DivPrune", lambda sort: zk.DivPrune(KEEP, sort), ours=True),
    Contender(
        "ZSPAPrune", lambda sort: zk.ZSPAPrune(KEEP, CORE_RATIO, sorted=sort), CORE_RATIO, ours=True
    ),
)


@dataclass
class Recorded:
    """A method, and what it was asked and answered last."""

    method: Any
    visual: list[Tensor] = field(default_factory=list)
    prompt: list[Tensor] = field(default_factory=list)
    picked: list[zk.Selection] = field(default_factory=list)

    def select_varlen(self, visual: Sequence[Tensor], prompt: Sequence[Tensor]) -> Any:
        self.visual, self.prompt = list(visual), list(prompt)
        self.picked = self.method.select_varlen(visual, prompt)
        return self.picked


@dataclass(frozen=True)
class Times:
    """Milliseconds of one answer; `first` = `encoder` + `select` + `prefill`."""

    total: float
    first: float
    encoder: float
    select: float
    prefill: float
    decode: float


def measure(
    preset: Preset,
    device: torch.device,
    new_tokens: int,
    rounds: int,
    tick: Callable[[str], None],
    attention: str | None = None,
) -> dict[str, Any]:
    """Build the model and let every contender answer: once unmeasured, then in turn.

    Args:
        preset: what to build.
        device: where.
        new_tokens: length of an answer, at least 2.
        rounds: timed answers of each contender.
        tick: called before each step with its name.
        attention: see `build`.

    Raises:
        AssertionError: picks, or the length of a cache, are wrong; then there is no figure.
    """
    tick("building")
    model = build(preset, device, attention=attention)
    asked = inputs(preset, device)
    encoder = Encoder(model)
    contenders = {one.name: Answering(one, model, asked, encoder, new_tokens) for one in CONTENDERS}
    memory = {}
    for name, one in contenders.items():
        tick(f"{name}: memory")
        memory[name] = one.memory()
    names = list(contenders)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            tick(f"{name}: round {number + 1}")
            contenders[name].answer()
    records = []
    for name, one in contenders.items():
        tick(f"{name}: verification")
        records.append({**one.record(), "peak_mib": memory[name]})
    weights = sum(p.numel() for p in model.parameters())
    return {
        "title": preset.title,
        "parameters": weights,
        "weights_mib": weights * preset.dtype.itemsize * MIB,
        "dtype": str(preset.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "visual_tokens": preset.tokens,
        "keep": KEEP,
        "core_ratio": CORE_RATIO,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "records": records,
    }


class Answering:
    """One contender with one model."""

    def __init__(
        self, contender: Contender, model: Any, asked: Any, encoder: Encoder, new_tokens: int
    ) -> None:
        self.contender, self.model, self.asked = contender, model, asked
        self.encoder, self.new_tokens = encoder, new_tokens
        self.times: list[Times] = []
        self.method = None if contender.make is None else Recorded(contender.make(True))
        self.report: Any = None

    def answer(self) -> None:
        """One timed answer."""
        self.times.append(self._generate()[0])

    def memory(self) -> float | None:
        """MiB at most during an answer, beyond what was held before; None where not known.

        It is also the answer before the timed ones, and the one whose cache is looked at.
        """
        with _Peak(self.asked["input_ids"].device) as peak:
            _, output = self._generate()
        cache = output["cache" if "cache" in output else "past_key_values"]
        prompt = self.asked["input_ids"].shape[1]
        if self.report is not None:
            (prompt,) = self.report.prompt_after
        length = int(cache.get_seq_length())
        if length != prompt + self.new_tokens - 1:
            raise AssertionError(
                f"{self.contender.name}: the cache holds {length} tokens, "
                f"not {prompt} + {self.new_tokens - 1}"
            )
        return peak.mib

    def _generate(self) -> tuple[Times, Any]:
        import transformers

        at: list[float] = []

        def note(ids: Tensor, scores: Any, **more: Any) -> Tensor:
            synchronise()
            at.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        pruning: Any = contextlib.nullcontext()
        if self.method is not None:
            pruning = zk.hf.prune(self.model, self.method)
        gc.collect()
        synchronise()
        start = time.perf_counter()
        with torch.no_grad(), pruning as handle:
            output = self.model.generate(
                **self.asked,
                max_new_tokens=self.new_tokens,
                min_new_tokens=self.new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                stopping_criteria=transformers.StoppingCriteriaList([note]),
            )
        select = 0.0
        if handle is not None:
            self.report = handle.report
            select = self.report.select_ms
        first = 1e3 * (at[0] - start)
        encoder = 1e3 * self.encoder.seconds
        times = Times(
            total=1e3 * (at[-1] - start),
            first=first,
            encoder=encoder,
            select=select,
            prefill=first - encoder - select,
            decode=1e3 * (at[-1] - at[0]) / (len(at) - 1),
        )
        return times, output

    def record(self) -> dict[str, Any]:
        """Medians, and what was verified of the last timed answer."""
        names = list(Times.__dataclass_fields__)
        columns = {name: [getattr(one, name) for one in self.times] for name in names}
        shares = [one.select / one.first for one in self.times]
        report = self.report
        prompt = self.asked["input_ids"].shape[1]
        return {
            "contender": self.contender.name,
            "visual": self._visual(),
            "prompt": prompt if report is None else report.prompt_after[0],
            "kv_mib": self._kv(),
            "median_ms": {name: statistics.median(values) for name, values in columns.items()},
            "p10_ms": {name: quantile(values, 0.1) for name, values in columns.items()},
            "p90_ms": {name: quantile(values, 0.9) for name, values in columns.items()},
            "select_share": statistics.median(shares),
            "verified": self.verify(),
        }

    def _visual(self) -> int:
        if self.report is not None:
            return int(self.report.after)
        image = self.asked["input_ids"] == self.model.config.image_token_id
        return int(image.sum())

    def _kv(self) -> float:
        """MiB of keys and values of the prompt."""
        if self.report is not None:
            return float(self.report.kv_bytes_after * MIB)
        from zspa_kernels.hf.architectures import Target
        from zspa_kernels.hf.report import kv_bytes

        return kv_bytes(Target.of(self.model), 1, self.asked["input_ids"].shape[1]) * MIB

    def verify(self) -> dict[str, int] | None:
        """Replay every pick of the last answer in float64; None where nothing was picked."""
        if self.method is None or self.contender.make is None:
            return None
        ordered = self.contender.make(False).select_varlen(self.method.visual, self.method.prompt)
        picks = decided = 0
        for i, visual in enumerate(self.method.visual):
            timed, again = self.method.picked[i].indices.cpu(), ordered[i].indices.cpu()
            check_sorted(timed, again)
            core = zk.split_core(len(timed), self.contender.core_ratio)
            image = Image(
                Tokens(visual.cpu(), self.method.prompt[i].cpu()), core, len(timed) - core
            )
            limit = bound(visual.shape[1], "triton" if visual.is_cuda else "cpp")
            seen = replay(image, again, bound=limit, lowest_index=self.contender.ours)
            picks, decided = picks + seen.picks, decided + seen.decided
        return {"picks": picks, "decided": decided}


class _Peak:
    """Largest memory during a block, beyond that before it: of the process, or of the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.mib: float | None = None

    def __enter__(self) -> _Peak:
        gc.collect()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before: float | None = torch.cuda.memory_allocated() * MIB
            return self
        with contextlib.suppress(OSError, AttributeError):  # gives freed memory back: glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self._before = _status("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is None:
            return
        after = torch.cuda.max_memory_allocated() * MIB if self._cuda else _status("VmHWM")
        self.mib = after - self._before


def _status(name: str) -> float:
    """MiB, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) / 1024
