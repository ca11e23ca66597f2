# SPDX-License-Identifier: Apache-2.0
"""Token models, float64 oracles, error bounds and PyTorch baselines for tests and benchmarks.

Needs torch only, and nothing else of this package: a fault in the package cannot hide in its own
judge. Of the package only the demonstration imports it, for the loops it is compared with.
"""

from __future__ import annotations

from .baselines import BASELINES, divprune_loop, gram_incremental, incremental, zspaprune_loop
from .bounds import bound
from .dpp import check_dpp, dpp64
from .facility_location import check_facility_location, facility_location64
from .judge import Replay, check_diversity, check_relevance_topk, check_select, check_sorted
from .min_sum import check_min_sum, min_sum64
from .oracle import diversity64, divprune_seed64, relevance64, select64, topk64
from .special import SPECIAL, Special, special, two_textures
from .suppression import soft_suppress64, suppress64
from .tokens import MODELS, prompt, tokens

__all__ = [
    "BASELINES",
    "MODELS",
    "SPECIAL",
    "Replay",
    "Special",
    "bound",
    "check_diversity",
    "check_dpp",
    "check_facility_location",
    "check_min_sum",
    "check_relevance_topk",
    "check_select",
    "check_sorted",
    "diversity64",
    "divprune_loop",
    "divprune_seed64",
    "dpp64",
    "facility_location64",
    "gram_incremental",
    "incremental",
    "min_sum64",
    "prompt",
    "relevance64",
    "select64",
    "soft_suppress64",
    "special",
    "suppress64",
    "tokens",
    "topk64",
    "two_textures",
    "zspaprune_loop",
]
