# SPDX-License-Identifier: Apache-2.0
"""The projectors of transformers' own models, from tiny configurations, without weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zspa_kernels as zk
from zspa_kernels.projectors import read_projector
from zspa_kernels.testing.sensitivity import jacobian_sensitivity, published_sensitivity

pytest.importorskip("transformers", reason="transformers is not installed")

ACT2FN: dict[str, Any] = import_module("transformers.activations").ACT2FN

C, O = 8, 12  # noqa: E741 - channels of a patch; of the language model
TOKENS = 3


def models(name: str) -> Any:
    return import_module(f"transformers.models.{name}.modeling_{name}")


def vision(name: str, kind: str, **options: Any) -> Any:
    """A projector that is made of its model's configuration."""
    module = models(name)
    prefix = kind.removesuffix("MultiModalProjector").removesuffix("Connector")
    config = getattr(module, f"{prefix}Config")(**options)
    config.text_config.hidden_size = O
    config.vision_config.hidden_size = C
    return getattr(module, kind)(config)


def merger(name: str, kind: str, **options: Any) -> Any:
    """A patch merger of a Qwen vision tower."""
    module = models(name)
    if not kind.startswith("Qwen3"):
        return getattr(module, kind)(dim=O, context_dim=C)
    configuration = kind.removesuffix("PatchMerger") + "Config"
    config = getattr(module, configuration)(hidden_size=C, out_hidden_size=O)
    return getattr(module, kind)(config, **options)


# name -> (module, channels of its features, how many features make a token)
READ: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "LLaVA": (lambda: vision("llava", "LlavaMultiModalProjector"), C, 1),
    "LLaVA, two layers of features": (
        lambda: vision("llava", "LlavaMultiModalProjector", vision_feature_layer=[-2, -1]),
        *(2 * C, 1),
    ),
    "LLaVA without bias": (
        lambda: vision("llava", "LlavaMultiModalProjector", multimodal_projector_bias=False),
        *(C, 1),
    ),
    "LLaVA-NeXT": (lambda: vision("llava_next", "LlavaNextMultiModalProjector"), C, 1),
    "LLaVA-OneVision": (
        lambda: vision("llava_onevision", "LlavaOnevisionMultiModalProjector"),
        *(C, 1),
    ),
    "InternVL": (lambda: vision("internvl", "InternVLMultiModalProjector"), 4 * C, 1),
    "Qwen2-VL": (lambda: merger("qwen2_vl", "PatchMerger"), C, 4),
    "Qwen2.5-VL": (lambda: merger("qwen2_5_vl", "Qwen2_5_VLPatchMerger"), C, 4),
    "Qwen3-VL": (lambda: merger("qwen3_vl", "Qwen3VLVisionPatchMerger"), C, 4),
    "Qwen3-VL deepstack": (
        lambda: merger("qwen3_vl", "Qwen3VLVisionPatchMerger", use_postshuffle_norm=True),
        *(C, 4),
    ),
}


def build(name: str) -> nn.Module:
    """With random weights, those of norms included."""
    generator = torch.Generator().manual_seed(0)
    module = READ[name][0]()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + (parameter.ndim == 1))
    return module


def features(name: str) -> Tensor:
    _, channels, merged = READ[name]
    generator = torch.Generator().manual_seed(1)
    return torch.randn((TOKENS * merged, channels), generator=generator)


def behind_the_norm(module: nn.Module, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What the first Linear is given when the module runs on `x`, and all that follows it.

    Found with hooks: nothing of what this package reads is used.
    """
    first = next(part for part in module.modules() if isinstance(part, nn.Linear))
    given: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    module(x)
    handle.remove()

    def rest(z: Tensor) -> Tensor:
        handle = first.register_forward_pre_hook(lambda _, inputs: (z.view_as(inputs[0]),))
        try:
            # One token: the features only say how many rows there are.
            return module(x[: len(x) // TOKENS]).view(-1)
        finally:
            handle.remove()

    return given[0].detach(), rest


@pytest.mark.parametrize("name", READ)
def test_scores_are_those_of_the_module(name: str) -> None:
    """The closed form and the published estimate, of the perturbed input of the first Linear."""
    module, x = build(name), features(name)
    z, rest = behind_the_norm(build(name).double(), x.double())
    assert len(z) == TOKENS
    u = zk.unit_directions(3, z.shape[1])

    def each(rows: Tensor) -> Tensor:
        rows = rows.view(-1, rows.shape[-1])
        return torch.stack([rest(row) for row in rows]).view(-1, TOKENS, O)

    closed = torch.cat([jacobian_sensitivity(row[None], rest) for row in z])
    assert torch.allclose(zk.sensitivity(module, x).double(), closed, rtol=1e-5)
    published = published_sensitivity(z, each, u.double(), 0.01)
    estimate = zk.sensitivity(module, x, score="zeroth_order", directions=u, radius=0.01)
    assert torch.allclose(estimate.double(), published, rtol=1e-4)
    with torch.no_grad():
        visual = module(x)
    norm = zk.sensitivity(module, x, score="norm")
    assert torch.allclose(norm, visual.norm(dim=-1), rtol=1e-5)
    picked = zk.ZOOPrune(2, module, sorted=False).select(visual, features=x)
    assert int(picked.indices[0]) == int(closed.argmax())


@pytest.mark.parametrize("name", ["LLaVA", "InternVL", "Qwen2.5-VL", "Qwen3-VL"])
def test_half_precision(name: str) -> None:
    module, x = build(name).bfloat16(), features(name).bfloat16()
    z, rest = behind_the_norm(module, x)  # as the module rounds it
    rest = behind_the_norm(module.double(), x.double())[1]
    closed = torch.cat([jacobian_sensitivity(row[None], rest) for row in z.double()])
    scores = zk.sensitivity(module.bfloat16(), x)
    assert torch.allclose(scores.double(), closed, rtol=1e-2)


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "linear": "identity",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@pytest.mark.parametrize("name", sorted(ACT2FN))
def test_activations_of_configurations(name: str) -> None:
    """Those that differ from ours far out only (relu6, gelu_10) are refused like all others."""
    module = vision("llava", "LlavaMultiModalProjector", projector_hidden_act=name)
    if name in ACTIVATIONS:
        assert read_projector(module).activation == ACTIVATIONS[name]
    else:
        with pytest.raises(
            ValueError, match="read_projector: projector must have one of the activ"
        ):
            read_projector(module)


def test_a_linear_connector_is_read_without_its_shuffle() -> None:
    connector = vision("idefics3", "Idefics3Connector", scale_factor=2)
    with pytest.raises(ValueError, match=r"projector must accept tokens \[N, 32\], got Idefics3C"):
        read_projector(connector)
    x = torch.randn(TOKENS, 4 * C, generator=torch.Generator().manual_seed(0))
    scores = zk.sensitivity(connector.modality_projection, x)
    weight = connector.modality_projection.proj.weight.double()
    assert torch.allclose(scores.double(), weight.norm() / weight.shape[1] ** 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified"])
def test_a_norm_that_is_registered_behind_its_layer(name: str) -> None:
    kind = name.title().replace("_", "") + "MultimodalEmbedder"
    sizes = {"hidden_size": C, "output_proj_dims": C, "rms_norm_eps": 1e-6}
    module = getattr(models(name), kind)(SimpleNamespace(**sizes), SimpleNamespace(hidden_size=O))
    x = torch.randn(TOKENS, C, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read_projector(module).outputs(x), module(x))
    weight = module.embedding_projection.weight.double()
    expected = weight.norm() / weight.shape[1] ** 0.5
    assert torch.allclose(zk.sensitivity(module, x).double(), expected, rtol=1e-6)
    twisted = nn.Sequential(nn.Linear(C, C), nn.GELU())  # no norm, and it stands behind
    with pytest.raises(ValueError, match=r"projector must compute \[norm,\] Linear, activ"):
        read_projector(twisted)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mistral3", "Mistral3MultiModalProjector"),  # mixes patches before the layers
        ("aya_vision", "AyaVisionMultiModalProjector"),  # gated
        ("gemma3", "Gemma3MultiModalProjector"),  # a parameter instead of a layer
    ],
)
def test_other_projectors_are_refused_by_name(name: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"read_projector: projector must .* got {kind}"):
        read_projector(vision(name, kind))
