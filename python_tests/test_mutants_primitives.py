# SPDX-License-Identifier: Apache-2.0
"""Planted faults in the plain torch primitives: the proofs named beside each must reject it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from python_tests import test_method_rules as rules
from python_tests import test_primitives as primitives
from python_tests.faults_primitives import Fault, plant

Proof = Callable[[], None]


def of(test: Callable[..., None], *arguments: object) -> Proof:
    return partial(test, *arguments)


def patched(test: Callable[..., None], *arguments: object) -> Proof:
    """A test that takes monkeypatch last."""

    def proof() -> None:
        with pytest.MonkeyPatch.context() as patch:
            test(*arguments, patch)

    return proof


GREEDY, SCORED = rules.test_greedyprune, rules.test_scoredtopk
ID, ADAPT, CEN = rules.test_idselection, rules.test_adaptprune, rules.test_cenprune
TOME, ZIP, TRIM = rules.test_tome, rules.test_visionzip, rules.test_trimtokenator
ODD_ROWS = primitives.test_alignment_and_distinctiveness_of_odd_rows
MERGE = primitives.test_merge_is_differentiable_and_leaves_out_what_nobody_owns
SLOTS = primitives.test_assign_prefers_the_own_slot_and_the_lowest

#: What is wrong -> module, what stands there once, what stands there instead; the proof.
MUTANTS: dict[str, tuple[tuple[str, str, str], Proof]] = {
    "suppress: at the threshold": (
        ("similarity", "columns[c]) > threshold", "columns[c]) >= threshold"),
        of(GREEDY, "exact"),
    ),
    "suppress: float32 decides": (
        ("similarity", "    if len(r):\n", "    if False:\n"),
        primitives.test_suppress_at_the_threshold,
    ),
    "suppress: zero rows are near": (
        ("similarity", "above & image.directed[rows, None] & image.directed[columns]", "above"),
        of(GREEDY, "zero_rows"),
    ),
    "suppress: what was left out suppresses": (
        ("similarity", "not suppressors & alive:", "not suppressors & ((1 << i) - 1):"),
        of(GREEDY, "vlm"),
    ),
    "suppress: earlier blocks forgotten": (
        ("similarity", ", threshold).any(-1)", ", threshold).any(-1).logical_and_(~block.bool())"),
        patched(primitives.test_suppress_in_small_blocks),
    ),
    "suppress: ties to the highest index": (
        ("similarity", "keys.sort(descending=True, stable=True).indices", "keys.argsort().flip(0)"),
        of(GREEDY, "constant"),
    ),
    "suppress: infinite scores count": (
        ("similarity", "scores.isfinite() if visual_mask", "~scores.isnan() if visual_mask"),
        of(GREEDY, "vlm"),
    ),
    "suppress: never fills": (("similarity", "if fill:", "if False:"), of(GREEDY, "vlm")),
    "centred: masked tokens in the mean": (
        ("similarity", "masked_fill_(~real.unsqueeze(-1), 0.0)", "nan_to_num_(0.0)"),
        of(CEN, "masked"),
    ),
    "centred: mean over all": (
        ("similarity", "total / valid.sum(-1, keepdim=True).clamp_min(1)", "total / len(valid)"),
        of(CEN, "masked"),
    ),
    "centred: the mean itself has a direction": (
        ("similarity", "(lengths(result) <= noise)", "(lengths(result) < 0)"),
        rules.test_the_mean_itself_is_chosen_late,
    ),
    "centred: invalid rows stay": (
        ("similarity", "result.masked_fill_(~valid.unsqueeze(-1), torch.nan)", "result"),
        ODD_ROWS,
    ),
    "distinctiveness: counts itself": (
        ("similarity", "(mean * count - 1.0) / (count - 1).clamp_min(1)", "mean"),
        ODD_ROWS,
    ),
    "distinctiveness: sign": (("similarity", "(-others).masked", "others.masked"), of(CEN, "vlm")),
    "distinctiveness: zero rows are distinct": (
        ("similarity", "lengths(visual) < SHORTEST, 1.0", "lengths(visual) < SHORTEST, 0.0"),
        ODD_ROWS,
    ),
    "alignment: distance to the mean": (
        ("similarity", "2.0 * mean) - spread", "2.0 * mean) - mean.square().sum(-1)"),
        ODD_ROWS,
    ),
    "alignment: prompt mask ignored": (
        ("similarity", "_valid(prompt, prompt_mask)", "_valid(prompt, None)"),
        of(TRIM, "vlm"),
    ),
    "alignment: half the product": (
        ("similarity", "_nearness(visual, 2.0 * mean)", "_nearness(visual, mean)"),
        of(TRIM, "vlm"),
    ),
    "alignment: no words, no tie": (
        ("similarity", "torch.where(real.any(-1, keepdim=True), scores, 0.0)", "scores"),
        ODD_ROWS,
    ),
    "topk: infinite scores are kept": (
        ("scores", "usable = scores.isfinite()", "usable = ~scores.isnan()"),
        of(SCORED, torch.float32),
    ),
    "topk: ties in any order": (
        (
            "scores",
            "keys.sort(dim=-1, descending=True, stable=True).indices\n    if",
            "keys.argsort().flip(-1)\n    if",
        ),
        of(SCORED, torch.float32),
    ),
    "topk: mask ignored": (
        ("scores", "usable = usable & mask", "usable = usable | mask"),
        of(SCORED, torch.float32),
    ),
    "topk: forced although masked": (
        ("scores", "force_keep & usable, torch.inf", "force_keep, torch.inf"),
        of(SCORED, torch.float32),
    ),
    "topk: forced ones are beside the quota": (
        (
            "scores",
            "torch.where(forced, 0, torch.where(admitted, 1, 2))",
            "torch.where(admitted, 1, 2)",
        ),
        of(SCORED, torch.float32),
    ),
    "topk: quotas one too large": (
        ("scores", "rank < limit[", "rank <= limit["),
        of(SCORED, torch.float32),
    ),
    "min_max: over all": (
        ("scores", "low = scores.masked_fill(~valid, torch.inf)", "low = scores.nan_to_num(-9.0)"),
        of(CEN, "masked"),
    ),
    "assign: own slot forgotten": (
        ("merging", "torch.where(own_slot < len(own), own_slot, nearest)", "nearest"),
        SLOTS,
    ),
    "assign: the highest of equal slots": (
        ("merging", 'slots, "amin")\n', 'slots, "amax")\n'),
        SLOTS,
    ),
    "merge: sums, not means": (
        ("merging", "weights = counts.reciprocal()[slot]", "weights = counts.sign()[slot]"),
        MERGE,
    ),
    "merge: in half precision": (
        ("merging", "wide = torch.promote_types(x.dtype, torch.float32)", "wide = x.dtype"),
        MERGE,
    ),
    "match: odd places look": (
        ("merging", "line[::2], line[1::2]", "line[1::2], line[::2]"),
        of(TOME, "vlm"),
    ),
    "match: float32 decides what merges": (
        ("merging", "    if len(near) > 1:\n", "    if False:\n"),
        primitives.test_match_at_a_tie,
    ),
    "match: zero rows merge first": (
        (
            "merging",
            "keys = torch.where(directed, keys, -8.0)",
            "keys = torch.where(directed, keys, 8.0)",
        ),
        of(TOME, "zero_rows"),
    ),
    "match: merged tokens keep their features": (
        (
            "merging",
            "current = Image(sums, limit=math.inf)",
            "current = Image(image.tokens[heads])",
        ),
        of(TOME, "vlm"),
    ),
    "match: half of a round is lost": (
        ("merging", "len(heads) // 2)", "max(1, len(heads) // 4))"),
        of(TOME, "vlm"),
    ),
    "nearest: the first of those close": (
        ("_image", "torch.where(exact == best[q], t, len(targets))", "t"),
        SLOTS,
    ),
    "nearest: float32 decides": (("_image", "if len(rivals):", "if False:"), of(ZIP, "duplicates")),
    "nearest: zero rows attract": (
        (
            "_image",
            "cosines[:, ~self.directed[targets]] = -2.0",
            "cosines[:, ~self.directed[targets]] = 2.0",
        ),
        of(ZIP, "zero_rows"),
    ),
    "image: invalid rows stay": (
        ("_image", "valid = length <= limit", "valid = length <= torch.inf"),
        of(GREEDY, "nonfinite_rows"),
    ),
    "image: mask ignored": (
        ("_image", "valid = valid & mask", "valid = valid | mask"),
        of(GREEDY, "masked_exact"),
    ),
    "soft: the pick of the lowest score": (
        ("soft", "max(low[i] for i in alive)", "min(low[i] for i in alive)"),
        of(ID, "vlm"),
    ),
    "soft: never compared in float64": (
        ("soft", "any(low[i] != -minus[i] for i in first)", "False"),
        of(ID, "narrow"),
    ),
    "soft: ties to the highest index": (
        ("soft", "min(first, key=lambda i: place[i])", "max(first, key=lambda i: place[i])"),
        of(ID, "constant"),
    ),
    "soft: the next block is no rival": (
        ("soft", "> rival:", "> (math.inf, 0):"),
        patched(primitives.test_soft_suppress_in_small_blocks, "subtract"),
    ),
    "soft: stale scores are compared": (
        ("soft", "if bool(stale[:_BLOCK].any()):", "if False:"),
        patched(primitives.test_soft_suppress_in_small_blocks, "scale"),
    ),
    "soft: compared twice": (
        ("soft", ".masked_fill_(~fresh, 0.0)", ""),
        patched(primitives.test_soft_suppress_in_small_blocks, "subtract"),
    ),
    "soft: scores suppress alike": (
        ("soft", "return (weights * strength).sum(-1)", "return weights.sum(-1).mul_(_GRID)"),
        of(ID, "narrow"),
    ),
    "soft: distance, not its square": (
        ("soft", "(1.0 - cosines).square_()", "(1.0 - cosines)"),
        of(ID, "vlm"),
    ),
    "soft: beyond its reach": (
        ("soft", "factor.masked_fill_(square > self.reach**2, 0.0)", "factor"),
        of(ADAPT, "vlm"),
    ),
    "soft: at its reach": (
        ("soft", "square > self.reach**2", "square >= self.reach**2"),
        of(ADAPT, "vlm"),
    ),
    "soft: spread twice as wide": (
        ("soft", "(-2.0 * self.spread**2)", "(-1.0 * self.spread**2)"),
        of(ADAPT, "vlm"),
    ),
    "soft: zero rows are suppressed": (
        (
            "soft",
            "weights *= image.directed[tokens, None] & image.directed[taken]",
            "pass",
        ),
        of(ID, "zero_rows"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, proof = MUTANTS[name]
    for module in ("merging", "scores"):
        # Native kernels have tests of their own.
        monkeypatch.setattr(
            f"zspa_kernels.primitives.{module}.native", lambda *x, **y: False, raising=False
        )
    proof()
    plant(Fault(*fault), monkeypatch)
    with pytest.raises(AssertionError):
        proof()
