# SPDX-License-Identifier: Apache-2.0
"""The public functions: arguments in the user's terms, then one call of an op.

    api -> torch.ops.zspa.<op> -> _ops: _contract, dispatch -> backends/<backend>/<op>.py
    api(backend="cpp") ---------> _ops: the same, with the backend named

Common to all of them:

* Tokens are float32, float16 or bfloat16 with any strides, `[B, N, D]`; or `[N, D]`, then every
  other argument and the results have no batch axis either. Masks are bool, True for real tokens.
* Similarity is the cosine, in float32 whatever the dtype. Zero rows, shorter than 2**-40, influence
  no other token and are chosen last (beside copies of a pick, and by relevance beside tokens
  opposite to the prompt), except where a score decides alone: in `suppress`, `soft_suppress`, and
  for the first pick by weights. Tokens with NaN, Inf or a length beyond 2**40 count as masked out.
* Ties go to the lowest index. The same call gives the same bits, alone or in a batch, with any
  number of threads, whatever autocast, default dtype, default device or grad mode are.
* Arguments are never written to. Results have no gradient: gradients flow through `gather`.
* Calls work under `torch.compile(fullgraph=True)`, `torch.export` and CUDA-graph capture, with
  `backend="auto"`. Naming a backend is for tests and measurements, in eager mode.
  Under `torch.jit.trace`, which turns sizes into tensors, give counts (`k`, `k_core`), not `keep`.
* Under `torch.vmap` the mapped axis becomes the batch of a single call, except for the ragged
  functions and `sensitivity`, which torch calls once for each example.

Errors are raised before any work: TypeError for a wrong kind or dtype (and None where a value is
required), ValueError for a wrong rank, shape, range, device, layout or option, NotImplementedError
when the named backend (or, by default, every backend) cannot run there, ImportError when the named
backend is not built.
"""

from __future__ import annotations

from torch import Tensor

from . import _counts
from ._contract import selection as _rules
from ._contract import tensors as _tensors
from ._contract import values as _values
from ._counts import num_keep, split_core
from ._gather import gather
from ._greedy import (
    dpp,
    dpp_varlen,
    facility_location,
    facility_location_varlen,
    min_sum,
    min_sum_varlen,
)
from ._ops.call import call
from ._sensitivity import sensitivity
from ._suppress import soft_suppress, suppress
from ._varlen import diversity_varlen, select_varlen

__all__ = [
    "diversity",
    "diversity_varlen",
    "dpp",
    "dpp_varlen",
    "facility_location",
    "facility_location_varlen",
    "gather",
    "min_sum",
    "min_sum_varlen",
    "num_keep",
    "relevance_topk",
    "select",
    "select_varlen",
    "sensitivity",
    "soft_suppress",
    "split_core",
    "suppress",
]


def select(
    visual: Tensor,
    prompt: Tensor | None = None,
    *,
    keep: float | None = None,
    core_ratio: float | None = None,
    k_core: int | None = None,
    k_diverse: int | None = None,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    sorted: bool = True,
    rounding: str = "round",
    backend: str = "auto",
) -> Tensor:
    """Choose which visual tokens to keep: a core by relevance, the rest for diversity.

    First the `k_core` tokens most relevant to the prompt. Then, `k_diverse` times, the token whose
    largest similarity to everything selected so far is smallest. With an empty core the first pick
    is DivPrune's: the token whose largest similarity to any other is smallest.

    Args:
        visual: tokens of the image, `[B, N, D]` or `[N, D]`.
        prompt: text embeddings in the same space, `[B, M, D]` or `[M, D]`; dtype may differ. None
            selects by diversity alone. A row without a valid prompt token does the same.
        keep: how many tokens: a share in (0, 1] of N (padding included) or a count; see `num_keep`.
        core_ratio: share of the kept tokens chosen by relevance, default 0.2 (0 without a prompt);
            see `split_core`.
        k_core: how many core tokens; given together with `k_diverse`, instead of `keep`.
        k_diverse: how many diversity tokens; `k_core + k_diverse <= N`.
        visual_mask: bool `[B, N]`, True for real tokens; None: all are.
        prompt_mask: bool `[B, M]`, likewise.
        pooling: relevance is the cosine with the `"mean"` or the element-wise `"max"` of the prompt
            tokens; or the mean (`"none_mean"`) or largest (`"none_max"`) cosine with each of them.
        sorted: True: indices ascend, which keeps the raster order. False: core by falling
            relevance, then diversity picks in order.
        rounding: how a share is rounded, `"round"` or `"floor"`; see `num_keep`.
        backend: `"auto"`, or a named one: `"reference"`, `"cpp"`, `"triton"`.

    Returns:
        int64 indices `[B, K]`, K = k_core + k_diverse. A row with V valid tokens gets
        `min(k_core, V)` core and `min(k_diverse, V - core)` diversity tokens, then -1.

    Raises:
        TypeError: wrong kinds or dtypes; `prompt` is None although `k_core > 0`; no `keep` and no
            counts.
        ValueError: shapes, ranges or devices do not fit; unknown option; both `keep` and counts.
        NotImplementedError: the backend cannot run here.
        ImportError: the named backend is not built.

    Complexity: O(N K D) at most, and no N x N matrix beyond 1024 tokens. DivPrune's first pick, and
    small images on a GPU, cost up to O(N^2 D).

    Source: ZSPAPrune, arXiv 2510.17197, equations 4 to 9; DivPrune, arXiv 2503.02175, section 3.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.2]])
        >>> prompt = torch.tensor([[2.0, 0.1]])
        >>> indices = select(visual, prompt, keep=0.5, core_ratio=0.5)
        >>> indices
        tensor([0, 3])
        >>> gather(visual, indices)
        tensor([[ 1.0000,  0.0000],
                [-1.0000,  0.2000]])
    """
    n = _tensors.num_tokens("select", visual)
    _values.flag("select", "sorted", sorted)
    core, diverse = _counts.counts(
        "select", n, keep, core_ratio, k_core, k_diverse, rounding, prompt is not None
    )
    _values.option("select", "pooling", pooling, _rules.POOLINGS)
    arguments = (visual, prompt, core, diverse, visual_mask, prompt_mask, pooling, sorted)
    indices: Tensor = call("select", backend, arguments)
    return indices


def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    *,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Score every token by its relevance to the prompt and take the k most relevant.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        prompt: text embeddings `[B, M, D]` or `[M, D]`; dtype may differ.
        k: how many, in `[0, N]`.
        visual_mask: bool `[B, N]`, True for real tokens.
        prompt_mask: bool `[B, M]`, likewise.
        pooling: `"mean"`, `"max"`, `"none_mean"` or `"none_max"`; see `select`.
        backend: see `select`.

    Returns:
        indices: int64 `[B, k]` by falling score, then index; then -1 where valid tokens run out,
            and throughout a row without a valid prompt token.
        scores: float32 `[B, N]`: a cosine; -1 for zero rows, -inf for invalid tokens, 0 for all
            others where the pooled prompt is a zero row or no prompt token is valid.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`.

    Complexity: O((N + M) D) for `"mean"`, `"max"` and `"none_mean"`, O(N M D) for `"none_max"`.

    Source: ZSPAPrune, arXiv 2510.17197, equations 4 to 7; pooling: its Table 4.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[0.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
        >>> indices, scores = relevance_topk(visual, torch.tensor([[1.0, 0.0]]), k=2)
        >>> indices, scores
        (tensor([2, 1]), tensor([0.0000, 0.6000, 1.0000]))
    """
    k = _values.integer("relevance_topk", "k", k)
    _values.option("relevance_topk", "pooling", pooling, _rules.POOLINGS)
    arguments = (visual, prompt, k, visual_mask, prompt_mask, pooling)
    result: tuple[Tensor, Tensor] = call("relevance_topk", backend, arguments)
    return result


def diversity(
    visual: Tensor,
    k: int,
    *,
    seeds: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Pick k tokens greedily, each the least similar to everything selected before it.

    The score of a token is `weight * (1 - m)`, m its largest similarity to the seeds and the picks
    so far; each pick has the largest score. Without a valid seed the first pick is DivPrune's (the
    token whose largest similarity to any other is smallest) or, with weights, the largest weight:
    so no weights is not the same as equal weights.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        k: how many new tokens, in `[0, N]`.
        seeds: int64 `[B, S]`, tokens already selected. They are never picked; indices outside
            `[0, N)` (-1 is padding), invalid tokens and repeats are ignored.
        weights: float32 `[B, N]`; a token whose weight is negative, infinite or NaN is masked out.
        visual_mask: bool `[B, N]`, True for real tokens.
        backend: see `select`.

    Returns:
        int64 indices `[B, k]` in the order of picking, then -1 where valid tokens run out.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`.

    Complexity: O(N (S + k) D) at most, and no N x N matrix beyond 1024 tokens. DivPrune's first
    pick, and small images on a GPU, cost up to O(N^2 D).

    Source: DivPrune, arXiv 2503.02175; the second half of ZSPAPrune, arXiv 2510.17197, equations 8
    and 9; weights: ZOO-Prune, arXiv 2509.24837.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> diversity(visual, 2)
        tensor([2, 0])
        >>> diversity(visual, 1, seeds=torch.tensor([0]))
        tensor([2])
    """
    k = _values.integer("diversity", "k", k)
    indices: Tensor = call("diversity", backend, (visual, k, seeds, weights, visual_mask))
    return indices
