# SPDX-License-Identifier: Apache-2.0
"""The public functions: counts, gather, ragged forms, and how arguments reach the ops."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from zspa_kernels._contract import selection as _rules
from zspa_kernels._contract.values import say
from zspa_kernels._ops import dispatch


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# ---- how many -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "keep", "rounding", "expected"),
    [
        (576, 0.1, "round", 58),  # ZSPAPrune, DivPrune: 57.6
        (576, 0.098, "round", 56),
        (576, 0.1112, "floor", 64),  # ZOO-Prune: 64.05
        (576, 0.1, "floor", 57),
        (5, 0.5, "round", 2),  # half to even
        (7, 0.5, "round", 4),
        (576, 1.0, "round", 576),
        (576, 1e-9, "round", 1),
        (576, 1e-9, "floor", 1),
        (576, 64, "round", 64),
        (576, 1, "floor", 1),
        (576, 9999, "round", 576),
        (1, 0.1, "round", 1),
        (0, 0.5, "round", 0),
        (0, 7, "round", 0),
        (10, np.float32(0.5), "round", 5),
        (np.int64(10), np.int64(3), "round", 3),
    ],
)
def test_num_keep(n: int, keep: float, rounding: str, expected: int) -> None:
    kept = zk.num_keep(n, keep, rounding=rounding)
    assert kept == expected
    assert type(kept) is int


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((576, 0.0), ValueError, "keep must be a share in (0, 1], or an int: a count, got 0.0"),
        ((576, -0.1), ValueError, "keep must be a share in (0, 1], or an int: a count, got -0.1"),
        ((576, 1.01), ValueError, "keep must be a share in (0, 1], or an int: a count, got 1.01"),
        (
            (576, float("nan")),
            ValueError,
            "keep must be a share in (0, 1], or an int: a count, got nan",
        ),
        (
            (576, float("inf")),
            ValueError,
            "keep must be a share in (0, 1], or an int: a count, got inf",
        ),
        ((576, 0), ValueError, "keep must be a count of at least 1, got 0"),
        ((576, -5), ValueError, "keep must be a count of at least 1, got -5"),
        ((0, 0.0), ValueError, "keep must be a share in (0, 1], or an int: a count, got 0.0"),
        ((-1, 0.5), ValueError, "n must be at least 0, got -1"),
        ((576, 0.5, "ceil"), ValueError, "rounding must be one of round, floor, got str 'ceil'"),
        ((576, 0.5, None), TypeError, "rounding must be one of round, floor, got None"),
        (
            (576, True),
            TypeError,
            "keep must be a float (a share) or an int (a count), got bool True",
        ),
        ((576, None), TypeError, "keep must be a float (a share) or an int (a count), got None"),
        (
            (576, Fraction(10**400)),
            ValueError,
            "keep must be a share in (0, 1], or an int: a count, got 1000",
        ),
        (
            (576, "0.1"),
            TypeError,
            "keep must be a float (a share) or an int (a count), got str '0.1'",
        ),
        (
            (576, torch.tensor(0.1)),
            TypeError,
            "keep must be a float (a share) or an int (a count), got Tensor",
        ),
        (
            (576, 1j),
            TypeError,
            "keep must be a float (a share) or an int (a count), got complex 1j",
        ),
        ((True, 0.1), TypeError, "n must be an int, got bool True"),
        ((5.0, 0.1), TypeError, "n must be an int, got float 5.0"),
        ((torch.tensor(5), 0.1), TypeError, "n must be an int, got Tensor"),
    ],
)
def test_num_keep_errors(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        zk.num_keep(*arguments)
    assert caught.type is error
    assert str(caught.value).startswith(f"num_keep: {text}")


@pytest.mark.parametrize("n", [-(2**63) - 1, -(2**63), 2**63 - 1, 2**63])
def test_the_range_of_counts(n: int) -> None:
    class Index:
        def __index__(self) -> int:
            return n

    for given in (n, Index()):
        if n == 2**63 - 1:
            assert zk.num_keep(given, 5) == 5
            continue
        rule = "be at least 0" if n == -(2**63) else "fit in 64 bits"
        with pytest.raises(ValueError, match=f"^num_keep: n must {rule}, got"):
            zk.num_keep(given, 5)


@pytest.mark.parametrize(
    ("k", "ratio", "expected"),
    [
        (58, 0.4, 23),
        (58, 0.2, 12),
        (5, 0.5, 2),
        (58, 0, 0),
        (58, 1, 58),
        (58, 7.5, 58),
        (0, 0.5, 0),
        (1, 0.2, 0),
    ],
)
def test_split_core(k: int, ratio: float, expected: int) -> None:
    core = zk.split_core(k, ratio)
    assert core == expected
    assert type(core) is int


@pytest.mark.parametrize(
    ("k", "ratio", "error"),
    [
        (58, -0.1, ValueError),
        (58, float("nan"), ValueError),
        (58, float("inf"), ValueError),
        (58, 10**400, ValueError),
        (-1, 0.2, ValueError),
        (58, True, TypeError),
        (58, None, TypeError),
        (58, torch.tensor(0.2), TypeError),
        (True, 0.2, TypeError),
        (5.0, 0.2, TypeError),
    ],
)
def test_split_core_errors(k: Any, ratio: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^split_core: (k|core_ratio) must .*, got "):
        zk.split_core(k, ratio)


def test_values_in_messages_are_short_and_never_those_of_a_tensor() -> None:
    for value, text in (
        (None, "None"),
        (draw(2, 3), "Tensor [2, 3]"),
        ([draw(2, 3), np.ones(4)], "list [Tensor [2, 3], ndarray [4]]"),
        ((1, 2, 3, 4), "tuple (1, 2, 3, ...)"),
        ([[[[7]]]], "list [[[[...]]]]"),
        ({1: 1, 2: 2, 3: 3}, "dict {1: 1, 2: 2, ...}"),
        ({1, 2, 3, 4}, "set {1, 2, 3, ...}"),
    ):
        assert say(value) == text


def test_the_range_of_tokens() -> None:
    """Kernels count the tokens of a segment in 32 bits."""
    most = torch.ones(1, 4).expand(2**31 - 1, 4)
    assert _rules.relevance_topk(most, most, 5) == (5,)


# ---- select -------------------------------------------------------------------------------------


def test_keep_becomes_counts() -> None:
    visual, prompt = draw(2, 30, 8), draw(2, 3, 8)

    def op(k_core: int, k_diverse: int) -> Tensor:
        result: Tensor = torch.ops.zspa.select(visual, prompt, k_core, k_diverse)
        return result

    assert torch.equal(zk.select(visual, prompt, keep=0.5), op(3, 12))  # a core of 0.2
    assert torch.equal(zk.select(visual, prompt, keep=0.5, core_ratio=0.4), op(6, 9))
    assert torch.equal(zk.select(visual, prompt, keep=7, core_ratio=1), op(7, 0))
    # A share of the kept tokens that rounds to none wants no prompt.
    assert torch.equal(zk.select(visual, keep=2, core_ratio=0.2), zk.select(visual, keep=2))
    assert torch.equal(zk.select(visual, prompt, keep=0.55, rounding="floor"), op(3, 13))
    assert torch.equal(zk.select(visual, prompt, k_core=np.int64(2), k_diverse=3), op(2, 3))
    assert torch.equal(zk.select(visual, keep=4), torch.ops.zspa.select(visual, None, 0, 4))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, TypeError, "keep must be given, or k_core and k_diverse, got None"),
        ({"k_core": 1}, TypeError, "k_diverse must be given with k_core, got None"),
        ({"k_diverse": 1}, TypeError, "k_core must be given with k_diverse, got None"),
        ({"keep": 0.5, "k_core": 1}, ValueError, "k_core must be None when keep is given, got 1"),
        ({"keep": 0.5, "k_diverse": 0}, ValueError, "k_diverse must be None when keep is given"),
        ({"k_core": 1, "k_diverse": 1, "core_ratio": 0.2}, ValueError, "core_ratio must be None"),
        ({"keep": 0.5, "core_ratio": -1.0}, ValueError, "core_ratio must be finite and at least 0"),
        ({"keep": 0.0}, ValueError, "keep must be a share in (0, 1], or an int: a count, got 0.0"),
        (
            {"keep": True},
            TypeError,
            "keep must be a float (a share) or an int (a count), got bool True",
        ),
        ({"keep": 1, "prompt_mask": [True]}, TypeError, "prompt_mask must be a tensor, got list"),
        ({"keep": 1, "sorted": 1}, TypeError, "sorted must be a bool, got int 1"),
        ({"keep": 0.5, "rounding": "up"}, ValueError, "rounding must be one of round, floor"),
        ({"keep": 0.5, "prompt": None, "core_ratio": 0.5}, TypeError, "prompt must be a tensor"),
    ],
)
def test_select_errors_of_its_own(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        zk.select(draw(8, 4), **{"prompt": draw(2, 4), **options})
    assert caught.type is error
    assert str(caught.value).startswith(f"select: {text}")


@pytest.mark.parametrize("pooling", _rules.POOLINGS)
def test_every_argument_arrives(pooling: str) -> None:
    """Each changes the result."""
    visual, prompt, weights = draw(40, 8), draw(5, 8), draw(40).abs()
    mask, heard = torch.arange(40) % 3 != 0, torch.arange(5) > 2
    zspa = torch.ops.zspa
    found = []
    for masks in ((mask, heard), (None, heard), (mask, None)):
        named: dict[str, Any] = dict(zip(("visual_mask", "prompt_mask"), masks, strict=True))
        named["pooling"] = pooling
        for ordered in (True, False):
            picks = zk.select(visual, prompt, k_core=9, k_diverse=4, sorted=ordered, **named)
            right = zspa.select(visual, prompt, 9, 4, *masks, pooling, ordered)
            assert torch.equal(picks, right)
            found.append(tuple(picks.tolist()))
        top = zk.relevance_topk(visual, prompt, 9, **named)
        assert all(map(torch.equal, top, zspa.relevance_topk(visual, prompt, 9, *masks, pooling)))
    assert len(set(found)) == 6
    seeds = torch.tensor([3, 8])
    for given in ((seeds, weights, mask), (None, weights, mask), (seeds, None, mask)):
        names = dict(zip(("seeds", "weights", "visual_mask"), given, strict=True))
        assert torch.equal(zk.diversity(visual, 6, **names), zspa.diversity(visual, 6, *given))


def test_every_function_asks_for_the_backend_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    visual, prompt, scores = draw(40, 8), draw(5, 8), draw(40)
    for function, counts in (
        (zk.select, {"prompt": prompt, "keep": 3}),
        (zk.relevance_topk, {"prompt": prompt, "k": 3}),
        (zk.diversity, {"k": 3}),
        (zk.dpp, {"k": 3}),
        (zk.facility_location, {"k": 3}),
        (zk.min_sum, {"k": 3}),
        (zk.suppress, {"scores": scores, "k": 3, "threshold": 0.5}),
        (zk.soft_suppress, {"scores": scores, "k": 3, "sharpness": 2.0}),
        (zk.diversity_varlen, {"k": 3, "lengths": [40]}),
    ):
        with pytest.raises(NotImplementedError, match="backend 'triton' cannot run: CPU"):
            function(visual, **counts, backend="triton")


def test_named_and_automatic_backends_agree_on_unbatched_and_strided_input() -> None:
    visual, prompt = draw(2, 8, 20, 2)[..., 0].mT, draw(2, 8, 4).mT
    mask = (draw(20, 2) > -0.5).T
    assert visual.stride(-1) != 1
    for backend in ("reference", "cpp"):
        found = zk.select(visual, prompt, keep=9, visual_mask=mask, backend=backend)
        assert torch.equal(found, zk.select(visual, prompt, keep=9, visual_mask=mask))
        alone = zk.select(visual[1], prompt[1], keep=9, visual_mask=mask[1], backend=backend)
        assert torch.equal(alone, found[1])


def test_the_negative_bit_is_seen() -> None:
    visual, prompt = draw(9, 4), draw(2, 4)
    negative = torch._neg_view(visual)
    assert negative.is_neg()
    for backend in ("auto", "reference", "cpp"):
        _, scores = zk.relevance_topk(negative, prompt, 3, backend=backend)
        assert torch.equal(scores, zk.relevance_topk(-visual, prompt, 3, backend=backend)[1])


def test_arguments_are_never_written() -> None:
    visual, prompt, weights = draw(2, 9, 4), draw(2, 3, 4), draw(2, 9)
    seeds, mask = torch.tensor([[0, -1], [99, 3]]), torch.ones(2, 9, dtype=torch.bool)
    tensors = (visual, prompt, weights, seeds, mask)
    before = [(x.clone(), x._version) for x in tensors]
    for backend in ("auto", "reference", "cpp", "triton"):
        zk.select(visual, prompt, keep=5, visual_mask=mask, backend=backend)
        zk.relevance_topk(visual, prompt, 5, visual_mask=mask, backend=backend)
        zk.diversity(visual, 5, seeds=seeds, weights=weights, visual_mask=mask, backend=backend)
    for x, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(x, values)
        assert x._version == version


# ---- gather -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("rest", [(), (3,), (2, 5)])
def test_gather(dtype: torch.dtype, rest: tuple[int, ...]) -> None:
    x = (draw(2, 6, *rest) * 9).to(dtype)
    indices = torch.tensor([[5, 0, -1, 3], [-1, -1, 2, 2]])
    found = zk.gather(x, indices)
    assert found.shape == (2, 4, *rest)
    assert found.dtype == dtype
    for b in range(2):
        assert torch.equal(zk.gather(x[b], indices[b]), found[b])
        for k, i in enumerate(indices[b].tolist()):
            assert torch.equal(found[b, k], x[b, i] if i >= 0 else torch.zeros_like(x[b, 0]))


def test_gather_gives_zeros_even_where_row_0_is_not_finite() -> None:
    x = torch.tensor([[float("nan")], [2.0]], requires_grad=True)
    found = zk.gather(x, torch.tensor([-1, 1, 2, -9, 2**40]))
    assert found.flatten().tolist() == [0.0, 2.0, 0.0, 0.0, 0.0]
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 1.0]


def test_gather_is_differentiable() -> None:
    x = draw(2, 6, 3).double().requires_grad_()
    indices = torch.tensor([[5, 0, -1], [2, 2, 1]])
    assert torch.autograd.gradcheck(lambda y: zk.gather(y, indices), (x,))


@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_gather_of_nothing(batch: tuple[int, ...]) -> None:
    none = torch.full((*batch, 3), -1)
    assert torch.equal(zk.gather(draw(*batch, 0, 4), none), torch.zeros(*batch, 3, 4))
    assert zk.gather(draw(*batch, 6, 4), none[..., :0]).shape == (*batch, 0, 4)


@pytest.mark.parametrize(
    ("x", "indices", "error"),
    [
        (None, torch.tensor([0]), TypeError),
        (draw(4, 2), [0], TypeError),
        (draw(4, 2), torch.tensor([0.0]), TypeError),
        (draw(4, 2), torch.tensor([0], dtype=torch.int32), TypeError),
        (draw(4, 2), torch.tensor(0), ValueError),
        (draw(4, 2), torch.zeros(1, 1, 1, dtype=torch.int64), ValueError),
        (draw(4), torch.tensor([[0]]), ValueError),
        (draw(4, 2), torch.zeros(3, 1, dtype=torch.int64), ValueError),
        (draw(4, 2), torch.tensor([0], device="meta"), ValueError),
        (draw(4, 2).to_sparse(), torch.tensor([0]), ValueError),
    ],
)
def test_gather_errors(x: Any, indices: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^gather: (x|indices) must .*, got "):
        zk.gather(x, indices)


def test_an_array_is_neither_a_number_nor_an_option() -> None:
    """NumPy's arrays have `__index__` and answer `in` with an array: both raise in their words."""
    several = np.array([3, 4])
    visual, w1, w2 = torch.eye(6), torch.ones(3, 2), torch.ones(2, 3)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: zk.diversity(visual, several),
        lambda: zk.select(visual, keep=3, rounding=several),
        lambda: zk.select(visual, keep=3, pooling=several),
        lambda: zk.select(visual, keep=3, backend=several),
        lambda: zk.num_keep(several, 0.5),
        lambda: zk.SensitivityPlan(w1, None, w2, several),
        lambda: zk.SensitivityPlan(w1, None, w2, "relu", dtype=several),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"^\w+: \w+ must .*, got .*(\[2\]|array)"):
            call()
    assert zk.num_keep(np.int64(6), np.float32(0.5)) == zk.num_keep(np.array(6), 0.5) == 3


# ---- warmup -------------------------------------------------------------------------------------

OPS = [op for op in dispatch.OPS if not op.startswith("sensitivity")]  # of projectors


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_warmup_runs_every_op(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()
    for op in OPS:
        real: Callable[..., Any] = getattr(torch.ops.zspa, op)

        def run(*arguments: Any, op: str = op, real: Callable[..., Any] = real) -> Any:
            called.add(op)
            return real(*arguments)

        monkeypatch.setattr(torch.ops.zspa, op, run)
    zk.warmup("cpu", torch.bfloat16, num_tokens=num_tokens, dim=4)
    assert called == set(OPS)


@pytest.mark.parametrize(
    ("sizes", "kind", "text"),
    [
        ({"num_tokens": -1}, ValueError, "warmup: num_tokens must be at least 0, got -1"),
        ({"num_tokens": 2.0}, TypeError, "warmup: num_tokens must be an int, got float 2.0"),
        ({"dim": 0}, ValueError, "warmup: dim must be at least 1, got 0"),
        ({"dtype": torch.float64}, TypeError, "warmup: dtype must be float32, .*got torch.float64"),
        ({"dtype": ["half"]}, TypeError, r"warmup: dtype must be float32, .*got \['half'\]"),
        ({"ops": "select"}, TypeError, "warmup: ops must be several names, got str 'select'"),
        ({"ops": 3}, TypeError, "warmup: ops must be several names, got int 3"),
        ({"ops": ["dp"]}, ValueError, "warmup: ops must be one of select, .*got str 'dp'"),
    ],
)
def test_warmup_of_nothing(sizes: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        zk.warmup(**{"dim": 4, **sizes})


@pytest.mark.parametrize(
    ("device", "kind", "text"),
    [
        (None, TypeError, "a torch.device or its name, got None"),
        (3.5, TypeError, "a torch.device or its name, got float 3.5"),
        ("foo", ValueError, "a device's name, such as cpu or cuda:0, got 'foo'"),
        ("", ValueError, "a device's name, such as cpu or cuda:0, got ''"),
        ("meta", ValueError, "one that holds values, got meta"),
        # No machine has these; how torch says so depends on what it was built with.
        ("cuda:99", ValueError, r"a device that .* have, got cuda:99 \(.+\)"),
        ("mps:7", ValueError, r"a device that .* have, got mps:7 \(.+\)"),
        (torch.device("hpu:7"), ValueError, r"a device that .* have, got hpu:7 \(.+\)"),
    ],
)
def test_devices_that_are_not_there(device: Any, kind: type[Exception], text: str) -> None:
    for op, call in {
        "warmup": lambda: zk.warmup(device, dim=4),
        "unit_directions": lambda: zk.unit_directions(2, 3, device=device),
    }.items():
        with pytest.raises(kind, match=f"^{op}: device must be {text}$"):
            call()


@pytest.mark.parametrize("backend", ["auto", "reference", "cpp"])
def test_tensors_that_stand_for_their_negative(
    backend: str, require_backend: Callable[..., None]
) -> None:
    """The dispatcher resolves them; a backend that is named must be given values, too."""
    require_backend("cpp" if backend == "auto" else backend)
    values = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    prompt = values[:, 3:4]
    expected = zk.select(values, prompt, keep=9, sorted=False)
    # One of the two: cosines are the same if the sign of both is lost.
    for visual, words in ((torch._neg_view(-values), prompt), (values, torch._neg_view(-prompt))):
        assert visual.is_neg() != words.is_neg()
        assert torch.equal(
            zk.select(visual, words, keep=9, sorted=False, backend=backend), expected
        )
