# SPDX-License-Identifier: Apache-2.0
"""Run the tests of pruned models on several transformers; write the table of docs/hf.md.

make hf-matrix                                    all versions
python -m python_tests.hf_matrix 4.57.6 5.17.0    some, without writing
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.progress import track

from python_tests.trees import OLDEST, ROOT, TREES, install
from python_tests.vlms import BUILDERS

PAGE = ROOT / "docs" / "hf.md"
BEGIN, END = "<!-- hf:matrix:begin -->", "<!-- hf:matrix:end -->"
# The oldest supported one, both sides of what moved between them, and the pinned version.
PINNED = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
VERSIONS = [OLDEST, "5.3.0", "5.17.0", "5.20.2"] + ([PINNED[1]] if PINNED else [])
TESTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("python_tests/test_hf_*.py"))
NAMES = sorted(BUILDERS, key=len, reverse=True)  # "llava" is a part of another's name
OTHERS = "independent of the model"
# Their code is nearly that of qwen2_5_vl, qwen3_vl, qwen3_5, smolvlm, llava_next, llava and
# cohere2_vision: an older version of it is tried by `make hf-matrix` alone.
TWINS = (
    "qwen2_vl", "qwen3_vl_moe", "qwen3_5_moe", "idefics3", "llava_next_video", "vipllava",
    "deepseek_vl", "aya_vision",
)  # fmt: skip

Counts = dict[str, Counter[str]]


@dataclass
class Ended:
    """How the tests ended.

    Attributes:
        counts: by model, of `passed`, `failure`, `error` and `skipped`.
        failed: what pytest says of each test that failed, by its name.
        skipped: the reasons of the skipped ones.
    """

    counts: Counts = field(default_factory=lambda: {name: Counter() for name in (*NAMES, OTHERS)})
    failed: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def run(version: str, every: bool = False) -> Ended:
    """The tests in a process of their own, with a version that is installed if it is not there.

    `every`: also those that `make test` runs with the newest version only, to save time, and those
    of `TWINS`.
    """
    paths = [str(install(version)), os.environ.get("PYTHONPATH", "")]
    report = TREES / f"{version}.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if not every:
        options += ["-k", f"not ({' or '.join(TWINS)})"]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *TESTS],
        cwd=ROOT,
        env={
            **os.environ,
            **({"ZSPA_HF_MATRIX": "1"} if every else {}),
            "OMP_NUM_THREADS": "1",  # tiny models: more threads only wait for one another
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not report.exists():
        raise RuntimeError(f"transformers {version}: the tests did not run\n{process.stdout}")
    return read(report)


def read(report: Path) -> Ended:
    """How the tests of a report in JUnit's format ended."""
    ended = Ended()
    for case in ElementTree.parse(report).iter("testcase"):
        test = case.get("name", "")
        inside = test.partition("[")[2]
        name = next((one for one in NAMES if one in inside), OTHERS)
        found = [child for child in case if child.tag in ("failure", "error", "skipped")]
        kind = found[0].tag if found else "passed"
        ended.counts[name][kind] += 1
        if kind == "skipped":
            ended.skipped[found[0].get("message", "")] += 1
        elif found:
            ended.failed[test] = found[0].text or ""
    return ended


def table(results: dict[str, Counts]) -> str:
    """Markdown: passed of run, a model a row, a version a column; a dash: none can run."""
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for name in [*sorted(NAMES), OTHERS]:
        cells = []
        for counts in results.values():
            ended = counts[name]
            ran = ended["passed"] + ended["failure"] + ended["error"]
            cells.append(f"{ended['passed']} of {ran}" if ran else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(versions: Sequence[str]) -> int:
    console = Console()
    results: dict[str, Counts] = {}
    bad = 0
    for version in track(versions or VERSIONS, description="transformers", console=console):
        ended = run(version, every=True)
        results[version] = ended.counts
        for test in ended.failed:
            console.print(f"{version}: {test} failed", highlight=False)
        bad += len(ended.failed)
    console.print(table(results), highlight=False, soft_wrap=True)
    if not versions:
        text = PAGE.read_text()
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{tail}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
