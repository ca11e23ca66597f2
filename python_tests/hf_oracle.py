# SPDX-License-Identifier: Apache-2.0
"""What a pruned model must compute, from the unpruned model and a mask."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from python_tests import vlms

NEW = 3  # tokens that a test generates
TYPES = ("token_type_ids", "mm_token_type_ids")
#: The tokens of an image see one another; in the second's sliding layers only.
TOGETHER = ("gemma3", "gemma4_moe", "gemma4_unified")


def generate(model: Any, inputs: Mapping[str, Any], **more: Any) -> Any:
    """Greedy generation with the logits of every step."""
    options = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with torch.no_grad():
        return model.generate(**inputs, **{**options, **more})


def cache_of(output: Any) -> Any:
    return output["cache"] if "cache" in output else output["past_key_values"]


def cache_name(model: Any) -> str:
    """How this version calls the argument."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def rows(output: Any) -> Tensor:
    """Logits of every step, `[B, steps, V]`."""
    return torch.stack(output.logits, dim=1)


def original_positions(tiny: vlms.Tiny, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
    """Of the unpruned prompt: `[B, L]`, or `[4, B, L]` with the text row first."""
    counted = (mask.cumsum(-1) - 1).clamp_min(0)
    if tiny.name not in vlms.MROPE:
        return counted
    names = (
        "input_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids",
    )  # fmt: skip
    known = {name: inputs[name] for name in names if name in inputs}
    if tiny.name == "qwen2_5_omni":
        known["second_per_grids"] = inputs.get("video_second_per_grid")
        if "feature_attention_mask" in inputs:
            known["audio_seqlens"] = inputs["feature_attention_mask"].sum(-1)
    axes, _ = tiny.model.model.get_rope_index(**known, attention_mask=mask)
    return torch.cat((counted[None], axes))


@torch.no_grad()
def hidden(tiny: vlms.Tiny, inputs: Mapping[str, Any], keep: Tensor) -> Tensor:
    """Logits `[B, L, V]` of the unpruned prompt in which nobody attends to what is not kept.

    `keep` is bool `[B, L]`, False at padding and at dropped columns.
    """
    return hidden_with_grad(tiny, inputs, keep)


def hidden_with_grad(tiny: vlms.Tiny, inputs: Mapping[str, Any], keep: Tensor) -> Tensor:
    """The same in the grad mode of the caller."""
    ids = inputs["input_ids"]
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(ids), -1, -1)

    def additive(seen: Tensor) -> Tensor:
        # A row that sees nothing would be NaN; its logits are not looked at.
        seen = (seen & keep[:, None, :]) | torch.eye(length, dtype=torch.bool)
        smallest = torch.finfo(torch.float32).min
        return torch.zeros(seen.shape).masked_fill(~seen, smallest)[:, None]

    mask: Any = additive(causal)
    if tiny.name.startswith("gemma"):
        whole = sliding = mask
        if tiny.name in TOGETHER:  # the tokens of an image see one another
            sliding = additive(causal | _together(shown(tiny, ids)))
            whole = whole if tiny.name == "gemma4_moe" else sliding
        mask = {"full_attention": whole, "sliding_attention": sliding}
    positions = original_positions(tiny, inputs, inputs["attention_mask"])
    rest = {k: v for k, v in inputs.items() if k not in ("attention_mask", *TYPES)}
    with _passing_over(tiny.model, keep):
        output = tiny.model(**rest, attention_mask=mask, position_ids=positions, use_cache=False)
    return output.logits


def _together(image: Tensor) -> Tensor:
    """Bool `[B, L, L]`: both are of the same run of `image` `[B, L]`."""
    start = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    block = start.cumsum(-1).masked_fill(~image, 0)
    return (block[:, :, None] == block[:, None, :]) & image[:, :, None]


@contextlib.contextmanager
def _passing_over(model: Any, keep: Tensor) -> Iterator[None]:
    """Layers with states read the kept tokens one by one, and no mask."""
    rules = {"A_log": _delta_rule, "conv_kernel_size": _short_convolution}
    layers = []
    for part in vlms.text_model(model).modules():
        for name, rule in rules.items():
            if hasattr(part, name) and part not in layers:
                vars(part)["forward"] = functools.partial(rule, part, keep)
                layers.append(part)
    try:
        yield
    finally:
        for part in layers:
            del vars(part)["forward"]


def _short_convolution(part: Any, keep: Tensor, hidden_states: Tensor, **_: Any) -> Tensor:
    """The same of a layer that mixes each token with the few kept ones before it (LFM2)."""
    before, after, value = part.in_proj(hidden_states).chunk(3, dim=-1)
    mixed = before * value
    window = mixed.new_zeros(len(keep), mixed.shape[-1], part.conv_kernel_size)
    read = []
    for t, real in enumerate(keep.T):
        moved = torch.cat((window[..., 1:], mixed[:, t, :, None]), dim=-1)
        window = torch.where(real[:, None, None], moved, window)
        read.append((window * part.conv.weight[:, 0]).sum(-1))
    return part.out_proj(after * torch.stack(read, dim=1))


def _delta_rule(part: Any, keep: Tensor, hidden_states: Tensor, **_: Any) -> Tensor:
    """What a layer `part` makes of `[B, L, D]` if a token that is not kept changes no state."""
    batch = len(hidden_states)
    heads, repeat = part.num_v_heads, part.num_v_heads // part.num_k_heads
    mixed = part.in_proj_qkv(hidden_states)
    beta = part.in_proj_b(hidden_states).sigmoid()
    rate = torch.nn.functional.softplus(part.in_proj_a(hidden_states) + part.dt_bias)
    decay = (-part.A_log.exp() * rate).exp()
    window = mixed.new_zeros(batch, mixed.shape[-1], part.conv_kernel_size)
    state = mixed.new_zeros(batch, heads, part.head_k_dim, part.head_v_dim)
    read = []
    for t, real in enumerate(keep.T):
        moved = torch.cat((window[..., 1:], mixed[:, t, :, None]), dim=-1)
        window = torch.where(real[:, None, None], moved, window)
        seen = torch.nn.functional.silu((window * part.conv1d.weight[:, 0]).sum(-1))
        q, k, v = seen.split([part.key_dim, part.key_dim, part.value_dim], dim=-1)
        q, k = (
            torch.nn.functional.normalize(x.view(batch, part.num_k_heads, -1), dim=-1)
            for x in (q, k)
        )
        q, k = (x.repeat_interleave(repeat, 1) for x in (q, k))
        old = decay[:, t, :, None, None] * state
        error = v.view(batch, heads, -1) - torch.einsum("bhk,bhkv->bhv", k, old)
        new = old + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k, error)
        state = torch.where(real[:, None, None, None], new, state)
        read.append(torch.einsum("bhk,bhkv->bhv", q, state) * part.head_k_dim**-0.5)
    out, gate = torch.stack(read, dim=1), part.in_proj_z(hidden_states)
    made = part.norm(out.reshape(-1, part.head_v_dim), gate.reshape(-1, part.head_v_dim))
    return part.out_proj(made.reshape(batch, len(read), -1))


def shown(tiny: vlms.Tiny, ids: Tensor) -> Tensor:
    """True where `ids` stand for a piece of a picture or a video."""
    config = tiny.model.config
    if tiny.name not in vlms.FILMS:
        return ids == config.image_token_id
    return (ids == config.image_token_id) | (ids == config.video_token_id)


def reported_columns(tiny: vlms.Tiny, inputs: Mapping[str, Any], report: Any) -> Tensor:
    """Bool `[B, L]`: which columns of the unpruned prompt the report says are left."""
    visual = shown(tiny, inputs["input_ids"])
    keep = inputs["attention_mask"].bool() & ~visual
    places = iter(torch.nonzero(visual).split([image.before for image in report.images]))
    for image, place in zip(report.images, places, strict=True):
        sample, column = place[image.indices].T
        assert (sample == image.sample).all()
        keep[sample, column] = True
    return keep


def kept_columns(pruned: Any, length: int) -> Tensor:
    """Bool `[B, L]`: which columns of the unpruned prompt are left."""
    keep = torch.zeros(len(pruned.index), length, dtype=torch.bool)
    for row, columns, real in zip(keep, pruned.index, pruned["attention_mask"], strict=True):
        row[columns[real.bool()]] = True
    return keep
