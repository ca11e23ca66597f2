# SPDX-License-Identifier: Apache-2.0
"""Run the tests of pruned models on several transformers; write the table of docs/hf.md.

    make hf-matrix                                    all versions
    python -m python_tests.hf_matrix 4.57.6 5.17.0    some, without writing

Every version is installed with its own dependencies into a directory of its own, build/hf/VERSION,
and put in front of the environment, whose torch all of them share.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "hf.md"
TREES = ROOT / "build" / "hf"
BEGIN, END = "<!-- hf:matrix:begin -->", "<!-- hf:matrix:end -->"
# The oldest supported line, both sides of what moved between them, and the pinned version.
PINNED = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
VERSIONS = ["4.57.6", "5.3.0", "5.17.0", "5.20.2"] + ([PINNED[1]] if PINNED else [])
TESTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("python_tests/test_hf_*.py"))
NAMES = ["llava_next", "llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "smolvlm"]
OTHERS = "independent of the model"

Counts = dict[str, Counter[str]]


def install(version: str) -> Path:
    """The directory of a version."""
    tree = TREES / version
    if not (tree / "transformers").is_dir():
        wanted = f"transformers=={version}"
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tree), wanted]
        subprocess.run(command, check=True)
    return tree


def run(version: str) -> tuple[Counts, list[str]]:
    """How the tests of each architecture ended, and the names of those that failed."""
    paths = [str(install(version)), os.environ.get("PYTHONPATH", "")]
    report = TREES / f"{version}.xml"
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, *TESTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    counts: Counts = {name: Counter() for name in (*NAMES, OTHERS)}
    failed = []
    for case in ElementTree.parse(report).iter("testcase"):
        test = case.get("name", "")
        inside = test.partition("[")[2]
        name = next((one for one in NAMES if one in inside), OTHERS)
        ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        kind = ends[0] if ends else "passed"
        counts[name][kind] += 1
        if kind in ("failure", "error"):
            failed.append(test)
    return counts, failed


def table(results: dict[str, Counts]) -> str:
    """Markdown: passed of run, an architecture a row, a version a column."""
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for name in [*sorted(NAMES), OTHERS]:
        cells = []
        for counts in results.values():
            ended = counts[name]
            ran = ended["passed"] + ended["failure"] + ended["error"]
            cells.append(f"{ended['passed']} of {ran}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(versions: Sequence[str]) -> int:
    console = Console()
    results: dict[str, Counts] = {}
    bad = 0
    for version in track(versions or VERSIONS, description="transformers", console=console):
        results[version], failed = run(version)
        for test in failed:
            console.print(f"{version}: {test} failed", highlight=False)
        bad += len(failed)
    console.print(table(results), highlight=False)
    if not versions:
        text = PAGE.read_text()
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{tail}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
