# SPDX-License-Identifier: Apache-2.0
"""Greedy selections in float32 into which faults can be planted; see `faults`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from python_tests.faults import Model

_DEPENDENT = 2.0**-16


class DppModel(Model):
    """dpp on one segment, with at most one fault."""

    def dpp(self, visual: Tensor, k: int, weights: Tensor | None, mask: Tensor | None) -> Tensor:
        rows, inverse, eligible = self._rows(visual, mask)
        cosines = self._cosines(rows, inverse)
        n = rows.shape[0]
        self.weights = torch.ones(n) if weights is None else weights
        usable = self.weights.isfinite() & (self.weights >= 0)
        if self.fault == "negative weights are valid":
            usable = self.weights.isfinite()
        if self.fault != "weight NaN is 0":
            eligible = eligible & usable
        self.weights = torch.where(usable, self.weights, 0.0)
        residual = (inverse > 0).float()
        if self.fault == "zero rows have a residual":
            residual = torch.ones(n)
        if self.fault == "residual starts at the computed square":
            residual = torch.where(inverse > 0, cosines.diagonal(), 0.0)
        factor = torch.zeros(n, 0)
        picks: list[int] = []
        while len(picks) < k and bool(eligible.any()):
            before = factor.shape[1]
            accepted, factor, inside = self._pass(
                cosines, residual, factor, eligible, k - len(picks)
            )
            picks += accepted
            new = factor[:, before:]
            if self.fault == "last pick of a block not eliminated" and len(accepted) > 1:
                new = new[:, :-1]
            residual = self._shrink(residual, new)
            if self.fault == "last row of a block dropped":
                residual[n // 8 * 8 :] = inside[n // 8 * 8 :]
        return torch.tensor(picks + [-1] * (k - len(picks)), dtype=torch.int64)

    def _shrink(self, residual: Tensor, columns: Tensor) -> Tensor:
        for column in columns.T:
            residual = residual - column * column
            if self.fault != "nothing is dependent":
                residual = torch.where(residual <= _DEPENDENT, 0.0, residual)
        return residual

    def _key(self, residual: Tensor, token: int) -> tuple[float, int]:
        sign = -1 if self.fault == "ties to the highest index" else 1
        root = float(residual[token])
        if self.fault != "weights are not squared":
            root = math.sqrt(max(root, 0.0))
        return -float(self.weights[token]) * root, sign * token

    def _pass(
        self, cosines: Tensor, residual: Tensor, factor: Tensor, eligible: Tensor, left: int
    ) -> tuple[list[int], Tensor, Tensor]:
        """Picks among the candidates that beat the bound, and the factor with their columns."""
        ranked = sorted(self._key(residual, i) for i in eligible.nonzero()[:, 0].tolist())
        candidates = [abs(i) for _, i in ranked[: self.block]]
        bound = ranked[self.block] if len(ranked) > self.block else (math.inf, 0)
        before, inside = residual, residual.clone()
        accepted: list[int] = []
        while candidates and len(accepted) < left:
            best = min(self._key(inside, i) for i in candidates)
            beaten = best < bound
            if self.fault == "<= at the block bound":
                beaten = best[0] <= bound[0]
            if accepted and not beaten and self.fault != "no bound":
                break
            pick = abs(best[1])
            accepted.append(pick)
            candidates.remove(pick)
            eligible[pick] = False
            if float(inside[pick]) == 0:
                continue
            entry = cosines[pick]
            if factor.shape[1] and self.fault != "earlier picks forgotten":
                entry = entry - (factor.double() @ factor[pick].double()).float()
            column = entry / inside[pick].sqrt()
            if self.fault == "column not scaled":
                column = entry
            factor = torch.cat([factor, column[:, None]], dim=1)
            inside = self._shrink(inside, column[:, None])
        return accepted, factor, before


class FacilityModel(Model):
    """facility_location on one segment, with at most one fault."""

    def facility_location(
        self,
        visual: Tensor,
        k: int,
        benefits: Tensor | None,
        weights: Tensor | None,
        mask: Tensor | None,
        temperature: float,
        scale: float,
    ) -> Tensor:
        rows, inverse, eligible = self._rows(visual, mask)
        heavy = torch.ones(rows.shape[0]) if weights is None else weights
        usable = heavy.isfinite() & (heavy >= 0)
        if self.fault == "negative weights are valid":
            usable = heavy.isfinite()
        if self.fault != "weight NaN is 0":
            eligible = eligible & usable
        heavy = torch.where(usable, heavy, 0.0)
        directed = eligible & (inverse > 0)
        if self.fault == "zero rows cover themselves":
            directed = eligible
        if self.fault == "masked tokens are covered":
            directed = inverse > 0
        cover = self._cover(self._cosines(rows, inverse), directed, temperature)  # [V, N]
        if benefits is not None and len(benefits):
            words = torch.where(benefits.isfinite(), benefits, 0.0).clamp_min(0.0)
            cover = cover * (
                scale if self.fault == "scale of a sum" else scale / max(1, len(cover))
            )
            cover = torch.cat([words, cover])
        best = torch.full((len(cover),), 0.0)
        if self.fault == "nothing covered is minus one":
            best = best - 1
        picks: list[int] = []
        gain = self._gain(cover, best, heavy)
        while len(picks) < k and bool(eligible.any()):
            sign = -1 if self.fault == "ties to the highest index" else 1
            pick = abs(min((-float(gain[i]), sign * int(i)) for i in eligible.nonzero()[:, 0])[1])
            picks.append(pick)
            eligible[pick] = False
            best = torch.maximum(best, cover[:, pick])
            if self.fault == "only the last pick covers":
                best = cover[:, pick]
            if self.fault == "last row of a block dropped":
                best[len(best) // 8 * 8 :] = 0.0
            if self.fault != "stale gains are picked":
                gain = self._gain(cover, best, heavy)
        return torch.tensor(picks + [-1] * (k - len(picks)), dtype=torch.int64)

    def _gain(self, cover: Tensor, best: Tensor, weights: Tensor) -> Tensor:
        left = cover - best[:, None]
        if self.fault != "losses count":
            left = left.clamp_min(0.0)
        gain = left.double().sum(0).float()
        return gain if self.fault == "weights ignored" else weights * gain

    def _cover(self, cosines: Tensor, directed: Tensor, temperature: float) -> Tensor:
        if self.fault == "a token does not cover itself":
            cosines = cosines.clone().fill_diagonal_(0.0)
        if temperature == 0.0:
            cover = cosines.abs() if self.fault == "absolute cosines" else cosines.clamp_min(0.0)
        else:
            shown = torch.where(directed, cosines, -torch.inf)
            if self.fault == "masked tokens in the softmax":
                shown = cosines
            heat = 1 / temperature if self.fault == "temperature multiplies" else temperature
            cover = torch.softmax(shown.double() / heat, -1).float()
            if self.fault == "softmax over the covered":
                cover = cover.T
        return torch.where(directed, cover, 0.0)[directed]


class MinSumModel(Model):
    """min_sum on one segment, with at most one fault."""

    def min_sum(self, visual: Tensor, k: int, seeds: Tensor | None, mask: Tensor | None) -> Tensor:
        rows, inverse, eligible = self._rows(visual, mask)
        cosines = self._cosines(rows, inverse)
        if self.fault == "absolute cosines":
            cosines = cosines.abs()
        zero = eligible & (inverse == 0)
        given = [] if seeds is None else seeds.tolist()
        selected = [i for i in given if 0 <= i < len(rows) and bool(eligible[i])]
        if self.fault != "repeated seeds count again":
            selected = list(dict.fromkeys(selected))
        if self.fault != "seeds can be picked":
            eligible[selected] = False
        wide = torch.bfloat16 if self.fault == "bfloat16 sums" else torch.float64
        sums = torch.zeros(len(rows), dtype=wide)
        for i in selected if self.fault != "seeds add nothing" else []:
            sums = sums + cosines[i].to(wide)
        picks: list[int] = []
        if not selected and k and bool(eligible.any()):
            picks = [self._opening(rows, inverse, eligible, cosines, zero)]
            eligible[picks] = False
            if self.fault == "the first sums stay":
                sums = sums + cosines[:, inverse > 0].double().sum(1)
            sums = self._add(sums, cosines[picks[0]])
        while len(picks) < k and bool(eligible.any()):
            for pick in self._forecast(cosines, sums, eligible, zero)[: k - len(picks)]:
                trusted = self.fault == "the forecast is trusted"
                if pick != self._best(sums, eligible, zero) and not trusted:
                    break
                picks.append(pick)
                eligible[pick] = False
                if self.fault != "only the first of a forecast adds" or len(picks) % 2:
                    sums = self._add(sums, cosines[pick])
        return torch.tensor(picks + [-1] * (k - len(picks)), dtype=torch.int64)

    def _opening(
        self, rows: Tensor, inverse: Tensor, eligible: Tensor, cosines: Tensor, zero: Tensor
    ) -> int:
        if self.fault == "the first is token 0":
            return int(eligible.nonzero()[0, 0])
        if self.fault == "the first is the loneliest":
            lonely = cosines.clone().fill_diagonal_(-1.0).amax(1).double()
            return self._best(lonely, eligible, zero)
        shown = eligible
        if self.fault == "masked tokens in the seed":
            shown = torch.ones_like(eligible)
        units = rows.double() * inverse.double()[:, None]
        if self.fault == "the first weighs by length":
            units = rows.double()
        total = units[shown].sum(0)
        return self._best((rows.double() * total).sum(-1) * inverse, eligible, zero)

    def _best(self, sums: Tensor, eligible: Tensor, zero: Tensor) -> int:
        sign = -1 if self.fault == "ties to the highest index" else 1
        keys = (
            sums if self.fault == "zero rows have a sum of 0" else sums.masked_fill(zero, math.inf)
        )
        return abs(min((float(keys[i]), sign * int(i)) for i in eligible.nonzero()[:, 0])[1])

    def _add(self, sums: Tensor, column: Tensor) -> Tensor:
        if self.fault == "the largest cosine counts":
            return torch.maximum(sums, column.double())
        new = (sums + column.to(sums.dtype)).clone()
        if self.fault == "last row of a block dropped":
            end = len(sums) // 8 * 8
            new[end:] = sums[end:]
        return new

    def _forecast(self, cosines: Tensor, sums: Tensor, eligible: Tensor, zero: Tensor) -> list[int]:
        """What would be picked next, were there no others than the block's best tokens."""
        inside = torch.zeros_like(eligible)
        while int(inside.sum()) < min(self.block, int(eligible.sum())):
            inside[self._best(sums, eligible & ~inside, zero)] = True
        picks = []
        while bool(inside.any()):
            picks.append(self._best(sums, inside, zero))
            inside[picks[-1]] = False
            sums = self._add(sums, cosines[picks[-1]])
        return picks
