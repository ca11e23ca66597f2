# SPDX-License-Identifier: Apache-2.0
"""Text of the prompt that a processor wrote around and inside pictures: nobody's words."""

from __future__ import annotations

import torch
from torch import Tensor

from .architectures import Architecture
from .layout import Layout


def marks(arch: Architecture, where: Layout, ids: Tensor) -> Tensor:
    """Bool `[B, L]`: text that belongs to an image or a video.

    Args:
        arch: says what its processor writes; see `Architecture.marks`.
        where: the visual tokens.
        ids: int64 `[B, L]` on the host.
    """
    found = torch.zeros_like(ids, dtype=torch.bool)
    if arch.marks == "crops":
        for row in where.sample.unique().tolist():
            _crops(ids[row], where.column[where.sample == row], found[row])
    elif arch.marks == "rows":
        for number in where.image.unique().tolist():
            row, columns = _place(where, number)
            _between(columns, found[row])
            last = int(columns[-1])
            found[row, last + 1 : last + 2] = True
    elif arch.marks == "names":
        after = (where.column.diff() == 2) & (where.sample.diff() == 0)
        found[where.sample[1:][after], where.column[1:][after] - 1] = True
    elif arch.timed:
        first = _first_time if arch.marks == "times" else _first_clock
        for number in where.image[where.video].unique().tolist():
            row, columns = _place(where, number)
            first(ids[row], columns, _between(columns, found[row]), found[row])
    return found


def _place(where: Layout, number: int) -> tuple[int, Tensor]:
    """The prompt of an image, and its columns there."""
    mine = where.image == number
    return int(where.sample[mine][0]), where.column[mine]


def _between(columns: Tensor, found: Tensor) -> Tensor:
    """Mark what stands between the first and the last of `columns`; returns where that is."""
    first = int(columns[0])
    inside = found.new_ones(int(columns[-1]) - first + 1)
    inside[columns - first] = False
    gap = inside.nonzero().flatten() + first
    found[gap] = True
    return gap


def _first_time(ids: Tensor, columns: Tensor, gap: Tensor, found: Tensor) -> None:
    """Mark the time of a video's first frame, which begins with the same token as the others."""
    # <end of vision> <time> ... <start of vision>: up to the next frame.
    size = int((gap.diff() == 1).long().cumprod(0).sum()) + 1 if len(gap) else 0
    if size > 2:
        first = int(columns[0])
        before = ids[max(first - 2 * size, 0) : first]
        opened = (before == ids[gap[1]]).nonzero().flatten()
        if len(opened):
            found[first - len(before) + int(opened[-1]) : first] = True


def _first_clock(ids: Tensor, columns: Tensor, gap: Tensor, found: Tensor) -> None:
    """Likewise where all times are as long, and none but the first stands directly behind text."""
    # <end of image> [space] <time> <start of image>, and for the first frame perhaps no space.
    size = int((gap.diff() == 1).long().cumprod(0).sum()) if len(gap) else 0
    first = int(columns[0])
    if 1 < size <= first and ids[first - 1] == ids[gap[size]]:
        start = first - size
        found[start + int(ids[start] != ids[gap[1]]) : first] = True


def _crops(ids: Tensor, columns: Tensor, found: Tensor) -> None:
    """Mark what announces crops, if all of a prompt are announced as by the processor.

    That writes <fake> <which crop> in front of each, and <fake> behind the last one of a picture.
    So between two crops stands one <fake>, between two pictures are two with the user's words.
    """
    after = columns.diff() > 1
    starts = torch.cat((columns[:1], columns[1:][after])).tolist()
    ends = (torch.cat((columns[:-1][after], columns[-1:])) + 1).tolist()
    if ends[-1] >= len(ids) or starts[0] < 2:
        return
    fake = ids[ends[-1]]
    if any(ids[start - 2] != fake for start in starts):
        return
    for start, end in zip(starts, ends, strict=True):
        found[start - 2 : start] = True
        found[end] = True
    for end, start in zip(ends, starts[1:], strict=False):
        if int((ids[end:start] == fake).sum()) == 1:
            found[end:start] = True
