# SPDX-License-Identifier: Apache-2.0
"""Whole answers of a model on a GPU: `python -m bench.gpu_end_to_end PRESET ATTENTION [DEVICE]`.

A job of `bench.gpu`. It prints what `bench.end_to_end` would write of one model as a line of JSON,
without typer and matplotlib; `python -m bench.end_to_end --add FILE` makes tables of it.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import torch
import transformers

from bench import gpu_jobs
from bench.end_to_end_models import PRESETS
from bench.end_to_end_runs import measure
from bench.timing import quiet

NEW_TOKENS, ROUNDS = 32, 7
#: Implementations of attention, as transformers calls them, and the package that each needs.
ATTENTION = {"sdpa": "torch", "flash_attention_2": "flash_attn"}


def runs() -> list[tuple[str, str]]:
    """(preset, attention) of all jobs that this machine can run, the most telling first."""
    here = [name for name, package in ATTENTION.items() if importlib.util.find_spec(package)]
    large = [name for name, preset in PRESETS.items() if preset.gpu]
    # Tiny ones first: whether anything of this works on a GPU is known within a minute.
    tiny = [(name, "sdpa") for name in PRESETS if name.startswith("tiny")]
    return tiny + [(name, how) for how in here for name in large]


def _say(step: str) -> None:
    """At once: a job that is killed at its limit shows how far it came."""
    print(step, flush=True)


def main(preset: str, attention: str, device: str = "cuda") -> int:
    """Measure; returns 1 where something is wrong, which then has no figure."""
    with quiet(torch.get_num_threads()):
        try:
            found = measure(
                PRESETS[preset], torch.device(device), NEW_TOKENS, ROUNDS, _say, attention
            )
        except AssertionError as error:
            print(f"no figure: {error}")
            return 1
    head = {"preset": preset, "attention": attention, "transformers": transformers.__version__}
    print(json.dumps({**head, **found}))
    return 0


if __name__ == "__main__":
    gpu_jobs.watch()
    sys.exit(main(*sys.argv[1:]))
