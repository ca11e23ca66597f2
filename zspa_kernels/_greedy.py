# SPDX-License-Identifier: Apache-2.0
"""The public functions of the greedy ops beside `diversity`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _contract
from ._call import call
from ._varlen import picks_varlen


def dpp(
    visual: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Pick k tokens greedily, each adding most to the volume that the picks span.

    Greedy MAP of the determinantal point process with kernel `L_ij = weight_i weight_j cos(i, j)`:
    each pick maximises the determinant of the kernel over the picks. A token's residual starts at
    its weight squared and falls with every pick to the squared distance from the span of the picks,
    times the weight squared; each pick has the largest residual. A token whose residual has fallen
    to 2**-16 of its start is a combination of the picks as far as float32 can tell: its residual
    counts as 0, it is picked last, by lowest index, and changes nothing, so input of any rank gives
    k different tokens.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        k: how many, in `[0, N]`.
        weights: float32 `[B, N]`, the quality of each token; None: all 1. A token whose weight is
            negative, infinite or NaN is masked out.
        visual_mask: bool `[B, N]`, True for real tokens.
        backend: see `select`. On a GPU only `"reference"` runs, and only when it is named.

    Returns:
        int64 indices `[B, k]` in the order of picking, then -1 where valid tokens run out.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`.

    Complexity: O(N k D + N k^2) and no N x N matrix; the Cholesky factor takes N k floats an image.

    Source: Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to
    Improve Recommendation Diversity", 2018, algorithm 1; for visual tokens CDPruner, arXiv
    2506.10967.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> dpp(visual, 2)
        tensor([0, 2])
        >>> dpp(visual, 3, weights=torch.tensor([0.5, 2.0, 1.0]))
        tensor([1, 2, 0])
    """
    _contract.tensor("dpp", "visual", visual)
    _contract.optional_tensor("dpp", "weights", weights)
    _contract.optional_tensor("dpp", "visual_mask", visual_mask)
    k = _contract.integer("dpp", "k", k)
    indices: Tensor = call("dpp", backend, (visual, k, weights, visual_mask))
    return indices


def dpp_varlen(
    visual: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """Pick tokens as `dpp` does, in images of any length.

    The same as `dpp` on each image alone, bit for bit, in one call.

    Args:
        visual: one tensor `[n, D]` an image, or all packed as `[T, D]`, together with `lengths`.
        k: how many of each image, at most its length: one count for all or one an image.
        lengths: tokens of each image in packed `visual`; they add up to T.
        weights: float32, one tensor `[n]` an image for a list of images, `[T]` for packed ones.
        backend: as in `dpp`.

    Returns:
        As `diversity_varlen`.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select_varlen`.

    Complexity: the sum of `dpp` on each image.

    Example:
        >>> import torch
        >>> dpp_varlen([torch.eye(3)[:1], torch.eye(3)], [1, 2])
        [tensor([0]), tensor([0, 1])]
    """
    return picks_varlen("dpp_varlen", visual, k, lengths, weights, backend)
