# SPDX-License-Identifier: Apache-2.0
"""How long a selection takes with other sizes than those of `*_config.py`: what to tune next.

Each form is one replay of a graph against the package's own sizes, on the same tokens; the picks
must be the same, and a form that does not compile or fit says so. The package never does this: what
is learned here is written into `*_config.py`, with its figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from bench import contenders
from bench.problem import draw
from bench.registry import gpu_suite

Form = tuple[tuple[str, dict[str, int]], ...]

GREEDY = "diversity"
RELEVANCE = "relevance_topk"
SORT = "select"


def _forms(module: str, **values: tuple[int, ...]) -> Iterator[Form]:
    """One form for each value of each field."""
    for field, numbers in values.items():
        for number in numbers:
            yield ((module, {field: number}),)


#: Of the blocked greedy. Tiles, `block_k` and `chunk` decide bits: picks may then differ at ties.
BLOCKED: tuple[Form, ...] = (
    *_forms(GREEDY, warps=(4,), stages=(3, 5, 6), least_rows=(16, 32, 64), block=(64, 256)),
    *_forms(GREEDY, update_rows=(64,), update_own=(16,)),
    *_forms(GREEDY, cols=(128,), rows=(128,), block_k=(128,), chunk=(512, 2048)),
    ((GREEDY, {"rows": 32, "cols": 128}),),
    ((GREEDY, {"rows": 32, "cols": 64}),),
    ((GREEDY, {"cols": 128, "stages": 3}),),
    ((GREEDY, {"rows": 128, "cols": 128, "stages": 3}),),
    ((GREEDY, {"block_k": 128, "stages": 3}),),
    ((GREEDY, {"block_k": 128, "stages": 3, "cols": 128}),),
)
#: Of the matrix of few tokens.
WHOLE: tuple[Form, ...] = (
    *_forms(GREEDY, whole_tiles=(0, 16), whole_stages=(3, 4, 5, 8), warps=(4,)),
    *_forms(GREEDY, whole_alone=(0, 1024), whole_span=(64, 256), rows=(32, 128)),
    ((GREEDY, {"whole_alone": 0, "whole_warps": 4}),),
    ((GREEDY, {"whole_alone": 0, "whole_warps": 2}),),
    ((GREEDY, {"block_k": 128, "whole_stages": 3}),),
    ((GREEDY, {"rows": 32, "warps": 4}),),
)
#: Of relevance and its top-k, and of sorting.
STREAM: tuple[Form, ...] = (
    *_forms(RELEVANCE, block_n=(1, 2, 8, 16), block_k=(256, 512, 2048), warps=(2, 8)),
    *_forms(RELEVANCE, several=(1, 2, 8), two_rounds=(264, 4096), pool_block_d=(32, 64, 256)),
    *_forms(RELEVANCE, rank_rows=(4, 16), rank_columns=(128, 512), rank_steps=(1, 2, 8)),
    *_forms(SORT, slots=(4, 16), columns=(128,), steps=(1, 2, 8)),
    ((RELEVANCE, {"rank_columns": 128, "rank_warps": 4, "rank_steps": 8}),),
    ((RELEVANCE, {"rank_columns": 512, "rank_warps": 16, "rank_steps": 2}),),
    ((SORT, {"columns": 128, "warps": 4}),),
    ((RELEVANCE, {"block_n": 1, "block_k": 4096}),),
    ((RELEVANCE, {"block_n": 2, "block_k": 2048}),),
)
FORMS: dict[str, tuple[Form, ...]] = {
    "llava15-576x4096-k58-core23-vlm-bf16": WHOLE + STREAM,
    "llavanext-2880x4096-k288-core115-vlm-bf16": BLOCKED + STREAM,
    "llavanext-2880x4096-k288-core0-vlm-bf16": BLOCKED,
    "llava15-576x4096-k58-core23-vlm-bf16-b32": WHOLE + BLOCKED + STREAM,
    "video-16384x3584-k1638-core655-vlm-bf16": BLOCKED + STREAM,
}


def configured(module: str, **fields: int) -> Any:
    """A context in which the configuration that a module of the backend takes has other values."""
    from importlib import import_module

    target = import_module(f"zspa_kernels.backends.triton.{module}")
    config = target.config

    def changed(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(config(*args, **kwargs), **fields)

    return mock.patch.object(target, "config", changed)


def label(form: Form) -> str:
    """`relevance_topk block_n=2`."""
    return ", ".join(
        f"{module} " + " ".join(f"{name}={value}" for name, value in fields.items())
        for module, fields in form
    )


def sweep(name: str) -> Iterator[dict[str, Any]]:
    """Microseconds of a replay of a workload in each form, and whether the picks are the same."""
    from bench.gpu_timing import best, on_device

    (work,) = (work for work in gpu_suite() if work.name == name)
    ours = contenders.ours(on_device(draw(work)))
    right = ours.call().cpu()
    for form in ((), *FORMS[name], ()):  # the package's own first and last: the noise
        record: dict[str, Any] = {"sweep": name, "form": label(form) or "as it is"}
        with contextlib.ExitStack() as stack:
            for module, fields in form:
                stack.enter_context(configured(module, **fields))
            try:
                equal = torch.equal(ours.call().cpu(), right)
                yield {**record, "us": 1000 * best(ours.call), "equal": equal}
            except Exception as error:  # this form does not fit: the others still count
                yield {**record, "error": f"{type(error).__name__}: {error}"[:200]}
