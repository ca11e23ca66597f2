# SPDX-License-Identifier: Apache-2.0
"""How to prune, checked before anything runs: options, and a method made fit for a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import collect
from . import query as queries
from .architectures import Target
from .errors import UnsupportedMethodError
from .layout import SCOPES
from .positions import POSITIONS
from .query import Query


@dataclass(frozen=True, eq=False)
class Options:
    """How to prune, beside the method; see `prune_inputs`."""

    scope: str = "image"
    positions: str = "original"
    keep_newline: bool = False
    query: Query = "question"
    processor: Any = None
    merge: bool | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("scope", self.scope, SCOPES),
            ("positions", self.positions, POSITIONS),
        ):
            if value not in allowed:
                known = ", ".join(repr(one) for one in allowed)
                raise ValueError(f"prune: {name} must be one of {known}, got {value!r}")
        if not isinstance(self.keep_newline, bool):
            raise TypeError(f"prune: keep_newline must be a bool, got {self.keep_newline!r}")
        if self.merge is not None and not isinstance(self.merge, bool):
            raise TypeError(f"prune: merge must be a bool or None, got {self.merge!r}")
        queries.check(self.query, self.processor)

    def merges(self, method: Any) -> bool:
        """Whether dropped tokens are merged into kept ones: as published, if not said otherwise."""
        able = hasattr(method, "assign")
        if self.merge and not able:
            raise ValueError(
                f"prune: merge must be False or None for a method without `assign`, got {method!r}"
            )
        return able if self.merge is None else self.merge


def fitted(method: Any, target: Target, options: Options) -> Any:
    """`method` for this model: one that measures a projector and has none is given the model's.

    Raises for a method that cannot prune this model, before anything runs.
    """
    if isinstance(method, type) or not any(
        callable(getattr(method, name, None)) for name in ("select_varlen", "select")
    ):
        raise TypeError(
            f"prune: method must be an object with `select`, such as zk.ZSPAPrune(keep=0.1) or "
            f"zk.methods.get(name, keep=0.1), got {method!r:.60}"
        )
    collect.wanted(method, target)
    options.merges(method)
    if getattr(method, "needs_features", False) and getattr(method, "projector", method) is None:
        try:
            return replace(method, projector=target.projector())
        except (TypeError, ValueError) as error:
            raise UnsupportedMethodError(
                f"prune: method must be able to measure the projector of {target.arch.name}, got "
                f"{method!r}: {error}"
            ) from error
    return method
