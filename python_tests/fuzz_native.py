# SPDX-License-Identifier: Apache-2.0
"""Random calls of every native kernel: odd widths and strides, bad values, every instruction set.

    python -m python_tests.fuzz_native --seconds 60 --seed 0

What a call returns may depend on its arguments alone: repeated calls, with one thread and with
three, must give equal bits, and so must all instruction sets where an op promises it. Indices must
name tokens that may be chosen, each once. `make sanitize` runs this with modules that also watch
memory and threads.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from torch import Tensor

import zspa_kernels as zk
from python_tests import sanitize
from zspa_kernels import _native, primitives
from zspa_kernels._activations import NAMES
from zspa_kernels.primitives.scores import combined
from zspa_kernels.testing import MODELS, tokens
from zspa_kernels.testing.cases import DTYPES


class Same(Enum):
    """What an op promises about the bits of its result."""

    CALL = 0  # with the same number of threads: BLAS takes part
    ISA = 1  # on the same instruction set, with any number of threads
    ALWAYS = 2


#: Runs a drawn call, and what is promised about its result.
Call = tuple[Callable[[], object], Same]


class Draw:
    """Arguments from one seed; `said` is what a report needs to draw them again by hand."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.said: list[str] = [f"seed {seed}"]

    def size(self, *usual: int, most: int = 70) -> int:
        """Often one of `usual`, else anything in [0, most]."""
        return self.pick.choice([*usual, self.pick.randint(0, most)])

    def chance(self, of: float = 0.5) -> bool:
        return self.pick.random() < of

    def dtype(self) -> torch.dtype:
        return self.pick.choice(DTYPES)

    def rows(self, B: int, N: int, D: int, dtype: torch.dtype) -> Tensor:
        """`[B, N, D]` of one of the token models, some rows spoilt, in some layout."""
        model = self.pick.choice(MODELS)
        seed = self.pick.randrange(1000)
        x = torch.stack([tokens(model, N, D, seed + b) for b in range(B)]) if B else None
        x = torch.empty(0, N, D) if x is None else x
        if self.chance(0.4) and x.numel():
            for value in (0.0, torch.nan, torch.inf, 1e30, 1e-30, -0.0):
                x[self.where(B, N, 0.05)] = value
                x[..., self.pick.randrange(D)].masked_fill_(self.where(B, N, 0.03), value)
        self.said.append(f"{model} {B} x {N} x {D} {str(dtype)[6:]}")
        return self.laid_out(x.to(dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values in memory that ends with the last of them: any gaps, any alignment."""
        B, N, D = x.shape
        kind = self.pick.choice(["dense", "gaps", "turned", "one batch", "one row", "columns"])
        row = D + self.pick.choice([0, 1, 3, 17]) if kind in ("gaps", "turned") else D
        strides = (N * row + self.pick.choice([0, 1, 5]), row, 1)
        if kind == "turned":
            strides = (row, B * row, 1)
        if kind == "columns":
            strides = (N * D, 1, N)
        if kind == "one batch":
            x, strides = x[:1].expand(B, N, D), (0, D, 1)
        if kind == "one row":
            x, strides = x[:, :1].expand(B, N, D), (D, 0, 1)
        first = self.pick.choice([0, 0, 1, 7])
        last = sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
        memory = torch.full((first + last + 1 if x.numel() else first,), torch.nan, dtype=x.dtype)
        view = torch.as_strided(memory, x.shape, strides, first)
        for b in range(B):
            for i in range(N):
                view[b, i] = x[b, i]
        self.said.append(f"{kind} {strides} at {first}")
        return view

    def where(self, B: int, N: int, share: float) -> Tensor:
        return torch.rand(B, N, generator=self.generator) < share

    def mask(self, B: int, N: int) -> Tensor | None:
        if self.chance():
            return None
        return self.where(B, N, self.pick.choice([0.0, 0.1, 0.9, 1.0]))

    def values(self, *shape: int) -> Tensor:
        """float32, some of them not finite, many of them equal."""
        x = torch.randn(shape, generator=self.generator).mul_(4.0).round_().div_(4.0)
        if self.chance(0.4):
            for value in (0.0, -0.0, torch.nan, torch.inf, -torch.inf, 3e38, 1e-40):
                x[torch.rand(shape, generator=self.generator) < 0.05] = value
        return x

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator)


def sizes(draw: Draw) -> tuple[int, int, int, int]:
    """B, N, D, k."""
    B, N = draw.size(1, 2, most=3), draw.size(1, 130, 140, 300)
    D = max(1, draw.size(1, 16, 129, 1024, 1030, 2100))
    return B, N, D, draw.pick.choice([0, min(1, N), N // 8, N // 2, N])


def select(draw: Draw) -> Call:
    B, N, D, k = sizes(draw)
    visual, mask = draw.rows(B, N, D, draw.dtype()), draw.mask(B, N)
    prompt, M = None, draw.size(0, 1, 16, 17, most=40)
    k_core = draw.pick.randint(0, k)
    if k_core or draw.chance():
        prompt = draw.rows(B, M, D, draw.dtype())
    words = None if prompt is None else draw.mask(B, M)
    pooling = draw.pick.choice(["mean", "max", "none_mean", "none_max"])
    ordered = draw.chance()
    return lambda: judged(
        zk.select(
            *(visual, prompt),
            k_core=k_core,
            k_diverse=k - k_core,
            visual_mask=mask,
            prompt_mask=words,
            pooling=pooling,
            sorted=ordered,
            backend="cpp",
        ),
        visual,
        mask,
    ), Same.ISA


def relevance(draw: Draw) -> Call:
    B, N, D, k = sizes(draw)
    visual, mask = draw.rows(B, N, D, draw.dtype()), draw.mask(B, N)
    M = draw.size(0, 1, 16, 17, most=40)
    prompt, words = draw.rows(B, M, D, draw.dtype()), draw.mask(B, M)
    pooling = draw.pick.choice(["mean", "max", "none_mean", "none_max"])

    def run() -> object:
        picks, scores = zk.relevance_topk(
            *(visual, prompt, k),
            visual_mask=mask,
            prompt_mask=words,
            pooling=pooling,
            backend="cpp",
        )
        return judged(picks, visual, mask), scores

    return run, Same.ISA


def greedy(draw: Draw) -> Call:
    B, N, D, k = sizes(draw)
    visual, mask = draw.rows(B, N, D, draw.dtype()), draw.mask(B, N)
    weights = draw.values(B, N) if draw.chance() else None
    seeds = draw.integers(-2, N + 2, B, draw.size(0, 1, most=9)) if draw.chance() else None
    op = draw.pick.choice(["diversity", "dpp", "min_sum", "facility_location"])
    draw.said.append(op)
    options: dict[str, object] = {"visual_mask": mask, "backend": "cpp"}
    if op != "min_sum":
        options["weights"] = weights
    if op in ("diversity", "min_sum"):
        options["seeds"] = seeds
    if op == "facility_location" and draw.chance():
        options |= {"temperature": draw.pick.choice([0.0, 0.05, 1.0]), "scale": 0.5}
        options["benefits"] = draw.values(B, draw.size(0, 1, most=20), N)
    run = getattr(zk, op)
    return lambda: judged(run(visual, k, **options), visual, mask), Same.ISA


def suppression(draw: Draw) -> Call:
    B, N, D, k = sizes(draw)
    visual, mask = draw.rows(B, N, D, draw.dtype()), draw.mask(B, N)
    scores = draw.values(B, N)
    if draw.chance():
        threshold, fill = draw.pick.uniform(-1.0, 1.0), draw.chance()
        return lambda: judged(
            zk.suppress(
                *(visual, scores, k),
                threshold=threshold,
                fill=fill,
                visual_mask=mask,
                backend="cpp",
            ),
            visual,
            mask,
        ), Same.ALWAYS
    rule = draw.pick.choice(["subtract", "scale"])
    positions = draw.values(B, N, 2) if draw.chance() else None
    spread = draw.pick.choice([0.3, 4.0]) if positions is not None else torch.inf
    reach = draw.pick.choice([0.0, 3.0, torch.inf]) if positions is not None else torch.inf
    sharpness = draw.pick.choice([1e-3, 1.0, 50.0])
    return lambda: judged(
        zk.soft_suppress(
            *(visual, scores, k),
            sharpness=sharpness,
            rule=rule,
            positions=positions,
            spread=spread,
            reach=reach,
            visual_mask=mask,
            backend="cpp",
        ),
        visual,
        mask,
    ), Same.ALWAYS


def ragged(draw: Draw) -> Call:
    """The ops of packed tokens; offsets and counts are any integers, and must be clamped."""
    S, T = draw.size(0, 1, most=5), draw.size(0, 1, 200, most=300)
    D = max(1, draw.size(1, 16, 129, 1030))
    visual = draw.rows(1, T, D, draw.dtype())[0]
    if visual.stride(-1) != 1:
        visual = visual.clone(memory_format=torch.contiguous_format)
    offsets = (
        draw.integers(0, T, S + 1).sort().values
        if draw.chance(0.7)
        else (draw.integers(-5, T + 5, S + 1))
    )
    integer = draw.pick.choice([torch.int32, torch.int64])
    k_core, k_diverse = draw.integers(-1, 20, S), draw.integers(-1, 30, S)
    total, longest = draw.size(0, 30, most=200), draw.size(T, most=300)
    weights = draw.values(T) if draw.chance() else None
    offsets, k_core, k_diverse = (x.to(integer) for x in (offsets, k_core, k_diverse))
    ops = torch.ops.zspa
    op = draw.pick.choice(["select", "diversity", "dpp", "min_sum", "facility_location"])
    draw.said.append(f"{op}_varlen")
    behind: tuple[object, ...] = (total, longest)
    if op == "select":
        prompt = draw.rows(1, draw.size(0, 1, most=20), D, draw.dtype())[0]
        spans = draw.integers(-2, 22, S, 2) if draw.chance() else None
        pooling = draw.pick.choice(["mean", "max", "none_mean", "none_max"])
        return lambda: ops.select_varlen(
            *(visual, offsets, prompt, spans, k_core, k_diverse, total, longest, pooling)
        ), Same.ISA
    if op == "min_sum":
        return lambda: ops.min_sum_varlen(visual, offsets, k_diverse, *behind), Same.ISA
    if op == "facility_location":
        benefits = draw.values(draw.size(0, 1, most=9), T) if draw.chance() else None
        return lambda: ops.facility_location_varlen(
            *(visual, offsets, k_diverse, *behind, benefits, weights, 0.1, 0.5)
        ), Same.ISA
    run = getattr(ops, f"{op}_varlen")
    return lambda: run(visual, offsets, k_diverse, *behind, weights), Same.ISA


def scores(draw: Draw) -> Call:
    B, N, _, k = sizes(draw)
    values = draw.values(B, N).to(draw.pick.choice([*DTYPES, torch.float64]))
    mask, forced = draw.mask(B, N), draw.mask(B, N)
    ordered = draw.chance()

    def run() -> object:
        return primitives.topk(values, k, mask=mask, force_keep=forced, sorted=ordered)

    return run, Same.ALWAYS


def merging(draw: Draw) -> Call:
    B, N, D, k = sizes(draw)
    x, mask = draw.rows(B, N, D, draw.dtype()), draw.mask(B, N)
    kind = draw.pick.choice(["assign", "match", "merge", "thin", "alignment"])
    draw.said.append(kind)
    if kind == "assign":
        kept = draw.integers(-1, max(N - 1, -1), B, k)
        return lambda: primitives.assign(x, kept, mask=mask), Same.ISA
    if kind == "match":
        k = max(k, min(1, N))
        return lambda: primitives.match(x, k, mask=mask), Same.ISA
    if kind == "thin":
        scores, step = draw.values(B, N), draw.size(1, 8, most=9) or 1
        return lambda: primitives.thin(x, scores, k, step=step, mask=mask), Same.ISA
    if kind == "merge":
        owner, weights = draw.integers(-2, k + 1, B, N), draw.values(B, N)
        some = weights if draw.chance() else None
        return lambda: primitives.merge(x, owner, k, weights=some), Same.ISA
    prompt, M = draw.rows(B, 5, D, draw.dtype()), 5
    words = draw.mask(B, M)
    return lambda: primitives.alignment(x, prompt, visual_mask=mask, prompt_mask=words), Same.ALWAYS


def sensitivity(draw: Draw) -> Call:
    from zspa_kernels.backends.cpp import sensitivity as cpp

    B, N, H = draw.size(1, 2, most=3), draw.size(1, 7, most=70), max(1, draw.size(1, 16, 257, 1030))
    hidden = draw.rows(B, N, H, draw.dtype())
    if hidden.stride(-1) != 1 or hidden.flatten(0, 1).data_ptr() != hidden.data_ptr():
        hidden = hidden.clone(memory_format=torch.contiguous_format)
    activation = draw.pick.choice(NAMES)
    wide = max(1, draw.size(1, 33, most=40))
    w2 = torch.randn(wide, H, generator=draw.generator).to(draw.dtype())
    draw.said.append(activation)
    if draw.chance():
        diagonal = torch.rand(H, generator=draw.generator) if draw.chance() else None
        return lambda: cpp.sensitivity_rms_hidden(hidden, w2, activation, diagonal), Same.CALL
    shifts = torch.randn(max(1, draw.size(1, most=9)), H, generator=draw.generator)
    radius = draw.pick.choice([1e-3, 0.05, 1.0, 30.0])
    return lambda: cpp.sensitivity_hidden(hidden, w2, activation, shifts, radius), Same.CALL


def composition(draw: Draw) -> Call:
    """What only methods call, through them."""
    B, N, D, k = sizes(draw)
    x, mask = draw.rows(B, N, D, draw.dtype()), draw.mask(B, N)
    attention, share = draw.values(B, N), draw.pick.random()
    keep, ordered = max(1, k), draw.chance()
    kinds = ["centred", "distinctiveness", "visionzip", "anchorprune", "combined", "holov", "dart"]
    kind = draw.pick.choice(kinds)
    draw.said.append(kind)
    if kind == "centred":
        return lambda: primitives.centred(x, visual_mask=mask), Same.ISA
    if kind == "distinctiveness":
        return lambda: primitives.distinctiveness(x, visual_mask=mask), Same.ISA
    if kind == "combined":
        each_once = torch.rand(B, N, generator=draw.generator).argsort(-1)
        each_once = each_once.masked_fill(draw.where(B, N, share), -1)
        core, later = each_once[:, :k], each_once[:, k:]
        wanted = draw.pick.randint(0, N)

        def combine() -> object:
            picks, in_core = combined(core, later, wanted, ordered)
            return judged(picks, x, None), in_core

        return combine, Same.ALWAYS
    if kind == "visionzip":
        zipped = zk.methods.VisionZip(keep, contextual=share, sorted=ordered)

        def run() -> object:
            merging = zipped.assign(x, attention=attention, keys=x, visual_mask=mask)
            picks = judged(merging.selection.indices, x, mask)
            return picks, merging.selection.core_mask, merging.owner, merging.weights

        return run, Same.ISA
    if kind == "holov":
        cut = zk.methods.HoloV(keep, draw.size(0, 15, most=40) + 1, sharpness=2 * share)

        def crop() -> object:
            return judged(cut.select(x, attention=attention, visual_mask=mask).indices, x, None)

        return crop, Same.ALWAYS
    if kind == "dart":
        apart = zk.methods.DART(keep, draw.size(0, 3, most=9) + 1, sorted=ordered)
        words = draw.rows(B, draw.size(0, 1, most=9), D, draw.dtype())
        keys = draw.rows(B, N, max(1, draw.size(1, most=40)), draw.dtype())
        given = {"prompt": words, "keys": keys if draw.chance() else None}

        def turn() -> object:
            chosen = apart.select(x, **given, visual_mask=mask)
            return judged(chosen.indices, x, mask), chosen.core_mask

        return turn, Same.ALWAYS
    anchored = zk.methods.AnchorPrune(keep, space="llm", novelty=2 * share, sorted=ordered)
    prompt = draw.rows(B, draw.size(0, 1, most=9), D, draw.dtype())

    def pick() -> object:
        chosen = anchored.select(x, prompt, attention=attention, visual_mask=mask)
        return judged(chosen.indices, x, mask), chosen.core_mask

    return pick, Same.ISA


KINDS = (select, relevance, greedy, suppression, ragged, scores, merging, composition, sensitivity)


def judged(picks: Tensor, visual: Tensor, mask: Tensor | None) -> Tensor:
    """`picks`, if they name tokens of the mask, each at most once."""
    for b, row in enumerate(picks):
        chosen = row[row >= 0]
        if len(set(chosen.tolist())) != len(chosen):
            raise AssertionError(f"a token twice: {row.tolist()}")
        if len(chosen) and int(chosen.max()) >= visual.shape[1]:
            raise AssertionError(f"no such token: {row.tolist()}")
        if mask is not None and not bool(mask[b][chosen].all()):
            raise AssertionError(f"a token that is masked out: {row.tolist()}")
    return picks


def bits(result: object) -> list[bytes]:
    """What must be equal."""
    parts = result if isinstance(result, tuple) else (result,)
    return [x.contiguous().view(torch.uint8).numpy().tobytes() for x in parts if x.numel()]


def check(seed: int) -> str:
    """Draws a call from `seed` and makes it in every way; returns what was called.

    Raises:
        AssertionError: Results differ, or name tokens that cannot be.
    """
    native = _native.module()
    draw = Draw(seed)
    kind = draw.pick.choice(KINDS)
    run, same = kind(draw)
    expected: dict[object, list[bytes]] = {}
    for isa in native.isas():
        native.use_isa(isa)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            where = f"{kind.__name__}, {isa}, {threads} threads, {', '.join(draw.said)}"
            try:
                got = bits(run())
                again = bits(run())
            except Exception as error:
                raise AssertionError(f"{where}: {error}") from error
            alike = {Same.CALL: (isa, threads), Same.ISA: isa, Same.ALWAYS: None}[same]
            if expected.setdefault(alike, got) != got or again != got:
                raise AssertionError(f"{where}: other bits")
    native.use_isa("auto")
    return kind.__name__


def main(
    seconds: Annotated[float, typer.Option(help="How long to go on.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The first seed; the next call has the next.")] = 0,
    sanitized: Annotated[
        str, typer.Option(help="With a module of `make sanitize`: memory or threads.")
    ] = "",
) -> None:
    """Random calls of every native kernel; the first that is wrong ends the run, with its seed."""
    if sanitized:
        sanitize.use(sanitized)
    first, began, gone = seed, time.monotonic(), 0.0
    with Progress() as progress:
        task = progress.add_task("", total=seconds)
        while gone < seconds:
            # Shown before the call, which may end the process.
            progress.update(task, completed=gone, description=f"seed {seed}", refresh=True)
            if not progress.console.is_terminal:
                print(f"seed {seed}", flush=True)
            check(seed)
            seed, gone = seed + 1, time.monotonic() - began
    print(f"{seed - first} calls, seeds {first} to {seed - 1}: no fault")


if __name__ == "__main__":
    typer.run(main)
