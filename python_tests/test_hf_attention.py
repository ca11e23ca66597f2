# SPDX-License-Identifier: Apache-2.0
"""Attention and keys of towers whose visual tokens are squares of patches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate
from zspa_kernels.hf import attention
from zspa_kernels.hf.architectures import Target
from zspa_kernels.hf.collect import Collected, wanted
from zspa_kernels.hf.encode import Encoded, encode

CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}
PICTURES = [(name, "ragged") for name in vlms.MROPE]
FILMS = [(name, "video") for name in vlms.QWENS]
#: They want attention or keys, and none of a [CLS] token.
VISION = ("greedyprune", "scope", "tome", "visionzip")


def collected(
    tiny: vlms.Tiny, inputs: Mapping[str, Any], method: str = "visionzip"
) -> tuple[Encoded, dict[str, Tensor]]:
    """Visual tokens, and what a method is given: their attention and their keys."""
    target = Target.of(tiny.model)
    found = wanted(zk.methods.get(method, keep=0.2), target, inputs)
    with torch.no_grad(), found.watching(target):
        encoded = encode(target, inputs, need_features=False)
    return encoded, found.tensors(target, inputs, encoded)


def eager(
    layer: Any, configs: Iterable[Any], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor]]:
    """What transformers' own eager attention has, once called: weights and keys of `layer`."""
    home = sys.modules[type(layer).__module__]
    own: Any = home.eager_attention_forward
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(module: Any, query: Tensor, key: Tensor, *args: Any, **more: Any) -> Any:
        if "output_attentions" in more:  # CLIP's of 4.57 would drop them
            more["output_attentions"] = True
        output, weights = own(module, query, key, *args, **more)
        if module is layer:
            seen.append((weights, key))
        return output, weights

    monkeypatch.setattr(home, "eager_attention_forward", watched)
    for config in configs:
        monkeypatch.setattr(config, "_attn_implementation_internal", "eager")
    return seen


@pytest.mark.parametrize(("name", "kind"), [*PICTURES, *FILMS])
def test_what_is_collected_is_what_eager_attention_gives(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SDPA; in the order of visual tokens, through windows and frames."""
    tiny = vlms.get(name)
    assert tiny.model.model.visual.config._attn_implementation == "sdpa"
    inputs = tiny.inputs(kind)
    encoded, found = collected(tiny, inputs)
    visual, projected = tiny.model.model.visual, []
    hook = visual.merger.register_forward_hook(lambda *call: projected.append(call[-1]))
    layer = visual.blocks[-1].attn
    seen = eager(layer, (visual.config, layer.config), monkeypatch)
    with torch.no_grad():
        encode(Target.of(tiny.model), inputs, need_features=False)
    hook.remove()
    tokens = torch.cat(projected)
    received = torch.cat([weights[0].mean((0, 1)) for weights, _ in seen])
    keys = torch.cat([key[0].mean(0) for _, key in seen])
    expected = {
        "attention": received.view(-1, 4).mean(1),
        "keys": keys.view(-1, 4, keys.shape[-1]).mean(1),
    }
    apart = torch.cdist(encoded.tokens.double(), tokens.double())
    order = apart.argmin(1)
    assert order.unique().numel() == len(encoded.tokens) == len(tokens)
    nearest, next_one = apart.topk(2, dim=1, largest=False).values.unbind(1)
    assert (nearest < next_one / 20).all()
    for what, values in expected.items():
        torch.testing.assert_close(found[what], values[order], **CLOSE)
        assert len(values.unique(dim=0)) == len(values)
    if name == "qwen2_5_vl":
        assert not torch.equal(order, order.sort().values)


@pytest.mark.parametrize("name", ["internvl", "vipllava", "llava_next_video"])
@pytest.mark.parametrize("method", ["fastervlm", "idselection"])
def test_towers_with_a_cls_token(method: str, name: str) -> None:
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    _, found = collected(tiny, inputs)
    chooser: Any = zk.methods.get(method, keep=4)
    with chooser(tiny.model) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    assert handle.report is not None
    first = handle.report.images[0]
    if method == "fastervlm":
        best = found["attention"][: first.before].nan_to_num(-1).topk(4).indices.sort().values
        assert torch.equal(first.indices, best)
    assert first.after == 4
    with pytest.raises(zk.hf.UnsupportedMethodError, match=r"'siglip_vision_model', has no \[CLS"):
        zk.hf.prune(vlms.get("gemma3").model, chooser)


@pytest.mark.parametrize("method", VISION)
def test_a_method_is_given_them(method: str) -> None:
    tiny = vlms.get("qwen2_5_vl")
    inputs = tiny.inputs("ragged")
    chooser: Any = zk.methods.get(method, keep=0.3)
    encoded, found = collected(tiny, inputs)
    with chooser(tiny.model) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    assert handle.report is not None
    start = 0
    for image in handle.report.images:
        own = slice(start, start + image.before)
        start += image.before
        wants = [one for one in chooser.model_inputs if one.tensor in found]
        given = {one.name: found[one.tensor][own] for one in wants}
        assert given
        picked = chooser.select(encoded.tokens[own], **given).indices
        assert torch.equal(image.indices, picked)
    assert start == len(encoded.tokens)


@pytest.mark.parametrize("name", ["fastervlm", "idselection"])
def test_attention_of_cls_is_refused(name: str) -> None:
    for model in ("qwen2_5_vl", "qwen3_vl"):
        with pytest.raises(zk.hf.UnsupportedMethodError, match=r"tower has no \[CLS\] token"):
            zk.hf.prune(vlms.get(model).model, zk.methods.get(name, keep=0.2))


def test_the_layer_is_one_that_sees_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = vlms.get("qwen2_5_vl")
    blocks = tiny.model.model.visual.blocks
    for whole, at in (([0], 0), ([0, 1], 1), ([], 1), ([1, 7], 1)):
        monkeypatch.setattr(tiny.model.model.visual.config, "fullatt_block_indexes", whole)
        layer = wanted(zk.methods.ToMe(keep=0.2), Target.of(tiny.model)).layer
        assert layer is not None
        assert layer.module is blocks[at].attn


@pytest.mark.parametrize("logits", [1, 40, 1 << 20])
def test_large_pictures_in_parts(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_LOGITS", logits)
    torch.manual_seed(0)
    queries, keys = torch.randn(7, 3, 8), torch.randn(9, 3, 8)
    scores = torch.einsum("mhd,nhd->hmn", queries, keys).mul(0.5).softmax(-1)
    found = attention.received(queries, keys, 0.5)
    torch.testing.assert_close(found, scores.mean((0, 1)))


def test_a_tower_that_hooks_do_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = vlms.get("qwen3_vl")
    monkeypatch.setattr(Collected, "watching", lambda self, target: contextlib.nullcontext())
    unseen = pytest.raises(zk.hf.UnsupportedMethodError, match="the vision tower")
    with unseen, zk.methods.ToMe(keep=0.2)(tiny.model):
        generate(tiny.model, tiny.inputs(), max_new_tokens=1)
