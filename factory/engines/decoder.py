"""Decoding with transformers' `generate`: greedy, beams and seeded draws, each row as if alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from factory.engines.base import EngineOptions
from factory.engines.steering import (
    FirstToken,
    GumbelMax,
    LastToken,
    Processor,
    RowLimits,
    StopStrings,
    penalties,
)
from factory.prompting.tokenizing import first_token_id, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What a checkpoint's generation_config.json says of the model. The rest of it (widths, penalties,
# lengths, temperatures) is a decoding, and a decoding is the manifest's.
OF_THE_MODEL = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "remove_invalid_values", "renormalize_logits",
)  # fmt: skip


class Decoder:
    """One decoding of one model, for any number of batches.

    A row's targets are those it would have alone: its limit is its own, also in a beam, and
    nothing looks at its padding. Causal models are padded on the left, encoder–decoders on the
    right, as their positions ask. With `early_stopping: never` a beam's hopes are measured by the
    batch's largest limit: a looser bound than the row's own, with the same end, since what a row
    can still find within its limit passes neither (no log-probability is above 0).
    """

    def __init__(self, model: Any, options: EngineOptions) -> None:
        """Take the decoding out of the model's hands.

        Raises:
            ManifestError: the first token to force is none of the tokenizer's.
            PromptError: stop strings or a first token, and the model has no tokenizer.
        """
        self._model, self._generate = model, options.generate
        self._encoder_decoder = bool(model.config.is_encoder_decoder)
        self._stop: StopStrings | None = None
        self._first: int | None = None
        if options.generate.stop or options.generate.first_token is not None:
            self._read_tokenizer(load_tokenizer(options.model, options.revision))
        model.generation_config = config = _of_the_model(model.generation_config)
        self._last = _listed(config.forced_eos_token_id)
        # Ours instead: each row has a limit of its own, and a causal model a first token too.
        config.forced_eos_token_id = None
        if self._first is not None:
            config.forced_bos_token_id = None
        self.ends = {*_listed(config.eos_token_id), *options.generate.stop_token_ids}
        self.pad = config.pad_token_id = _padding(config, self.ends)
        config.eos_token_id = sorted(self.ends) or None

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int | None],
    ) -> list[list[list[int]]]:
        """Decode rows: for each its targets in the order found, the end token included.

        A beam that finds fewer targets than asked for gives those it found.

        Args:
            prompts: ids, a row each.
            limits: the most tokens of each row's targets.
            seeds: of each row's draw; not looked at where nothing is drawn.
        """
        device = self._model.device
        ids, mask = padded(prompts, self.pad, left=not self._encoder_decoder)
        most = torch.tensor(limits, device=device)
        start = 1 if self._encoder_decoder else ids.shape[1]
        padding = [0 if self._encoder_decoder else start - len(prompt) for prompt in prompts]
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(limits),
                logits_processor=self._processors(padding, most, seeds, start),
                stopping_criteria=self._criteria(most, start),
                return_dict_in_generate=self._beams,
                **self._values(),
            )
        if self._beams:
            return self._found(out.sequences[:, start:], out.beam_indices, limits)
        targets = zip(out[:, start:].tolist(), limits, strict=True)
        return [[self._cut(target, limit)] for target, limit in targets]

    def finish_reason(self, target: Sequence[int], limit: int | None = None) -> str:
        """`stop` where an end token or a stop string ends it, else `length`.

        Where the model forces an end token at its limit, a target of that length was cut: `length`.
        """
        if self._last and len(target) == limit:
            return "length"
        stopped = self._stop is not None and self._stop.end(target) == len(target)
        return "stop" if stopped or target[-1] in self.ends else "length"

    @property
    def _beams(self) -> bool:
        return self._generate.decoding == "beam" and self._generate.beam_width > 1

    def _read_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        generate = self._generate
        if generate.stop:
            self._stop = StopStrings(tokenizer, generate.stop, generate.min_new_tokens)
        if generate.first_token is not None:
            self._first = first_token_id(tokenizer, generate.first_token)

    def _values(self) -> dict[str, Any]:
        generate = self._generate
        told: dict[str, Any] = {
            "do_sample": False,
            "use_cache": True,
            "min_new_tokens": generate.min_new_tokens or None,
        }
        if self._beams:
            told |= {
                "num_beams": generate.beam_width,
                "num_return_sequences": generate.num_return,
                "length_penalty": generate.length_penalty,
                "early_stopping": generate.early_stopping,
            }
        return told

    def _processors(
        self,
        padding: Sequence[int],
        limits: torch.Tensor,
        seeds: Sequence[int | None],
        start: int,
    ) -> list[Processor]:
        """Penalties first, then what must come, then the draw: the last has the last word."""
        told = penalties(self._generate, padding)
        if self._first is not None:
            told.append(FirstToken(self._first, start))
        if self._last:
            told.append(LastToken(self._last, limits, start))
        if self._generate.decoding == "sample":
            drawn = [seed for seed in seeds if seed is not None]
            told.append(GumbelMax(self._generate, drawn, self._model.device))
        return told

    def _criteria(self, limits: torch.Tensor, start: int) -> list[Any]:
        told: list[Any] = [RowLimits(limits, start)]
        return [*told, self._stop.criterion(start)] if self._stop else told

    def _found(
        self, sequences: torch.Tensor, beams: torch.Tensor, limits: Sequence[int]
    ) -> list[list[list[int]]]:
        """Each row's targets; places that the search left empty (no beam index) are left out."""
        count = self._generate.num_return
        targets, filled = sequences.tolist(), (beams[:, 0] >= 0).tolist()
        found: list[list[list[int]]] = []
        for row, limit in enumerate(limits):
            places = range(row * count, (row + 1) * count)
            cut = [tuple(self._cut(targets[i], limit)) for i in places if filled[i]]
            found.append([list(target) for target in dict.fromkeys(cut)])
        return found

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        """The target alone: up to its end token, its stop string or its limit."""
        ids = ids[:limit]
        ids = ids[: next((i + 1 for i, token in enumerate(ids) if token in self.ends), None)]
        return ids[: self._stop.end(ids)] if self._stop else ids


def padded(
    rows: Sequence[Sequence[int]], pad: int, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [rows, longest] ids and attention mask, padded on one side."""
    width = max(map(len, rows))
    gaps = [[pad] * (width - len(row)) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    ids = [[*gap, *row] if left else [*row, *gap] for row, gap in pairs]
    ones = [([1] * len(row), [0] * len(gap)) for row, gap in pairs]
    return torch.tensor(ids), torch.tensor([b + a if left else a + b for a, b in ones])


def _of_the_model(config: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(**{name: getattr(config, name) for name in OF_THE_MODEL})


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]


def _padding(config: Any, ends: set[int]) -> int:
    """The id that fills gaps, which nothing looks at: any id will do where the model has none."""
    pad = config.pad_token_id
    return int(pad) if pad is not None and pad >= 0 else min(ends, default=0)
