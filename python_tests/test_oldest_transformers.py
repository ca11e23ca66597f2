# SPDX-License-Identifier: Apache-2.0
"""The tests of pruned models once more, with the oldest transformers that is supported."""

from __future__ import annotations

import pytest

from python_tests import hf_matrix, vlms
from python_tests.trees import HOW, OLDEST, mark


@pytest.mark.slow
def test_pruned_models_with_the_oldest_transformers() -> None:
    if not mark(OLDEST).exists():
        pytest.skip(f"transformers {OLDEST} is not installed: {HOW}")
    ended = hf_matrix.run(OLDEST)
    assert not ended.failed, "\n\n".join(
        f"{test} with transformers {OLDEST}:\n{text}" for test, text in ended.failed.items()
    )
    # What is skipped there needs a newer one, and says so.
    assert all(reason.startswith("transformers >= 5.") for reason in ended.skipped), ended.skipped
    for name in set(hf_matrix.NAMES) - set(hf_matrix.TWINS) - set(vlms.SINCE):
        assert ended.counts[name]["passed"] >= 6, ended.counts
    for name in ("llava", "llava_next", "qwen2_5_vl"):
        assert ended.counts[name]["passed"] >= 30, ended.counts
