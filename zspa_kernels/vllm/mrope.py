# SPDX-License-Identifier: Apache-2.0
"""Models whose positions have three axes, time, row and column: kept tokens stay where they were.

vLLM numbers a prompt before it encodes the pictures, when nobody knows yet which tokens will stay.
It lets a model that prunes correct the numbers afterwards, from what the encoder returned; so the
positions of the kept tokens travel in columns behind their embeddings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.platforms import current_platform

from .batches import MODALITIES, SECONDS, grid
from .model import PruningModel
from .processor import placeholders

# A position is written in digits: bfloat16 has every integer up to 256. Two would not do for a film
# of ten hours, which Qwen2.5-VL counts in half seconds.
_BASE = 256
_DIGITS = 3
_AXES = 3
_COLUMNS = _DIGITS * _AXES


class PruningMRopeModel(PruningModel):
    """Mixed into a model of vLLM's with three axes of positions."""

    supports_multimodal_pruning: ClassVar[bool] = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # The stock model need not append positions of its own.
        self.is_multimodal_pruning_enabled = False
        self._shown = sorted(placeholders(vllm_config.model_config.hf_config))

    def _before(self, vllm_config: Any) -> None:
        super()._before(vllm_config)
        stages = vllm_config.parallel_config.pipeline_parallel_size
        if stages > 1:
            raise ValueError(
                "vllm: pipeline_parallel_size must be 1 where positions have three axes, since "
                f"only the first stage knows those of the kept tokens, got {stages}"
            )
        model_config = vllm_config.model_config
        # vLLM asks its configuration, which knows of one kind of pruning only.
        model_config.multimodal_config.is_multimodal_pruning_enabled = _enabled
        if current_platform.is_cpu():
            _ask_on_cpus()

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Positions `[3, L]` of a pruned prompt, and what its next token's exceeds L by.

        Text has the positions of the whole prompt. Kept tokens have those of the first ones, until
        `recompute_mrope_positions`.
        """
        whole: list[int] = []  # the prompt, unpruned
        stay: list[int] = []  # which of it is in the pruned one
        moved = []
        done = 0
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            place = feature.mm_position
            patches = int(feature.data[grid(feature.modality)].data.prod())
            ids, visual, kept = _unpruned(input_tokens, place, patches // self._batches.merged)
            text = input_tokens[done : place.offset]
            stay += range(len(whole), len(whole) + len(text))
            whole += text
            stay += (len(whole) + i for i in kept)
            at = PlaceholderRange(offset=len(whole), length=len(ids), is_embed=visual)
            moved.append(replace(feature, mm_position=at))
            whole += ids
            done = place.offset + place.length
        text = input_tokens[done:]
        stay += range(len(whole), len(whole) + len(text))
        positions, _ = super().get_mrope_input_positions(whole + text, moved)
        return positions[:, stay], int(positions.max()) + 1 - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Takes the columns off; see vLLM's `SupportsMultiModalPruning`.

        Args:
            input_ids: of the prompt, `[L]`.
            multimodal_embeddings: of the part of the prompt that is read now, in its order.
            mrope_positions: `[3, L]`.
            num_computed_tokens: where that part begins.
        """
        positions = mrope_positions
        if multimodal_embeddings:  # not while an answer is written, when every step comes here
            ids = torch.as_tensor(input_ids, device=positions.device)
            visual = torch.isin(ids, torch.tensor(self._shown, device=ids.device))
            positions = positions.clone()
            digits = torch.cat([one[:, -_COLUMNS:] for one in multimodal_embeddings])
            inside = torch.zeros_like(positions[:, :1])
            for digit in digits.to(positions).T.split(_AXES):  # the largest first
                inside = inside * _BASE + digit
            every = torch.arange(len(ids), device=ids.device)
            # A picture begins behind the text in front of it.
            before = torch.where(visual, -1, every).cummax(0).values
            here = every[num_computed_tokens:][visual[num_computed_tokens:]][: len(digits)]
            start = torch.where(before[here] < 0, 0, positions[0, before[here]] + 1)
            positions[:, here] = inside + start
        # The last token is text, of which no other position is larger; see `_check_places`.
        more = int(positions[0, -1]) + 1 - positions.shape[1] if positions.numel() else 0
        return [one[:, :-_COLUMNS] for one in multimodal_embeddings], positions, more

    def _cut(
        self, tokens: Tensor, indices: Tensor, place: int, inputs: Mapping[str, Any]
    ) -> Tensor:
        inside = self._inside(len(tokens), place, inputs).to(tokens.device)[indices]
        digits = [inside // _BASE**place % _BASE for place in reversed(range(_DIGITS))]
        return torch.cat((tokens[indices], torch.cat(digits, dim=1).to(tokens)), dim=1)

    def _runs(self, tokens: Tensor, place: int, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
        if self.apart not in inputs:
            return [tokens]
        frames: Sequence[Tensor] = tokens.chunk(int(inputs[self.apart][place][0]))
        return frames

    def _inside(self, tokens: int, place: int, inputs: Mapping[str, Any]) -> Tensor:
        """Positions `[n, 3]` of one picture's tokens, as if it were all of the prompt.

        Those of each frame, where text is between them.
        """
        if self.apart in inputs:  # to the model, each is a picture
            frames, *sides = inputs[self.apart][place].tolist()
            frame = {grid("image"): torch.tensor([[1, *sides]])}
            return self._inside(tokens // frames, 0, frame).repeat(frames, 1)
        modality = next(name for name in MODALITIES if grid(name) in inputs)
        field = MultiModalFieldConfig.batched(modality).field
        data = {
            name: MultiModalFieldElem(inputs[name][place].cpu(), field)
            for name in (grid(modality), SECONDS)
            if name in inputs
        }
        feature = MultiModalFeatureSpec(
            data=MultiModalKwargsItem(data),
            modality=modality,
            identifier="",
            mm_position=PlaceholderRange(offset=0, length=tokens),
        )
        positions: Tensor = super().get_mrope_input_positions([0] * tokens, [feature])[0]
        return positions.T


def _unpruned(
    prompt: list[int], place: PlaceholderRange, tokens: int
) -> tuple[list[int], Tensor | None, list[int]]:
    """What the unpruned prompt has in the place of a picture, or of a video with text inside.

    Args:
        prompt: the pruned one.
        place: in it.
        tokens: of the picture, or of all frames together, which have as many each.

    Returns:
        Ids; which of them are visual, None if all are; and which are in the pruned prompt, where
        the first ones of a frame stand for those that are kept.
    """
    visual = [True] * place.length if place.is_embed is None else place.is_embed.tolist()
    runs = [(one, len(list(group))) for one, group in itertools.groupby(visual)]
    frame = tokens // sum(one for one, _ in runs)
    ids: list[int] = []
    mask: list[bool] = []
    kept: list[int] = []
    start = place.offset
    for one, count in runs:
        kept += range(len(ids), len(ids) + count)
        ids += [prompt[start]] * frame if one else prompt[start : start + count]
        mask += [one] * (frame if one else count)
        start += count
    return ids, None if all(mask) else torch.tensor(mask), kept


def _enabled() -> bool:
    return True


def _ask_on_cpus() -> None:
    """Lets vLLM's runner on CPUs ask whether its model prunes, as the one on GPUs does."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    def enabled(runner: Any) -> bool:
        return isinstance(runner.__dict__.get("model"), PruningMRopeModel)

    def ignored(runner: Any, value: bool) -> None:
        """The runner's own answer, False before it has a model."""

    CPUModelRunner.is_multimodal_pruning_enabled = property(enabled, ignored)
