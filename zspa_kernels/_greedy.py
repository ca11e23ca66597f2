# SPDX-License-Identifier: Apache-2.0
"""The public functions of the greedy ops other than `diversity`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import Tensor

from ._contract import greedy as _rules
from ._contract import values as _values
from ._ops.call import call
from ._varlen import picks_varlen, side_by_side


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
    to 2**-16 of its start is, as far as float32 can tell, a linear combination of the picks: its
    residual counts as 0, it is picked last, by lowest index, and picking it changes no residual. So
    input of any rank gives k different tokens.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        k: how many, in `[0, N]`.
        weights: float32 `[B, N]`, the quality of each token; None: all 1. A token whose weight is
            negative, infinite or NaN is masked out.
        visual_mask: bool `[B, N]`, True for real tokens.
        backend: see `select`.

    Returns:
        int64 indices `[B, k]` in the order of picking, then -1 where valid tokens run out.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`.

    Complexity: O(N k D + N k^2), and no N x N matrix; the Cholesky factor of an image takes N k
        floats.

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
    k = _values.integer("dpp", "k", k)
    indices: Tensor = call("dpp", backend, (visual, k, weights, visual_mask))
    return indices


@overload
def dpp_varlen(
    visual: Tensor,
    k: int | Sequence[int],
    *,
    lengths: Sequence[int],
    weights: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def dpp_varlen(
    visual: Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lengths: None = ...,
    weights: Sequence[Tensor] | None = ...,
    backend: str = ...,
) -> list[Tensor]: ...
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
        visual: one tensor `[n, D]` per image, or all packed as `[T, D]`, together with `lengths`.
        k: how many of each image, at most its length: one count for all, or one per image.
        lengths: tokens of each image in packed `visual`; they add up to T.
        weights: float32, one tensor `[n]` per image for a list of images, `[T]` for packed ones.
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


def facility_location(
    visual: Tensor,
    k: int,
    *,
    benefits: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Pick k tokens greedily, each adding most to how well the picks cover all tokens.

    A token covers another by their cosine where that is positive or, with a temperature, by the
    softmax of the cosines of the covered token with all tokens. The rows of `benefits` are covered
    as well: `benefits[m, j]` is what token j gives to row m. The gain of token j is
    `weight_j (sum_m max(0, benefits[m, j] - best_m) + scale / V sum_i max(0, c_ij - best_i))`. Here
    V is the number of valid tokens that are not zero rows, c_ij is how well token j covers token i,
    and `best` is the coverage by the picks so far, 0 at first. Each pick has the largest gain.
    Without benefits the scale makes no difference. A zero row neither covers tokens nor has to be
    covered.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        k: how many, in `[0, N]`.
        benefits: float32 `[B, M, N]`; values that are not positive and finite count as 0.
        weights: float32 `[B, N]`, factors of the gains; None: all 1. A token whose weight is
            negative, infinite or NaN is masked out.
        visual_mask: bool `[B, N]`, True for real tokens.
        temperature: 0: coverage by cosines; from 1e-6: by their softmax at this temperature.
        scale: factor of the coverage of tokens, relative to that of the benefits; in [0, 1e30].
        backend: see `select`.

    Returns:
        int64 indices `[B, k]` in the order of picking, then -1 where valid tokens run out.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`.
        MemoryError: on a CPU, there is no room for the N x N cosines.

    Complexity: O(N^2 D + N^2 k). It holds the N x N cosines of an image in float32, 33 MB for 2880
        tokens: the first gains need all of them, and each later gain reads a whole column
        again, while computing it again would cost D multiply-adds per element. On a GPU it holds
        the cosines of several images at once, in 256 MiB, or more if a single image needs more.

    Source: facility location by lazy greedy (Minoux 1978); for visual tokens SCOPE, arXiv
    2510.24214 (weights), and MMTok, arXiv 2508.18264 (softmax, words as benefits).

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 0.6], [0.0, 1.0]])
        >>> facility_location(visual, 2)
        tensor([2, 3])
        >>> facility_location(visual, 2, weights=torch.tensor([0.1, 0.1, 0.1, 1.0]))
        tensor([3, 1])
    """
    op = "facility_location"
    k = _values.integer(op, "k", k)
    options = _values.ratio(op, "temperature", temperature), _values.ratio(op, "scale", scale)
    indices: Tensor = call(op, backend, (visual, k, benefits, weights, visual_mask, *options))
    return indices


@overload
def facility_location_varlen(
    visual: Tensor,
    k: int | Sequence[int],
    *,
    lengths: Sequence[int],
    benefits: Tensor | None = ...,
    weights: Tensor | None = ...,
    temperature: float = ...,
    scale: float = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def facility_location_varlen(
    visual: Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lengths: None = ...,
    benefits: Sequence[Tensor] | None = ...,
    weights: Sequence[Tensor] | None = ...,
    temperature: float = ...,
    scale: float = ...,
    backend: str = ...,
) -> list[Tensor]: ...
def facility_location_varlen(
    visual: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    benefits: Tensor | Sequence[Tensor] | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """Pick tokens as `facility_location` does, in images of any length.

    The same as `facility_location` on each image alone, bit for bit, in one call.

    Args:
        visual: one tensor `[n, D]` per image, or all packed as `[T, D]`, together with `lengths`.
        k: how many of each image, at most its length: one count for all, or one per image.
        lengths: tokens of each image in packed `visual`; they add up to T.
        benefits: float32, one tensor `[M, n]` per image for a list of images, all with the same M;
            `[M, T]` for packed ones. Where an image has fewer rows, fill up with rows of zeros.
        weights: float32, one tensor `[n]` per image for a list of images, `[T]` for packed ones.
        temperature: as in `facility_location`.
        scale: as in `facility_location`.
        backend: as in `facility_location`.

    Returns:
        As `diversity_varlen`.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select_varlen`.

    Complexity: the sum of `facility_location` on each image; a thread holds one matrix at a time.

    Example:
        >>> import torch
        >>> image = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 0.6], [0.0, 1.0]])
        >>> facility_location_varlen([image, image[:1]], [2, 1])
        [tensor([2, 3]), tensor([0])]
    """
    op = "facility_location_varlen"
    options = _values.ratio(op, "temperature", temperature), _values.ratio(op, "scale", scale)
    if benefits is not None and not isinstance(visual, Tensor):
        parts = _rules.benefits_of_images(op, benefits, visual)
        benefits = side_by_side(parts, dim=1) if parts else None
    return picks_varlen(
        op, visual, k, lengths, weights, backend, before=(benefits,), behind=options
    )


def min_sum(
    visual: Tensor,
    k: int,
    *,
    seeds: Tensor | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Pick k tokens greedily, each of the smallest summed cosine to everything selected so far.

    The greedy of max-sum dispersion: the smallest sum of cosines is the largest sum of distances
    `1 - cosine`, and the smallest mean. Without a valid seed the first pick has the smallest sum
    over all valid tokens.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        k: how many new tokens, in `[0, N]`.
        seeds: int64 `[B, S]`, tokens already selected, never picked. -1 is padding; repeats and
            indices of no valid token are ignored.
        visual_mask: bool `[B, N]`, True for real tokens.
        backend: see `select`.

    Returns:
        int64 indices `[B, k]` in the order of picking, then -1 where valid tokens run out. Zero
        rows add nothing to a sum and are picked last, by lowest index.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`.

    Complexity: O(N k D): a sum can fall as well as rise, so an old sum bounds nothing and every
        pick needs its N cosines. On a CPU 1.0 to 2.2 times the N k dots are computed for 576 and
        more tokens as wide as a language model's (D = 3584, 4096), up to 5 times for narrow ones
        (D = 8 to 64).
        Memory: 96 columns of N floats per image, and no N x N matrix. On a GPU a pass computes
        64 columns and makes up to 64 picks.

    Source: ToDRE, arXiv 2505.18757, first stage; TrimTokenator, arXiv 2509.00320, second stage.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]])
        >>> min_sum(visual, 3)
        tensor([3, 0, 1])
        >>> min_sum(visual, 2, seeds=torch.tensor([2]))
        tensor([0, 3])
    """
    k = _values.integer("min_sum", "k", k)
    indices: Tensor = call("min_sum", backend, (visual, k, seeds, visual_mask))
    return indices


@overload
def min_sum_varlen(
    visual: Tensor, k: int | Sequence[int], *, lengths: Sequence[int], backend: str = ...
) -> Tensor: ...
@overload
def min_sum_varlen(
    visual: Sequence[Tensor], k: int | Sequence[int], *, lengths: None = ..., backend: str = ...
) -> list[Tensor]: ...
def min_sum_varlen(
    visual: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """Pick tokens as `min_sum` does without seeds, in images of any length.

    The same as `min_sum` on each image alone, bit for bit, in one call.

    Args:
        visual: one tensor `[n, D]` per image, or all packed as `[T, D]`, together with `lengths`.
        k: how many of each image, at most its length: one count for all, or one per image.
        lengths: tokens of each image in packed `visual`; they add up to T.
        backend: as in `min_sum`.

    Returns:
        As `diversity_varlen`.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select_varlen`.

    Complexity: the sum of `min_sum` on each image.

    Example:
        >>> import torch
        >>> min_sum_varlen([torch.eye(3)[:1], torch.eye(3)], [1, 2])
        [tensor([0]), tensor([0, 1])]
    """
    return picks_varlen("min_sum_varlen", visual, k, lengths, None, backend, weighted=False)
