# SPDX-License-Identifier: Apache-2.0
"""One table of bad calls, run against every entry point of every op.

Entries: `zk` is the public function, `op` is torch.ops.zspa, `fake` is the op on fake tensors, the
others are named backends behind the same registration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import zspa_kernels as zk
from zspa_kernels._ops import register

B, N, D, M, S = 2, 6, 4, 3, 2
ENTRIES = ("zk", "op", "fake", "reference", "cpp", "triton")


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float32)


def ints(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def good(op: str) -> dict[str, Any]:
    """A valid call of an op, every optional argument given."""
    tokens = {"visual": draw(B, N, D), "visual_mask": torch.ones(B, N, dtype=torch.bool)}
    prompt = {"prompt": draw(B, M, D), "prompt_mask": torch.ones(B, M, dtype=torch.bool)}
    ragged = {"visual": draw(N, D), "cu_seqlens": ints(0, 2, N), "total_k": 4, "max_seqlen": N}
    return {
        "select": {
            **tokens,
            **prompt,
            "k_core": 1,
            "k_diverse": 2,
            "pooling": "mean",
            "sorted": True,
        },
        "relevance_topk": {**tokens, **prompt, "k": 2, "pooling": "mean"},
        "diversity": {
            **tokens,
            "k": 2,
            "seeds": ints(0, 1, 2, 3).view(B, S),
            "weights": ones(B, N),
        },
        "select_varlen": {
            **ragged,
            "prompt": draw(M, D),
            "prompt_spans": ints(0, M, 0, M).view(S, 2),
            "k_core": ints(1, 1),
            "k_diverse": ints(1, 1),
            "pooling": "mean",
        },
        "diversity_varlen": {**ragged, "k": ints(2, 2), "weights": ones(N)},
        "dpp": {**tokens, "k": 2, "weights": ones(B, N)},
        "dpp_varlen": {**ragged, "k": ints(2, 2), "weights": ones(N)},
        "facility_location": {
            **tokens,
            "k": 2,
            "benefits": ones(B, M, N),
            "weights": ones(B, N),
            "temperature": 0.2,
            "scale": 0.5,
        },
        "facility_location_varlen": {
            **ragged,
            "k": ints(2, 2),
            "benefits": ones(M, N),
            "weights": ones(N),
            "temperature": 0.2,
            "scale": 0.5,
        },
        "min_sum": {**tokens, "k": 2, "seeds": ints(0, 1, 2, 3).view(B, S)},
        "min_sum_varlen": {**ragged, "k": ints(2, 2)},
        "suppress": {**tokens, "scores": ones(B, N), "k": 2, "threshold": 0.5, "fill": True},
        "soft_suppress": {
            **tokens,
            "scores": ones(B, N),
            "k": 2,
            "sharpness": 20.0,
            "rule": "scale",
            "positions": ones(B, N, 2),
            "spread": 1.5,
            "reach": 5.0,
        },
    }[op]


RATED = ("suppress", "soft_suppress")
BATCHED = (
    *("select", "relevance_topk", "diversity", "dpp", "facility_location", "min_sum"),
    *RATED,
)
PACKED_WEIGHTS = ("diversity_varlen", "dpp_varlen", "facility_location_varlen")
PACKED_K = (*PACKED_WEIGHTS, "min_sum_varlen")
RAGGED = ("select_varlen", *PACKED_K)
OPS = (*BATCHED, *RAGGED)
ONE_K = BATCHED[1:]
WEIGHTED = ("diversity", "dpp", "facility_location")
SEEDED = ("diversity", "min_sum")
COVERING = ("facility_location", "facility_location_varlen")
PROMPTED = ("select", "relevance_topk", "select_varlen")


@dataclass(frozen=True)
class Bad:
    """One argument made bad, the error it must raise, and how its text starts after `<op>: `."""

    ops: tuple[str, ...]
    argument: str
    make: Callable[[Any], Any]  # good value -> bad value
    error: type[Exception]
    text: str
    # Through torch.ops the dispatcher sees the Python kind first; it rejects it in its own words
    # (RuntimeError) or converts it. Not a case for `op` and `fake`.
    kind: bool = False


def to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype)


def always(bad: Any) -> Callable[[Any], Any]:
    return lambda _: bad


def nested(x: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor(list(x.unbind()))


FLOATS = "must be float32, float16 or bfloat16, got"
BAD = [
    # tokens
    Bad(OPS, "visual", lambda x: None, TypeError, "must be a tensor, got None"),
    Bad(OPS, "visual", lambda x: x.tolist(), TypeError, "must be a tensor, got list", kind=True),
    Bad(OPS, "visual", lambda x: list(x.unbind()), TypeError, "go to `select_varlen`", kind=True),
    *(
        Bad(OPS, "visual", to(dtype), TypeError, f"{FLOATS} {dtype}")
        for dtype in (
            torch.int32,
            torch.float64,
            torch.complex64,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
            torch.bool,
        )
    ),
    *(
        Bad(PROMPTED, "prompt", to(dtype), TypeError, f"{FLOATS} {dtype}")
        for dtype in (torch.int64, torch.float64, torch.complex64, torch.float8_e4m3fn)
    ),
    Bad(BATCHED, "visual", lambda x: x[0, 0], ValueError, "must be [N, D] or [B, N, D], got [4]"),
    Bad(BATCHED, "visual", lambda x: x[None], ValueError, "must be [N, D] or [B, N, D], got [1,"),
    Bad(OPS, "visual", lambda x: x.sum(), ValueError, "must be [N, D] or [B, N, D], got []"),
    Bad(RAGGED, "visual", lambda x: x[None], ValueError, "must be packed tokens [T, D], got [1,"),
    Bad(OPS, "visual", lambda x: x[..., :0], ValueError, "must have D >= 1, got"),
    Bad(
        OPS,
        "visual",
        lambda x: x[..., :1, :].expand(*x.shape[:-2], 2**31, -1),
        ValueError,
        "must have N < 2**31 tokens, got",
    ),
    Bad(OPS, "visual", lambda x: x.to_sparse(), ValueError, "must be a dense strided tensor, got"),
    Bad(OPS, "visual", nested, ValueError, "dense strided tensor, got a nested tensor; images"),
    Bad(OPS, "visual", lambda x: x.to_mkldnn(), ValueError, "must be a dense strided tensor, got"),
    Bad(OPS, "visual", lambda x: x.to("meta"), ValueError, "must be on a device that holds values"),
    # the prompt
    Bad(("relevance_topk",), "prompt", lambda x: None, TypeError, "must be a tensor, got None"),
    Bad(("select",), "prompt", lambda x: None, ValueError, "prompt_mask must be None without"),
    Bad(("select_varlen",), "prompt", lambda x: None, ValueError, "prompt_spans must be None with"),
    Bad(PROMPTED, "prompt", lambda x: x.sum(), ValueError, "must be ["),
    Bad(PROMPTED, "prompt", lambda x: x[..., :-1], ValueError, "must be ["),
    Bad(PROMPTED, "prompt", lambda x: x[None], ValueError, "must be ["),
    Bad(
        ("select", "relevance_topk"), "prompt", lambda x: x[0], ValueError, "must be [B=2, M, D=4]"
    ),
    Bad(("select", "relevance_topk"), "prompt", lambda x: x[:1], ValueError, "must be [B=2, M, D"),
    Bad(
        PROMPTED,
        "prompt",
        lambda x: x[..., :1, :].expand(*x.shape[:-2], 2**31, -1),
        ValueError,
        "must have M < 2**31 tokens, got",
    ),
    Bad(PROMPTED, "prompt", lambda x: x.to("meta"), ValueError, "must be on cpu, got meta"),
    Bad(PROMPTED, "prompt", lambda x: x.to_sparse(), ValueError, "must be a dense strided tensor"),
    # masks
    Bad(BATCHED, "visual_mask", to(torch.float32), TypeError, "must be bool, got torch.float32"),
    Bad(BATCHED, "visual_mask", to(torch.uint8), TypeError, "must be bool, got torch.uint8"),
    Bad(BATCHED, "visual_mask", lambda x: x[:, :-1], ValueError, "must have shape [2, 6], got"),
    Bad(BATCHED, "visual_mask", lambda x: x[:1], ValueError, "must have shape [2, 6], got [1, 6]"),
    Bad(BATCHED, "visual_mask", lambda x: x[0], ValueError, "must have shape [2, 6], got [6]"),
    Bad(BATCHED, "visual_mask", lambda x: x.tolist(), TypeError, "must be a tensor", kind=True),
    Bad(BATCHED, "visual_mask", lambda x: x.to("meta"), ValueError, "must be on cpu, got meta"),
    Bad(("select", "relevance_topk"), "prompt_mask", to(torch.int64), TypeError, "must be bool"),
    Bad(("select", "relevance_topk"), "prompt_mask", lambda x: x.T, ValueError, "must have shape"),
    # counts
    *(
        Bad(
            ONE_K,
            "k",
            always(k),
            ValueError,
            "must be in [0, N=6]",
        )
        for k in (-1, N + 1, 2**40)
    ),
    Bad(("select",), "k_core", lambda k: -1, ValueError, "must be at least 0, got -1"),
    Bad(("select",), "k_diverse", lambda k: -3, ValueError, "must be at least 0, got -3"),
    Bad(("select",), "k_core", lambda k: 5, ValueError, "k_core + k_diverse must be in [0, N=6]"),
    Bad(
        ("select",), "k_diverse", lambda k: 6, ValueError, "k_core + k_diverse must be in [0, N=6]"
    ),
    *(
        Bad(ops, argument, always(bad), TypeError, "must be an int, got", kind=True)
        for ops, argument in (
            (ONE_K, "k"),
            (("select",), "k_core"),
            (("select",), "k_diverse"),
        )
        for bad in (True, 1.0, "1", torch.tensor(1))
    ),
    Bad(ONE_K, "k", always(2**70), ValueError, "must fit in 64 bits, got int 11", kind=True),
    Bad(ONE_K, "k", lambda k: None, TypeError, "must be an int", kind=True),
    # options
    Bad(PROMPTED, "pooling", lambda p: "median", ValueError, "must be one of mean, max, none_mean"),
    Bad(PROMPTED, "pooling", lambda p: "", ValueError, "must be one of mean, max, none_mean"),
    Bad(PROMPTED, "pooling", lambda p: None, TypeError, "must be one of mean", kind=True),
    Bad(PROMPTED, "pooling", lambda p: 1, TypeError, "must be one of mean", kind=True),
    Bad(("select",), "sorted", lambda s: 1, TypeError, "must be a bool, got int 1", kind=True),
    # seeds and weights
    Bad(SEEDED, "seeds", to(torch.int32), TypeError, "must be int64, got torch.int32"),
    Bad(SEEDED, "seeds", to(torch.float32), TypeError, "must be int64, got torch.float32"),
    Bad(SEEDED, "seeds", lambda x: x[0], ValueError, "must have shape [2, S], got [2]"),
    Bad(SEEDED, "seeds", lambda x: x[:1], ValueError, "must have shape [2, S], got [1, 2]"),
    Bad(SEEDED, "seeds", lambda x: x.sum(), ValueError, "must have shape [2, S], got []"),
    Bad(SEEDED, "seeds", lambda x: x.to("meta"), ValueError, "must be on cpu, got meta"),
    Bad(WEIGHTED, "weights", to(torch.float64), TypeError, "must be float32, got torch.float"),
    Bad(WEIGHTED, "weights", to(torch.bfloat16), TypeError, "must be float32, got torch.bf"),
    Bad(WEIGHTED, "weights", lambda x: x[..., :-1], ValueError, "must have shape [2, 6]"),
    Bad(PACKED_WEIGHTS, "weights", to(torch.float16), TypeError, "must be float32, got"),
    Bad(PACKED_WEIGHTS, "weights", lambda x: x[:-1], ValueError, "must have shape [6], got"),
    # coverage
    Bad(COVERING, "benefits", to(torch.float64), TypeError, "must be float32, got torch.float64"),
    Bad(COVERING, "benefits", lambda x: x[..., :-1], ValueError, "must have shape ["),
    Bad(COVERING, "benefits", lambda x: x[0], ValueError, "must have shape ["),
    Bad(
        ("facility_location",), "benefits", lambda x: x[:1], ValueError, "must have shape [2, M, 6]"
    ),
    Bad(COVERING, "benefits", lambda x: x.to("meta"), ValueError, "must be on cpu, got meta"),
    *(
        Bad(COVERING, name, always(bad), ValueError, "must be finite and at least 0, got")
        for name in ("temperature", "scale")
        for bad in (-0.5, float("nan"), float("inf"))
    ),
    *(
        Bad(COVERING, "temperature", always(cold), ValueError, "must be 0 or at least 1e-06, got")
        for cold in (1e-300, 1e-30, 9e-7)
    ),
    Bad(COVERING, "scale", always(1e39), ValueError, "must be at most 1e+30, got"),
    Bad(COVERING, "temperature", always("hot"), TypeError, "must be a float, got", kind=True),
    Bad(COVERING, "scale", always(None), TypeError, "must be a float, got None", kind=True),
    # suppression
    Bad(RATED, "scores", lambda x: None, TypeError, "must be a tensor, got None"),
    Bad(RATED, "scores", to(torch.int64), TypeError, "must be float32, float16, bfloat16 or"),
    Bad(RATED, "scores", lambda x: x[:, :-1], ValueError, "must have shape [2, 6], got [2, 5]"),
    Bad(RATED, "scores", lambda x: x[0], ValueError, "must have shape [2, 6], got [6]"),
    Bad(RATED, "scores", lambda x: x.to("meta"), ValueError, "must be on cpu, got meta"),
    *(
        Bad(("suppress",), "threshold", always(bad), ValueError, "must be in [-1, 1], got")
        for bad in (1.5, -1.01, float("nan"))
    ),
    Bad(("suppress",), "threshold", always("0"), TypeError, "must be a float", kind=True),
    Bad(("suppress",), "fill", always(1), TypeError, "must be a bool, got int 1", kind=True),
    *(
        Bad(("soft_suppress",), "sharpness", always(bad), ValueError, "must be in [1e-100, 1e+100]")
        for bad in (0.0, -1.0, float("inf"), float("nan"))
    ),
    Bad(("soft_suppress",), "rule", always("cut"), ValueError, "must be one of subtract, scale"),
    Bad(("soft_suppress",), "rule", always(None), TypeError, "must be one of", kind=True),
    Bad(("soft_suppress",), "spread", always(0.0), ValueError, "must be in [1e-100, inf], got 0"),
    Bad(("soft_suppress",), "spread", always(None), TypeError, "must be a float", kind=True),
    Bad(("soft_suppress",), "reach", always(-1.0), ValueError, "must be in [0, inf], got -1"),
    Bad(("soft_suppress",), "positions", always(None), TypeError, "must be given with a finite sp"),
    Bad(
        ("soft_suppress",),
        "positions",
        to(torch.float64),
        TypeError,
        "must be float32, float16, bf",
    ),
    Bad(("soft_suppress",), "positions", lambda x: x[0], ValueError, "must have shape [2, 6, 2]"),
    Bad(("soft_suppress",), "positions", lambda x: x[..., :1], ValueError, "must have shape ["),
    Bad(("soft_suppress",), "positions", lambda x: x.to("meta"), ValueError, "must be on cpu"),
    # tables
    Bad(RAGGED, "cu_seqlens", to(torch.float32), TypeError, "must be int64 or int32, got"),
    Bad(RAGGED, "cu_seqlens", lambda x: x[:0], ValueError, "must have shape [S + 1], got [0]"),
    Bad(RAGGED, "cu_seqlens", lambda x: x[None], ValueError, "must have shape [S + 1], got [1, 3]"),
    Bad(RAGGED, "cu_seqlens", lambda x: None, TypeError, "must be a tensor, got None"),
    Bad(RAGGED, "cu_seqlens", lambda x: x.to("meta"), ValueError, "must be on cpu, got meta"),
    Bad(PACKED_K, "k", to(torch.int16), TypeError, "must be int64 or int32, got"),
    Bad(PACKED_K, "k", lambda x: x[:1], ValueError, "must have shape [2], got [1]"),
    Bad(("select_varlen",), "k_core", to(torch.uint8), TypeError, "must be int64 or int32, got"),
    Bad(("select_varlen",), "k_core", lambda x: x.sum(), ValueError, "must have shape [2], got []"),
    Bad(("select_varlen",), "k_diverse", to(torch.bool), TypeError, "must be int64 or int32, got"),
    Bad(
        ("select_varlen",), "k_diverse", lambda x: ints(1, 1, 1), ValueError, "must have shape [2]"
    ),
    Bad(("select_varlen",), "prompt_spans", to(torch.float32), TypeError, "must be int64 or int32"),
    Bad(("select_varlen",), "prompt_spans", lambda x: x[:1], ValueError, "must have shape [2, 2]"),
    Bad(
        ("select_varlen",),
        "prompt_spans",
        lambda x: x.view(4),
        ValueError,
        "must have shape [2, 2]",
    ),
    Bad(RAGGED, "total_k", lambda k: -1, ValueError, "must be at least 0, got -1"),
    Bad(RAGGED, "max_seqlen", lambda k: -1, ValueError, "must be at least 0, got -1"),
]


def call(entry: str, op: str, arguments: dict[str, Any]) -> Any:
    if entry == "op":
        return getattr(torch.ops.zspa, op)(**arguments)
    if entry == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True):
            return getattr(torch.ops.zspa, op)(**arguments)
    named = {} if entry == "zk" else {"backend": entry}
    # The ragged public functions take lengths on the host: test_api.py has their table.
    return getattr(register if op in RAGGED else zk, op)(**arguments, **named)


def reaches(entry: str, op: str, bad: Bad) -> bool:
    if entry == "zk":
        return op not in RAGGED
    if entry == "fake" and "dense strided" in bad.text:
        return False  # no fakes of such tensors
    return not (bad.kind and entry in ("op", "fake"))


CASES = [
    pytest.param(op, entry, bad, id=f"{op}-{entry}-{bad.argument}-{n}")
    for n, bad in enumerate(BAD)
    for op in bad.ops
    for entry in ENTRIES
    if reaches(entry, op, bad)
]


def storages(arguments: dict[str, Any]) -> list[bytes]:
    """What the dense tensors hold, byte by byte (an expanded one is small in memory)."""
    return [
        bytes(x.untyped_storage())
        for x in arguments.values()
        if isinstance(x, Tensor) and x.layout is torch.strided and not x.is_nested and x.is_cpu
    ]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR")
@pytest.mark.parametrize(("op", "entry", "bad"), CASES)
def test_bad_call(op: str, entry: str, bad: Bad, require_backend: Callable[..., None]) -> None:
    if entry in ENTRIES[3:]:
        require_backend(entry, op)
    arguments = good(op)
    arguments[bad.argument] = bad.make(arguments[bad.argument])
    before = storages(arguments)
    with pytest.raises((TypeError, ValueError)) as caught:
        call(entry, op, arguments)
    message = str(caught.value)
    assert caught.type is bad.error, message
    assert message.startswith(f"{op}: "), message
    assert bad.text in message, message
    assert " must " in message, message
    assert ", got " in message, message
    assert storages(arguments) == before


@pytest.mark.parametrize(("op", "entry"), [(op, entry) for op in OPS for entry in ENTRIES])
def test_the_good_call_is_good(op: str, entry: str, require_backend: Callable[..., None]) -> None:
    if entry in ENTRIES[3:]:
        require_backend(entry, op)
    if entry != "zk" or op not in RAGGED:
        call(entry, op, good(op))


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_core_needs_a_prompt(entry: str, require_backend: Callable[..., None]) -> None:
    if entry in ENTRIES[3:]:
        require_backend(entry, "select")
    arguments = {**good("select"), "prompt": None, "prompt_mask": None}
    with pytest.raises(TypeError, match=r"^select: prompt must be a tensor when k_core=1 > 0"):
        call(entry, "select", arguments)
    call(entry, "select", {**arguments, "k_core": 0})


NONE = torch.empty(0, D)
EDGES: dict[str, tuple[str, dict[str, Any], int]] = {
    "no tokens": ("select", {"visual": NONE, "prompt": draw(M, D), "k_core": 0, "k_diverse": 0}, 0),
    "no prompt tokens": (
        "select",
        {"visual": draw(N, D), "prompt": NONE, "k_core": 1, "k_diverse": 1},
        2,
    ),
    "no prompt": ("select", {"visual": draw(N, D), "prompt": None, "k_core": 0, "k_diverse": N}, N),
    "one channel": (
        "select",
        {"visual": draw(N, 1), "prompt": draw(M, 1), "k_core": 1, "k_diverse": 1},
        2,
    ),
    "no token to score": ("relevance_topk", {"visual": NONE, "prompt": draw(M, D), "k": 0}, 0),
    "nothing to score by": ("relevance_topk", {"visual": draw(N, D), "prompt": NONE, "k": N}, N),
    "nothing to pick": ("diversity", {"visual": NONE, "k": 0}, 0),
    "no seeds": ("diversity", {"visual": draw(N, D), "k": N, "seeds": ints()}, N),
    "all seeds": ("diversity", {"visual": draw(N, D), "k": N, "seeds": torch.arange(N)}, N),
    "nothing to span": ("dpp", {"visual": NONE, "k": 0}, 0),
    "nothing to cover": ("facility_location", {"visual": NONE, "k": 0}, 0),
    "every token covers": ("facility_location", {"visual": draw(N, D), "k": N}, N),
    "every token": ("dpp", {"visual": draw(N, D), "k": N}, N),
    "nothing to add up": ("min_sum", {"visual": NONE, "k": 0}, 0),
    "every token by its sum": ("min_sum", {"visual": draw(N, D), "k": N}, N),
    "nothing to take": (
        "suppress",
        {"visual": NONE, "scores": ones(0), "k": 0, "threshold": 0.5},
        0,
    ),
    "nothing to suppress": (
        "soft_suppress",
        {"visual": NONE, "scores": ones(0), "k": 0, "sharpness": 1.0, "positions": ones(0, 2)},
        0,
    ),
    "no segments": (
        "diversity_varlen",
        {"visual": draw(N, D), "cu_seqlens": ints(0), "k": ints(), "total_k": 3, "max_seqlen": 9},
        3,
    ),
    "no rows": (
        "select_varlen",
        {
            "visual": NONE,
            "cu_seqlens": ints(0, 0, dtype=torch.int32),
            "prompt": NONE,
            "prompt_spans": None,
            "k_core": ints(1),
            "k_diverse": ints(1),
            "total_k": 2,
            "max_seqlen": 0,
        },
        2,
    ),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("batch", [None, 0, 2])
def test_empty_is_not_an_error(
    name: str, entry: str, batch: int | None, require_backend: Callable[..., None]
) -> None:
    op, arguments, k = EDGES[name]
    if op in RAGGED and (entry == "zk" or batch is not None):
        return
    if entry in ENTRIES[3:]:
        require_backend(entry, op)
    if batch is not None:
        arguments = {
            key: x.expand(batch, *x.shape) if isinstance(x, Tensor) else x
            for key, x in arguments.items()
        }
    result = call(entry, op, arguments)
    indices = result[0] if op == "relevance_topk" else result
    assert indices.shape == ((k,) if batch is None else (batch, k))
    assert indices.dtype is torch.int64


@pytest.mark.parametrize("op", BATCHED)
def test_jagged_tensors_are_refused(op: str) -> None:
    arguments = good(op)
    arguments["visual"] = torch.nested.as_nested_tensor(
        list(arguments["visual"]), layout=torch.jagged
    )
    with pytest.raises(ValueError, match="visual must be a dense strided tensor, got a nested"):
        call("zk", op, arguments)
    with pytest.raises(NotImplementedError):  # PyTorch's own: such tensors dispatch in Python
        call("op", op, arguments)
