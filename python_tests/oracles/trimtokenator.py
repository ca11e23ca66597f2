# SPDX-License-Identifier: Apache-2.0
"""TrimTokenator: smallest mean squared distance to the text, then smallest mean cosine."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import by_score, valid_tokens
from .todre import todre


def trimtokenator(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    stay: int,
    mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
) -> list[int]:
    words = [prompt[j].double() for j in valid_tokens(prompt, prompt_mask)]
    tokens = valid_tokens(visual, mask)
    if words:
        alignments = [
            (-sum(float((visual[i].double() - t).square().sum()) for t in words) / len(words), i)
            for i in tokens
        ]
        tokens = by_score(alignments)[: max(k, stay)]
    left = torch.zeros(len(visual), dtype=torch.bool)
    left[tokens] = True
    return todre(visual, k, left)
