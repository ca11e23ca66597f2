# SPDX-License-Identifier: Apache-2.0
"""Every registered method on a model: given what it wants, or refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import zspa_kernels as zk
from python_tests import vlm_models, vlms
from python_tests.hf_oracle import NEW, generate, rows
from zspa_kernels import hf
from zspa_kernels.hf.architectures import Target
from zspa_kernels.hf.collect import wanted
from zspa_kernels.hf.encode import Encoded, encode
from zspa_kernels.methods import Input
from zspa_kernels.primitives import Merging

CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}
#: Their tensors are the language model's, or those of a CLIP text tower, which no LLaVA has.
REFUSED = {
    "adaptprune", "cdpruner", "fastv", "scoredtopk", "topv", "vflowopt", "visiondrop", "vitcop",
}  # fmt: skip
VISION = {
    "fastervlm", "greedyprune", "holov", "idselection", "scope", "tome", "visionzip", "vispruner",
}  # fmt: skip


@dataclass(frozen=True)
class Asking(zk.MethodBase):
    """Keeps the first tokens, and shows what it was given."""

    model_inputs = tuple(
        Input(kind.replace(" ", "_"), "[B, N]", "a test", tensor=kind)
        for kind in ("attention", "cls attention", "keys", "features")
    )

    def select(self, visual: Tensor, prompt: Tensor | None = None, **given: Tensor) -> Any:
        self.seen.append(given)  # type: ignore[attr-defined]
        indices = torch.arange(3)
        return zk.Selection(indices, torch.zeros(3, dtype=torch.bool))


def collected(tiny: vlms.Tiny, inputs: Mapping[str, Any]) -> tuple[Encoded, dict[str, Tensor]]:
    """Visual tokens and what is collected of them."""
    target = Target.of(tiny.model)
    found = wanted(Asking(), target, inputs)
    with torch.no_grad(), found.watching(target):
        encoded = encode(target, inputs, need_features=True)
    return encoded, found.tensors(target, inputs, encoded)


def eager(tiny: vlms.Tiny, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Attention, keys and features of the tower's layer -2, `[tiles, n, ...]`, by transformers."""
    tower = tiny.model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:  # tiles of each picture, padded to the most of any
        pixels = torch.cat([own[own.flatten(1).any(1)] for own in pixels])
    try:
        with torch.no_grad():
            out = tower(pixels, output_attentions=True, output_hidden_states=True)
    finally:
        tower.set_attn_implementation(before)
    layers: Any = dict(tower.named_modules())
    layer = next(part for name, part in layers.items() if name.endswith("encoder.layers"))[-2]
    keys = layer.self_attn.k_proj(layer.layer_norm1(out.hidden_states[-3]))
    heads = keys.unflatten(-1, (layer.self_attn.num_heads, -1)).mean(2)
    return {
        "cls attention": out.attentions[-2][:, :, 0, 1:].mean(1),
        "keys": heads[:, 1:].detach(),
        "features": out.hidden_states[-2][:, 1:],
    }


@pytest.mark.parametrize("kind", ["single", "ragged"])
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_what_is_collected_is_what_eager_attention_gives(name: str, kind: str) -> None:
    """With SDPA, in the order of visual tokens, through the packing of tiles and newlines."""
    tiny = vlms.get(name)
    assert tiny.model.model.vision_tower.config._attn_implementation == "sdpa"
    inputs = tiny.inputs(kind)
    encoded, found = collected(tiny, inputs)
    expected = eager(tiny, inputs)
    torch.testing.assert_close(
        found["attention"], found["cls_attention"], rtol=0, atol=0, equal_nan=True
    )
    features = encoded.parts[0].features
    assert features is not None
    projected = tiny.model.model.multi_modal_projector(features).flatten(0, 1)
    tokens = 0
    for t, token in enumerate(encoded.tokens):
        same = (projected - token).abs().amax(-1) < 1e-6
        if not bool(same.any()):  # a newline, which is no patch
            assert all(bool(value[t].isnan().all()) for value in found.values())
            continue
        tokens += 1
        patch = int(same.nonzero()[0])
        for what in ("cls attention", "keys", "features"):
            value = expected[what].flatten(0, 1)[patch]
            torch.testing.assert_close(found[what.replace(" ", "_")][t], value, **CLOSE)
    assert tokens == (len(encoded.tokens) if name == "llava" else tokens) > 0


def test_a_tower_without_cls_is_asked_what_each_patch_receives() -> None:
    torch.manual_seed(0)
    size = {"image_size": 56, "patch_size": 14, "hidden_size": 32, "intermediate_size": 48}
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(
            **size, num_hidden_layers=3, num_attention_heads=2
        ),
        text_config=vlm_models.text(transformers.LlamaConfig),
        image_token_index=9,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    config.image_token_id = 9
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([[1, *[9] * 16, 3, 4]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.rand(1, 3, 56, 56),
    }
    with zk.methods.SCOPE(keep=4)(model) as handle:
        generate(model, inputs)  # with SDPA
    with pytest.raises(zk.hf.UnsupportedMethodError, match=r"'siglip_vision_model', has no \[CLS"):
        zk.hf.prune(model, zk.methods.get("fastervlm", keep=4))
    target = Target.of(model)
    method = zk.methods.SCOPE(keep=4)
    asking = wanted(method, target)
    with torch.no_grad(), asking.watching(target):
        encoded = encode(target, inputs, need_features=False)
    found, visual = asking.tensors(target, inputs, encoded), encoded.tokens
    assert handle.report is not None
    assert torch.equal(handle.report.images[0].indices, method.select(visual, **found).indices)
    model.model.vision_tower.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.model.vision_tower(
            inputs["pixel_values"], output_attentions=True, output_hidden_states=True
        )
    torch.testing.assert_close(found["attention"], out.attentions[-1].mean((1, 2))[0], **CLOSE)
    torch.testing.assert_close(found["features"], out.hidden_states[-1][0], **CLOSE)


@pytest.mark.parametrize("name", zk.methods.available())
def test_every_method_prunes_a_llava_or_says_why_not(name: str) -> None:
    tiny = vlms.get("llava")
    method: Any = zk.methods.get(name, keep=0.2)
    inputs = tiny.inputs()
    calls: list[bool] = []
    watching = tiny.model.model.vision_tower.register_forward_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    try:
        asked = [one for one in method.model_inputs if one.name not in ("visual", "prompt")]
        missing = [one.name for one in asked if one.required and not one.tensor]
        assert bool(missing) or name not in REFUSED
        if missing:
            with pytest.raises(zk.hf.UnsupportedMethodError, match=rf"needs {missing[0]} \["):
                method(tiny.model)
            assert not calls
            return
        with method(tiny.model) as handle:
            tiny.model.generate(**inputs, max_new_tokens=1)
    finally:
        watching.remove()
    assert calls == [False]
    assert handle.report is not None
    assert "\n" not in str(handle.report)
    if name not in VISION:
        return
    encoded, found = collected(tiny, inputs)
    wants = [one for one in method.model_inputs if one.tensor]
    given = {one.name: found[one.tensor.replace(" ", "_")] for one in wants}
    picked = method.select(encoded.tokens, **given)
    assert torch.equal(handle.report.images[0].indices, picked.indices)
    assert torch.equal(handle.report.images[0].core_mask, picked.core_mask)


def test_dart_asks_for_keys_if_it_is_to() -> None:
    """Otherwise the norms are those of the tokens, whatever the model could give."""
    tiny = vlms.get("llava")
    inputs = tiny.inputs()
    encoded, found = collected(tiny, inputs)
    kept = []
    for by_keys, given in ((False, {}), (True, {"keys": found["keys"]})):
        method = zk.methods.DART(keep=0.2, text_pivots=0, by_keys=by_keys)
        with method(tiny.model) as handle:
            tiny.model.generate(**inputs, max_new_tokens=1)
        picked = method.select(encoded.tokens, **given)
        assert handle.report is not None
        assert torch.equal(handle.report.images[0].indices, picked.indices)
        kept.append(picked.indices.tolist())
    assert kept[0] != kept[1]
    with pytest.raises(TypeError, match=r"DART: keys must be a tensor \[B, N, C\] \(instead of"):
        method.select(encoded.tokens)


def test_methods_of_other_models_tensors() -> None:
    """What is not said of a model is not collected; optional tensors are left out."""
    target = Target.of(vlms.get("llava").model)
    bare = replace(target, arch=replace(target.arch, patches=False))
    for name in VISION:
        with pytest.raises(
            zk.hf.UnsupportedMethodError, match="how its visual tokens are made of patches"
        ):
            wanted(zk.methods.get(name, keep=0.2), bare)
        if vlms.SINCE["gemma4_unified"] <= vlms.VERSION:
            with pytest.raises(zk.hf.UnsupportedMethodError, match="it has no vision tower"):
                zk.hf.prune(vlms.get("gemma4_unified").model, zk.methods.get(name, keep=0.2))
    method = zk.methods.MMTok(keep=0.2)
    qwen = vlms.get("qwen2_5_vl")
    assert wanted(method, bare).kinds == {}
    assert wanted(method, Target.of(qwen.model)).kinds == {}
    assert wanted(method, target).kinds == {"features": "features"}
    with zk.methods.CDPruner(keep=0.2, space="llm")(qwen.model) as handle:
        generate(qwen.model, qwen.inputs())
    assert handle.after < handle.before / 4


def test_layers_by_their_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.of(vlms.get("llava").model)
    method = zk.methods.get("fastervlm", keep=0.2)
    parts = target.inner.vision_tower.modules()
    layers: Any = next(one for one in parts if isinstance(one, nn.ModuleList))
    for state, at in ((1, 0), (2, 1), (-2, 1), (-1, 2), ([-2, -3], 1), ((1, -1, 2), 2)):
        layer = wanted(method, target, {"vision_feature_layer": state}).layer
        assert layer is not None
        assert layer.module is layers[at].self_attn, state
    several = Target.of(vlms.get("vipllava").model)  # which older transformers name otherwise
    for given, at in (({}, 1), ({"vision_feature_layers": [1, -1]}, 2)):
        layer = wanted(method, several, given).layer
        own = next(x for x in several.inner.vision_tower.modules() if isinstance(x, nn.ModuleList))
        assert layer is not None
        assert layer.module is own[at].self_attn
    with pytest.raises(zk.hf.UnsupportedMethodError, match="of no layer: vision_feature_layer is"):
        wanted(method, target, {"vision_feature_layer": 0})
    monkeypatch.setattr(target.model.config, "vision_feature_select_strategy", "full")
    with pytest.raises(zk.hf.UnsupportedMethodError, match="features are taken as 'full'"):
        wanted(method, target)


def test_an_error_in_the_encoder_leaves_no_hook() -> None:
    tiny = vlms.get("llava")
    tower = tiny.model.model.vision_tower

    def fail(*args: Any) -> None:
        raise RuntimeError("inside")

    before = [len(part._forward_hooks) for part in tower.modules()]
    failing = tower.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"), zk.methods.VisionZip(keep=0.2)(tiny.model):
        generate(tiny.model, tiny.inputs())
    failing.remove()
    assert [len(part._forward_hooks) for part in tower.modules()] == before


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("visionzip", "layers.1.self_attn.q_proj"),
        ("zooprune", "multi_modal_projector"),
    ],
)
def test_hooks_that_are_not_called(method: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are registered after torch.compile compiled what is around them."""
    tiny = vlms.get("llava")
    parts = tiny.model.model.named_modules()
    module = next(one for name, one in parts if name.endswith(part))
    kind = type(module)
    bare = type(kind.__name__, (kind,), {"__call__": kind.forward})
    monkeypatch.setattr(module, "__class__", bare)
    with (
        pytest.raises(hf.UnsupportedMethodError, match="must call the hooks of its modules"),
        hf.prune(tiny.model, zk.methods.get(method, keep=0.2)),
    ):
        generate(tiny.model, tiny.inputs())


def test_zooprune_without_a_projector_is_given_the_models() -> None:
    tiny = vlms.get("llava")
    projector = tiny.model.model.multi_modal_projector
    found = []
    for method in (zk.ZOOPrune(keep=0.2), zk.ZOOPrune(keep=0.2, projector=projector)):
        with method(tiny.model) as handle:
            generate(tiny.model, tiny.inputs())
        assert handle.report is not None
        found.append(handle.report.images[0].indices)
    assert torch.equal(*found)
    titles = {
        "gemma3": "Gemma 3", "glm4v": "GLM-V", "lfm2_vl": "LFM2-VL",
        "cohere2_vision": "Cohere2 Vision",
    }  # fmt: skip
    for name in [one for one in titles if vlms.SINCE.get(one, ()) <= vlms.VERSION]:
        text = f"measure the projector of {titles[name]}, got"
        with pytest.raises(zk.hf.UnsupportedMethodError, match=text):
            zk.ZOOPrune(keep=0.2)(vlms.get(name).model)


# ---- merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "llava_next"])
@pytest.mark.parametrize("method", ["visionzip", "tome"])
def test_merged_tokens_are_those_of_assign(name: str, method: str) -> None:
    """The language model reads the merged tokens, at the places of the kept ones."""
    tiny = vlms.get(name)
    inputs = tiny.inputs("ragged")
    chooser: Any = zk.methods.get(method, keep=0.3)
    encoded, found = collected(tiny, inputs)
    read: list[Tensor] = []
    inner = tiny.model.model
    text = inner.language_model
    hook = text.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with chooser(tiny.model) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    hook.remove()
    report = handle.report
    assert report is not None
    assert report.merged
    assert "the others merged into them" in str(report)
    start, changed = 0, 0
    for image in report.images:
        own = slice(start, start + image.before)
        start += image.before
        wants = [one.name for one in chooser.model_inputs if one.tensor in ("attention", "keys")]
        merging = chooser.assign(encoded.tokens[own], **{k: found[k][own] for k in wants})
        assert torch.equal(merging.selection.indices[merging.selection.indices >= 0], image.indices)
        merged = merging.merge(encoded.tokens[own])[: image.after]
        for index, token in zip(image.indices, merged, strict=True):
            same = (read[0][image.sample] == token).all(-1)
            assert int(same.sum()) == 1
            changed += int(not torch.equal(token, encoded.tokens[own][index]))
    assert changed > 3


def test_whether_others_are_merged_is_an_option() -> None:
    tiny = vlms.get("llava")
    inputs = tiny.inputs("ragged")
    logits = {}
    for merge in (None, True, False):
        with zk.methods.VisionZip(keep=0.3)(tiny.model, merge=merge) as handle:
            logits[merge] = rows(generate(tiny.model, inputs))
        assert handle.report is not None
        assert handle.report.merged == (merge is not False)
    assert torch.equal(logits[None], logits[True])
    assert not torch.allclose(logits[True], logits[False], **CLOSE)
    with pytest.raises(ValueError, match="merge must be False or None for a method without"):
        zk.DivPrune(keep=0.3)(tiny.model, merge=True)
    with pytest.raises(TypeError, match="merge must be a bool or None, got 1"):
        zk.DivPrune(keep=0.3)(tiny.model, merge=1)


@pytest.mark.skipif(vlms.VERSION < (5, 20), reason="transformers >= 5.20 (mm_encoder_outputs)")
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("options", [{}, {"scope": "tile", "keep_newline": True}], ids=str)
def test_every_way_in_merges_the_same(name: str, options: dict[str, Any]) -> None:
    """`generate` in a block, a direct call, `prune_inputs` and a conversation."""
    tiny = vlms.get(name)
    inputs, method = tiny.inputs(), zk.methods.VisionZip(keep=0.3)
    with method(tiny.model, **options), torch.no_grad():
        expected = rows(generate(tiny.model, inputs))
        direct = tiny.model(**inputs).logits[:, -1]
    torch.testing.assert_close(direct, expected[:, 0], **CLOSE)
    pruned = zk.hf.prune_inputs(tiny.model, inputs, method, **options)
    torch.testing.assert_close(rows(generate(tiny.model, pruned)), expected, **CLOSE)
    chat = zk.hf.ChatState(tiny.model, method, **options)
    turn = chat.generate(
        **inputs,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    torch.testing.assert_close(rows(turn), expected, **CLOSE)


@dataclass(frozen=True)
class Neighbours(zk.MethodBase):
    """Keeps every fourth token, and in it a quarter of the one before; its last slot is empty."""

    def assign(self, visual: Tensor, prompt: Tensor | None = None) -> Merging:
        n = len(visual)
        kept = torch.arange(n - 1, 0, -4).flip(0)
        slots = torch.arange(len(kept))
        owner, weights = torch.full((n,), -1), torch.zeros(n)
        owner[kept] = owner[kept - 1] = slots
        weights[kept], weights[kept - 1] = 0.75, 0.25
        indices = torch.cat((kept, torch.tensor([-1])))
        core = torch.zeros(len(indices), dtype=torch.bool)
        return Merging(zk.Selection(indices, core), owner, weights)

    def select(self, visual: Tensor, prompt: Tensor | None = None) -> zk.Selection:
        return self.assign(visual, prompt).selection


@pytest.mark.skipif(vlms.VERSION < (5, 20), reason="transformers >= 5.20 (mm_encoder_outputs)")
def test_what_deeper_layers_are_given_is_merged_as_well() -> None:
    """By a method of a user's own; its empty slots change no token."""
    tiny = vlms.get("qwen3_vl")
    inputs = tiny.inputs()
    with torch.no_grad():
        encoded = encode(Target.of(tiny.model), inputs, need_features=False)
    pruned = zk.hf.prune_inputs(tiny.model, inputs, Neighbours())
    output = pruned["mm_encoder_outputs"]["image"]
    got = [torch.cat(list(one)) for one in (output.pooler_output, *output.deepstack_features)]
    kept = torch.arange(len(encoded.tokens) - 1, 0, -4).flip(0)
    assert len(got) == 1 + len(encoded.deep) > 1
    for now, before in zip(got, (encoded.tokens, *encoded.deep), strict=True):
        torch.testing.assert_close(now, 0.75 * before[kept] + 0.25 * before[kept - 1])


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_gradients_go_through_what_was_merged(name: str) -> None:
    """Each visual token has its share of the gradient of the one that it became part of."""
    tiny = vlms.get(name)
    projectors = [Target.of(tiny.model).projector()]
    projectors += getattr(getattr(tiny.model.model, "visual", None), "deepstack_merger_list", [])
    made: list[Tensor] = []

    def note(module: Any, args: Any, tokens: Tensor) -> None:
        tokens.retain_grad()
        made.append(tokens)

    hooks = [one.register_forward_hook(note) for one in projectors]
    try:
        with Neighbours()(tiny.model):
            tiny.model(**tiny.inputs()).logits[0, -1].square().sum().backward()
    finally:
        tiny.model.zero_grad()
        for hook in hooks:
            hook.remove()
    assert len(made) == len(projectors)
    for tokens in made:
        assert tokens.grad is not None
        grad = tokens.grad.flatten(0, -2).flip(0)
        count = len(grad) // 4 * 4
        kept, before, *others = grad[:count].reshape(-1, 4, grad.shape[1]).unbind(1)
        torch.testing.assert_close(kept, 3 * before)
        assert before.any(1).all()
        assert not torch.stack(others).any()


@pytest.mark.parametrize("method", ["visionzip", "tome"])
def test_nothing_merged_changes_no_bit(method: str) -> None:
    tiny = vlms.get("llava")
    inputs = tiny.inputs("ragged")
    expected = rows(generate(tiny.model, inputs))
    chooser: Any = zk.methods.get(method, keep=1.0)
    with pytest.warns(zk.hf.NothingPrunedWarning), chooser(tiny.model):
        got = rows(generate(tiny.model, inputs))
    assert torch.equal(got, expected)
