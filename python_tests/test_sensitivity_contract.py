# SPDX-License-Identifier: Apache-2.0
"""The sensitivity ops keep the library's contract: errors, fakes, compilation, ambient state."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import zspa_kernels as zk
from python_tests.runners import BACKENDS, spread
from python_tests.test_ambient import AMBIENT
from python_tests.test_contract_errors import FLOATS, Bad, nested, storages, to
from python_tests.test_opcheck import of_copies
from zspa_kernels._activations import NAMES
from zspa_kernels._ops import register
from zspa_kernels._ops.call import call as public_call
from zspa_kernels._sensitivity import SCORES
from zspa_kernels.projectors import Projector

Require = Callable[..., None]
B, N, D, H, O, M, R = 2, 6, 4, 8, 5, 3, 7  # noqa: E741 - the names of the axes

FEATURES = ("sensitivity", "sensitivity_rms")
HIDDEN = ("sensitivity_hidden", "sensitivity_rms_hidden")
ESTIMATES = ("sensitivity", "sensitivity_hidden")
FORMS = ("sensitivity_rms", "sensitivity_rms_hidden")
OPS = (*FEATURES, *HIDDEN)
ENTRIES = ("op", "fake", *BACKENDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def good(op: str, batch: tuple[int, ...] = (B,)) -> dict[str, Any]:
    """A valid call of an op, every optional argument given."""
    first = {"features": draw(*batch, N, D), "w1": draw(H, D, seed=1), "b1": draw(H, seed=2)}
    hidden = {"preactivation": draw(*batch, N, H)}
    form = {"factor": draw(R, H), "activation": "gelu", "diagonal": draw(H).abs()}
    w2 = {"w2": draw(O, H, seed=3), "activation": "silu"}
    return {
        "sensitivity": {**first, **w2, "directions": draw(M, D), "radius": 0.02},
        "sensitivity_hidden": {**hidden, **w2, "shifts": draw(M, H), "radius": 0.02},
        "sensitivity_rms": {**first, **form},
        "sensitivity_rms_hidden": {**hidden, **form},
    }[op]


def call(entry: str, op: str, arguments: dict[str, Any]) -> Tensor:
    if entry in ("op", "fake"):
        function = getattr(torch.ops.zspa, op)
        if entry == "op":
            return function(**arguments)
        with FakeTensorMode(allow_non_fake_inputs=True):
            return function(**arguments)
    return getattr(register, op)(*arguments.values(), backend=entry)


TENSORS = {
    "features": FEATURES,
    "preactivation": HIDDEN,
    "w1": FEATURES,
    "w2": ESTIMATES,
    "directions": ("sensitivity",),
    "shifts": ("sensitivity_hidden",),
    "factor": FORMS,
}
OPTIONAL = {"b1": FEATURES, "diagonal": FORMS}

BAD = [
    # every tensor
    *(
        Bad(ops, name, lambda x: None, TypeError, "must be a tensor, got None", kind=True)
        for name, ops in TENSORS.items()
    ),
    *(
        Bad(ops, name, to(dtype), TypeError, f"{FLOATS} {dtype}")
        for name, ops in {**TENSORS, **OPTIONAL}.items()
        for dtype in (torch.float64, torch.int32, torch.complex64)
    ),
    *(
        Bad(ops, name, lambda x: x.to_sparse(), ValueError, "must be a dense strided tensor, got")
        for name, ops in {**TENSORS, **OPTIONAL}.items()
    ),
    *(
        Bad(ops, name, lambda x: x.to("meta"), ValueError, "must be on cpu, got meta")
        for name, ops in {**TENSORS, **OPTIONAL}.items()
        if name not in ("features", "preactivation")
    ),
    # tokens
    *(
        bad
        for name, ops in (("features", FEATURES), ("preactivation", HIDDEN))
        for bad in (
            Bad(ops, name, lambda x: x[0, 0], ValueError, "must be [N, D] or [B, N, D], got ["),
            Bad(ops, name, lambda x: x[None], ValueError, "must be [N, D] or [B, N, D], got [1, 2"),
            Bad(ops, name, lambda x: x[..., :0], ValueError, "must have D >= 1, got [2, 6, 0]"),
            Bad(ops, name, lambda x: x.to("meta"), ValueError, "must be on a device that holds"),
            Bad(ops, name, nested, ValueError, "must be a dense strided tensor, got a nested"),
            Bad(
                ops,
                name,
                lambda x: x[0, :1].expand(2**31, -1),
                ValueError,
                "must have N < 2**31 tokens, got [2147483648, ",
            ),
        )
    ),
    # weights
    Bad(FEATURES, "w1", lambda x: x[:, :3], ValueError, "must be [H, D=4], got [8, 3]"),
    Bad(FEATURES, "w1", lambda x: x[0], ValueError, "must be [H, D=4], got [4]"),
    Bad(FEATURES, "w1", lambda x: x[:0], ValueError, "must have H >= 1, got [0, 4]"),
    Bad(FEATURES, "b1", lambda x: x[:3], ValueError, "must be [H=8], got [3]"),
    Bad(FEATURES, "b1", lambda x: x[None], ValueError, "must be [H=8], got [1, 8]"),
    Bad(ESTIMATES, "w2", lambda x: x[:, :3], ValueError, "must be [O, H=8], got [5, 3]"),
    Bad(ESTIMATES, "w2", lambda x: x[:0], ValueError, "must have O >= 1, got [0, 8]"),
    Bad(("sensitivity",), "directions", lambda x: x[:0], ValueError, "must have m >= 1, got [0, "),
    Bad(("sensitivity",), "directions", lambda x: x[0], ValueError, "must be [m, D=4], got [4]"),
    Bad(("sensitivity",), "directions", lambda x: x.T, ValueError, "must be [m, D=4], got [4, 3]"),
    Bad(("sensitivity_hidden",), "shifts", lambda x: x[:0], ValueError, "must have m >= 1, got"),
    Bad(("sensitivity_hidden",), "shifts", lambda x: x.T, ValueError, "must be [m, H=8], got"),
    Bad(FORMS, "factor", lambda x: x[:, 1:], ValueError, "must be [R, H=8], got [7, 7]"),
    Bad(FORMS, "diagonal", lambda x: x[1:], ValueError, "must be [H=8], got [7]"),
    # options
    Bad(OPS, "activation", lambda _: "tanh", ValueError, "must be one of gelu, gelu_tanh, quick"),
    Bad(OPS, "activation", lambda _: None, TypeError, "must be one of gelu", kind=True),
    Bad(ESTIMATES, "radius", lambda _: -0.01, ValueError, "must be finite and at least 0, got -0"),
    Bad(ESTIMATES, "radius", lambda _: float("nan"), ValueError, "must be finite and at least 0"),
    Bad(ESTIMATES, "radius", lambda _: float("inf"), ValueError, "must be finite and at least 0"),
    Bad(ESTIMATES, "radius", lambda _: 10**400, ValueError, "must be finite and at lea", kind=True),
    Bad(ESTIMATES, "radius", lambda _: "1", TypeError, "must be a float, got str '1'", kind=True),
    Bad(ESTIMATES, "radius", lambda _: True, TypeError, "must be a float, got bool", kind=True),
]
CASES = [
    pytest.param(op, entry, bad, id=f"{op}-{entry}-{bad.argument}-{n}")
    for n, bad in enumerate(BAD)
    for op in bad.ops
    for entry in ENTRIES[:3]  # a named backend is called behind the same rules, whichever it is
    if not (bad.kind and entry in ("op", "fake"))
    and not (entry == "fake" and "dense strided" in bad.text)
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("op", "entry", "bad"), CASES)
def test_bad_call(op: str, entry: str, bad: Bad) -> None:
    arguments = good(op)
    arguments[bad.argument] = bad.make(arguments[bad.argument])
    before = storages(arguments)
    with pytest.raises((TypeError, ValueError)) as caught:
        call(entry, op, arguments)
    message = str(caught.value)
    assert caught.type is bad.error, message
    assert message.startswith(f"{op}: {bad.argument} "), message
    assert bad.text in message, message
    assert ", got " in message, message
    assert storages(arguments) == before


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("batch", [(), (0,), (1,), (B,)])
def test_the_good_call_is_good(
    op: str, entry: str, batch: tuple[int, ...], require_backend: Require
) -> None:
    if entry in BACKENDS:
        require_backend(entry, op)
    arguments = good(op, batch)
    before = storages(arguments)
    scores = call(entry, op, arguments)
    assert scores.shape == (*batch, N)
    assert scores.dtype is torch.float32
    assert not scores.requires_grad
    if entry != "fake":
        strided = call(entry, op, {name: spread(x) for name, x in arguments.items()})
        assert torch.equal(strided, scores)
    assert storages(arguments) == before


def test_a_named_backend_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    for op in OPS:
        with pytest.raises(NotImplementedError, match=f"^{op}: backend 'triton' cannot run: CPU"):
            call_named(op, "triton")


def call_named(op: str, backend: str) -> Tensor:
    return public_call(op, backend, tuple(good(op).values()))


def test_schemas_are_what_the_design_fixes() -> None:
    def schema(op: str) -> str:
        return str(getattr(torch.ops.zspa, op).default._schema)

    assert schema("sensitivity") == (
        "zspa::sensitivity(Tensor features, Tensor w1, Tensor? b1, Tensor w2, str activation, "
        "Tensor directions, float radius=0.01) -> Tensor"
    )
    assert schema("sensitivity_hidden") == (
        "zspa::sensitivity_hidden(Tensor preactivation, Tensor w2, str activation, "
        "Tensor shifts, float radius=0.01) -> Tensor"
    )
    assert schema("sensitivity_rms") == (
        "zspa::sensitivity_rms(Tensor features, Tensor w1, Tensor? b1, Tensor factor, "
        "str activation, Tensor? diagonal=None) -> Tensor"
    )
    assert schema("sensitivity_rms_hidden") == (
        "zspa::sensitivity_rms_hidden(Tensor preactivation, Tensor factor, str activation, "
        "Tensor? diagonal=None) -> Tensor"
    )


# ---- compilation --------------------------------------------------------------------------------


@of_copies
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("batch", [(), (0,), (B,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(op: str, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    arguments = {
        name: x.to(dtype).requires_grad_() if isinstance(x, Tensor) else x
        for name, x in good(op, batch).items()
    }
    torch.library.opcheck(getattr(torch.ops.zspa, op).default, (), arguments)


@of_copies
@pytest.mark.parametrize("op", FEATURES)
def test_opcheck_without_the_optional_and_strided(op: str) -> None:
    arguments = good(op)
    arguments["b1"] = None
    arguments.pop("diagonal", None)
    arguments["features"] = draw(D, N, B).permute(2, 1, 0).requires_grad_()
    arguments["w1"] = draw(D, H).T
    torch.library.opcheck(getattr(torch.ops.zspa, op).default, (), arguments)


def test_one_graph_serves_every_n() -> None:
    torch._dynamo.reset()
    weights = {op: {k: v for k, v in good(op).items() if k != "features"} for op in FEATURES}

    def scores(features: Tensor) -> list[Tensor]:
        return [getattr(torch.ops.zspa, op)(features, **weights[op]) * 2.0 for op in FEATURES]

    compiled = torch.compile(scores, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9, 30):
        x = draw(B, n, D)
        for found, right in zip(compiled(x), scores(x), strict=True):
            assert torch.equal(found, right)
    torch._dynamo.reset()


def test_export_with_a_range_of_n() -> None:
    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = torch.nn.Parameter(draw(H, D)), torch.nn.Parameter(draw(O, H))
            self.register_buffer("directions", draw(M, D))

        def forward(self, features: Tensor) -> Tensor:
            arguments = (self.w1, None, self.w2, "gelu", self.directions)
            return torch.ops.zspa.sensitivity(features, *arguments)

    n = torch.export.Dim("N", min=2, max=512)
    module = Scores()
    program = torch.export.export(module, (draw(B, 9, D),), dynamic_shapes=({1: n},))
    for size in (2, 77):
        x = draw(B, size, D)
        assert torch.equal(program.module()(x), module(x))


# ---- ambient state ------------------------------------------------------------------------------

STATES = [
    *product(("reference", "cpp"), AMBIENT),
    *product(("triton",), ("autocast bfloat16", "matmul precision medium", "default device meta")),
]


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(("backend", "ambient"), STATES)
def test_ambient_state_changes_nothing(
    backend: str, ambient: str, require_backend: Require
) -> None:
    """Large enough that oneDNN would take a float32 product over if the precision let it."""
    require_backend(backend, "sensitivity")
    n, d, h, o = (40, 96, 80, 72) if backend == "cpp" else (4, 16, 12, 8)
    x, w1, w2, u = draw(n, d), draw(h, d, seed=1), draw(o, h, seed=2), draw(2, d, seed=3)

    def scores() -> list[Tensor]:
        estimate = public_call("sensitivity", backend, (x, w1, None, w2, "gelu", u, 0.01))
        return [estimate, public_call("sensitivity_rms", backend, (x, w1, None, w2, "gelu", None))]

    before = scores()
    if ambient == "two threads":  # another split of a product may round differently
        with AMBIENT[ambient]():
            assert all(
                torch.allclose(a, b, rtol=1e-5) for a, b in zip(scores(), before, strict=True)
            )
        return
    with AMBIENT[ambient]():
        precision = torch.get_float32_matmul_precision()
        found = scores()
        assert torch.get_float32_matmul_precision() == precision
    assert all(torch.equal(a.clone(), b) for a, b in zip(found, before, strict=True))


@pytest.mark.parametrize("ambient", ["autocast bfloat16", "matmul precision medium"])
def test_ambient_state_does_not_reach_the_projector(ambient: str) -> None:
    """Its own norm, and the outputs that the score "norm" is made of."""
    first, second = torch.nn.Linear(256, 256), torch.nn.Linear(256, 256)
    projector = torch.nn.Sequential(torch.nn.LayerNorm(256), first, torch.nn.GELU(), second)
    x = draw(64, 256)
    for score in ("norm", "linearised"):
        before = zk.sensitivity(projector, x, score=score, directions=2)
        with AMBIENT[ambient]():
            found = zk.sensitivity(projector, x, score=score, directions=2)
        assert torch.equal(found, before)


@pytest.mark.parametrize("generic", ["none", "bf16"])
def test_the_precision_of_products_is_put_back(generic: str, require_backend: Require) -> None:
    """Also where it was inherited: what is set for all products later still applies."""
    require_backend("cpp", "sensitivity_rms")
    all_products: Any = torch.backends
    own = all_products.mkldnn.matmul
    saved = all_products.fp32_precision, own.fp32_precision
    try:
        own.fp32_precision = "none"
        all_products.fp32_precision = generic
        call_named("sensitivity_rms", "cpp")
        assert own.fp32_precision == generic
        all_products.fp32_precision = "ieee"
        assert own.fp32_precision == "ieee"
    finally:
        all_products.fp32_precision, own.fp32_precision = saved


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("activation", NAMES)
def test_the_same_call_gives_the_same_bits(
    op: str, activation: str, require_backend: Require
) -> None:
    for backend in BACKENDS:
        require_backend(backend, op)
        arguments = {**good(op), "activation": activation}
        first = public_call(op, backend, tuple(arguments.values()))
        for _ in range(2):
            assert torch.equal(public_call(op, backend, tuple(arguments.values())), first)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"activation": "tanh"}, ValueError, "activation must be one of gelu, "),
    ({"w1": torch.ones(3, 4).double()}, TypeError, "w1 must be float32, float16 or bfloat16"),
    ({"b1": torch.ones(4)}, ValueError, r"b1 must be [H=3], got [4]"),
    ({"w2": None, "b1": torch.ones(4)}, ValueError, r"b1 must be [H=3], got [4]"),
    ({"w2": torch.ones(2, 4)}, ValueError, r"w2 must be [O, H=3], got [2, 4]"),
    ({"b2": torch.ones(3)}, ValueError, r"b2 must be [O=2], got [3]"),
]


@pytest.mark.parametrize(("changed", "kind", "text"), WRONG)
def test_a_projector_of_ones_own_is_checked(
    changed: dict[str, Any], kind: type[Exception], text: str
) -> None:
    parts = {"w1": torch.ones(3, 4), "w2": torch.ones(2, 3), "activation": "relu", **changed}
    for score in SCORES:
        with pytest.raises(kind, match=f"^sensitivity: {re.escape(text)}"):
            zk.sensitivity(Projector(**parts), torch.ones(5, 4), score=score)
