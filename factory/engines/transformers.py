"""Hugging Face transformers: any causal or encoder–decoder model, in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.engines.base import EngineOptions, Hypothesis, Request, Result
from factory.errors import EngineError

DEFAULT_BATCH = 32


@dataclass(frozen=True, slots=True)
class _Target:
    """Ids to score, with the place in the batch of the request they belong to.

    Attributes:
        ordinal: which of the request's targets it is.
        seed: of the draw that it is.
    """

    place: int
    ids: list[int]
    ordinal: int = 0
    seed: int | None = None


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
                not known.
            ManifestError: the first token to force is none of the tokenizer's.
            PromptError: the decoding needs a tokenizer, and the model has none.
        """
        self._batch = _batch_size(options)
        self._model = model = _load(options)
        from factory.engines.decoder import Decoder
        from factory.engines.scoring import Scorer

        self._k, self._sampling = options.k, options.generate.decoding == "sample"
        self._ids_alone = not (options.logprobs or options.k or options.draws)
        self._waiting: list[Request] = []
        self._refused: list[Result] = []
        self.encoder_decoder = bool(model.config.is_encoder_decoder)
        text = model.config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        self._decoder = Decoder(model, options)
        start = _decoder_start(options, model) if self.encoder_decoder else None
        pad = self._decoder.pad
        self._scorer = Scorer(model, options.k, pad, start, draws=options.draws)
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
        targets = self._given(batch) if _scores(batch[0]) else self._decoded(batch)
        tell = self._unscored if self._ids_alone and not _scores(batch[0]) else self._score
        found: list[list[Hypothesis]] = [[] for _ in batch]
        for first in range(0, len(targets), self._batch):
            part = targets[first : first + self._batch]
            for target, hypothesis in zip(part, tell(batch, part), strict=True):
                found[target.place].append(hypothesis)
        results = [Result(request.key, told) for request, told in zip(batch, found, strict=True)]
        return refused + results

    def close(self) -> None:
        """Let the model go."""
        del self._model, self._decoder, self._scorer

    def _fault(self, request: Request) -> str | None:
        """Why this row alone cannot be worked on: on an accelerator it would end the process."""
        both = zip((request.prompt_ids, request.target_ids or []), self._known, strict=True)
        for ids, known in both:
            if beyond := [token for token in ids if not 0 <= token < known]:
                return f"token id {beyond[0]} is beyond the model's vocabulary of {known}"
        if self._sampling and request.target_ids is None and not request.seeds:
            return "sampling takes a seed for each draw, and there is none"
        return None

    def _next_batch(self) -> list[Request]:
        """Take the oldest request and its nearest of the same kind, so that none waits for ever."""
        oldest = self._waiting[0]
        kind = [request for request in self._waiting if _scores(request) == _scores(oldest)]
        batch = sorted(kind, key=lambda request: _distance(request, oldest))[: self._batch]
        taken = set(map(id, batch))
        self._waiting = [request for request in self._waiting if id(request) not in taken]
        return sorted(batch, key=lambda request: len(request.prompt_ids))

    def _given(self, batch: Sequence[Request]) -> list[_Target]:
        return [_Target(place, r.target_ids or []) for place, r in enumerate(batch)]

    def _decoded(self, batch: Sequence[Request]) -> list[_Target]:
        """Targets of every request; a draw is a row like any other."""
        draws = [
            (place, ordinal, seed)
            for place, request in enumerate(batch)
            for ordinal, seed in enumerate(request.seeds if self._sampling else (None,))
        ]
        targets: list[_Target] = []
        for first in range(0, len(draws), self._batch):
            rows = draws[first : first + self._batch]
            found = self._decoder.decode(
                [batch[place].prompt_ids for place, _, _ in rows],
                [batch[place].max_new_tokens for place, _, _ in rows],
                [seed for _, _, seed in rows],
            )
            for (place, ordinal, seed), told in zip(rows, found, strict=True):
                # A draw is one target; a beam's are counted from its first.
                ranks = enumerate(told, ordinal)
                targets += [_Target(place, ids, rank, seed) for rank, ids in ranks]
        return targets

    def _unscored(self, batch: Sequence[Request], targets: Sequence[_Target]) -> list[Hypothesis]:
        return [
            Hypothesis(
                np.asarray(target.ids, np.int32),
                None,
                self._decoder.finish_reason(target.ids, _limit(batch[target.place])),
                seed=target.seed,
            )
            for target in targets
        ]

    def _score(self, batch: Sequence[Request], targets: Sequence[_Target]) -> list[Hypothesis]:
        from factory.engines.scoring import Passage

        asked = ((batch[target.place], target) for target in targets)
        scored = self._scorer.score(
            [Passage(r.prompt_ids, t.ids, (r.capture_seed, t.ordinal)) for r, t in asked]
        )
        return [
            Hypothesis(
                token_ids=np.asarray(target.ids, np.int32),
                token_logprobs=told.token_logprobs,
                finish_reason=self._decoder.finish_reason(target.ids, _limit(batch[target.place])),
                topk_ids=told.topk_ids if self._k else None,
                topk_logprobs=told.topk_logprobs if self._k else None,
                seed=target.seed,
                drawn=told.drawn,
            )
            for target, told in zip(targets, scored, strict=True)
        ]


def _scores(request: Request) -> bool:
    return request.target_ids is not None


def _distance(request: Request, other: Request) -> int:
    """How unlike two requests are, in tokens: padding, and steps that one of them sits out."""
    prompts = abs(len(request.prompt_ids) - len(other.prompt_ids))
    if request.target_ids is None or other.target_ids is None:
        return prompts + abs(request.max_new_tokens - other.max_new_tokens)
    return prompts + abs(len(request.target_ids) - len(other.target_ids))


def _limit(request: Request) -> int | None:
    return None if _scores(request) else request.max_new_tokens


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
