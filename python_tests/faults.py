# SPDX-License-Identifier: Apache-2.0
"""A blocked greedy selection in float32 into which faults can be planted.

Built like the real kernels (candidates, a bound, a pass that brings all tokens up to date), small
enough to be read in one go, and slow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _tf32(x: Tensor) -> Tensor:
    """Ten bits of mantissa, rounded to nearest."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Model:
    """relevance_topk, diversity and select on one segment, with at most one fault."""

    def __init__(self, fault: str = "", block: int = 8) -> None:
        self.fault = fault
        self.block = block

    def _rows(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Rows in float32, their inverse lengths (0 for zero rows) and which are valid."""
        rows = x.float()
        square = rows.double().square().sum(-1).float()
        valid = square.isfinite() if self.fault == "huge rows are valid" else square <= 2.0**80
        if self.fault == "NaN rows are valid":
            valid = torch.ones_like(valid)
            rows, square = rows.nan_to_num(0.0, 0.0, 0.0), square.nan_to_num(0.0, 0.0, 0.0)
        if mask is not None and self.fault != "mask ignored":
            valid = valid & mask
        shown = square <= 2.0**80 if self.fault == "masked tokens in the seed" else valid
        rows = torch.where(shown[:, None], rows, 0.0)
        inverse = 1 / torch.where(shown, square, 1.0).sqrt()
        if self.fault == "epsilon under the root":
            inverse = 1 / (torch.where(valid, square, 1.0) + 1e-12).sqrt()
        inverse = torch.where((square < 2.0**-80) | ~shown, 0.0, inverse)
        return rows, inverse, valid

    def _cosines(self, rows: Tensor, inverse: Tensor) -> Tensor:
        factor = _tf32(rows) if self.fault == "TF32 products" else rows
        if self.fault == "last columns dropped":
            factor = factor[:, : rows.shape[1] // 8 * 8]
        # One row after the other, so that identical rows get identical cosines.
        dots = torch.stack([(factor.double() * row.double()).sum(-1) for row in factor]).float()
        if self.fault == "half-precision sums":
            dots = torch.stack([(factor.half() * row.half()).sum(-1) for row in factor]).float()
        cosines = dots * (inverse[:, None] * inverse[None, :])
        return cosines.bfloat16().float() if self.fault == "bfloat16 cosines" else cosines

    def relevance(
        self,
        visual: Tensor,
        prompt: Tensor,
        mask: Tensor | None,
        prompt_mask: Tensor | None,
        pooling: str,
    ) -> tuple[Tensor, bool]:
        rows, inverse, valid = self._rows(visual, mask)
        words, lengths, real = self._rows(
            prompt, None if self.fault == "prompt mask ignored" else prompt_mask
        )
        if self.fault == "prompt mask divides by all":
            words = words * real.sum() / words.shape[0]
        words, lengths = words[real], lengths[real]
        scores = torch.zeros(rows.shape[0])
        if pooling == "max" and self.fault == "max pooling with zeros for masked":
            words = torch.cat([words, torch.zeros(1, words.shape[1])])
        if words.shape[0] and pooling in ("mean", "max"):
            pooled = words.mean(0) if pooling == "mean" else words.amax(0)
            if self.fault == "mean of directions":
                pooled = (words * lengths[:, None]).mean(0)
            if self.fault == "pooled prompt in half precision":
                pooled = pooled.to(prompt.dtype).float()
            square = pooled.double().square().sum().float()
            length = 1 / square.sqrt() if square >= 2.0**-80 else torch.tensor(0.0)
            dots = (rows.double() * pooled.double()).sum(-1).float()
            scores = dots * (inverse * length)
        elif words.shape[0]:
            dots = torch.stack([(rows.double() * w.double()).sum(-1) for w in words], -1).float()
            cosines = dots * (inverse[:, None] * lengths)
            scores = cosines.mean(-1) if pooling == "none_mean" else cosines.amax(-1)
            if pooling == "none_max" and self.fault == "none_max starts at 0":
                scores = scores.clamp_min(0.0)
        zero = valid & (inverse == 0)
        if self.fault != "zero rows have relevance 0":
            scores = torch.where(zero, -1.0, scores)
        return torch.where(valid, scores, -torch.inf), words.shape[0] > 0

    def relevance_topk(
        self,
        visual: Tensor,
        prompt: Tensor,
        k: int,
        mask: Tensor | None,
        prompt_mask: Tensor | None,
        pooling: str,
    ) -> tuple[Tensor, Tensor]:
        scores, core = self.relevance(visual, prompt, mask, prompt_mask, pooling)
        sign = -1 if self.fault == "ties to the highest index" else 1
        ranked = sorted(
            (-s, sign * i) for i, s in enumerate(scores.tolist()) if s != -math.inf and core
        )
        picks = [abs(i) for _, i in ranked[:k]]
        return torch.tensor(picks + [-1] * (k - len(picks)), dtype=torch.int64), scores

    def diversity(
        self,
        visual: Tensor,
        k: int,
        seeds: Tensor | None,
        weights: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        rows, inverse, valid = self._rows(visual, mask)
        cosines = self._cosines(rows, inverse)
        n = rows.shape[0]
        zero = valid & (inverse == 0)
        heavy = torch.ones(n) if weights is None else weights
        usable = heavy.isfinite() & (heavy >= 0)
        if self.fault == "negative weights are valid":
            usable = heavy.isfinite()
        if self.fault != "weight NaN is 0":
            valid = valid & usable
        heavy = torch.where(usable, heavy, 0.0)
        largest = torch.full((n,), 0.0 if self.fault == "maximum starts at 0" else -1.0)
        if self.fault != "zero rows are far from everything":
            largest[zero] = 1.0
        eligible = valid.clone()
        picks: list[int] = []

        def take(token: int) -> None:
            eligible[token] = False
            if not zero[token] or self.fault == "zero rows touch others":
                update([token])

        def update(accepted: list[int]) -> None:
            for token in accepted:
                seen = cosines[token].clone()
                if self.fault == "absolute cosines":
                    seen = seen.abs()
                if self.fault == "last row of a block dropped":
                    seen[15::16] = -1.0
                directed = ~zero
                if zero[token] and self.fault != "zero rows touch others":
                    continue
                largest[directed] = torch.maximum(largest, seen)[directed]

        started = False
        given = [] if seeds is None else seeds.tolist()
        if self.fault == "negative seeds wrap":
            given = [s + n if -n <= s < 0 else s for s in given]
        for seed in given:
            if 0 <= seed < n and valid[seed]:
                take(seed)
                started = True
                if self.fault == "seeds not excluded":
                    eligible[seed] = True
        if k and not started and bool(eligible.any()):
            first = self._first(cosines, eligible, zero, None if weights is None else heavy)
            take(first)
            picks.append(first)
        while len(picks) < k and bool(eligible.any()):
            accepted = self._block(cosines, largest, heavy, eligible, zero, k - len(picks))
            picks += accepted
            if self.fault != "set does not grow":
                update(accepted)
        return torch.tensor(picks + [-1] * (k - len(picks)), dtype=torch.int64)

    def _first(
        self, cosines: Tensor, eligible: Tensor, zero: Tensor, weights: Tensor | None
    ) -> int:
        if self.fault == "seed is token 0":
            return int(eligible.nonzero()[0, 0])
        if weights is not None and self.fault != "equal to no weights":
            cost = -weights
        else:
            others = eligible & ~zero
            if self.fault == "masked tokens in the seed":
                others = torch.ones_like(others)
            cost = torch.where(others, cosines, -1.0).fill_diagonal_(-1.0).amax(-1)
            if self.fault == "seed sees itself":
                cost = torch.where(others, cosines, -1.0).amax(-1)
            cost = torch.where(zero, 1.0, cost.clamp_min(-1.0))
        return min(eligible.nonzero()[:, 0].tolist(), key=lambda i: (float(cost[i]), i))

    def _block(
        self,
        cosines: Tensor,
        largest: Tensor,
        weights: Tensor,
        eligible: Tensor,
        zero: Tensor,
        left: int,
    ) -> list[int]:
        """One pass: candidates, bound, picks among the candidates that beat the bound."""
        sign = -1 if self.fault == "ties to the highest index" else 1

        def keys(tokens: list[int], of: Tensor) -> list[tuple[float, int]]:
            cost = -(weights * (1 - of))
            if self.fault == "weight minus similarity":
                cost = of - weights
            return [(float(cost[i]), sign * i) for i in tokens]

        everyone = eligible.nonzero()[:, 0].tolist()
        if self.fault == "tail is no candidate" and len(everyone) > self.block:
            everyone = [i for i in everyone if i < len(eligible) // 8 * 8] or everyone
        ranked = sorted(keys(everyone, largest))
        candidates = [abs(i) for _, i in ranked[: self.block]]
        bound = ranked[self.block] if len(ranked) > self.block else (math.inf, 0)
        inside = largest.clone()
        accepted: list[int] = []
        while candidates and len(accepted) < left:
            best = min(keys(candidates, inside))
            beaten = best < bound
            if self.fault == "<= at the block bound":
                beaten = best[0] <= bound[0]
            if self.fault == "no bound":
                beaten = True
            if accepted and not beaten:
                break
            pick = abs(best[1])
            accepted.append(pick)
            candidates.remove(pick)
            eligible[pick] = False
            if not zero[pick] and self.fault != "set does not grow":
                seen = torch.maximum(inside, cosines[pick])
                inside = torch.where(zero, inside, seen)
        return accepted

    def select(
        self,
        visual: Tensor,
        prompt: Tensor | None,
        k_core: int,
        k_diverse: int,
        mask: Tensor | None,
        prompt_mask: Tensor | None,
        pooling: str,
    ) -> Tensor:
        k = k_core + k_diverse
        core = torch.empty(0, dtype=torch.int64)
        if prompt is not None and k_core:
            real = bool(self._rows(prompt, prompt_mask)[2].any())
            core, _ = self.relevance_topk(visual, prompt, k_core, mask, prompt_mask, pooling)
            core = core[core >= 0]
            if not real and self.fault != "no prompt, no core, no more":
                k_diverse = k
        picks = torch.cat([core, self.diversity(visual, k_diverse, core, None, mask)])
        picks = picks[picks >= 0][:k]
        return torch.cat([picks, torch.full((k - len(picks),), -1, dtype=torch.int64)])
