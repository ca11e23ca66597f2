# SPDX-License-Identifier: Apache-2.0
"""What methods are composed of, besides the ops: plain torch, exact, each with its own cost.

They decide as a float64 implementation of their rule would, break ties by the lowest index, and
treat zero rows, invalid tokens and masks as the ops do. Some look at values to decide what to
compute next. These say how often they wait for the device; they cannot be captured in a CUDA graph,
and `torch.vmap` refuses them. `min_sum`, `suppress` and `soft_suppress` are the ops of these names.
For tensors on a CPU, merging, thinning, alignment, centring, top-k and the shares of HoloV and DART
have native kernels, which decide the same.

Example:
    >>> import torch
    >>> topk(torch.tensor([0.1, 0.9, 0.8]), 2)
    tensor([1, 2])
"""

from ..api import min_sum, soft_suppress, suppress
from .merging import Merging, assign, match, merge
from .scores import ascending, min_max, quotas, topk
from .similarity import alignment, centred, distinctiveness
from .thinning import thin

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
    "thin",
    "topk",
]
