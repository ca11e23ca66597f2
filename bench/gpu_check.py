# SPDX-License-Identifier: Apache-2.0
"""What the checks of `gpu_checks` and `gpu_device_checks` share, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from zspa_kernels.testing import MODELS, tokens
from zspa_kernels.testing.cases import Case

#: Where the checks run; the tests of the checks themselves put a CPU here.
DEVICE = "cuda"

#: The only dtype of tokens that is looked at; None: all of them.
DTYPE: torch.dtype | None = None

#: Images of a batch, and repetitions of a call; where a machine of its own runs the kernels, fewer.
IMAGES = 40
TURNS = 20

CHECKS: dict[str, Callable[[], None]] = {}
#: Checks of which each dtype can be a process of its own: most of their time goes into compiling.
BY_DTYPE: set[str] = set()

#: What each op is asked first: a group of few programs, and one of all.
# Channels beside a multiple of the chunks in which they are added, and a multiple.
FIRST = tuple(
    Case(model, n, d, n // 32, n // 16, torch.bfloat16)
    for model, n, d in (("exact", 300, 256), ("vlm", 1300, 2048))
)


def error_of(call: Callable[[], object], kind: type[Exception]) -> str:
    """The text of the error that a call must raise."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Enter a function into `CHECKS` by its name."""
    CHECKS[function.__name__] = function
    return function


def check_by_dtype(function: Callable[[], None]) -> Callable[[], None]:
    """Enter a function that heeds `DTYPE` into `CHECKS` by its name."""
    BY_DTYPE.add(function.__name__)
    return check(function)


def chosen(things: Iterable[Any]) -> list[Any]:
    """Of cases, or of dtypes themselves, those of `DTYPE`."""
    return [x for x in things if DTYPE in (None, getattr(x, "dtype", x))]


def draw(batch: int, n: int, d: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    rows = [tokens(MODELS[i % len(MODELS)], n, d, i, dtype) for i in range(batch)]
    return torch.stack(rows).to(DEVICE)


def placed(x: Any) -> Any:
    """A tensor on the device; anything else as it is."""
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def picked(op: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """What an op picks on the device, brought to the host."""
    return op(*map(placed, arguments), **{name: placed(x) for name, x in options.items()}).cpu()


def same(a: Tensor, b: Tensor, what: object) -> None:
    """`b` is what must come out."""
    assert a.shape == b.shape, f"{what}: {list(a.shape)} values instead of {list(b.shape)}"
    wrong = (a != b).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{what}: {len(wrong)} of {a.numel()} values are wrong, the first at {list(at)}: "
            f"{a[at].item()} instead of {b[at].item()}"
        )


def alike(a: Tensor, b: Tensor, what: object) -> None:
    """Both are picks that were made, of each row: where no kernel did anything, `b` has none.

    Or it has what its memory held before.
    """
    assert (b >= 0).any(), f"{what}: nothing was picked"
    ascending = b.sort(-1).values
    again = (ascending[..., 1:] == ascending[..., :-1]) & (ascending[..., 1:] >= 0)
    assert not again.any(), f"{what}: a token was picked twice"
    same(a, b, what)


def calls_of(visual: Tensor, prompt: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every op of selection on one batch."""
    batch, n, d = visual.shape
    offsets = torch.arange(batch + 1, device=DEVICE) * n
    counts = torch.full((batch,), 9, device=DEVICE)
    spans = (torch.arange(batch + 1, device=DEVICE) * prompt.shape[1]).unfold(0, 2, 1)
    weights = torch.rand(batch, n, device=DEVICE)
    ops = torch.ops.zspa
    packed, words = visual.view(-1, d), prompt.reshape(-1, d)
    return {
        "select": lambda: ops.select(visual, prompt, 9, 30),
        "select without a core": lambda: ops.select(visual, None, 0, 30),
        "relevance_topk": lambda: ops.relevance_topk(visual, prompt, 9)[0],
        "diversity": lambda: ops.diversity(visual, 20, None, weights, None),
        "select_varlen": lambda: ops.select_varlen(
            packed, offsets, words, spans, counts, counts, 18 * batch, n
        ),
        "diversity_varlen": lambda: ops.diversity_varlen(packed, offsets, counts, 9 * batch, n),
        "dpp": lambda: ops.dpp(visual, 20, weights),
        "dpp_varlen": lambda: ops.dpp_varlen(packed, offsets, counts, 9 * batch, n),
        "facility_location": lambda: ops.facility_location(visual, 20, weights[:, None]),
        "facility_location_varlen": lambda: ops.facility_location_varlen(
            packed, offsets, counts, 9 * batch, n, None, weights.view(-1), 0.2
        ),
        "suppress": lambda: ops.suppress(visual, weights, 20, 0.5),
        "soft_suppress": lambda: ops.soft_suppress(visual, weights, 20, 9.0),
        "min_sum": lambda: ops.min_sum(visual, 20),
        "min_sum_varlen": lambda: ops.min_sum_varlen(packed, offsets, counts, 9 * batch, n),
    }
