# SPDX-License-Identifier: Apache-2.0
"""SCOPE and MMTok: what each token adds to the coverage of rows, summed anew at every pick."""

from __future__ import annotations

import math

from torch import Tensor

from .common import cosines, directed


def softmax(values: list[float], temperature: float) -> list[float]:
    top = max(values)
    powers = [math.exp((v - top) / temperature) for v in values]
    return [p / sum(powers) for p in powers]


def word_rows(visual: Tensor, prompt: Tensor, tokens: list[int], heat: float) -> list[list[float]]:
    """MMTok's matrix P: softmax over tokens of their cosine with each word, over their number."""
    words = [w for w in prompt.double() if float(w.square().sum()) <= 2.0**80]
    rows = []
    for word in words:
        near = []
        for i in tokens:
            length = float(visual[i].double().norm() * word.norm())
            near.append(float((visual[i].double() * word).sum()) / length if length > 0 else 0.0)
        rows.append([p / len(words) for p in softmax(near, heat)])
    return rows


def token_rows(features: Tensor, tokens: list[int], heat: float) -> list[list[float]]:
    """Cosines where positive (heat 0: SCOPE), or MMTok's matrix Q over the number of tokens."""
    c, known = cosines(features.nan_to_num(0.0, 0.0, 0.0)), directed(features)
    places = [i for i in tokens if known[i]]
    rows = []
    for i in places:
        if heat == 0:
            rows.append([max(0.0, c[i][j]) for j in tokens])
            continue
        share = dict(zip(places, softmax([c[i][j] for j in places], heat), strict=True))
        rows.append([share.get(j, 0.0) / len(places) for j in tokens])
    return rows


def check_coverage(
    picks: list[int],
    tokens: list[int],
    rows: list[list[float]],
    weights: dict[int, float],
    absolute: float,
    relative: float,
) -> int:
    """Replay the picks; returns how many of them had only one right answer.

    An entry of float32 rows is off by `absolute + relative * entry`, and so is what covers it.
    """
    decided = 0
    covered = [0.0] * len(rows)
    slack_of = [0.0] * len(rows)
    assert len(set(picks)) == len(picks)
    for turn, pick in enumerate(picks):
        assert pick in tokens
        low, high = {}, {}
        for place, j in enumerate(tokens):
            if j in picks[:turn]:
                continue
            gain = slack = 0.0
            for row, best, off in zip(rows, covered, slack_of, strict=True):
                more = absolute + relative * row[place] + off
                gain += max(0.0, row[place] - best)
                slack += more if row[place] - best + more > 0 else 0.0
            slack += 2e-6 * gain
            low[j], high[j] = weights[j] * (gain - slack), weights[j] * (gain + slack)
        best = max(low.values())
        assert high[pick] >= best, f"pick {turn}: {high[pick]} instead of {best}"
        decided += sum(x >= best for x in high.values()) == 1
        place = tokens.index(pick)
        covered = [max(b, row[place]) for b, row in zip(covered, rows, strict=True)]
        slack_of = [
            max(s, absolute + relative * row[place]) for s, row in zip(slack_of, rows, strict=True)
        ]
    return decided
