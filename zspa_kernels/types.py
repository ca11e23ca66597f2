# SPDX-License-Identifier: Apache-2.0
"""What a method returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ._gather import gather


class Selection(NamedTuple):
    """The tokens a method keeps; unbatched input gives all of it without the batch axis.

    Attributes:
        indices: int64 `[B, K]` into the original tokens; -1 where a row had too few valid tokens.
        core_mask: bool `[B, K]`, aligned with `indices`: True where a token was chosen for a score
            of its own (relevance to the prompt, attention), False where for diversity, and at -1.
        scores: what the method rates every token by, float32 `[B, N]`: relevance, -inf for invalid
            ones; or sensitivity, NaN for invalid ones. None where the method computes none.

    Example:
        >>> import torch
        >>> picked = Selection(torch.tensor([0, 2, -1]), torch.tensor([True, False, False]))
        >>> picked.gather(torch.tensor([[1.0], [2.0], [3.0]])).flatten().tolist()
        [1.0, 3.0, 0.0]
    """

    indices: Tensor
    core_mask: Tensor
    scores: Tensor | None = None

    def gather(self, x: Tensor) -> Tensor:
        """Rows of `x` `[B, N, ...]` at `indices`, zeros at -1; see `zspa_kernels.gather`."""
        return gather(x, self.indices)


def select_each(
    method: Any, visual: Sequence[Tensor], prompt: Sequence[Tensor] | None
) -> list[Selection]:
    """`method.select` on each image `[n, D]` by itself, with its prompt `[m, D]` or without."""
    prompts = [None] * len(visual) if prompt is None else prompt
    return [method.select(v, p) for v, p in zip(visual, prompts, strict=True)]
