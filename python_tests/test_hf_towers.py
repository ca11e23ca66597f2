# SPDX-License-Identifier: Apache-2.0
"""Attention and keys of vision towers, against eager attention, and what tokens are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate, rows
from python_tests.test_hf_attention import CLOSE, VISION, collected, eager
from zspa_kernels.hf.architectures import Target
from zspa_kernels.hf.collect import wanted
from zspa_kernels.hf.encode import encode

#: Towers whose layers are given each picture by itself, row by row; do they have a [CLS] token?
SQUARES = {
    "internvl": True, "gemma3": False, "cohere2_vision": False, "aya_vision": False,
    "deepseek_vl": False, "idefics3": False, "smolvlm": False, "vipllava": True,
    "ovis2": False, "llava_next_video": True,
}  # fmt: skip
#: Those whose collection is tested here only.
PRUNED = (
    "idefics3", "smolvlm", "mistral3", "pixtral", "vipllava", "lfm2_vl", "gemma4", "gemma4_moe",
    "ovis2", "lfm3_vl", "llava_next_video",
)  # fmt: skip
KINDS = [
    *((name, "ragged") for name in dict.fromkeys((*SQUARES, *PRUNED))),
    ("gemma4", "video"),
    ("lfm3_vl", "video"),
    ("llava_next_video", "video"),
]


def tower_of(tiny: vlms.Tiny) -> Any:
    inner = tiny.model.model
    return inner.vision_model if hasattr(inner, "vision_model") else inner.vision_tower


def layer_of(tiny: vlms.Tiny) -> Any:
    """The last layer whose output tokens are made of; VipLLaVA's are of -2, -3 and 1."""
    layers = next(part for part in tower_of(tiny).modules() if isinstance(part, nn.ModuleList))
    return layers[-2 if tiny.name in ("vipllava", "llava_next_video") else -1]


def attention_of(layer: nn.Module) -> Any:
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention


@dataclass
class Seen:
    """What the tower made, by transformers alone.

    Attributes:
        picture: int64 `[rows]`, which picture a row of the tower is of; -1: padding, or [CLS].
        attention: `[rows]`, what a row gets, mean over heads and the rows of its picture.
        keys: `[rows, d]`, mean over heads.
        made_of: bool `[T, rows]`, the rows that the features of a token depend on.
    """

    picture: Tensor
    attention: Tensor
    keys: Tensor
    made_of: Tensor

    def of_tokens(self, values: Tensor) -> Tensor:
        """Means of the rows that tokens are made of."""
        real = self.made_of & (self.picture >= 0)
        return torch.stack([values[rows].mean(0) for rows in real])


def independently(
    tiny: vlms.Tiny, inputs: Mapping[str, Any], pictures: list[Tensor], patch: pytest.MonkeyPatch
) -> Seen:
    """The eager attention of the last layer, and by its gradients what becomes of its output.

    `pictures` are int64 `[entries, P]` of each call of the tower, see `Seen`; a row of [CLS] is -2.
    """
    tower, layer = tower_of(tiny), layer_of(tiny)
    made: list[Any] = []
    hook = layer.register_forward_hook(lambda *call: made.append(call[-1]))
    seen = eager(attention_of(layer), (tower.config, attention_of(layer).config), patch)
    encoded = encode(Target.of(tiny.model), inputs, need_features=False)
    hook.remove()
    keys = torch.cat([key.mean(1).flatten(0, 1) for _, key in seen]).detach()
    weights = [one.detach() for one, _ in seen]
    received = torch.cat([_received(*call) for call in zip(weights, pictures, strict=True)])
    made_of = []
    outputs = [one[0] if isinstance(one, tuple) else one for one in made]
    direction = torch.randn(encoded.tokens.shape[1], generator=torch.Generator().manual_seed(0))
    for token in encoded.tokens:
        grads = torch.autograd.grad(
            token @ direction, outputs, retain_graph=True, materialize_grads=True
        )
        made_of.append(torch.cat([grad.flatten(0, -2).abs().amax(-1) for grad in grads]) > 0)
    return Seen(torch.cat([x.flatten() for x in pictures]), received, keys, torch.stack(made_of))


def _received(weights: Tensor, picture: Tensor) -> Tensor:
    """What rows `[entries, P]` get of `[entries, heads, P, P]`."""
    means = weights.mean(1)
    found = []
    for weight, own in zip(means, picture, strict=True):
        if bool((own == -2).any()):
            found.append(weight[own == -2].squeeze(0))
            continue
        same = (own[:, None] == own[None, :]) & (own >= 0)
        found.append((weight * same).sum(0) / same.sum(0))
    return torch.cat(found)


def whole(tiny: vlms.Tiny, pixels: Tensor) -> Tensor:
    """Which picture the rows are of where every picture fills its part of the batch."""
    pictures = int((pixels.flatten(-3).abs().sum(-1) > 0).sum())
    label = torch.arange(pictures)[:, None].expand(-1, (pixels.shape[-1] // 14) ** 2)
    return nn.functional.pad(label, (int(SQUARES[tiny.name]), 0), value=-2)


def pictures_of(tiny: vlms.Tiny, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Which picture the rows of the tower are of, see `Seen`, of each of its calls."""
    if tiny.name in SQUARES:
        names = ("pixel_values", "pixel_values_videos")
        return [whole(tiny, inputs[name]) for name in names if name in inputs]
    if "image_grid_thw" in inputs:
        grids = [grid for name in ("image", "video") for grid in inputs.get(f"{name}_grid_thw", [])]
        frames = [rows * columns for times, rows, columns in grids for _ in range(times)]
        return [torch.full((1, patches), 0) for patches in frames]
    if "image_sizes" in inputs:
        patches = (inputs["image_sizes"] // 14).prod(1)
        return [torch.arange(len(patches)).repeat_interleave(patches)[None]]
    real = (
        [inputs["pixel_attention_mask"] == 1]
        if "pixel_attention_mask" in inputs
        else [
            inputs[name][..., 0] >= 0
            for name in ("image_position_ids", "video_position_ids")
            if name in inputs
        ]
    )
    return [torch.arange(len(x))[:, None].masked_fill(~x, -1) for x in real]


def check(
    tiny: vlms.Tiny, inputs: Mapping[str, Any], pictures: list[Tensor], patch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """What is collected is what eager attention has, in the order of tokens; it is returned."""
    assert tower_of(tiny).config._attn_implementation == "sdpa"
    with patch.context() as own:
        encoded, found = collected(tiny, inputs)
        seen = independently(tiny, inputs, pictures, own)
    assert len(encoded.tokens) == len(seen.made_of)
    for what, values in {"attention": seen.attention, "keys": seen.keys}.items():
        expected = seen.of_tokens(values)
        torch.testing.assert_close(found[what], expected, equal_nan=True, **CLOSE)
        real = expected[~expected.reshape(len(expected), -1).isnan().any(1)]
        assert len(real.unique(dim=0)) == len(real) > 3
    return found


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_what_is_collected_is_what_eager_attention_gives(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SDPA; a token has the means of the patches that its features are made of."""
    tiny = vlms.get(name)
    if name == "internvl":  # as its largest towers have
        for part in ("q_norm", "k_norm"):
            norm = nn.LayerNorm(32)
            nn.init.normal_(norm.weight)
            monkeypatch.setitem(attention_of(layer_of(tiny))._modules, part, norm)
    inputs = tiny.inputs(kind)
    check(tiny, inputs, pictures_of(tiny, inputs), monkeypatch)


@dataclass(frozen=True)
class Given(zk.MethodBase):
    """Keeps what it is told to, image by image, and wants nothing of the model."""

    indices: tuple[Tensor, ...]

    def select_varlen(self, visual: Any, prompt: Any = None) -> Any:
        return [zk.Selection(one, torch.zeros_like(one, dtype=torch.bool)) for one in self.indices]


@pytest.mark.parametrize("name", PRUNED)
def test_a_method_that_wants_them(name: str) -> None:
    """Steps of a batch are those of its prompts alone; the tower runs once and keeps no hook."""
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    scope: Any = zk.methods.get("scope", keep=0.3)
    encoded, found = collected(tiny, inputs, "scope")
    tower, calls = tower_of(tiny), []
    counting = tower.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    before = _hooks(tower)
    with scope(tiny.model) as handle:
        batch = rows(generate(tiny.model, inputs))
        report = handle.report
        assert report is not None
        assert calls == [False]
        assert _hooks(tower) == before
        for b in range(2):
            alone = rows(generate(tiny.model, tiny.alone(b)))
            torch.testing.assert_close(batch[b : b + 1], alone, rtol=1e-4, atol=1e-4)
    counting.remove()
    start = 0
    for image in report.images:
        own = slice(start, start := start + image.before)
        given = {name: values[own] for name, values in found.items()}
        picked = scope.select(encoded.tokens[own], **given)
        assert torch.equal(image.indices, picked.indices)
    assert start == len(encoded.tokens)
    if "features" in found:  # a token is a patch
        tokens = tiny.model.model.multi_modal_projector(found["features"])
        torch.testing.assert_close(tokens, encoded.tokens, **CLOSE)
    assert tower.config._attn_implementation == "sdpa"


def _hooks(module: nn.Module) -> list[int]:
    return [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in module.modules()]


@pytest.mark.parametrize("name", PRUNED)
def test_gradients_are_those_of_the_same_choice(name: str) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    weights = [x for x in tower_of(tiny).parameters() if x.requires_grad]
    grads: list[Any] = []
    method: Any = zk.methods.get("scope", keep=0.3)
    for _ in range(2):
        with method(tiny.model) as handle:
            loss = tiny.model(**inputs).logits[:, -1].square().sum()
        grads.append(torch.autograd.grad(loss, weights, allow_unused=True))
        assert handle.report is not None
        method = Given(tuple(image.indices for image in handle.report.images))
    used = [pair for pair in zip(*grads, strict=True) if pair[0] is not None]
    assert len(used) > len(weights) / 2
    assert all(torch.equal(*pair) for pair in used)


def test_patches_that_make_no_whole_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral 3 cuts a picture's last row and column of them off, if they are odd."""
    tiny = vlms.get("mistral3")
    inputs = tiny.inputs("ragged")
    sizes = inputs["image_sizes"] - torch.tensor([[0, 14], [14, 0], [14, 14]])
    inputs = {**inputs, "image_sizes": sizes}
    found = check(tiny, inputs, pictures_of(tiny, inputs), monkeypatch)
    assert len(found["attention"]) == int((sizes // 28).prod(1).sum())


def test_patches_that_say_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 4 takes them, and padding among them, in any order."""
    tiny = vlms.get("gemma4")
    inputs = tiny.inputs("ragged")
    order = torch.randperm(
        inputs["pixel_values"].shape[1], generator=torch.Generator().manual_seed(0)
    )
    mixed = {k: inputs[k][:, order] for k in ("pixel_values", "image_position_ids")}
    found = check(tiny, {**inputs, **mixed}, pictures_of(tiny, mixed), monkeypatch)
    _, in_rows = collected(tiny, inputs)
    for name, values in found.items():
        torch.testing.assert_close(values, in_rows[name], **CLOSE)


def test_the_last_layer_that_has_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """LFM3-VL's released tower ends with one that has none."""
    target = Target.of(vlms.get("lfm3_vl").model)
    parts = target.inner.vision_tower._modules
    convolution, attention = parts["layers"]
    monkeypatch.setitem(parts, "layers", nn.ModuleList([attention, convolution]))
    found = wanted(zk.methods.ToMe(keep=0.2), target).layer
    assert found is not None
    assert found.module is attention.self_attn
    monkeypatch.setitem(parts, "layers", nn.ModuleList([convolution]))
    with pytest.raises(zk.hf.UnsupportedMethodError, match="no layer of its vision tower has att"):
        wanted(zk.methods.ToMe(keep=0.2), target)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_padding_inside_of_pictures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives no attention and gets none; a token of nothing else is none to choose."""
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    mask = torch.ones(*inputs["pixel_values"].shape[:2], 112, 112, dtype=torch.bool)
    mask[0, 0, 70:] = False  # five of eight rows of patches: squares of which half is padding
    mask[1, 1, :, 60:] = False
    inputs = {**inputs, "pixel_attention_mask": mask}
    patches = mask[:, :, ::14, ::14].flatten(2)
    shown = torch.stack((patches[0, 0], patches[1, 0], patches[1, 1]))
    pictures = [pictures_of(tiny, inputs)[0].masked_fill(~shown, -1)]
    found = check(tiny, inputs, pictures, monkeypatch)
    lost = found["attention"].isnan()
    assert torch.equal(found["keys"].isnan().all(1), lost)
    assert lost.nonzero().flatten().tolist() == [12, 13, 14, 15, *(32 + i for i in (3, 7, 11, 15))]
    for method in VISION:
        chooser: Any = zk.methods.get(method, keep=0.5)
        with chooser(tiny.model) as handle:
            generate(tiny.model, inputs, max_new_tokens=1)
        assert handle.report is not None
        kept = torch.cat(
            [i.indices + s for i, s in zip(handle.report.images, (0, 16, 32), strict=True)]
        )
        assert not lost[kept].any()
