# SPDX-License-Identifier: Apache-2.0
"""Projectors are read from modules built like those of the models, and nothing is misread.

The models' own modules: test_projectors_transformers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zspa_kernels as zk
from zspa_kernels._activations import NAMES
from zspa_kernels._sensitivity import SCORES, Scorer
from zspa_kernels.projectors import Projector, read_projector
from zspa_kernels.testing.sensitivity import TORCH_ACTIVATIONS, jacobian_sensitivity

C, D, H, O = 6, 24, 20, 10  # noqa: E741 - a token of D channels is four patches of C


class Act(nn.Module):
    """An activation as models write their own, some of them in float32 whatever they are given."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.act = TORCH_ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x.float()).to(x.dtype)


class Swish(nn.Module):
    """With a slope that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class RMSNorm(nn.Module):
    """As in Qwen2.5-VL: computed in float32, a weight and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * y.to(x.dtype)


class Llava(nn.Module):
    """LLaVA, LLaVA-NeXT."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(D, H)
        self.act = act
        self.linear_2 = nn.Linear(H, O)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class InternVL(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(D)
        self.linear_1 = nn.Linear(D, H)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(H, O)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(self.layer_norm(x))))


class Qwen25Merger(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.hidden_size = D
        self.ln_q = norm
        self.mlp = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, O))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.hidden_size))


class Qwen3Merger(nn.Module):
    def __init__(self, after: bool) -> None:
        super().__init__()
        self.hidden_size = D
        self.use_postshuffle_norm = after
        self.norm = nn.LayerNorm(D if after else C, eps=1e-6)
        self.linear_fc1 = nn.Linear(D, D)
        self.act_fn = nn.GELU()
        self.linear_fc2 = nn.Linear(D, O)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.view(-1, D) if self.use_postshuffle_norm else x).view(-1, D)
        return self.linear_fc2(self.act_fn(self.linear_fc1(x)))


def mlp1() -> nn.Sequential:
    """InternVL as first published."""
    return nn.Sequential(nn.LayerNorm(D), nn.Linear(D, H), nn.GELU(), nn.Linear(H, O))


# name -> (module, channels of its features, how many features make a token)
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "LLaVA": (lambda: Llava(nn.GELU()), D, 1),
    "LLaVA, Sequential": (lambda: nn.Sequential(*Llava(nn.GELU()).children()), D, 1),
    "LLaVA without bias": (
        lambda: nn.Sequential(nn.Linear(D, H, False), nn.SiLU(), nn.Linear(H, O, False)),
        *(D, 1),
    ),
    "InternVL": (InternVL, D, 1),
    "InternVL mlp1": (mlp1, D, 1),
    "Qwen2-VL": (lambda: Qwen25Merger(nn.LayerNorm(C)), C, 4),
    "Qwen2.5-VL": (lambda: Qwen25Merger(RMSNorm(C)), C, 4),
    "Qwen3-VL": (lambda: Qwen3Merger(False), C, 4),
    "Qwen3-VL deepstack": (lambda: Qwen3Merger(True), C, 4),
    "Linear": (lambda: nn.Linear(D, O), D, 1),
    "norm and Linear": (lambda: nn.Sequential(nn.LayerNorm(D), nn.Linear(D, O)), D, 1),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module with random weights, norms included."""
    generator = torch.Generator().manual_seed(0)
    module = MODELS[name][0]()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + (parameter.ndim == 1))
    return module.to(dtype)


def features(name: str, tokens: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    _, channels, merged = MODELS[name]
    generator = torch.Generator().manual_seed(1)
    return torch.randn((tokens * merged, channels), generator=generator).to(dtype)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_are_read(name: str, dtype: torch.dtype) -> None:
    module, x = build(name, dtype), features(name, 5, dtype)
    read = read_projector(module)
    assert read.w1.shape[1] == D
    assert not read.w1.requires_grad
    assert torch.allclose(read.outputs(x), module(x), rtol=2e-2, atol=2e-2)
    assert (read.norm is None) == name.startswith(("LLaVA", "Linear"))


@pytest.mark.parametrize("name", MODELS)
def test_closed_form_behind_the_norm(name: str) -> None:
    """The Jacobian of what follows the norm and the merging, at the merged token."""
    module, x = build(name), features(name)
    read = read_projector(module)
    after = Projector(read.w1, read.b1, read.w2, read.b2, read.activation)
    merged = read.inputs(x)
    assert merged.shape == (5, D)
    exact = jacobian_sensitivity(
        merged.double(),
        lambda t: doubled(after).outputs(t),
    )
    scores = zk.sensitivity(module, x)
    assert scores.dtype is torch.float32
    assert torch.allclose(scores, exact.float(), rtol=1e-5)


def doubled(p: Projector) -> Projector:
    w2, b1, b2 = (None if t is None else t.double() for t in (p.w2, p.b1, p.b2))
    return Projector(p.w1.double(), b1, w2, b2, p.activation)


@pytest.mark.parametrize("name", MODELS)
def test_estimates_and_norm(name: str) -> None:
    """Few directions suffice to see that the estimate is of the right function."""
    module, x = build(name), features(name)
    u = zk.unit_directions(3, D)
    limit = zk.sensitivity(module, x, score="linearised", directions=u)
    estimate = zk.sensitivity(module, x, score="zeroth_order", directions=u, radius=1e-3)
    assert torch.allclose(estimate, limit, rtol=1e-4)
    wide = zk.sensitivity(module, x, score="zeroth_order", directions=u, radius=2.0)
    if read_projector(module).w2 is not None:
        assert not torch.allclose(wide, limit, rtol=1e-3)
    anyhow = zk.sensitivity(module, x, score="linearised", directions=u, radius=5.0)
    assert torch.equal(anyhow, limit)
    many = zk.sensitivity(module, x, score="linearised", directions=2000, seed=5)
    closed = zk.sensitivity(module, x)
    assert ((many / closed) > 0.8).all()
    assert ((many / closed) < 1.001).all()  # a mean is at most a root mean square
    norm = zk.sensitivity(module, x, score="norm")
    assert torch.allclose(norm, module(x).norm(dim=-1), rtol=1e-5)
    batch = torch.stack([x, x.flip(0)])
    assert torch.allclose(zk.sensitivity(module, batch)[0], closed, rtol=1e-5)


def test_a_linear_projector_is_constant() -> None:
    module, x = build("Linear"), features("Linear")
    scores = zk.sensitivity(module, x)
    assert (scores == scores[0]).all()
    x[2, 0] = torch.nan
    for score in ("closed_form", "linearised", "zeroth_order"):
        found = zk.sensitivity(module, x, score=score)
        assert found.isnan().tolist() == [False, False, True, False, False]
    u = torch.eye(D)[:3] * torch.tensor([[1.0], [2.0], [5.0]])
    found = zk.sensitivity(module, x, score="linearised", directions=u)
    torch.testing.assert_close(found[0], (u @ read_projector(module).w1.T).norm(dim=1).mean())
    closed = zk.sensitivity(module, x)[0]
    torch.testing.assert_close(closed, read_projector(module).w1.norm() / D**0.5)


def test_invalid_tokens_have_no_score() -> None:
    """Of two of them this ReLU makes zeros, and so a finite length."""
    first = nn.Linear(D, H)
    with torch.no_grad():
        first.weight.copy_(-first.weight.abs())
    module = nn.Sequential(first, nn.ReLU(), nn.Linear(H, O))
    x = torch.ones(4, D)
    x[0], x[1], x[2, 0] = torch.inf, 2.0**41, torch.nan
    for score in SCORES:
        found = zk.sensitivity(module, x, score=score)
        assert found.isnan().tolist() == [True, True, True, False], score


def test_defaults_are_those_that_are_documented() -> None:
    module, x = build("LLaVA"), features("LLaVA")
    named = {"directions": zk.unit_directions(64, D, seed=0), "radius": 0.01}
    found = zk.sensitivity(module, x, score="zeroth_order")
    assert torch.equal(found, zk.sensitivity(module, x, score="zeroth_order", **named))
    assert torch.equal(zk.sensitivity(module, x), zk.sensitivity(module, x, score="closed_form"))


def test_a_projector_that_was_read_is_as_good_as_its_module() -> None:
    module, x = build("Qwen2.5-VL"), features("Qwen2.5-VL").requires_grad_()
    for score in SCORES:
        found = zk.sensitivity(read_projector(module), x, score=score)
        assert torch.equal(found, zk.sensitivity(module, x, score=score))
        assert not found.requires_grad


@pytest.mark.parametrize("name", ["LLaVA", "InternVL", "Linear"])
def test_features_of_another_dtype(name: str) -> None:
    """Float32 ones behind a tower that computes in float32, say, of a bfloat16 projector."""
    half, x = build(name, torch.bfloat16), features(name)
    for score in SCORES:
        right = zk.sensitivity(half, x.bfloat16(), score=score)
        torch.testing.assert_close(zk.sensitivity(half, x, score=score), right, rtol=0.02, atol=0)
        module = build(name)
        right = zk.sensitivity(module, x.bfloat16().float(), score=score)
        got = zk.sensitivity(module, x.bfloat16(), score=score)
        torch.testing.assert_close(got, right, rtol=1e-5, atol=0)


def test_backends_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    module, x = build("LLaVA"), features("LLaVA")
    plan = zk.SensitivityPlan(torch.ones(3, D), None, torch.ones(2, 3), "gelu")
    cases = ((module, "closed_form"), (module, "linearised"), (plan, "closed_form"))
    for projector, score in cases:
        with pytest.raises(NotImplementedError, match="backend 'triton' cannot run: CPU"):
            zk.sensitivity(projector, x, score=score, backend="triton")
    with pytest.raises(NotImplementedError, match="backend 'triton' cannot run: CPU"):
        plan(preactivation=torch.ones(2, 3), backend="triton")
    for name, score in (("LLaVA", "norm"), ("Linear", "linearised")):  # no op, hence no backend
        with pytest.raises(ValueError, match="sensitivity: backend must be one of auto, "):
            zk.sensitivity(build(name), x, score=score, backend="fast")


def test_for_many_calls_the_second_layer_is_made_short() -> None:
    """The lengths of its outputs, less the bias, stay; for one call making it would cost more."""
    module = nn.Sequential(nn.Linear(D, 5), nn.GELU(), nn.Linear(5, 30))
    x = features("LLaVA")
    once, often = (
        Scorer.of("sensitivity", module, "linearised", None, 3, 0, 0.01, reuse).projector
        for reuse in (False, True)
    )
    assert isinstance(once, Projector)
    assert once.w2 is not None
    assert torch.equal(once.w2, module[2].weight)
    assert isinstance(often, Projector)
    assert often.w2 is not None
    assert often.w2.shape == (5, 5)
    lengths = (module(x) - module[2].bias).norm(dim=-1)
    torch.testing.assert_close(often.outputs(x).norm(dim=-1), lengths)


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_recognised_by_what_they_compute(name: str) -> None:
    assert read_projector(Llava(Act(name))).activation == name


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.ReLU(), "relu"),
        (nn.Identity(), "identity"),
        (Swish(), "silu"),
    ],
)
def test_activations_of_torch(module: nn.Module, name: str) -> None:
    assert read_projector(Llava(module)).activation == name


class Patches(Llava):
    """A part that mixes tokens before the layers (Mistral 3)."""

    def __init__(self) -> None:
        super().__init__(nn.GELU())
        self.patch_merger = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.patch_merger(x))


class Residual(Llava):
    """The right parts, put together differently."""

    def __init__(self) -> None:
        super().__init__(nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.003 * x[..., :O]  # not much


class Gated(Llava):
    def __init__(self) -> None:
        super().__init__(nn.GELU())
        self.gate = nn.Parameter(torch.ones(H))


class TwoLayers(nn.Module):
    """A norm that is not first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(D, H), nn.LayerNorm(H), nn.Linear(H, O)


def softmax() -> nn.Module:
    return Llava(nn.Softmax(dim=-1))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def broken(layer: str, name: str) -> nn.Module:
    module = Llava(nn.GELU())
    getattr(getattr(module, layer), name).data[..., 0] = torch.nan
    return module


def quantised() -> nn.Module:
    module = Llava(nn.GELU())
    del module.linear_2.weight
    module.linear_2.weight = torch.zeros(O, H, dtype=torch.uint8)
    return module


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: None, TypeError, "must be a torch.nn.Module, got <class 'NoneType'>"),
    (lambda: torch.relu, TypeError, "must be a torch.nn.Module, got"),
    (lambda: nn.ReLU(), ValueError, "must be [norm,] Linear, activation, Linear or"),
    (
        Patches,
        ValueError,
        "or [norm,] Linear, got Patches of Linear, GELU, Linear, Linear",
    ),
    (Gated, ValueError, "or [norm,] Linear, got Gated of Linear, GELU, Linear"),
    (
        TwoLayers,
        ValueError,
        "activations gelu, gelu_tanh, quick_gelu, silu, relu, identity, got LayerNorm",
    ),
    (lambda: nn.Sequential(mlp1(), nn.Linear(O, O)), ValueError, "got Sequential of LayerNorm"),
    (Residual, ValueError, "got Residual, which computes something else"),
    (lambda: Llava(nn.Tanh()), ValueError, "must have one of the activations gelu, "),
    (lambda: Llava(nn.PReLU()), ValueError, "quick_gelu, silu, relu, identity, got PReLU"),
    (softmax, ValueError, "got Softmax"),
    (lambda: Llava(nn.ReLU6()), ValueError, "silu, relu, identity, got ReLU6"),
    (lambda: Llava(Pair()), ValueError, "silu, relu, identity, got Pair"),
    *(
        (lambda a=layer, b=name: broken(a, b), ValueError, f"{name} must be finite, got {n} elem")
        for layer, name, n in (
            *(("linear_1", "weight", H), ("linear_1", "bias", 1)),
            *(("linear_2", "weight", O), ("linear_2", "bias", 1)),
        )
    ),
    (quantised, TypeError, "weight must be float32, float16 or bfloat16, got torch.uint8"),
    (
        lambda: Llava(nn.GELU()).to("meta"),
        ValueError,
        "weight must be on a device that holds values, got a meta tensor",
    ),
]


@pytest.mark.parametrize(("make", "kind", "text"), BAD, ids=[text[-30:] for *_, text in BAD])
@pytest.mark.parametrize("entry", ["sensitivity", "ZOOPrune"])
def test_what_is_not_understood_is_refused(
    make: Callable[[], Any], kind: type[Exception], text: str, entry: str
) -> None:
    module = make()
    if module is None and entry == "ZOOPrune":
        return  # may be left out
    call = {
        "sensitivity": lambda: zk.sensitivity(module, torch.zeros(3, D)),
        "ZOOPrune": lambda: zk.ZOOPrune(keep=2, projector=module),
    }[entry]
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(f"{entry}: projector")
    assert text in str(caught.value)


def test_features_that_do_not_fit() -> None:
    x = features("Qwen2.5-VL")
    for name, bad, text in (
        ("Qwen2.5-VL", x[:3], r"features must be \[..., T, C\] that merge to D=24, got \[3, 6\]"),
        ("Qwen2.5-VL", x.repeat(2, 1)[:24, :5], r"features must be .* that merge to D=24, got"),
        ("Qwen2.5-VL", x[0], r"features must be \[..., T, C\] that merge to D=24, got \[6\]"),
        ("Qwen2.5-VL", x[None, None], r"features must be \[..., T, C\] that merge to D=24, got"),
        ("Qwen2.5-VL", x[:, :0], r"features must be \[..., T, C\] that merge to D=24"),
        ("Qwen2.5-VL", x[:, :3].repeat(2, 1), r"features must have C=6, got \[40, 3\]"),
        ("LLaVA", x, r"features must have D=24 channels, got \[20, 6\]"),
        ("Linear", x, r"features must have D=24 channels, got \[20, 6\]"),
        ("LLaVA", x[:4].flatten(), r"features must be \[N, D\] or \[B, N, D\], got \[24\]"),
        ("InternVL", x[0, 0], r"features must be \[..., T, C\] that merge to D=24, got \[\]"),
    ):
        with pytest.raises(ValueError, match=text):
            zk.sensitivity(build(name), bad, score="linearised")
    with pytest.raises(TypeError, match="sensitivity: features must be a tensor, got None"):
        zk.sensitivity(build("LLaVA"), None)


def test_bad_options() -> None:
    module, x = build("LLaVA"), features("LLaVA")
    plan = zk.SensitivityPlan(torch.ones(3, D), None, torch.ones(2, 3), "gelu")
    for options, kind, text in (
        ({"score": "variance"}, ValueError, "score must be one of closed_form, zeroth_order, "),
        ({"score": "linearised", "directions": 0}, ValueError, "directions must be at least 1"),
        ({"score": "linearised", "directions": 1.5}, TypeError, "directions must be an int"),
        ({"score": "linearised", "directions": x.T}, ValueError, r"directions must be \[m, D=24\]"),
        ({"score": "linearised", "directions": x[:0]}, ValueError, "directions must have m >= 1"),
        ({"radius": -0.1}, ValueError, "radius must be finite and at least 0, got -0.1"),
        ({"radius": float("nan")}, ValueError, "radius must be finite and at least 0, got nan"),
        ({"radius": None}, TypeError, "radius must be a float, got None"),
        ({"rank": -2}, ValueError, "rank must be at least 0, got -2"),
    ):
        with pytest.raises(kind, match=f"(sensitivity|SensitivityPlan): {text}"):
            zk.sensitivity(module, x, **options)
    for u, text in ((x[:, :5], r"be \[m, D=24\], got \[5, 5\]"), (x[:0], "have m >= 1")):
        with pytest.raises(ValueError, match=f"sensitivity: directions must {text}"):
            zk.sensitivity(build("Linear"), x, score="linearised", directions=u)
    with pytest.raises(ValueError, match="projector must be a module for score 'norm', got a Sens"):
        zk.sensitivity(plan, x, score="norm")


def test_reading_leaves_the_module_alone() -> None:
    module = build("Qwen2.5-VL").train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        read_projector(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_layer_that_is_used_twice_is_both_layers() -> None:
    layer = nn.Linear(6, 6)
    found = read_projector(nn.Sequential(layer, nn.GELU(), layer))
    assert found.w2 is not None
    assert torch.equal(found.w1, found.w2)


def test_a_part_that_was_left_out_is_none() -> None:
    module = Llava(nn.GELU())
    module.register_module("dropout", None)
    assert read_projector(module).activation == "gelu"
