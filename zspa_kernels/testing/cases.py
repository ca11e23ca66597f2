# SPDX-License-Identifier: Apache-2.0
"""The standard cases: every backend must pass them, and every planted fault must fail one.

A case is data; its tensors are drawn when asked for. `judge_*` runs one case through an
implementation and replays its picks. Sizes come in tiers, because an interpreter of GPU kernels
manages only the small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .bounds import bound
from .judge import Replay, check_diversity, check_relevance_topk, check_select
from .special import SPECIAL, special
from .tokens import MODELS, prompt, tokens

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: (visual, prompt, k, mask, prompt_mask, pooling) -> (indices, scores), one segment.
RelevanceTopk = Callable[
    [Tensor, Tensor, int, Tensor | None, Tensor | None, str], tuple[Tensor, Tensor]
]
#: (visual, k, seeds, weights, mask) -> indices, one segment.
Diversity = Callable[[Tensor, int, Tensor | None, Tensor | None, Tensor | None], Tensor]
#: (visual, prompt, k_core, k_diverse, mask, prompt_mask, pooling) -> unsorted indices, one segment.
Select = Callable[[Tensor, Tensor | None, int, int, Tensor | None, Tensor | None, str], Tensor]


@dataclass(frozen=True)
class Case:
    """One input of one op, by name."""

    tokens: str  # a token model or a special input
    n: int
    d: int
    k_core: int  # also the k of relevance_topk
    k_diverse: int  # also the k of diversity
    dtype: torch.dtype = torch.float32
    words: int = 4  # prompt tokens
    hidden: int = 0  # of these masked, from the end
    pooling: str = "mean"
    seeds: str = "none"
    weights: str = "none"

    @property
    def name(self) -> str:
        """Readable and unique."""
        text = f"{self.tokens}-{str(self.dtype)[6:]}-{self.n}x{self.d}"
        text += f"-{self.k_core}+{self.k_diverse}"
        for field, usual in (("pooling", "mean"), ("seeds", "none"), ("weights", "none")):
            value = getattr(self, field)
            text += f"-{field}:{value}" if value != usual else ""
        return text + (f"-m{self.words}" if self.words != 4 else "")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the name in front of what a judge complains about."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {error}") from error

    @property
    def visual(self) -> Tensor:
        """`[N, D]`."""
        if self.tokens in MODELS:
            return tokens(self.tokens, self.n, self.d, dtype=self.dtype)
        return special(self.tokens, self.n, self.d).visual.to(self.dtype)

    @property
    def mask(self) -> Tensor | None:
        """`[N]`."""
        return None if self.tokens in MODELS else special(self.tokens, self.n, self.d).mask

    @property
    def prompt(self) -> Tensor:
        """`[M, D]`."""
        model = self.tokens if self.tokens in MODELS else "iid"
        model = "exact" if "exact" in self.tokens else model
        return prompt(model, self.words, self.d, dtype=self.dtype)

    @property
    def prompt_mask(self) -> Tensor | None:
        """`[M]`."""
        return torch.arange(self.words) < self.words - self.hidden if self.hidden else None

    def seed_tensor(self) -> Tensor | None:
        """`[S]` int64."""
        draw = torch.Generator().manual_seed(self.n)
        some = torch.randperm(self.n, generator=draw)[: max(1, self.n // 8)].tolist()
        kinds: dict[str, list[int] | None] = {
            "none": None,
            "empty": [],
            "one": some[:1],
            "some": some,
            "odd": [-1, *some, self.n, *some[::-1], -(2**40), self.n + 7, 2**40],
            "invalid": [-1, self.n, -1],
            "all": list(range(self.n)),
        }
        seeds = kinds[self.seeds]
        return None if seeds is None else torch.tensor(seeds, dtype=torch.int64)

    def weight_tensor(self) -> Tensor | None:
        """`[N]` float32."""
        if self.weights == "none":
            return None
        draw = torch.Generator().manual_seed(self.n + 1)
        weights = torch.rand(self.n, generator=draw, dtype=torch.float32)
        if self.weights == "ones":
            return torch.ones(self.n, dtype=torch.float32)
        if self.weights == "eighths":
            return (weights * 9).floor() / 8
        if self.weights == "zeros":
            return torch.zeros(self.n, dtype=torch.float32)
        if self.weights == "bad":
            for start, value in enumerate((torch.nan, torch.inf, -torch.inf, -0.5, 0.0, -0.0)):
                weights[start::9] = value
        elif self.weights == "scales":
            weights *= torch.exp2(torch.randint(-60, 61, (self.n,), generator=draw).float())
        return weights

    def bound(self, backend: str) -> float:
        """The error bound of a cosine; 0 where every cosine is exact."""
        return 0.0 if self.tokens in ("exact", "masked_exact") else bound(self.d, backend)


def judge_relevance_topk(case: Case, run: RelevanceTopk, backend: str) -> Replay:
    """Run `case` and judge scores and indices."""
    visual, words, mask, prompt_mask = case.visual, case.prompt, case.mask, case.prompt_mask
    indices, scores = run(visual, words, case.k_core, mask, prompt_mask, case.pooling)
    return check_relevance_topk(
        visual,
        words,
        case.k_core,
        indices,
        scores,
        bound=case.bound(backend),
        mask=mask,
        prompt_mask=prompt_mask,
        pooling=case.pooling,
    )


def judge_diversity(case: Case, run: Diversity, backend: str) -> Replay:
    """Run `case` and judge the picks."""
    visual, mask = case.visual, case.mask
    seeds, weights = case.seed_tensor(), case.weight_tensor()
    indices = run(visual, case.k_diverse, seeds, weights, mask)
    # One-entry rows of thresholds have cosines of exactly -1, 0 and 1 with each other.
    error = 0.0 if case.tokens == "thresholds" else case.bound(backend)
    return check_diversity(
        visual, indices, case.k_diverse, bound=error, seeds=seeds, weights=weights, mask=mask
    )


def judge_select(case: Case, run: Select, backend: str) -> Replay:
    """Run `case` and judge the picks; the prompt is withheld from cases without core."""
    visual, mask, prompt_mask = case.visual, case.mask, case.prompt_mask
    words = case.prompt if case.k_core else None
    prompt_mask = prompt_mask if case.k_core else None
    indices = run(visual, words, case.k_core, case.k_diverse, mask, prompt_mask, case.pooling)
    return check_select(
        visual,
        words,
        case.k_core,
        case.k_diverse,
        indices,
        bound=case.bound(backend),
        mask=mask,
        prompt_mask=prompt_mask,
        pooling=case.pooling,
    )


# N, D, k_core, k_diverse. Sizes stand around powers of two, where blocks end; widths are odd, where
# vector loops have a remainder.
_SHAPES = {
    "small": (
        (1, 1, 0, 1), (1, 3, 1, 0), (2, 31, 0, 2), (2, 3, 1, 1), (3, 33, 0, 3), (3, 1, 0, 0),
        (5, 100, 2, 3), (15, 16, 3, 5), (16, 33, 0, 16), (17, 31, 8, 9), (31, 1, 3, 8),
        (33, 3, 0, 12), (63, 64, 6, 20), (64, 100, 0, 9), (65, 33, 13, 13), (100, 31, 1, 40),
        (127, 128, 0, 20), (128, 3, 20, 20), (129, 65, 30, 0), (200, 33, 40, 30),
        (255, 16, 0, 33), (257, 31, 65, 10), (300, 100, 12, 18), (300, 1, 2, 6), (64, 31, 64, 0),
    ),
    "wide": (
        (40, 129, 10, 30), (129, 1000, 13, 40), (257, 129, 0, 60), (300, 1000, 0, 30),
        (17, 1000, 0, 17), (1, 129, 1, 0), (60, 4100, 5, 20), (33, 2047, 0, 10),
    ),
    "large": (
        (577, 129, 60, 200), (1025, 33, 0, 300), (2000, 129, 400, 500), (3000, 31, 100, 600),
        (3000, 129, 0, 290), (1500, 1000, 30, 260), (700, 100, 0, 700), (2049, 3, 5, 400),
    ),
}  # fmt: skip


def model_cases(tier: str) -> list[Case]:
    """All models and dtypes over the shapes of a tier, dealt out in turn."""
    shapes = _SHAPES[tier]
    each = {"small": 4, "wide": 1, "large": 1}[tier]
    cases = []
    for turn, (model, dtype) in enumerate(product(MODELS, DTYPES)):
        for j in range(each):
            n, d, k_core, k_diverse = shapes[(each * turn + j) % len(shapes)]
            cases.append(Case(model, n, d, k_core, k_diverse, dtype))
    if tier == "large":  # ties at the bounds of blocks of up to 512 candidates
        shapes = ((1200, 20, 0, 500), (1000, 33, 100, 300), (1000, 100, 0, 400))
        cases += [Case("exact", *shape) for shape in shapes]
    return cases


def pooling_cases() -> list[Case]:
    """Every pooling and dtype, prompts of none to sixteen tokens, some of them masked."""
    cases = []
    for pooling, dtype in product(("mean", "max", "none_mean", "none_max"), DTYPES):
        cases.append(Case("vlm", 100, 33, 30, 6, dtype, 7, 2, pooling))
        cases.append(Case("exact", 130, 64, 60, 6, dtype, 8, 4, pooling))
        cases.append(Case("clusters", 40, 33, 10, 6, dtype, 3, 3, pooling))  # nothing is left
    for words, pooling in (
        (0, "mean"),
        (0, "none_max"),
        (1, "mean"),
        (1, "none_max"),
        (16, "none_mean"),
        (16, "max"),
    ):
        cases.append(Case("iid", 64, 100, 20, 4, torch.float32, words, 0, pooling))
    return cases


def special_cases() -> list[Case]:
    """Every special input in every dtype, with core and without."""
    cases = []
    for name, dtype in product(SPECIAL, DTYPES):
        cases.append(Case(name, 45, 33, 0, 20, dtype))
        cases.append(Case(name, 37, 64, 9, 12, dtype))
    cases += [Case(name, 24, 1, 6, 18) for name in ("antipodal", "thresholds", "zero_rows")]
    cases += [Case("narrow", 200, 100, 0, 100), Case("narrow", 130, 128, 20, 60)]
    cases += [Case(name, 70, 31, 0, 70) for name in ("duplicates", "masked", "masked_exact")]
    return cases


def large_special_cases() -> list[Case]:
    """Special inputs, seeds and weights over several blocks of candidates."""
    cases = []
    for turn, name in enumerate(SPECIAL):
        k_core = 40 * (turn % 2)
        cases.append(Case(name, 650, 65, k_core, 150, DTYPES[turn % 3]))
    for weights, seeds in (("bad", "odd"), ("scales", "none"), ("zeros", "some")):
        cases.append(Case("masked", 700, 33, 0, 200, seeds=seeds, weights=weights))
    return cases


def seed_and_weight_cases() -> list[Case]:
    """Every kind of seeds and weights of `diversity`, on exact, generic and special tokens."""
    cases = []
    for seeds in ("empty", "one", "some", "odd", "invalid", "all"):
        cases.append(Case("exact", 66, 33, 0, 20, seeds=seeds, dtype=torch.bfloat16))
        cases.append(Case("vlm", 50, 31, 0, 20, seeds=seeds))
        cases.append(Case("zero_rows", 33, 16, 0, 20, seeds=seeds))
    for weights, seeds in product(
        ("ones", "eighths", "zeros", "bad", "uniform", "scales"), ("none", "some")
    ):
        if weights in ("ones", "eighths", "zeros"):
            cases.append(Case("exact", 66, 33, 0, 30, seeds=seeds, weights=weights))
            cases.append(Case("masked_exact", 66, 33, 0, 30, seeds=seeds, weights=weights))
        cases.append(Case("clusters", 70, 33, 0, 25, seeds=seeds, weights=weights))
        cases.append(Case("zero_rows", 33, 16, 0, 33, seeds=seeds, weights=weights))
    cases.append(Case("masked", 60, 31, 0, 30, torch.float16, seeds="odd", weights="bad"))
    return cases
