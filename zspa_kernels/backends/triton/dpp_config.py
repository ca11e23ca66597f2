# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the determinantal kernels, each with its reason. Standard library only.

Norms, tiles of tokens, groups of programs and candidates are those of diversity_config, for the
reasons given there. No size here decides a bit: an element of the factor is one chain over the
picks, whatever tile it lies in. The reasons are counts; no figure here was timed yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from . import diversity_config


@dataclass(frozen=True, kw_only=True)
class Config(diversity_config.Config):
    """One launch configuration of the determinantal kernels."""

    # Candidates whose entries of the residual matrix a program makes at a time. A step reads
    # `block` + span numbers and multiplies block * span.
    span: int
    # Tile of the forward substitution: own rows, and columns of the factor.
    own_rows: int
    own_cols: int
    # Steps of a substitution whose numbers are read before the first is used.
    ahead: int


@functools.cache
def config(d: int, itemsize: int, hip: bool = False) -> Config:
    """The configuration for D channels of `itemsize` bytes."""
    shared = diversity_config.config(d, itemsize, hip)
    return Config(
        **vars(shared),
        # 4 x 128 elements are 2 a thread of 256; with 8 a kernel for sm_80 spills.
        span=4,
        # 2880 tokens are 22 or 23 rows for each of 128 programs.
        own_rows=32,
        # One column at a time is taken out of the tile: more columns make each of these dearer,
        # fewer read the columns before them more often.
        own_cols=32,
        # So many steps wait for L2 once, in the chain of picks as well, where nothing hides it.
        ahead=8,
    )
