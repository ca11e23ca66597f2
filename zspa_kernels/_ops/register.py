# SPDX-License-Identifier: Apache-2.0
"""The `zspa` ops as PyTorch sees them: schemas, fakes, and one implementation for every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._contract import greedy as greedy_rules
from .._contract import selection as selection_rules
from .._contract import sensitivity as sensitivity_rules
from .._contract import suppress as suppress_rules
from .greedy import (
    dpp,
    dpp_varlen,
    facility_location,
    facility_location_varlen,
    min_sum,
    min_sum_varlen,
    soft_suppress,
    suppress,
)
from .selection import diversity, diversity_varlen, relevance_topk, select, select_varlen
from .sensitivity import (
    sensitivity,
    sensitivity_hidden,
    sensitivity_rms,
    sensitivity_rms_hidden,
)
from .vmap import batching_rule

# ---- fakes: the same contract, then empty outputs -----------------------------------------------


def _fake_indices(contract: Callable[..., tuple[int, ...]]) -> Callable[..., Tensor]:
    def fake(visual: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shape = contract(visual, *args, **kwargs)
        return visual.new_empty(shape, dtype=torch.int64)

    return fake


def _fake_relevance_topk(visual: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    shape = selection_rules.relevance_topk(visual, *args, **kwargs)
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
        _fake_indices(selection_rules.select),
    ),
    "select_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor? prompt, Tensor? prompt_spans,
            Tensor k_core, Tensor k_diverse, SymInt total_k, SymInt max_seqlen,
            str pooling="mean", bool sorted=True) -> Tensor""",
        select_varlen,
        _fake_indices(selection_rules.select_varlen),
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
        _fake_indices(selection_rules.diversity),
    ),
    "diversity_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, SymInt max_seqlen,
            Tensor? weights=None) -> Tensor""",
        diversity_varlen,
        _fake_indices(selection_rules.diversity_varlen),
    ),
    "dpp": (
        """(Tensor visual, SymInt k, Tensor? weights=None, Tensor? visual_mask=None) -> Tensor""",
        dpp,
        _fake_indices(greedy_rules.dpp),
    ),
    "dpp_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, SymInt max_seqlen,
            Tensor? weights=None) -> Tensor""",
        dpp_varlen,
        _fake_indices(greedy_rules.dpp_varlen),
    ),
    "facility_location": (
        """(Tensor visual, SymInt k, Tensor? benefits=None, Tensor? weights=None,
            Tensor? visual_mask=None, float temperature=0.0, float scale=1.0) -> Tensor""",
        facility_location,
        _fake_indices(greedy_rules.facility_location),
    ),
    "facility_location_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, SymInt max_seqlen,
            Tensor? benefits=None, Tensor? weights=None, float temperature=0.0,
            float scale=1.0) -> Tensor""",
        facility_location_varlen,
        _fake_indices(greedy_rules.facility_location_varlen),
    ),
    "min_sum": (
        """(Tensor visual, SymInt k, Tensor? seeds=None, Tensor? visual_mask=None) -> Tensor""",
        min_sum,
        _fake_indices(greedy_rules.min_sum),
    ),
    "min_sum_varlen": (
        """(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k,
            SymInt max_seqlen) -> Tensor""",
        min_sum_varlen,
        _fake_indices(greedy_rules.min_sum_varlen),
    ),
    "suppress": (
        """(Tensor visual, Tensor scores, SymInt k, float threshold, bool fill=True,
            Tensor? visual_mask=None) -> Tensor""",
        suppress,
        _fake_indices(suppress_rules.suppress),
    ),
    "soft_suppress": (
        """(Tensor visual, Tensor scores, SymInt k, float sharpness, str rule="subtract",
            Tensor? positions=None, float? spread=None, float? reach=None,
            Tensor? visual_mask=None) -> Tensor""",
        soft_suppress,
        _fake_indices(suppress_rules.soft_suppress),
    ),
    "sensitivity": (
        """(Tensor features, Tensor w1, Tensor? b1, Tensor w2, str activation,
            Tensor directions, float radius=0.01) -> Tensor""",
        sensitivity,
        _fake_scores(sensitivity_rules.sensitivity),
    ),
    "sensitivity_hidden": (
        """(Tensor preactivation, Tensor w2, str activation, Tensor shifts,
            float radius=0.01) -> Tensor""",
        sensitivity_hidden,
        _fake_scores(sensitivity_rules.sensitivity_hidden),
    ),
    "sensitivity_rms": (
        """(Tensor features, Tensor w1, Tensor? b1, Tensor factor, str activation,
            Tensor? diagonal=None) -> Tensor""",
        sensitivity_rms,
        _fake_scores(sensitivity_rules.sensitivity_rms),
    ),
    "sensitivity_rms_hidden": (
        """(Tensor preactivation, Tensor factor, str activation,
            Tensor? diagonal=None) -> Tensor""",
        sensitivity_rms_hidden,
        _fake_scores(sensitivity_rules.sensitivity_rms_hidden),
    ),
}

# Ops every tensor of which has a batch axis. The others are called once for each example, by torch.
_BATCHED: dict[str, Callable[..., Any]] = {
    "select": selection_rules.select,
    "relevance_topk": selection_rules.relevance_topk,
    "diversity": selection_rules.diversity,
    "dpp": greedy_rules.dpp,
    "facility_location": greedy_rules.facility_location,
    "min_sum": greedy_rules.min_sum,
    "suppress": suppress_rules.suppress,
    "soft_suppress": suppress_rules.soft_suppress,
}

# CompositeExplicitAutograd is every other device and layout: the contract's or `dispatch`'s error
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
