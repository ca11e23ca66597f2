# SPDX-License-Identifier: Apache-2.0
"""vLLM's models, with an encoder that returns the kept tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.lora.layers import VocabParallelEmbeddingWithLoRA
from vllm.multimodal import MULTIMODAL_REGISTRY

from .batches import Batches, moved, with_rows
from .options import KEY, Options, kept
from .processor import KEEP, TEXT, VISUAL, WORDS, asked, pruning

_log = init_logger("vllm.zspa_kernels")  # vLLM shows what loggers below its own say

if TYPE_CHECKING:
    _Model: TypeAlias = Any  # what this is mixed into is known later
else:
    _Model = nn.Module


class PruningModel(_Model):
    """Mixed into a model of vLLM's; see `pruned`.

    Attributes:
        apart: name of the input that counts the tiles of each picture, or frames of each video,
            or lists their tokens, or is their grid, where text stands between them: then each has a
            share of its own.
    """

    apart: ClassVar[str] = ""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        self._before(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self._options = Options.of(config)
        self._width: int = vllm_config.model_config.hf_text_config.hidden_size
        self._batches = Batches.of(config, vllm_config.scheduler_config.max_num_batched_tokens)
        self._device: torch.device = vllm_config.device_config.device
        _log.info("Visual tokens are pruned: %r", self._options.method)

    def _before(self, vllm_config: Any) -> None:
        """What has to be known before the model is made."""
        given = vllm_config.model_config.multimodal_config
        rate = given.video_pruning_rate
        if rate:
            raise ValueError(
                f"vllm: video_pruning_rate must be None where zspa_kernels prunes, got {rate}"
            )
        if KEY in (given.mm_processor_kwargs or {}):
            raise ValueError(
                f'vllm: mm_processor_kwargs of a server must not have "{KEY}", which belongs in '
                f"hf_overrides or a request, got {given.mm_processor_kwargs[KEY]!r:.60}"
            )
        # vLLM would tell the size of an encoder's batch by the tokens that are left.
        if vllm_config.lora_config and vllm_config.lora_config.enable_tower_connector_lora:
            raise ValueError(
                "vllm: enable_tower_connector_lora must be False where zspa_kernels prunes, "
                "got True"
            )
        if vllm_config.model_config.enable_prompt_embeds:
            raise ValueError(
                "vllm: enable_prompt_embeds must be False where zspa_kernels prunes, since words "
                "beside a picture are looked up, got True"
            )
        config = vllm_config.model_config.hf_config
        if given.mm_encoder_only and (Options.of(config).reads or with_rows(config.vision_config)):
            raise ValueError(
                "vllm: mm_encoder_only must be False where a method reads the prompt, or rows of "
                "pictures have ends, since words are embedded by the language model, got True"
            )

    def get_encoder_cudagraph_config(self) -> Any:
        """None: a captured encoder would return all tokens."""
        return replace(super().get_encoder_cudagraph_config(), modalities=[])

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """Embeddings of the kept tokens, and of text inside, of each picture, `[k, C]`, in order.

        C is the width of the language model, or more: features for its deeper layers stand behind.
        """
        keep, words, text = (_field(kwargs, kind) for kind in (KEEP, WORDS, TEXT))
        if keep is None:  # sounds
            sounds: Sequence[Tensor] = super().embed_multimodal(**kwargs)
            return sounds
        shares = asked(keep)
        chosen: list[Tensor] = []
        for start, stop, part in self._batches.split(kwargs, len(shares), words):
            encoded = list(super().embed_multimodal(**moved(part, self._device)))
            own = None if words is None else self._embedded_rows(words[start:stop])
            runs = [self._runs(x, place, part) for place, x in enumerate(encoded)]
            rows = self._rows(runs, shares[start:stop], own)
            for place, (x, indices) in enumerate(zip(encoded, rows, strict=True)):
                tokens = self._cut(x, indices, place, part)
                if text is not None:
                    tokens = self._with_text(tokens, indices, text[start + place])
                chosen.append(tokens)
        return chosen

    def _with_text(self, tokens: Tensor, indices: Tensor, text: Tensor) -> Tensor:
        """Kept `tokens`, those at `indices` of a picture, and the text that stands between them.

        Args:
            tokens: `[k, C]`.
            indices: `[k]`.
            text: ids `[n]` on the host of all that stands in the prompt for the picture, unpruned;
                `VISUAL` for its tokens.
        """
        visual = text == VISUAL
        places = [where.nonzero().flatten().to(tokens.device) for where in (visual, ~visual)]
        order = torch.cat((places[0][indices], places[1])).argsort()
        written = self._embedded(text[~visual].to(tokens.device))
        return torch.cat((tokens, written))[order]

    def _embedded_rows(self, words: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each picture's words, by one look-up, of which each device has a part."""
        sizes = [len(row) for row in words]
        return list(self._embedded(torch.cat(list(words))).split(sizes))

    def _embedded(self, words: Tensor) -> Tensor:
        language = self.get_language_model()
        table = language.embed_input_ids
        for module in language.modules():
            # With adapters, vLLM looks words up by their places in a batch; these have none.
            if isinstance(module, VocabParallelEmbeddingWithLoRA):
                table = module.base_layer
        rows: Tensor = table(words)
        return rows

    def _runs(self, tokens: Tensor, place: int, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
        """Tokens of the picture at `place` among the `inputs`, those apart that text is between."""
        if self.apart not in inputs:
            return [tokens]
        sizes = self._batches.tiles(inputs, inputs[self.apart], place)
        runs: Sequence[Tensor] = tokens.split(sizes)
        return runs

    def _rows(
        self, runs: Sequence[Sequence[Tensor]], keep: Sequence[float], words: list[Tensor] | None
    ) -> list[Tensor]:
        """Which rows of each picture stay; one ragged call for each number of them."""
        rows = []
        for one in runs:
            sizes = [len(run) for run in one]
            rows.append(list(torch.arange(sum(sizes), device=one[0].device).split(sizes)))
        groups: dict[int, list[tuple[int, int]]] = {}
        for i, one in enumerate(runs):
            for j, run in enumerate(one):
                count = self._options.keeping(keep[i]).count(len(run))
                if count < len(run):
                    groups.setdefault(count, []).append((i, j))
        for count, alike in groups.items():
            picked = kept(
                self._options.keeping(count).method,
                [runs[i][j][:, : self._width] for i, j in alike],
                None if words is None else [words[i] for i, _ in alike],
            )
            for (i, j), indices in zip(alike, picked, strict=True):
                rows[i][j] = rows[i][j][indices]
        return [torch.cat(one) for one in rows]

    def _cut(
        self, tokens: Tensor, indices: Tensor, place: int, inputs: Mapping[str, Any]
    ) -> Tensor:
        """Rows of one picture's tokens; it is at `place` among the `inputs`."""
        return tokens[indices]


def _field(inputs: dict[str, Any], kind: str) -> Any:
    """One of our fields, taken out of the `inputs`; None if it is not there."""
    name = next((name for name in inputs if name.startswith(kind)), None)
    return None if name is None else inputs.pop(name)


def pruned(model: Any) -> Any:
    """Registers the processor of a model of vLLM's that prunes, in place of the stock one's."""
    stock = model._processor_factory

    def processor(info: Any, dummy_inputs: Any, **more: Any) -> Any:
        kind: Any = type(stock.processor(info, dummy_inputs, **more))
        inside = with_rows(info.get_hf_config().vision_config)
        return pruning(kind, inside)(info, dummy_inputs, **more)

    register = MULTIMODAL_REGISTRY.register_processor(
        processor, info=stock.info, dummy_inputs=stock.dummy_inputs
    )
    return register(model)
