# SPDX-License-Identifier: Apache-2.0
"""`python -m zspa_kernels._api_page [PAGE]`: every public name, its arguments, what it is for."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import torch

import zspa_kernels as zk

from . import pictures, projectors, visualize, vllm
from ._ops import dispatch

_ROOT = Path(__file__).resolve().parent.parent
_HEAD = """# The API

`import zspa_kernels as zk`. Arguments stand here without their types. Docstrings say shapes,
dtypes, ties, errors, cost and source: `help(zk.select)`, or the file behind a name. What all
functions have in common (tokens, masks, ties, errors, compiling) is at the top of
[api.py](../zspa_kernels/api.py). On the command line: `zspa --help`. For tests of your own:
[zspa_kernels.testing](../zspa_kernels/testing/__init__.py), token models and float64 oracles.
`python -m zspa_kernels._api_page docs/api.md` writes this page.
"""
_OPS = """## Ops

`torch.ops.zspa.*`: what the functions call, with the counts they made of shares.

The ragged ops (`..._varlen`) read nothing on the host, so that sizes may stay on a
GPU. Image s has the rows `cu_seqlens[s]` to `cu_seqlens[s + 1]` of `visual` `[T, D]`, but sees at
most `max_seqlen` of them. It reads the rows `prompt_spans[s, 0]` to `prompt_spans[s, 1]` of
`prompt` `[P, D]`; without spans, all. It picks `k[s]` tokens, or `k_core[s]` and then
`k_diverse[s]`, into slots behind those of the images before it. `total_k` is the number of slots,
and the length of the result: indices into `visual`, -1 in slots that no token gets. Offsets and
counts are int32 or int64 `[S + 1]`, `[S, 2]` and `[S]`; any values are clamped to what there is.

```python
import torch
import zspa_kernels  # makes torch.ops.zspa

visual, cu_seqlens = torch.randn(500, 64), torch.tensor([0, 200, 500])  # 200 and 300 tokens
prompt, spans = torch.randn(9, 64), torch.tensor([[0, 4], [4, 9]])
core, diverse = torch.tensor([8, 12]), torch.tensor([12, 18])
indices = torch.ops.zspa.select_varlen(visual, cu_seqlens, prompt, spans, core, diverse, 50, 300)
```
"""
# (heading, what to read, names of `zk`)
_FUNCTIONS = (
    ("Select", "Start in the [README](../README.md).", "select select_varlen gather Selection"),
    ("How many", "", "num_keep split_core"),
    (
        "Parts of a selection",
        "All of them exact; what they cost: [greedy.md](greedy.md).",
        """relevance_topk diversity diversity_varlen dpp dpp_varlen facility_location
        facility_location_varlen min_sum min_sum_varlen suppress soft_suppress""",
    ),
    (
        "Sensitivity of a projector",
        "What it is, what it costs: [sensitivity.md](sensitivity.md).",
        "sensitivity SensitivityPlan unit_directions",
    ),
    ("Before a latency counts", "", "warmup"),
)
_METHODS = "Which fits, what each needs, one of your own: [methods.md](methods.md)."
# (heading, what to read, its name, a module whose names are all public)
_MODULES = (
    ("Methods", _METHODS, "zk.methods", zk.methods),
    ("What methods are composed of", "", "zk.primitives", zk.primitives),
    ("Models of transformers", "How to prune one: [hf.md](hf.md).", "zk.hf", zk.hf),
    ("Models in vLLM", "How to serve one: [vllm.md](vllm.md).", "zspa_kernels.vllm", vllm),
    ("Projectors", "", "zspa_kernels.projectors", projectors),
    ("Pictures of a selection", "Extra `demo`.", "zspa_kernels.visualize", visualize),
    ("Pictures of what a model kept", "Extra `demo`.", "zspa_kernels.pictures", pictures),
)


def page() -> str:
    """The page, each object once: under `zk` if it is there, else under its module."""
    parts = [_HEAD]
    for heading, more, names in _FUNCTIONS:
        parts.append(_section(heading, more, [_entry("zk", zk, name) for name in names.split()]))
    done = {id(getattr(zk, name)) for *_, names in _FUNCTIONS for name in names.split()}
    for heading, more, prefix, module in _MODULES:
        entries = []
        for name in _public(module):
            thing = getattr(module, name)
            if id(thing) not in done:
                where = "zk" if getattr(zk, name, None) is thing else prefix
                entries.append(_entry(where, module, name))
                done.add(id(thing))
        parts.append(_section(heading, more, entries))
    schemas = "\n".join(str(getattr(torch.ops.zspa, op).default._schema) for op in dispatch.OPS)
    parts.append(f"{_OPS}\n```\n{schemas}\n```\n")
    return "\n".join(parts)


def _public(module: ModuleType) -> list[str]:
    own = (n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__)
    names: list[str] = getattr(module, "__all__", None) or [n for n in own if n[0] != "_"]

    def order(name: str) -> tuple[bool, bool, str]:  # functions, classes, errors
        bases = getattr(getattr(module, name), "__mro__", ())
        return Exception in bases, bool(bases), name.lower()

    return sorted(names, key=order)


def _section(heading: str, more: str, entries: list[str]) -> str:
    return "\n\n".join(filter(None, (f"## {heading}", more, "\n".join(entries)))) + "\n"


def _entry(prefix: str, module: ModuleType, name: str) -> str:
    thing = getattr(module, name)
    names = get_args(thing) or (() if callable(thing) else thing)
    if names:
        return f"- `{prefix}.{name}`: {', '.join(f'`{key}`' for key in names)}."
    file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").relative_to(_ROOT)
    first = (inspect.getdoc(thing) or "").partition("\n")[0]
    line = f"- [`{prefix}.{name}`](../{file}): {first}"
    return line + "".join(f"\\\n  `{name}{arguments}`" for arguments in _arguments(thing))


def _arguments(thing: Any) -> Iterator[str]:
    """Of a function, or of a class that takes some of its own."""
    if isinstance(thing, type):
        own = "__init__" in vars(thing) or hasattr(thing, "_fields")
        if not own or getattr(thing, "_is_protocol", False):
            return
    signature = inspect.signature(thing)
    bare = [x.replace(annotation=x.empty) for x in signature.parameters.values()]
    yield str(signature.replace(parameters=bare, return_annotation=signature.empty))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.stdout.write(page())
    for path in sys.argv[1:]:
        Path(path).write_text(page())
