# SPDX-License-Identifier: Apache-2.0
"""Lets torchvision's wheel for CUDA be imported beside a torch for CPUs.

Its operators cannot be loaded then, and importing it describes two of them to torch; nothing in
these tests calls them. Python runs this file when its folder is in the path.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_OPS = ("nms", "qnms")


class _Declares(MetaPathFinder):
    """Declares the operators when torchvision is looked for, and finds nothing itself."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for op in _OPS:
                signature = "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
                torch.library.define(f"torchvision::{op}", signature)


sys.meta_path.insert(0, _Declares())
