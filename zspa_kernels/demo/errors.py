# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the commands, each with its exit code; and how many tokens they keep."""

from __future__ import annotations

from zspa_kernels import num_keep


class DemoError(Exception):
    """The demo could not do its work: unreadable picture, unwritable output."""

    exit_code = 1


class UsageError(DemoError):
    """An option has a value that makes no sense."""

    exit_code = 2


def share_or_count(text: str) -> float:
    """What `--keep` says: a count where the text is a whole number, else a share.

    Raises:
        UsageError: it is no number, or one that `num_keep` does not take.
    """
    try:
        keep = int(text) if text.isdecimal() else float(text)
        num_keep(1, keep)
    except ValueError:
        rule = "a share in (0, 1] such as 0.1, or a count of at least 1"
        raise UsageError(f"--keep must be {rule}, got {text!r}") from None
    return keep
