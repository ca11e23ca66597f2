# SPDX-License-Identifier: Apache-2.0
"""Exact selection of visual tokens for vision-language models, at hardware speed.

`select` does it in one call, `gather` takes the chosen rows, `torch.ops.zspa.*` are the ops.
"""

from . import hf as hf
from . import methods as methods
from . import primitives as primitives
from ._version import __version__
from ._warmup import warmup
from .api import (
    diversity,
    diversity_varlen,
    dpp,
    dpp_varlen,
    facility_location,
    facility_location_varlen,
    gather,
    min_sum,
    min_sum_varlen,
    num_keep,
    relevance_topk,
    select,
    select_varlen,
    sensitivity,
    soft_suppress,
    split_core,
    suppress,
)
from .methods import AllInRelevance, DivPrune, MethodBase, ZOOPrune, ZSPAPrune
from .sensitivity_plan import SensitivityPlan, unit_directions
from .types import Selection

__all__ = [
    "AllInRelevance",
    "DivPrune",
    "MethodBase",
    "Selection",
    "SensitivityPlan",
    "ZOOPrune",
    "ZSPAPrune",
    "__version__",
    "diversity",
    "diversity_varlen",
    "dpp",
    "dpp_varlen",
    "facility_location",
    "facility_location_varlen",
    "gather",
    "hf",
    "methods",
    "min_sum",
    "min_sum_varlen",
    "num_keep",
    "primitives",
    "relevance_topk",
    "select",
    "select_varlen",
    "sensitivity",
    "soft_suppress",
    "split_core",
    "suppress",
    "unit_directions",
    "warmup",
]
