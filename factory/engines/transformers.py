"""Hugging Face transformers: any causal or encoder–decoder model, in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.engines.base import EngineOptions, Hypothesis, Request, Result
from factory.errors import EngineError

DEFAULT_BATCH = 32


class TransformersEngine:
    """Decodes with `generate`, and scores what came of it, or a given target, teacher-forced.

    The log-probabilities of a decoded target are those of a scoring pass: of the full distribution
    at T = 1, before the penalties and filters that it was decoded with.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Load the model onto the accelerator, if there is one.

        `options.options` may hold `batch_size`: prompts, draws or targets worked on at once.

        Raises:
            EngineError: transformers is not installed, or cannot load the model; an option is
                not known, or the first token to force.
            PromptError: the decoding needs a tokenizer, and the model has none.
        """
        self._batch = _batch_size(options)
        self._model = model = _load(options)
        from factory.engines.decoder import Decoder
        from factory.engines.scoring import Scorer

        self._k, self._sampling = options.k, options.generate.decoding == "sample"
        self._waiting: list[Request] = []
        self._refused: list[Result] = []
        self.encoder_decoder = bool(model.config.is_encoder_decoder)
        text = model.config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        self._decoder = Decoder(model, options)
        start = _decoder_start(options, model) if self.encoder_decoder else None
        self._scorer = Scorer(model, options.k, self._decoder.pad, start)
        reader = model.get_decoder() if self.encoder_decoder else model
        self._known = (_embeddings(model), _embeddings(reader))

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet given back."""
        return len(self._waiting) + len(self._refused)

    def submit(self, request: Request) -> None:
        """Queue a request; one that the model cannot take comes back with the next step."""
        if error := self._fault(request):
            self._refused.append(Result(request.key, [], error))
        else:
            self._waiting.append(request)

    def step(self) -> list[Result]:
        """Work on one batch: the request that waits longest, with those most like it."""
        refused, self._refused = self._refused, []
        if not self._waiting:
            return refused
        batch = self._next_batch()
        if batch[0].target_ids is None:
            found = self._decode(batch)
        else:
            found = [[(request.target_ids or [], None)] for request in batch]
        return refused + self._results(batch, found)

    def close(self) -> None:
        """Let the model go."""
        del self._model, self._decoder, self._scorer

    def _fault(self, request: Request) -> str | None:
        """Why this row alone cannot be worked on: on an accelerator it would end the process."""
        both = zip((request.prompt_ids, request.target_ids or []), self._known, strict=True)
        for ids, known in both:
            if beyond := [token for token in ids if not 0 <= token < known]:
                return f"token id {beyond[0]} is beyond the model's vocabulary of {known}"
        if request.target_ids == []:
            return "the target to score is empty"
        if self._sampling and request.target_ids is None and not request.seeds:
            return "sampling takes a seed for each draw, and there is none"
        return None

    def _next_batch(self) -> list[Request]:
        """Take the oldest request and its nearest of the same kind, so that none waits for ever."""
        oldest = self._waiting[0]
        decoding = oldest.target_ids is None
        kind = [request for request in self._waiting if (request.target_ids is None) == decoding]
        batch = sorted(kind, key=lambda request: _distance(request, oldest))[: self._batch]
        taken = set(map(id, batch))
        self._waiting = [request for request in self._waiting if id(request) not in taken]
        return sorted(batch, key=lambda request: len(request.prompt_ids))

    def _decode(self, batch: Sequence[Request]) -> list[list[tuple[list[int], int | None]]]:
        """For each request its targets, each with its seed; draws are rows like any other."""
        from factory.engines.decoder import Row

        drawn = [request.seeds if self._sampling else (None,) for request in batch]
        rows = [
            Row(request.prompt_ids, request.max_new_tokens, seed)
            for request, seeds in zip(batch, drawn, strict=True)
            for seed in seeds
        ]
        targets: list[list[list[int]]] = []
        for first in range(0, len(rows), self._batch):
            targets += self._decoder.decode(rows[first : first + self._batch])
        told = iter(zip(targets, rows, strict=True))
        rounds = [[next(told) for _ in seeds] for seeds in drawn]
        return [[(ids, row.seed) for found, row in part for ids in found] for part in rounds]

    def _results(
        self, batch: Sequence[Request], found: list[list[tuple[list[int], int | None]]]
    ) -> list[Result]:
        rows = [
            (request, ids, seed)
            for request, targets in zip(batch, found, strict=True)
            for ids, seed in targets
        ]
        hypotheses: list[Hypothesis] = []
        for first in range(0, len(rows), self._batch):
            hypotheses += self._score(rows[first : first + self._batch])
        told = iter(hypotheses)
        return [
            Result(request.key, [next(told) for _ in targets])
            for request, targets in zip(batch, found, strict=True)
        ]

    def _score(self, rows: Sequence[tuple[Request, list[int], int | None]]) -> list[Hypothesis]:
        scored = self._scorer.score([(request.prompt_ids, ids) for request, ids, _ in rows])
        return [
            Hypothesis(
                token_ids=np.asarray(ids, np.int32),
                token_logprobs=told.token_logprobs,
                finish_reason=self._decoder.finish_reason(ids, _limit(request)),
                topk_ids=told.topk_ids if self._k else None,
                topk_logprobs=told.topk_logprobs if self._k else None,
                seed=seed,
            )
            for (request, ids, seed), told in zip(rows, scored, strict=True)
        ]


def _distance(request: Request, other: Request) -> int:
    """How unlike two requests are, in tokens: padding, and steps that one of them sits out."""
    prompts = abs(len(request.prompt_ids) - len(other.prompt_ids))
    if request.target_ids is None or other.target_ids is None:
        return prompts + abs(request.max_new_tokens - other.max_new_tokens)
    return prompts + abs(len(request.target_ids) - len(other.target_ids))


def _limit(request: Request) -> int | None:
    return request.max_new_tokens if request.target_ids is None else None


def _embeddings(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _decoder_start(options: EngineOptions, model: Any) -> int:
    """The token that targets are shifted behind, as `generate` finds it."""
    config = model.generation_config
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if isinstance(start, int):
        return start
    remedy = "its generation_config.json names no decoder_start_token_id: add it"
    raise EngineError("teacher.model", options.model, remedy)


def _batch_size(options: EngineOptions) -> int:
    settings = dict(options.options or {})
    size = settings.pop("batch_size", DEFAULT_BATCH)
    if settings:
        unknown = ", ".join(sorted(settings))
        raise EngineError("teacher.options", unknown, "engine transformers takes batch_size alone")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise EngineError("teacher.options.batch_size", size, "give a whole number of rows above 0")
    return size


def _load(options: EngineOptions) -> Any:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    except ImportError as error:
        remedy = f"transformers is not installed: pip install 'seqkd[train]' ({error})"
        raise EngineError("teacher.engine", "transformers", remedy) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = AutoConfig.from_pretrained(options.model, revision=options.revision)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(
            options.model,
            revision=options.revision,
            dtype=getattr(torch, options.dtype),
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError("teacher.model", options.model, f"cannot be loaded: {reason}") from None
    return model.to(device).eval()
