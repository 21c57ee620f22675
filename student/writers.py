"""A model as a user loads it from a folder: what it writes, and how probable it finds a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from factory.architecture import model_class
from factory.engines.ctranslate2 import PATIENCE, open_folder
from student.generation import listed

Ids = Sequence[int]


class Writer(Protocol):
    """A loaded model, one row at a time."""

    def logprobs(self, prompt: Ids, target: Ids) -> torch.Tensor:
        """Natural log-probabilities of a target's n tokens after a prompt: float32 [n]."""

    def write(self, prompt: Ids) -> list[int]:
        """The target that is decoded after a prompt, its end token included."""


class TransformersWriter:
    """A Hugging Face folder, in the dtype it is stored in, decoding as its own files say."""

    def __init__(self, folder: Path, tokenizer: Any, generation: Any = None) -> None:
        """Load it from safetensors alone; `generation` replaces its own configuration."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        model = model_class(config).from_pretrained(folder, dtype="auto", use_safetensors=True)
        self.model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        if generation is not None:
            self.model.generation_config = generation
        stops = self.model.generation_config.stop_strings
        self._stops = {"tokenizer": tokenizer} if stops else {}

    @torch.inference_mode()
    def logits(self, prompt: Ids, target: Ids) -> torch.Tensor:
        """What precedes each of a target's n tokens: float32 [n, vocabulary]."""
        if self.model.config.is_encoder_decoder:
            start = self.model.generation_config.decoder_start_token_id
            begun = self._rows([start, *target[:-1]])
            return self._float(self.model(input_ids=self._rows(prompt), decoder_input_ids=begun))
        told = self._float(self.model(input_ids=self._rows([*prompt, *target[:-1]])))
        return told[len(prompt) - 1 :]

    def logprobs(self, prompt: Ids, target: Ids) -> torch.Tensor:
        """Natural log-probabilities of a target's n tokens after a prompt: float32 [n]."""
        rows = self.logits(prompt, target).log_softmax(-1)
        return rows.gather(-1, torch.tensor(target)[:, None])[:, 0]

    @torch.inference_mode()
    def write(self, prompt: Ids) -> list[int]:
        """What `generate` gives with nothing but the model's own generation configuration."""
        ids = self._rows(prompt)
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), **self._stops)
        before = 1 if self.model.config.is_encoder_decoder else len(prompt)
        told: list[int] = out[0, before:].tolist()
        return told

    def _rows(self, ids: Ids) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self.model.device)

    @staticmethod
    def _float(out: Any) -> torch.Tensor:
        logits: torch.Tensor = out.logits[0].float().cpu()
        return logits


class CTranslate2Writer:
    """A folder in CTranslate2's format, spoken to in the tokens of its tokenizer."""

    def __init__(self, folder: Path, tokens: Sequence[str], generation: Any, seq2seq: bool) -> None:
        """Load it, to decode as a generation configuration of transformers says."""
        self._model, self._seq2seq = open_folder(folder, seq2seq), seq2seq
        self._names, self._generation = tokens, generation
        self._ids = {name: i for i, name in enumerate(tokens)}

    def logprobs(self, prompt: Ids, target: Ids) -> torch.Tensor:
        """Natural log-probabilities of a target's n tokens after a prompt: float32 [n]."""
        source, told = self._named(prompt), self._named(target)
        if self._seq2seq:  # an end token after the target is scored too
            [out] = self._model.score_batch([source], [told], max_input_length=0)
            return torch.tensor(out.log_probs[: len(target)])
        [out] = self._model.score_batch([source + told], max_input_length=0)
        return torch.tensor(out.log_probs[-len(target) :])

    def write(self, prompt: Ids) -> list[int]:
        """The target that is decoded after a prompt, its end token included."""
        told, source = self._generation, self._named(prompt)
        if self._seq2seq:
            first = told.forced_bos_token_id
            [out] = self._model.translate_batch(
                [source],
                target_prefix=None if first is None else [self._named([first])],
                max_decoding_length=told.max_new_tokens,
                min_decoding_length=told.min_new_tokens or 0,
                max_input_length=0,
                **self._options(),
            )
            return [self._ids[name] for name in out.hypotheses[0]]
        [out] = self._model.generate_batch(
            [source],
            max_length=told.max_new_tokens,
            min_length=told.min_new_tokens or 0,
            include_prompt_in_result=False,
            **self._options(),
        )
        return [int(token) for token in out.sequences_ids[0]]

    def _options(self) -> dict[str, Any]:
        told = self._generation
        options: dict[str, Any] = {
            "return_end_token": True,
            "end_token": self._named(listed(told.eos_token_id)),
            "repetition_penalty": told.repetition_penalty or 1.0,
            "no_repeat_ngram_size": told.no_repeat_ngram_size or 0,
            "beam_size": told.num_beams,
        }
        if told.num_beams > 1:
            patience = PATIENCE[told.early_stopping]
            options |= {"length_penalty": told.length_penalty, "patience": patience}
        return options

    def _named(self, ids: Ids) -> list[str]:
        return [self._names[token] for token in ids]
