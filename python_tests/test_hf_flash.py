# SPDX-License-Identifier: Apache-2.0
"""Pruned prompts on transformers' way to FlashAttention, with its two kernels emulated on the CPU.

What transformers makes of masks and positions before it calls a kernel is all its own: unpadding,
and for one prompt without padding the search for packed sequences, which reads gaps in positions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash

import zspa_kernels as zk
from python_tests import vlms
from python_tests.hf_oracle import generate, hidden, reported_columns, rows
from python_tests.test_hf_attention import collected
from zspa_kernels.hf.architectures import Target

METHOD = zk.ZSPAPrune(keep=0.2, core_ratio=0.4)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = pytest.mark.skipif(
    vlms.VERSION < (5, 23), reason="transformers >= 5.23 (its functions around the kernels)"
)


class Kernels:
    """`flash_attn_func` and `flash_attn_varlen_func` by their definitions.

    Attributes:
        segments: how many sequences each causal call was told of; None for a padded batch's call
            of equal lengths.
        calls: how many there were, causal or not.
    """

    def __init__(self) -> None:
        self.segments: list[int | None] = []
        self.calls = 0

    def plain(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """`[B, L, heads, d]`."""
        self.calls += 1
        if causal:
            self.segments.append(None)
        each = [_attend(a, b, c, softmax_scale, causal) for a, b, c in zip(q, k, v, strict=True)]
        return torch.stack(each)

    def varlen(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """`[T, heads, d]`, sequences one behind the other."""
        self.calls += 1
        if causal:
            self.segments.append(len(cu_seqlens_q) - 1)
        sizes = [cu.diff().tolist() for cu in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
        assert max(sizes[0]) <= max_seqlen_q
        assert max(sizes[1]) <= max_seqlen_k
        parts = [x.split(size) for x, size in zip((q, k, v), sizes, strict=True)]
        each = [_attend(a, b, c, softmax_scale, causal) for a, b, c in zip(*parts, strict=True)]
        return torch.cat(each)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """One sequence; the last query sees all keys."""
    repeat = q.shape[1] // k.shape[1]
    query, key, value = (
        x.repeat_interleave(times, 1).transpose(0, 1)
        for x, times in ((q, 1), (k, repeat), (v, repeat))
    )
    seen = torch.ones(len(q), len(k), dtype=torch.bool)
    if causal:
        seen = seen.tril(len(k) - len(q))
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scale
    )
    return attended.transpose(0, 1)


@pytest.fixture(params=["llava", "llava_next", "qwen2_5_vl", "qwen3_5"])
def tiny(request: pytest.FixtureRequest) -> vlms.Tiny:
    return vlms.build(request.param)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    made = Kernels()
    process = flash._lazy_define_process_function(made.varlen)
    functions = (made.plain, made.varlen, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(
        flash, "lazy_import_flash_attention", lambda *names: (functions, (process, dict))
    )
    return made


def use_flash(model: Any) -> None:
    """As `attn_implementation="flash_attention_2"`, which asks for a GPU and the package."""
    model.config._attn_implementation = "flash_attention_2"
    assert vlms.text_model(model).config._attn_implementation == "flash_attention_2"
    tower = Target.of(model).towers()[0]
    assert tower.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("kind", ["single", "ragged"])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_pruned_prompts(tiny: vlms.Tiny, kernels: Kernels, kind: str, positions: str) -> None:
    """Every step is what SDPA gives, and in the prompt the dropped tokens are as if hidden."""
    inputs = tiny.inputs(kind)
    with METHOD(tiny.model, positions=positions) as handle:
        expected = rows(generate(tiny.model, inputs))
    report = handle.report
    assert report is not None
    keep = reported_columns(tiny, inputs, report)
    oracle = hidden(tiny, inputs, keep)
    use_flash(tiny.model)
    assert not kernels.segments
    with METHOD(tiny.model, positions=positions) as handle:
        got = rows(generate(tiny.model, inputs))
    assert handle.report is not None
    for one, other in zip(handle.report.images, report.images, strict=True):
        assert torch.equal(one.indices, other.indices)
    torch.testing.assert_close(got, expected, **CLOSE)
    if positions == "original":
        for b, columns in enumerate(keep):
            last = int(columns.nonzero().max())
            torch.testing.assert_close(got[b, 0], oracle[b, last], **CLOSE)
    # One prompt is one sequence, whatever gaps its positions have; a padded batch is two.
    assert set(kernels.segments) <= {None, 1 if kind == "single" else 2}
    looked = kind == "single" and positions == "original" and tiny.name not in vlms.QWENS
    assert (1 in kernels.segments) == looked


#: With each kind of tower that may have it.
TOWERS = ["idefics3", "lfm3_vl", "llava", "mistral3", "ovis2", "pixtral", "qwen2_5_vl", "vipllava"]


@pytest.mark.parametrize("name", TOWERS)
def test_what_is_collected(name: str, kernels: Kernels) -> None:
    """The same attention and keys, with pictures unpadded or told apart by where they begin."""
    tiny = vlms.build(name)
    inputs = tiny.inputs("ragged")
    if name == "idefics3":
        mask = torch.ones(*inputs["pixel_values"].shape[:2], 112, 112, dtype=torch.bool)
        mask[0, 0, 70:] = False
        inputs["pixel_attention_mask"] = mask
    _, expected = collected(tiny, inputs)
    use_flash(tiny.model)
    _, found = collected(tiny, inputs)
    assert kernels.calls
    for what, values in expected.items():
        torch.testing.assert_close(found[what], values, equal_nan=True, **CLOSE)


def test_the_emulation_sees_packed_sequences(kernels: Kernels) -> None:
    """Positions that start anew are several sequences: here the search would show."""
    q, k, v = torch.randn(3, 1, 7, 2, 4).unbind()
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    got = flash._flash_attention_forward(
        q, k, v, None, query_length=7, is_causal=True, position_ids=positions
    )
    assert kernels.segments == [2]
    alone = kernels.plain(q[:, 3:], k[:, 3:], v[:, 3:], causal=True)
    torch.testing.assert_close(got[:, 3:], alone)
