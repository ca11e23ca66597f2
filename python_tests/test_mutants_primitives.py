# SPDX-License-Identifier: Apache-2.0
"""Planted faults in plain torch (primitives, suppression): the proof beside each rejects it."""

from __future__ import annotations

import pytest
import torch

from python_tests import test_dart_and_holov as shared
from python_tests import test_method_rules as rules
from python_tests import test_primitives as primitives
from python_tests import test_suppress as suppression
from python_tests.faults_primitives import Proof, of, patched, reject

GREEDY = rules.test_greedyprune
SCORED = rules.test_scoredtopk
ID = rules.test_idselection
ADAPT = rules.test_adaptprune
CEN = rules.test_cenprune
TOME = rules.test_tome
ZIP = rules.test_visionzip
TRIM = rules.test_trimtokenator
VIS = rules.test_vispruner
HOLO = shared.test_holov
DART = shared.test_dart
ODD_ROWS = primitives.test_alignment_and_distinctiveness_of_odd_rows
MERGE = primitives.test_merge_is_differentiable_and_leaves_out_what_nobody_owns
SLOTS = primitives.test_assign_prefers_the_own_slot_and_the_lowest

#: What is wrong -> module, what stands there once, what stands there instead; the proof.
MUTANTS: dict[str, tuple[tuple[str, str, str], Proof]] = {
    "suppress: at the threshold": (
        (
            "backends.reference.suppress",
            "exact_cosine(i) > threshold",
            "exact_cosine(i) >= threshold",
        ),
        of(GREEDY, "exact"),
    ),
    "suppress: float32 decides": (
        ("backends.reference.suppress", "(i) > threshold", "(i) > torch.tensor(threshold)"),
        of(suppression.test_at_the_threshold_of_earlier_blocks, "reference", lambda *x: None),
    ),
    "suppress: zero rows are near": (
        ("backends.reference.suppress", ") & ~rows.zero", ") | rows.zero"),
        of(GREEDY, "zero_rows"),
    ),
    "suppress: what was left out suppresses": (
        ("backends.reference.suppress", "            continue\n", ""),
        of(GREEDY, "vlm"),
    ),
    "suppress: the last one alone suppresses": (
        ("backends.reference.suppress", "suppressed |= (", "suppressed = ("),
        of(GREEDY, "vlm"),
    ),
    "suppress: ties to the highest index": (
        (
            "backends.reference.suppress",
            "keys.sort(descending=True, stable=True).indices",
            "keys.argsort().flip(0)",
        ),
        of(GREEDY, "constant"),
    ),
    "suppress: infinite scores count": (
        ("backends.reference.suppress", "& scores.isfinite()", "& ~scores.isnan()"),
        of(GREEDY, "vlm"),
    ),
    "suppress: never fills": (
        ("backends.reference.suppress", "if fill else taken", "if False else taken"),
        of(GREEDY, "vlm"),
    ),
    "centred: masked tokens in the mean": (
        ("primitives.similarity", "masked_fill_(~real.unsqueeze(-1), 0.0)", "nan_to_num_(0.0)"),
        of(CEN, "masked"),
    ),
    "centred: mean over all": (
        (
            "primitives.similarity",
            "total / valid.sum(-1, keepdim=True)",
            "total / len(valid)",
        ),
        of(CEN, "masked"),
    ),
    "centred: the mean itself has a direction": (
        ("primitives.similarity", "(lengths(result) <= noise)", "(lengths(result) < 0)"),
        rules.test_the_mean_itself_is_chosen_late,
    ),
    "centred: invalid rows stay": (
        ("primitives.similarity", "result.masked_fill_(~valid.unsqueeze(-1), torch.nan)", "result"),
        ODD_ROWS,
    ),
    "distinctiveness: counts itself": (
        ("primitives.similarity", "(mean * count - 1.0) / (count - 1)", "mean"),
        ODD_ROWS,
    ),
    "distinctiveness: sign": (
        ("primitives.similarity", "(-others).masked", "others.masked"),
        of(CEN, "vlm"),
    ),
    "distinctiveness: zero rows are distinct": (
        (
            "primitives.similarity",
            "lengths(visual) < SHORTEST, 1.0",
            "lengths(visual) < SHORTEST, 0.0",
        ),
        ODD_ROWS,
    ),
    "alignment: distance to the mean": (
        ("primitives.similarity", "2.0 * mean) - spread", "2.0 * mean) - mean.square().sum(-1)"),
        ODD_ROWS,
    ),
    "alignment: prompt mask ignored": (
        (
            "primitives.similarity",
            "valid_rows(prompt, prompt_mask)\n    words = prompt.double",
            "valid_rows(prompt, None)\n    words = prompt.double",
        ),
        of(TRIM, "vlm"),
    ),
    "alignment: half the product": (
        ("primitives.similarity", "_nearness(visual, 2.0 * mean)", "_nearness(visual, mean)"),
        of(TRIM, "vlm"),
    ),
    "alignment: no words, no tie": (
        ("primitives.similarity", "torch.where(real.any(-1, keepdim=True), scores, 0.0)", "scores"),
        ODD_ROWS,
    ),
    "topk: infinite scores are kept": (
        ("primitives.scores", "usable = scores.isfinite()", "usable = ~scores.isnan()"),
        of(SCORED, torch.float32),
    ),
    "topk: ties in any order": (
        (
            "primitives.scores",
            "keys.sort(dim=-1, descending=True, stable=True).indices\n    if",
            "keys.argsort().flip(-1)\n    if",
        ),
        of(SCORED, torch.float32),
    ),
    "topk: mask ignored": (
        ("primitives.scores", "usable = usable & mask", "usable = usable | mask"),
        of(SCORED, torch.float32),
    ),
    "topk: forced although masked": (
        (
            "primitives.scores",
            "force_keep & (keys > -torch.inf), torch.inf",
            "force_keep, torch.inf",
        ),
        of(SCORED, torch.float32),
    ),
    "topk: forced ones are beside the quota": (
        (
            "primitives.scores",
            "torch.where(forced, 0, torch.where(admitted, 1, 2))",
            "torch.where(admitted, 1, 2)",
        ),
        of(SCORED, torch.float32),
    ),
    "topk: quotas one too large": (
        ("primitives.scores", "rank < limits.", "rank <= limits."),
        of(SCORED, torch.float32),
    ),
    "min_max: over all": (
        (
            "primitives.scores",
            "low = wide.masked_fill(~valid, torch.inf)",
            "low = wide.nan_to_num(-9.0)",
        ),
        of(CEN, "masked"),
    ),
    "assign: own slot forgotten": (
        ("primitives.merging", "torch.where(own_slot < len(own), own_slot, nearest)", "nearest"),
        SLOTS,
    ),
    "assign: the highest of equal slots": (
        ("primitives.merging", 'slots, "amin")\n', 'slots, "amax")\n'),
        SLOTS,
    ),
    "merge: sums, not means": (
        (
            "primitives.merging",
            "weights = counts.reciprocal()[slot]",
            "weights = counts.sign()[slot]",
        ),
        MERGE,
    ),
    "merge: in half precision": (
        (
            "primitives.merging",
            "wide = torch.promote_types(x.dtype, torch.float32)",
            "wide = x.dtype",
        ),
        MERGE,
    ),
    "match: odd places look": (
        ("primitives.merging", "line[::2], line[1::2]", "line[1::2], line[::2]"),
        of(TOME, "vlm"),
    ),
    "match: float32 decides what merges": (
        ("primitives.merging", "    if len(near) > 1:\n", "    if False:\n"),
        primitives.test_match_at_a_tie,
    ),
    "match: zero rows merge first": (
        (
            "primitives.merging",
            "keys = torch.where(directed, keys, -8.0)",
            "keys = torch.where(directed, keys, 8.0)",
        ),
        of(TOME, "zero_rows"),
    ),
    "match: merged tokens keep their features": (
        (
            "primitives.merging",
            "current = Image(sums, limit=math.inf)",
            "current = Image(image.tokens[heads])",
        ),
        of(TOME, "vlm"),
    ),
    "match: half of a round is lost": (
        ("primitives.merging", "len(heads) // 2)", "max(1, len(heads) // 4))"),
        of(TOME, "vlm"),
    ),
    "thin: the least similar go": (
        ("primitives.thinning", "odd)[gone:]], odd", "odd)[: len(even) - gone]], odd"),
        of(VIS, "vlm"),
    ),
    "thin: even ones stand behind": (
        (
            "primitives.thinning",
            "torch.cat((even[near.order(even, odd)[gone:]], odd))",
            "torch.cat((odd, even[near.order(even, odd)[gone:]]))",
        ),
        of(VIS, "vlm"),
    ),
    "thin: float32 decides": (
        ("primitives.thinning", "if not bool(close.any()):", "if True:"),
        primitives.test_thin_at_a_tie,
    ),
    "thin: zero rows stay": (
        ("primitives.thinning", "_ZERO_ROW = 2.0", "_ZERO_ROW = -2.0"),
        of(VIS, "zero_rows"),
    ),
    "thin: something is similar to a zero row": (
        ("primitives.thinning", "cosines[:, ~image.directed[line]] = _NONE", "pass"),
        primitives.test_thin_at_a_tie,
    ),
    "dart: the last pivots take more": (
        ("primitives.sharing", "(j < total % each)", "(j >= each - total % each)"),
        of(DART, "vlm"),
    ),
    "dart: one less": (
        ("primitives.sharing", "left.cumsum(-1) <= count", "left.cumsum(-1) < count"),
        of(DART, "vlm"),
    ),
    "dart: what was taken is free": (
        ("primitives.sharing", "left = now == never", "left = now <= never"),
        of(DART, "vlm"),
    ),
    "holov: the larger crops behind": (
        ("primitives.sharing", "torch.where(rank < edge, rank // (size + 1), behind)", "behind"),
        of(HOLO, "vlm"),
    ),
    "holov: left over by remainder": (
        ("primitives.sharing", "order = shares.sort(", "order = shares.frac().sort("),
        of(HOLO, "vlm"),
    ),
    "holov: shares as they are computed": (
        ("primitives.sharing", "shares = on_grid(", "shares = ("),
        shared.test_holov_counts,
    ),
    "holov: sums, not means": (
        ("primitives.sharing", "sums[1]) / sizes.clamp_min(1)", "sums[1])"),
        shared.test_holov_counts,
    ),
    "holov: means in the order of the tokens": (
        ("primitives.sharing", "upper = part.floor()", "upper = part"),
        patched(shared.test_holov_of_crops_with_the_same_tokens, False),
    ),
    "holov: no sharpness": (
        ("primitives.sharing", " ** sharpness", " ** 1.0"),
        of(HOLO, "vlm"),
    ),
    "holov: negative attention counts": (
        ("primitives.sharing", "attention.clamp_min(0.0)", "attention"),
        of(HOLO, "vlm"),
    ),
    "holov: alike where no attention is": (
        ("primitives.sharing", "attended / most, 1.0)", "attended / most, 0.0)"),
        shared.test_holov_counts,
    ),
    "topk: quotas of the next segment": (
        (
            "primitives.scores",
            "starts.gather(-1, by_segment.values)",
            "starts.gather(-1, (by_segment.values - 1).clamp_min(0))",
        ),
        of(HOLO, "vlm"),
    ),
    "nearest: the first of those close": (
        ("primitives._exact", "torch.where(exact == best[q], t, len(targets))", "t"),
        SLOTS,
    ),
    "nearest: float32 decides": (
        ("primitives._exact", "if len(rivals):", "if False:"),
        of(ZIP, "duplicates"),
    ),
    "nearest: zero rows attract": (
        (
            "primitives._exact",
            "cosines[:, ~self.directed[targets]] = -2.0",
            "cosines[:, ~self.directed[targets]] = 2.0",
        ),
        of(ZIP, "zero_rows"),
    ),
    "image: rows of any length": (
        ("primitives._exact", "valid = length <= limit", "valid = length.isfinite()"),
        SLOTS,
    ),
    "image: mask ignored": (
        ("primitives._exact", "valid = valid & mask", "valid = valid | mask"),
        of(TOME, "masked_exact"),
    ),
    "soft: the pick of the lowest score": (
        ("backends.reference.soft_suppress", "lowest(-now, free)", "lowest(now, free)"),
        of(ID, "vlm"),
    ),
    "soft: decided in float32": (
        ("backends.reference._common", "exact = row_sum(", "exact = row_sum(values.float() *"),
        of(ID, "narrow"),
    ),
    "soft: scores suppress alike": (
        (
            "backends.reference.soft_suppress",
            "lost += weight * now[pick].clamp_min(0.0)",
            "lost += weight * _GRID",
        ),
        of(ID, "narrow"),
    ),
    "soft: distance, not its square": (
        ("backends.reference.soft_suppress", "* apart.square()", "* apart"),
        of(ID, "vlm"),
    ),
    "soft: beyond its reach": (
        (
            "backends.reference.soft_suppress",
            "factor.masked_fill(square > self.reach * self.reach, 0.0)",
            "factor",
        ),
        of(ADAPT, "vlm"),
    ),
    "soft: at its reach": (
        ("backends.reference.soft_suppress", "square > self.reach *", "square >= self.reach *"),
        of(ADAPT, "iid"),
    ),
    "soft: spread twice as wide": (
        ("backends.reference.soft_suppress", "(-2.0 * self.spread", "(-1.0 * self.spread"),
        of(ADAPT, "vlm"),
    ),
    "soft: zero rows are suppressed": (
        ("backends.reference.soft_suppress", "near.to(pick) * ~rows.zero", "near.to(pick)"),
        of(ID, "zero_rows"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, proof = MUTANTS[name]
    reject(fault, proof, monkeypatch)
