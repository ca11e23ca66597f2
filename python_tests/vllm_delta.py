# SPDX-License-Identifier: Apache-2.0
"""The gated delta rule of Qwen3.5 in float32, for vLLM on CPUs, whose own kernel wants bfloat16.

Its states lie in vLLM's cache, so that prompts in parts and steps of an answer find them there.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention


def install(patch: Any) -> None:
    """Patches the layers of models that are made from now on."""
    patch.setattr(QwenGatedDeltaNetAttention, "forward_cpu", _forward)


def _forward(layer: Any, hidden: Tensor) -> Tensor:
    widths = [2 * layer.key_dim + layer.value_dim, layer.value_dim]
    mixed, gate = layer.in_proj_qkvz(hidden)[0].split(widths, dim=-1)
    beta, decay = layer.in_proj_ba(hidden)[0].chunk(2, dim=-1)
    decay = -layer.A_log.exp() * functional.softplus(decay + layer.dt_bias)
    out = hidden.new_zeros(len(hidden), layer.num_v_heads, layer.head_v_dim)
    metadata: Any = get_forward_context().attn_metadata
    if metadata is not None:
        own = metadata[layer.prefix]
        places = own.non_spec_query_start_loc.tolist()
        slots = own.non_spec_state_indices_tensor.tolist()
        for i, (start, stop) in enumerate(pairwise(places)):
            known = i < own.num_decodes or bool(own.has_initial_state[i])
            part = slice(start, stop)
            out[part] = _sequence(layer, slots[i], known, mixed[part], beta[part], decay[part])
    result: Tensor = layer._output_projection(out, gate.reshape(out.shape))
    return result


def _sequence(
    layer: Any, slot: int, known: bool, mixed: Tensor, beta: Tensor, decay: Tensor
) -> Tensor:
    window = gdn_attention._conv_buffer_view(layer)[slot]
    state = layer.kv_cache[1][slot]  # [heads, values, keys]
    if not known:
        window.zero_()
        state.zero_()
    weight = gdn_attention._unpacked_conv_weight(layer)
    whole = torch.cat((window, mixed.T), dim=1)
    window.copy_(whole[:, -window.shape[1] :])
    mixed = functional.silu(functional.conv1d(whole[None], weight[:, None], groups=len(whole))[0].T)
    heads = [layer.num_k_heads, layer.num_k_heads, layer.num_v_heads]
    parts = mixed.split([layer.key_dim, layer.key_dim, layer.value_dim], dim=-1)
    query, key, value = (x.reshape(len(x), n, -1) for x, n in zip(parts, heads, strict=True))
    times = layer.num_v_heads // layer.num_k_heads
    query, key = (
        (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).repeat_interleave(times, dim=1)
        for x in (query, key)
    )
    out = []
    for q, k, v, b, g in zip(query, key, value, beta.sigmoid(), decay.exp(), strict=True):
        state *= g[:, None, None]
        change = (v - torch.einsum("hvk,hk->hv", state, k)) * b[:, None]
        state += change[:, :, None] * k[:, None]
        out.append(torch.einsum("hvk,hk->hv", state, q) * layer.head_k_dim**-0.5)
    return torch.stack(out)
