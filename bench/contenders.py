# SPDX-License-Identifier: Apache-2.0
"""What is compared, by name: this package's op, PyTorch loops, and a library.

Every contender takes the images of a problem and returns the picks of all of them in one tensor.
What can be prepared without knowing the answer (float32 copies, packing of a batch) is prepared
outside of the timed call; what belongs to a selection (norms, relevance, the sort) is inside.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.compiled import compiled
from bench.problem import Image, Problem
from zspa_kernels.testing import BASELINES
from zspa_kernels.testing.baselines import Baseline

OURS = "zspa"


class UnavailableError(Exception):
    """A contender cannot run here; the text says why."""


@dataclass(frozen=True)
class Contender:
    """One way to solve a problem.

    Attributes:
        name: How records call it.
        kind: "ours", "baseline" (exact: ratios are formed with the fastest), or "inexact" (picks
            other tokens: its time stands beside, and no ratio uses it).
        call: The timed call.
        split: Its result as the picks of each image, in indices of that image.
        unsorted: The same selection in the order of picking, where `call` sorts it.
    """

    name: str
    kind: str
    call: Callable[[], Tensor]
    split: Callable[[Tensor], list[Tensor]]
    unsorted: Callable[[], Tensor] | None = None

    def picks(self, result: Tensor) -> list[Tensor]:
        """The picks of each image, in the order of picking."""
        return self.split(result if self.unsorted is None else self.unsorted())


def ours(problem: Problem) -> Contender:
    """One call of `torch.ops.zspa.select`, or of `select_varlen` for a ragged batch."""
    if problem.workload.ragged:
        return _ragged(problem)
    visual = torch.stack([image.visual for image in problem.images])
    first = problem.images[0]
    # DivPrune's callers have no prompt.
    prompt = torch.stack([i.prompt for i in problem.images]) if first.k_core else None

    def call(sort: bool = True) -> Tensor:
        return torch.ops.zspa.select(
            visual, prompt, first.k_core, first.k_diverse, None, None, "mean", sort
        )

    return Contender(OURS, "ours", call, list, lambda: call(sort=False))


def contender(name: str, problem: Problem) -> Contender:
    """The contender `name` of a workload; `compiled` and `fpsample` need more and are made below.

    Raises:
        UnavailableError: If it cannot run here or on this problem.
    """
    if name == "one_by_one":
        return _one_by_one(problem)
    if name == "column_by_column":
        return _column_by_column(problem)
    if name == "half":
        if problem.workload.dtype == "fp32":
            raise UnavailableError("half: the tokens are float32")
        return _loop("half", "inexact", BASELINES["gram_incremental"], problem, problem.images)
    return _loop(name, "baseline", BASELINES[name], problem, problem.floats)


def compiled_loop(name: str, problem: Problem) -> Contender:
    """The loop `name` with its step compiled."""
    try:
        loop = compiled(name)
    except Exception as error:
        # Whatever a compiler throws: the other contenders go on.
        text = str(error).strip().splitlines() or [""]
        raise UnavailableError(f"{type(error).__name__}: {text[0]}") from error
    return _loop(f"compiled {name}", "baseline", loop, problem, problem.floats)


def farthest_points(problem: Problem, picks: list[Tensor]) -> Contender:
    """The library fpsample on unit rows, where the farthest point is the least similar token.

    It selects neither by relevance nor by DivPrune's rule, so what it starts from is given to it:
    the core, or the first pick, of `picks`.
    """
    try:
        library = importlib.import_module("fpsample")
    except ImportError as error:
        raise UnavailableError("not installed") from error

    def sample(visual: Tensor, start: Tensor, k: int) -> Tensor:
        points = torch.nn.functional.normalize(visual, dim=-1).numpy()
        return torch.from_numpy(library.fps_sampling(points, k, start.tolist()).astype("int64"))

    images = [
        (image, chosen[: image.k_core or 1])
        for image, chosen in zip(problem.floats, picks, strict=True)
    ]
    return Contender(
        "fpsample",
        "baseline",
        lambda: torch.cat([sample(image.visual, start, image.k) for image, start in images]),
        _parts(problem),
    )


def _loop(name: str, kind: str, loop: Baseline, problem: Problem, images: list[Image]) -> Contender:
    if name == "divprune_loop" and any(image.k_core for image in images):
        raise UnavailableError("has no core")
    return Contender(
        name,
        kind,
        lambda: torch.cat([loop(i.visual, i.prompt, i.k_core, i.k_diverse) for i in images]),
        _parts(problem),
    )


def _one_by_one(problem: Problem) -> Contender:
    """This package's op, one call an image."""

    def call(sort: bool = True) -> Tensor:
        return torch.cat(
            [
                torch.ops.zspa.select(
                    image.visual,
                    image.prompt if image.k_core else None,
                    image.k_core,
                    image.k_diverse,
                    None,
                    None,
                    "mean",
                    sort,
                )
                for image in problem.images
            ]
        )

    return Contender("one_by_one", "ours", call, _parts(problem), lambda: call(sort=False))


def _column_by_column(problem: Problem) -> Contender:
    """This package's one-column kernel and a running maximum: what blocks must not be slower than.

    The column of a pick is the relevance of all tokens to it.
    """
    if not all(image.k_core for image in problem.images):
        raise UnavailableError("has no first pick without a core")

    def select(image: Image) -> Tensor:
        visual, op = image.visual, torch.ops.zspa.relevance_topk
        picks = torch.empty(image.k, dtype=torch.int64)
        picks[: image.k_core] = op(visual, image.prompt, image.k_core)[0]
        largest = torch.full((len(visual),), -1.0)
        for t in range(image.k):
            if t >= image.k_core:
                picks[t] = largest.argmin()
            pick = int(picks[t])
            torch.maximum(largest, op(visual, visual[pick : pick + 1], 0)[1], out=largest)
            largest[picks[: t + 1]] = torch.inf
        return picks

    return Contender(
        "column_by_column",
        "ours",
        lambda: torch.cat([select(image) for image in problem.images]),
        _parts(problem),
    )


def _ragged(problem: Problem) -> Contender:
    images = problem.images
    visual = torch.cat([image.visual for image in images])
    prompt = torch.cat([image.prompt for image in images])
    lengths = [len(image.visual) for image in images]
    device = visual.device
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0)
    words = torch.tensor([0, *(len(image.prompt) for image in images)], device=device).cumsum(0)
    spans = torch.stack((words[:-1], words[1:]), dim=1)
    k_core = torch.tensor([image.k_core for image in images], device=device)
    k_diverse = torch.tensor([image.k_diverse for image in images], device=device)
    total_k = sum(image.k for image in images)

    def call(sort: bool = True) -> Tensor:
        return torch.ops.zspa.select_varlen(
            visual, offsets, prompt, spans, k_core, k_diverse, total_k, max(lengths), "mean", sort
        )

    def split(result: Tensor) -> list[Tensor]:
        each = zip(_parts(problem)(result), offsets[:-1].tolist(), strict=True)
        return [picks - start for picks, start in each]

    return Contender(OURS, "ours", call, split, lambda: call(sort=False))


def _parts(problem: Problem) -> Callable[[Tensor], list[Tensor]]:
    """Splits the picks of all images into those of each."""
    sizes = [image.k for image in problem.images]
    return lambda result: list(result.split(sizes))
