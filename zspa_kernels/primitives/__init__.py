# SPDX-License-Identifier: Apache-2.0
"""What methods are composed of besides the ops: plain torch, exact, each with its own cost.

They decide as a float64 reading of their rule does, ties to the lowest index, and treat zero rows,
invalid tokens and masks as the ops do. Those that look at values to decide what to compute next say
how often they wait for the device; such calls cannot be captured in a CUDA graph. `min_sum`,
`suppress` and `soft_suppress` are the ops of these names. Merging, alignment, centring and top-k
have native kernels, which decide the same, for values on a CPU.

Example:
    >>> import torch
    >>> topk(torch.tensor([0.1, 0.9, 0.8]), 2)
    tensor([1, 2])
"""

from ..api import min_sum, soft_suppress, suppress
from .merging import Merging, assign, match, merge
from .scores import ascending, min_max, quotas, topk
from .similarity import alignment, centred, distinctiveness

__all__ = [
    "Merging",
    "alignment",
    "ascending",
    "assign",
    "centred",
    "distinctiveness",
    "match",
    "merge",
    "min_max",
    "min_sum",
    "quotas",
    "soft_suppress",
    "suppress",
    "topk",
]
