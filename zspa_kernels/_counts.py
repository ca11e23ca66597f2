# SPDX-License-Identifier: Apache-2.0
"""How many tokens to keep, and how many of them for relevance."""

from __future__ import annotations

import math

import torch

from ._contract import values as _values

ROUNDINGS = ("round", "floor")
DEFAULT_CORE_RATIO = 0.2  # between ZSPAPrune's optima: 0.1 GQA, 0.2 POPE, 0.4 MMMU (its Table 2)


def num_keep(n: int, keep: float, rounding: str = "round") -> int:
    """How many of `n` tokens to keep.

    Args:
        n: number of tokens, at least 0; a symbolic size under `torch.compile` and `torch.export`.
        keep: a share, a float in (0, 1], or a count, an int of at least 1.
        rounding: of a share: `"round"` is `round(keep * n)`, half to even, as in ZSPAPrune and
            DivPrune; `"floor"` drops the fraction, as in ZOO-Prune.

    Returns:
        A count in `[1, n]`; 0 if `n` is 0. It depends on sizes only, so shapes are static. A
        symbolic `n` gives a symbolic count. `torch.export` then needs a `Dim` whose `min` makes
        each count that becomes the size of a tensor at least 2, because PyTorch treats sizes of 0
        and 1 as special cases.

    Raises:
        TypeError: `n` is not an int, or `keep` is neither an int nor a float (bool and tensors
            are not).
        ValueError: `n` is negative, `keep` is out of range or NaN, or `rounding` is unknown.

    Example:
        >>> num_keep(576, 0.1), num_keep(576, 0.1112, rounding="floor"), num_keep(576, 64)
        (58, 64, 64)
    """
    return kept("num_keep", n, keep, rounding)


def split_core(k: int, core_ratio: float) -> int:
    """How many of `k` kept tokens are core: `min(k, round(core_ratio * k))`.

    Args:
        k: number of kept tokens, at least 0.
        core_ratio: share chosen by relevance, 0 or more; 1 is the all-in-relevance baseline.

    Returns:
        `k_core` in `[0, k]`; the other `k - k_core` are chosen for diversity.

    Raises:
        TypeError: `k` is not an int, or `core_ratio` is not a number (bool and tensors are not).
        ValueError: `k` or `core_ratio` is negative, or `core_ratio` is not finite.

    Example:
        >>> split_core(58, 0.4)
        23
    """
    return core_of("split_core", k, core_ratio)


def kept(op: str, n: int, keep: float, rounding: str) -> int:
    """`num_keep`, with the errors of `op`."""
    n = _values.integer_at_least(op, "n", n, 0)
    _values.option(op, "rounding", rounding, ROUNDINGS)
    return counted(n, _values.share_or_count(op, "keep", keep), rounding)


def counted(n: int, keep: float, rounding: str) -> int:
    """`num_keep` of a size and options that were checked."""
    if (n == 0) is True:
        return 0
    if not isinstance(keep, float):
        return min(n, keep)
    # round and floor of a symbolic product stay symbolic; int() would fix it to one size.
    rounded = round(keep * n) if rounding == "round" else math.floor(keep * n)
    return rounded if _known_positive(rounded) else max(1, rounded)


def _known_positive(count: int) -> bool:
    """Whether the range given to `torch.export` keeps a symbolic count from falling below 1.

    Its maximum with 1 would change nothing then, but hide from PyTorch that two counts are equal.
    """
    if not isinstance(count, torch.SymInt) or torch.compiler.is_dynamo_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(count >= 1))


def core_of(op: str, k: int, core_ratio: float) -> int:
    """`split_core`, with the errors of `op`."""
    k = _values.integer_at_least(op, "k", k, 0)
    core_ratio = _values.ratio(op, "core_ratio", core_ratio)
    return k if core_ratio >= 1.0 else round(core_ratio * k)


def counts(
    op: str,
    n: int,
    keep: float | None,
    core_ratio: float | None,
    k_core: int | None,
    k_diverse: int | None,
    rounding: str,
    has_prompt: bool,
) -> tuple[int, int]:
    """(k_core, k_diverse) of `n` tokens: from `keep` and `core_ratio`, or the counts as given."""
    if keep is None:
        if k_core is None and k_diverse is None:
            raise TypeError(f"{op}: keep must be given, or k_core and k_diverse, got None")
        if core_ratio is not None:
            raise ValueError(f"{op}: core_ratio must be None without keep, got {core_ratio}")
        for name, other, count in (
            ("k_core", "k_diverse", k_core),
            ("k_diverse", "k_core", k_diverse),
        ):
            if count is None:
                raise TypeError(f"{op}: {name} must be given with {other}, got None")
        return _values.integer(op, "k_core", k_core), _values.integer(op, "k_diverse", k_diverse)
    for name, count in (("k_core", k_core), ("k_diverse", k_diverse)):
        if count is not None:
            raise ValueError(f"{op}: {name} must be None when keep is given, got {count}")
    k = kept(op, n, keep, rounding)
    if core_ratio is None:
        core_ratio = DEFAULT_CORE_RATIO if has_prompt else 0.0
    core = core_of(op, k, core_ratio)
    if not has_prompt and (core > 0) is True:
        rule = f"a tensor when core_ratio={core_ratio} > 0"
        raise TypeError(f"{op}: prompt must be {rule}, got None")
    return core, k - core
