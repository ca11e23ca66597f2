# SPDX-License-Identifier: Apache-2.0
"""`hf.prune_inputs`: the model computes what it would if nobody looked at the dropped tokens."""

from __future__ import annotations

import pytest
import torch

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate, hidden, kept_columns, original_positions, rows
from zspa_kernels import hf

METHOD = zk.ZSPAPrune(keep=0.2, core_ratio=0.4)
ALL = zk.ZSPAPrune(keep=1.0)

MROPE = [case for case in vlms.cases("ragged") if case.values[0] in vlms.MROPE]

pytestmark = pytest.mark.skipif(
    vlms.VERSION < (5, 20), reason="transformers >= 5.20 (mm_encoder_outputs)"
)


@pytest.fixture(params=vlms.BUILDERS, scope="module")
def tiny(request: pytest.FixtureRequest) -> vlms.Tiny:
    return vlms.get(request.param)


@pytest.mark.parametrize(("name", "kind"), vlms.cases("single", "ragged"))
def test_keep_all_changes_no_bit(name: str, kind: str) -> None:
    tiny = vlms.get(name)
    inputs = vlms.widened(tiny.inputs(kind))
    inputs["attention_mask"] = inputs["attention_mask"].int()
    with pytest.warns(hf.NothingPrunedWarning):
        pruned = hf.prune_inputs(tiny.model, inputs, ALL)
    for one in ("input_ids", "attention_mask"):
        assert torch.equal(pruned[one], inputs[one])
        assert pruned[one].dtype == inputs[one].dtype
    expected, got = generate(tiny.model, inputs), generate(tiny.model, pruned)
    assert torch.equal(rows(got), rows(expected))
    assert torch.equal(got.sequences, expected.sequences)


@pytest.mark.parametrize(("name", "kind"), vlms.cases("single", "ragged", "right"))
def test_dropped_tokens_are_as_if_hidden(name: str, kind: str) -> None:
    """The masked oracle: right tokens, positions, masks and deeper features, all at once."""
    tiny = vlms.get(name)
    inputs = tiny.inputs(kind)
    pruned = hf.prune_inputs(tiny.model, inputs, METHOD)
    assert pruned.report.after < pruned.report.before / 2
    with torch.no_grad():
        got = tiny.model(**pruned).logits
    expected = hidden(tiny, inputs, kept_columns(pruned, inputs["input_ids"].shape[1]))
    for b, real in enumerate(pruned["attention_mask"].bool()):
        own = pruned["input_ids"][b]
        assert (own[~real] == 0).all()
        assert torch.equal(own[real], inputs["input_ids"][b, pruned.index[b][real]])
        columns = pruned.index[b][real]
        torch.testing.assert_close(got[b][real], expected[b][columns], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), MROPE)
def test_gaps_in_positions_do_not_cut_the_prompt(name: str, kind: str) -> None:
    """Of four axes of positions transformers reads the first as that of packed sequences."""
    tiny = vlms.get(name)
    pruned = hf.prune_inputs(tiny.model, tiny.inputs(kind), METHOD)
    axes, mask = pruned["position_ids"], pruned["attention_mask"].bool()
    assert axes.shape == (4, *mask.shape)
    for b, real in enumerate(mask):
        assert axes[0, b, real].tolist() == list(range(int(real.sum())))


def test_pruned_inputs_serve_any_number_of_calls(tiny: vlms.Tiny) -> None:
    """`generate` repeats the pictures it is given for its beams; with one size nobody notices."""
    options = {"num_beams": 2, "num_return_sequences": 2, "output_logits": False}
    photos = [[vlms.photograph(name, (112, 112))] for name in ("chelsea", "coffee")]
    inputs = tiny.processor(
        images=photos,
        text=[tiny.prompt("what is this"), tiny.prompt("who is that")],
        return_tensors="pt",
        padding=True,
    )
    pruned = hf.prune_inputs(tiny.model, inputs, METHOD)
    with METHOD(tiny.model):
        expected = generate(tiny.model, inputs, **options)
    for _ in range(2):
        got = generate(tiny.model, pruned, **options)
        assert torch.equal(pruned.restore(got.sequences), expected.sequences)


@pytest.mark.parametrize(("name", "kind"), [x for x in MROPE if x.values[0] != "qwen2_5_omni"])
def test_kinds_of_tokens_that_are_not_given(name: str, kind: str) -> None:
    """P7: without them Qwen would count pictures as if they were text."""
    tiny = vlms.get(name)
    inputs = tiny.inputs(kind)
    rest = {key: value for key, value in inputs.items() if key != "mm_token_type_ids"}
    assert len(rest) < len(inputs)
    expected = hf.prune_inputs(tiny.model, inputs, METHOD)
    got = hf.prune_inputs(tiny.model, rest, METHOD)
    assert torch.equal(got["position_ids"], expected["position_ids"])
    assert torch.equal(rows(generate(tiny.model, got)), rows(generate(tiny.model, expected)))


def test_positions_that_are_given(tiny: vlms.Tiny) -> None:
    """Those of the unpruned prompt: with or without the axis that counts, one row or each."""
    inputs = tiny.inputs("ragged")
    full = original_positions(tiny, inputs, inputs["attention_mask"]) + 7
    for given in (full, full[1:]):  # of four axes three, of two prompts one
        pruned = hf.prune_inputs(tiny.model, {**inputs, "position_ids": given}, METHOD)
        real, got = pruned["attention_mask"].bool(), pruned["position_ids"]
        for b in range(2):
            columns = pruned.index[b, real[b]]
            if full.ndim == 3:
                assert torch.equal(got[1:, b, real[b]], full[1:, b, columns])
            else:
                assert torch.equal(got[b, real[b]], given.expand(2, -1)[b, columns])


def test_prompts_that_are_packed_in_a_row(tiny: vlms.Tiny) -> None:
    """Transformers tells them apart by positions alone, which a mask overrules."""
    inputs = dict(tiny.inputs())
    full = original_positions(tiny, inputs, inputs.pop("attention_mask"))
    hf.prune_inputs(tiny.model, {**inputs, "position_ids": full[-3:]}, METHOD)  # rows, columns fall
    packed = full.clone()
    packed[..., -2:] = torch.arange(2)
    with pytest.raises(hf.UnsupportedInputError, match="position_ids must be of one prompt a row"):
        hf.prune_inputs(tiny.model, {**inputs, "position_ids": packed}, METHOD)
    mask = torch.ones_like(inputs["input_ids"])
    given = {**inputs, "position_ids": packed, "attention_mask": mask}
    assert hf.prune_inputs(tiny.model, given, METHOD)["attention_mask"].all()


def test_pruned_inputs_want_a_cache() -> None:
    """P1: `generate` drops a mask of ones, and without a cache gaps in positions cut the prompt."""
    tiny = vlms.get("llava")
    pruned = hf.prune_inputs(tiny.model, tiny.inputs(), METHOD)
    features = pruned["mm_encoder_outputs"]["image"].pooler_output
    assert not any(one.requires_grad for one in features)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'use_cache'"):
        tiny.model.generate(**pruned, use_cache=False)
    with torch.no_grad():
        cached = tiny.model(**pruned).logits
        direct = tiny.model(**{**pruned, "use_cache": False}).logits
    torch.testing.assert_close(direct, cached, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mm_token_type_ids", "token_type_ids"])
def test_kinds_of_tokens_of_another_prompt(kind: str) -> None:
    """Longer ones would be cut as if they were of this prompt."""
    tiny = vlms.get("gemma4")
    inputs = tiny.inputs()
    ids = inputs["input_ids"]
    for wrong in (ids[:, 1:], torch.cat((ids, ids), dim=1), [[0]]):
        with pytest.raises(ValueError, match=rf"{kind} must be \[1, {ids.shape[1]}\] like input"):
            hf.prune_inputs(tiny.model, {**inputs, kind: wrong}, METHOD)
