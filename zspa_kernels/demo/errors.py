# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the demo, each with the exit code of the command."""

from __future__ import annotations


class DemoError(Exception):
    """The demo could not do its work: unreadable picture, unwritable output."""

    exit_code = 1


class UsageError(DemoError):
    """An option has a value that makes no sense."""

    exit_code = 2
