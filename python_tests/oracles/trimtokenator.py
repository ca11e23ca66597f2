# SPDX-License-Identifier: Apache-2.0
"""TrimTokenator, first stage: the tokens of smallest mean squared distance to the text.

The second is ToDRE's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .common import by_score, valid_tokens


def remaining(
    visual: Tensor,
    prompt: Tensor,
    stay: int,
    mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
) -> Tensor:
    """Which tokens the first stage keeps; all that are valid where no prompt token is."""
    words = [prompt[j].double() for j in valid_tokens(prompt, prompt_mask)]
    tokens = valid_tokens(visual, mask)
    if words:
        alignments = [
            (-sum(float((visual[i].double() - t).square().sum()) for t in words) / len(words), i)
            for i in tokens
        ]
        tokens = by_score(alignments)[:stay]
    left = torch.zeros(len(visual), dtype=torch.bool)
    left[tokens] = True
    return left
