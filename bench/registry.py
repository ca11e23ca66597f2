# SPDX-License-Identifier: Apache-2.0
"""What is measured, as data: shapes, workloads, and the suites made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product

from zspa_kernels import num_keep, split_core
from zspa_kernels.testing import MODELS


@dataclass(frozen=True)
class Shape:
    """Tokens of one image and how many of them are kept."""

    n: int
    d: int
    k: int


#: Images of the models that selection is used with, at a tenth of their tokens.
SHAPES = {
    "llava15": Shape(576, 4096, 58),
    "qwen25vl": Shape(1296, 3584, 130),
    "llavanext": Shape(2880, 4096, 288),
    "large": Shape(4096, 3584, 410),
    "video": Shape(16384, 3584, 1638),
    "tiny": Shape(64, 4096, 8),  # 64 tokens, 8 kept: the cost of a call
    "narrow": Shape(64, 128, 8),
    "small": Shape(192, 96, 24),
}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

#: Lengths of the images of the ragged batch: tiles, thumbnails and one long page.
RAGGED = (576, 1296, 144, 2880, 64, 729, 1024, 256)
SMALL_RAGGED = (96, 40, 7, 128)

#: The published loops and their incremental forms. Only DivPrune's needs an empty core, and there
#: the plain reading of ZSPAPrune is the same loop.
WITHOUT_CORE = ("divprune_loop", "incremental", "gram_incremental")
WITH_CORE = ("zspaprune_loop", "incremental", "gram_incremental")
#: Besides: the faster of the incremental loops compiled, and a library of farthest point sampling.
EXTRA = ("compiled", "fpsample")


def loops(k_core: int) -> tuple[str, ...]:
    """The PyTorch loops that can be asked for this core."""
    return WITH_CORE if k_core else WITHOUT_CORE


@dataclass(frozen=True)
class Workload:
    """One input, and what runs on it beside this package's op.

    Attributes:
        shape: Name of the shape, of one image.
        n: Tokens of an image; of all images together in a ragged batch.
        d: Width of a token.
        k: Tokens kept of an image; of all together in a ragged batch.
        k_core: Of them by relevance.
        tokens: A token model or a special input of `zspa_kernels.testing`.
        dtype: Of the tokens this package is given; baselines get float32 copies.
        batch: Images in one call.
        ragged: (tokens, by relevance, by diversity) of each image of a ragged batch.
        threads: CPU threads; 0 for all.
        against: Names of the contenders, see `contenders`.
        seconds: Time to spend on timed calls, once every contender had its share.
        warm: Whether baselines run once before they are timed.
    """

    shape: str
    n: int
    d: int
    k: int
    k_core: int
    tokens: str = "vlm"
    dtype: str = "bf16"
    batch: int = 1
    ragged: tuple[tuple[int, int, int], ...] = ()
    threads: int = 0
    against: tuple[str, ...] = ()
    seconds: float = 1.0
    warm: bool = True

    @property
    def name(self) -> str:
        """Unique in a suite, and the key by which results are compared."""
        text = f"{self.shape}-{self.n}x{self.d}-k{self.k}-core{self.k_core}"
        text += f"-{self.tokens}-{self.dtype}"
        text += f"-b{len(self.ragged)}" if self.ragged else ""
        text += f"-b{self.batch}" if self.batch > 1 else ""
        return text + (f"-t{self.threads}" if self.threads else "")

    @property
    def images(self) -> tuple[tuple[int, int, int], ...]:
        """(tokens, by relevance, by diversity) of every image."""
        return self.ragged or ((self.n, self.k_core, self.k - self.k_core),) * self.batch

    @property
    def single(self) -> bool:
        """One image a call, all threads."""
        return len(self.images) == 1 and not self.threads


def workload(shape: str, core: float = 0.0, **changes: object) -> Workload:
    """A workload of a named shape, with `core` of its K by relevance and all its loops."""
    size = SHAPES[shape]
    k_core = split_core(size.k, core)
    fields: dict[str, object] = {"against": loops(k_core), **changes}
    return Workload(shape, size.n, size.d, size.k, k_core, **fields)  # type: ignore[arg-type]


def ragged(
    lengths: tuple[int, ...], d: int, core: float, against: tuple[str, ...], seconds: float
) -> Workload:
    """A batch of images of different lengths, a tenth kept of each."""
    images = []
    for n in lengths:
        k = num_keep(n, 0.1)
        k_core = split_core(k, core)
        images.append((n, k_core, k - k_core))
    n, k_core, k_diverse = map(sum, zip(*images, strict=True))
    return Workload(
        "ragged",
        n,
        d,
        k_core + k_diverse,
        k_core,
        ragged=tuple(images),
        against=against,
        seconds=seconds,
    )


def _smoke() -> Iterator[Workload]:
    """Every kind of workload, in seconds."""
    for core in (0.0, 0.4):
        for tokens in ("vlm", "exact"):
            yield workload("small", core, tokens=tokens, seconds=0.02)
    yield workload("small", 0.4, dtype="fp32", seconds=0.02)
    yield workload("small", 0.4, tokens="constant", against=("column_by_column",), seconds=0.02)
    yield workload("small", 0.4, batch=3, against=("one_by_one",), seconds=0.02)
    yield ragged(SMALL_RAGGED, 96, 0.4, against=("one_by_one",), seconds=0.02)


def _cpu() -> Iterator[Workload]:
    """Under six minutes on two cores: every figure, but not every cell of the product.

    `vlm` tokens get all contenders. The other models get the loops that can be the strongest at
    their size: the published loops fall behind Gram + incremental from 2880 tokens on, except that
    DivPrune's is the one that `iid` tokens must not lose to.
    """
    yield from _tiny()
    for shape, extra, seconds in (
        ("llava15", (*EXTRA, "half"), 1.0),
        ("qwen25vl", ("compiled",), 1.5),
        ("llavanext", ("compiled",), 3.0),
        ("large", (), 4.0),
    ):
        for core in (0.0, 0.4):
            yield workload(shape, core, against=(*loops(core > 0), *extra), seconds=seconds)
        yield workload(shape, 0.2, against=WITH_CORE[1:], seconds=0.5)
    for tokens in MODELS:
        if tokens == "vlm":
            continue
        for shape, core in product(("llava15", "qwen25vl"), (0.0, 0.4)):
            yield workload(shape, core, tokens=tokens, seconds=0.5)
        for shape, core in product(("llavanext", "large"), (0.0, 0.4)):
            divprune = ("divprune_loop",) if tokens == "iid" and not core else ()
            against = (*divprune, "gram_incremental")
            yield workload(shape, core, tokens=tokens, against=against, seconds=0.5, warm=False)
    for dtype in ("fp16", "fp32"):
        for shape in ("llava15", "llavanext"):
            yield workload(shape, 0.4, dtype=dtype, against=("gram_incremental",), seconds=1.0)
    yield from _batches((2, 4, 8, 16, 32))
    yield from _degenerate(("llava15", "llavanext"))
    yield workload("llavanext", 0.4, threads=1, against=("gram_incremental",), warm=False)
    yield workload("video", 0.4, against=WITH_CORE[1:], warm=False)
    yield workload("video", 0.0, against=("gram_incremental",), warm=False)
    yield workload("video", 0.4, tokens="video", against=())


def _full() -> Iterator[Workload]:
    """The product; an hour or more."""
    yield from _tiny()
    for shape in ("llava15", "qwen25vl", "llavanext", "large", "video"):
        for tokens in MODELS:
            for core in (0.0, 0.2, 0.4):
                extra = EXTRA if shape != "video" else ("compiled",)
                against = (*loops(core > 0), *extra, "half")
                yield workload(shape, core, tokens=tokens, against=against, seconds=10.0)
        for dtype in ("fp16", "fp32"):
            for core in (0.0, 0.4):
                yield workload(shape, core, dtype=dtype, seconds=10.0)
        for core in (0.0, 0.4):
            yield workload(shape, core, threads=1, seconds=10.0)
    yield from _batches((2, 4, 8, 16, 32), seconds=5.0)
    yield from _degenerate(("llava15", "qwen25vl", "llavanext", "large"), seconds=5.0)


def _tiny() -> Iterator[Workload]:
    for shape in ("tiny", "narrow"):
        for core in (0.0, 0.4):
            yield workload(shape, core, seconds=0.3)


def _batches(sizes: Iterable[int], seconds: float = 0.8) -> Iterator[Workload]:
    for batch in sizes:
        against = ("one_by_one", "incremental") if batch in (2, 32) else ("one_by_one",)
        yield workload("llava15", 0.4, batch=batch, against=against, seconds=seconds)
    against = ("one_by_one", "gram_incremental")
    yield ragged(RAGGED, 3584, 0.4, against=against, seconds=seconds)


def _degenerate(shapes: Iterable[str], seconds: float = 0.8) -> Iterator[Workload]:
    """Inputs on which blocks are of no use: every similarity is the same, or a third of them."""
    for shape in shapes:
        for tokens in ("constant", "duplicates"):
            against = ("column_by_column", "incremental")
            yield workload(shape, 0.4, tokens=tokens, against=against, seconds=seconds)


def gpu_suite() -> list[Workload]:
    """What `bench.gpu` times, the most telling first: the time may be up before the end."""
    sizes = ("llava15", "llavanext", "qwen25vl", "large", "video")
    work = [workload(shape, core) for core in (0.4, 0.0) for shape in sizes]
    work += [workload("llava15", 0.4, batch=batch) for batch in (32, 8, 2)]
    work.append(ragged(RAGGED, 3584, 0.4, against=(), seconds=1.0))
    for tokens in MODELS:
        if tokens != "vlm":
            work += [workload(shape, core, tokens=tokens) for core in (0.4, 0.0) for shape in sizes]
    work += [workload(shape, 0.4, dtype=t) for t in ("fp16", "fp32") for shape in sizes[:2]]
    work += [workload("llavanext", 0.4, tokens=t) for t in ("constant", "duplicates")]
    return work


SUITES = {"smoke": _smoke, "cpu": _cpu, "full": _full}


def suite(name: str, only: str = "*") -> list[Workload]:
    """The workloads of a suite whose names match the shell pattern `only` somewhere.

    Raises:
        ValueError: For an unknown suite or a pattern that nothing matches.
    """
    if name not in SUITES:
        raise ValueError(f"suite must be one of {tuple(SUITES)}, got {name!r}")
    chosen = [w for w in SUITES[name]() if fnmatch(w.name, f"*{only}*")]
    if not chosen:
        raise ValueError(f"only must match a workload of the suite {name}, got {only!r}")
    return chosen
