# SPDX-License-Identifier: Apache-2.0
"""The `zspa` ops as PyTorch sees them: schemas, fakes, and one implementation for every device.

    torch.ops.zspa.<op> -> implementation -> _contract (check) -> normalise
                                          -> _dispatch (choose) -> backends/<backend>/<op>.py

The implementations, here and in the other `_register_*.py`, are plain functions with the signature
of their schema and one more argument, `backend`, which the dispatcher never passes. `backend=` of
the public functions arrives here too, so a named backend gets the same checks and the same
normalised arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _contract, _contract_greedy, _contract_sensitivity, _contract_suppress, _segments
from ._implementation import backend_of, contiguous, dense, undisturbed
from ._register_greedy import (
    dpp,
    dpp_varlen,
    facility_location,
    facility_location_varlen,
    min_sum,
    min_sum_varlen,
    soft_suppress,
    suppress,
)
from ._register_sensitivity import (
    sensitivity,
    sensitivity_hidden,
    sensitivity_rms,
    sensitivity_rms_hidden,
)
from ._vmap import batching_rule

# ---- implementations ----------------------------------------------------------------------------


@undisturbed
def select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    sorted: bool = True,
    backend: str = "auto",
) -> Tensor:
    _contract.select(visual, prompt, k_core, k_diverse, visual_mask, prompt_mask, pooling, sorted)
    run = backend_of(backend, "select", visual)
    indices: Tensor = run(
        dense(visual),
        dense(prompt),
        k_core,
        k_diverse,
        contiguous(visual_mask),
        contiguous(prompt_mask),
        pooling,
        sorted,
    )
    return indices


@undisturbed
def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    _contract.relevance_topk(visual, prompt, k, visual_mask, prompt_mask, pooling)
    run = backend_of(backend, "relevance_topk", visual)
    result: tuple[Tensor, Tensor] = run(
        dense(visual), dense(prompt), k, contiguous(visual_mask), contiguous(prompt_mask), pooling
    )
    return result


@undisturbed
def diversity(
    visual: Tensor,
    k: int,
    seeds: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _contract.diversity(visual, k, seeds, weights, visual_mask)
    run = backend_of(backend, "diversity", visual)
    given = contiguous(seeds), contiguous(weights), contiguous(visual_mask)
    indices: Tensor = run(dense(visual), k, *given)
    return indices


@undisturbed
def select_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    prompt: Tensor | None,
    prompt_spans: Tensor | None,
    k_core: Tensor,
    k_diverse: Tensor,
    total_k: int,
    max_seqlen: int,
    pooling: str = "mean",
    sorted: bool = True,
    backend: str = "auto",
) -> Tensor:
    _contract.select_varlen(
        visual, cu_seqlens, prompt, prompt_spans, k_core, k_diverse, total_k, max_seqlen, pooling
    )
    run = backend_of(backend, "select_varlen", visual)
    table = _segments.ragged_table(
        cu_seqlens, k_core, k_diverse, total_k, max_seqlen, visual.shape[0]
    )
    spans = None if prompt is None else _segments.prompt_spans(prompt_spans, table.shape[0], prompt)
    indices: Tensor = run(dense(visual), table, dense(prompt), spans, total_k, pooling, sorted)
    return indices


@undisturbed
def diversity_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _contract.diversity_varlen(visual, cu_seqlens, k, total_k, max_seqlen, weights)
    run = backend_of(backend, "diversity_varlen", visual)
    table = _segments.ragged_table(cu_seqlens, None, k, total_k, max_seqlen, visual.shape[0])
    indices: Tensor = run(dense(visual), table, total_k, contiguous(weights))
    return indices


# ---- fakes: the same contract, then empty outputs -----------------------------------------------


def _fake_indices(contract: Callable[..., tuple[int, ...]]) -> Callable[..., Tensor]:
    def fake(visual: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shape = contract(visual, *args, **kwargs)
        return visual.new_empty(shape, dtype=torch.int64)

    return fake


def _fake_relevance_topk(visual: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    shape = _contract.relevance_topk(visual, *args, **kwargs)
    return (
        visual.new_empty(shape, dtype=torch.int64),
        visual.new_empty(visual.shape[:-1], dtype=torch.float32),
    )


def _fake_scores(contract: Callable[..., tuple[int, ...]]) -> Callable[..., Tensor]:
    def fake(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shape = contract(tokens, *args, **kwargs)
        return tokens.new_empty(shape, dtype=torch.float32)

    return fake


# ---- registration -------------------------------------------------------------------------------

# Shapes, order and ties are documented with the public functions in api.py.
_OPS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "select": (
        """(Tensor visual, Tensor? prompt, SymInt k_core, SymInt k_diverse,
            Tensor? visual_mask=None, Tensor? prompt_mask=None,
            str pooling="mean", bool sorted=True) -> Tensor""",
        select,
        _fake_indices(_contract.select),
    ),
    "select_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor? prompt, Tensor? prompt_spans,
            Tensor k_core, Tensor k_diverse, SymInt total_k, SymInt max_seqlen,
            str pooling="mean", bool sorted=True) -> Tensor""",
        select_varlen,
        _fake_indices(_contract.select_varlen),
    ),
    "relevance_topk": (
        """(Tensor visual, Tensor prompt, SymInt k,
            Tensor? visual_mask=None, Tensor? prompt_mask=None,
            str pooling="mean") -> (Tensor indices, Tensor scores)""",
        relevance_topk,
        _fake_relevance_topk,
    ),
    "diversity": (
        """(Tensor visual, SymInt k, Tensor? seeds=None, Tensor? weights=None,
            Tensor? visual_mask=None) -> Tensor""",
        diversity,
        _fake_indices(_contract.diversity),
    ),
    "diversity_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, SymInt max_seqlen,
            Tensor? weights=None) -> Tensor""",
        diversity_varlen,
        _fake_indices(_contract.diversity_varlen),
    ),
    "dpp": (
        """(Tensor visual, SymInt k, Tensor? weights=None, Tensor? visual_mask=None) -> Tensor""",
        dpp,
        _fake_indices(_contract_greedy.dpp),
    ),
    "dpp_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, SymInt max_seqlen,
            Tensor? weights=None) -> Tensor""",
        dpp_varlen,
        _fake_indices(_contract_greedy.dpp_varlen),
    ),
    "facility_location": (
        """(Tensor visual, SymInt k, Tensor? benefits=None, Tensor? weights=None,
            Tensor? visual_mask=None, float temperature=0.0, float scale=1.0) -> Tensor""",
        facility_location,
        _fake_indices(_contract_greedy.facility_location),
    ),
    "facility_location_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, SymInt max_seqlen,
            Tensor? benefits=None, Tensor? weights=None, float temperature=0.0,
            float scale=1.0) -> Tensor""",
        facility_location_varlen,
        _fake_indices(_contract_greedy.facility_location_varlen),
    ),
    "min_sum": (
        """(Tensor visual, SymInt k, Tensor? seeds=None, Tensor? visual_mask=None) -> Tensor""",
        min_sum,
        _fake_indices(_contract_greedy.min_sum),
    ),
    "min_sum_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k,
            SymInt max_seqlen) -> Tensor""",
        min_sum_varlen,
        _fake_indices(_contract_greedy.min_sum_varlen),
    ),
    "suppress": (
        """(Tensor visual, Tensor scores, SymInt k, float threshold, bool fill=True,
            Tensor? visual_mask=None) -> Tensor""",
        suppress,
        _fake_indices(_contract_suppress.suppress),
    ),
    "soft_suppress": (
        """(Tensor visual, Tensor scores, SymInt k, float sharpness, str rule="subtract",
            Tensor? positions=None, float? spread=None, float? reach=None,
            Tensor? visual_mask=None) -> Tensor""",
        soft_suppress,
        _fake_indices(_contract_suppress.soft_suppress),
    ),
    "sensitivity": (
        """(Tensor features, Tensor w1, Tensor? b1, Tensor w2, str activation,
            Tensor directions, float radius=0.01) -> Tensor""",
        sensitivity,
        _fake_scores(_contract_sensitivity.sensitivity),
    ),
    "sensitivity_hidden": (
        """(Tensor preactivation, Tensor w2, str activation, Tensor shifts,
            float radius=0.01) -> Tensor""",
        sensitivity_hidden,
        _fake_scores(_contract_sensitivity.sensitivity_hidden),
    ),
    "sensitivity_rms": (
        """(Tensor features, Tensor w1, Tensor? b1, Tensor factor, str activation,
            Tensor? diagonal=None) -> Tensor""",
        sensitivity_rms,
        _fake_scores(_contract_sensitivity.sensitivity_rms),
    ),
    "sensitivity_rms_hidden": (
        """(Tensor preactivation, Tensor factor, str activation,
            Tensor? diagonal=None) -> Tensor""",
        sensitivity_rms_hidden,
        _fake_scores(_contract_sensitivity.sensitivity_rms_hidden),
    ),
}

# Ops every tensor of which has a batch axis. The others are called once for each example, by torch.
_BATCHED: dict[str, Callable[..., Any]] = {
    "select": _contract.select,
    "relevance_topk": _contract.relevance_topk,
    "diversity": _contract.diversity,
    "dpp": _contract_greedy.dpp,
    "facility_location": _contract_greedy.facility_location,
    "min_sum": _contract_greedy.min_sum,
    "suppress": _contract_suppress.suppress,
    "soft_suppress": _contract_suppress.soft_suppress,
}

# CompositeExplicitAutograd is every other device and layout: the contract's or _dispatch's error
# is raised there instead of PyTorch's. Nested tensors are not part of it.
_KEYS = ("CPU", "CUDA", "CompositeExplicitAutograd", "NestedTensorCPU", "NestedTensorCUDA")


def _register() -> torch.library.Library:
    library = torch.library.Library("zspa", "DEF")
    for name, (schema, implementation, fake) in _OPS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in _KEYS:
            library.impl(name, implementation, key)
        # Outputs have no derivative: nothing is recorded, so nothing runs at this key.
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"zspa::{name}", fake, lib=library)
    for name, contract in _BATCHED.items():
        torch.library.register_vmap(f"zspa::{name}", batching_rule(name, contract), lib=library)
    return library


# The registrations live as long as this object. A reload runs in the same namespace, where PyTorch
# allows one owner: the old one goes first.
if "_LIBRARY" in globals():
    globals()["_LIBRARY"]._destroy()
_LIBRARY = _register()
