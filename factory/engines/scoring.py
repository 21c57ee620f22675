"""Teacher-forced scoring: the model's own distribution along targets that are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from factory.engines.base import Drawn
from factory.engines.decoder import padded
from factory.engines.drawing import distinct, draw, uniforms

# The most logits held at once, as a number of values: 128 MiB in float32, and as much again for
# their log-probabilities.
SCORED_VALUES = 1 << 25


@dataclass(frozen=True, slots=True)
class Scored:
    """Along one target of n tokens, in nats, over the full vocabulary at T = 1.

    Attributes:
        token_logprobs: float32 [n].
        topk_ids: int32 [n, k], most probable first.
        topk_logprobs: float32 [n, k].
        drawn: None where nothing is drawn.
    """

    token_logprobs: npt.NDArray[np.float32]
    topk_ids: npt.NDArray[np.int32]
    topk_logprobs: npt.NDArray[np.float32]
    drawn: Drawn | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A target to score after its prompt, as ids, neither of them empty.

    Attributes:
        seed: what its draws hang on, and nothing else does.
    """

    prompt: list[int]
    target: list[int]
    seed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the model is to read, and tell of.

    Attributes:
        call: the model over positions [first, last) after a cache.
        wanted: int64 [rows, length], the token that each position is to tell.
        skipped: positions before the first that tells a token of any target.
        starts: where each row's target begins, counted from `skipped`.
    """

    call: Callable[..., Any]
    wanted: torch.Tensor
    skipped: int
    starts: list[int]


class Scorer:
    """Reads targets in portions of positions, each after the cache of those before it.

    Every portion is the model's own forward pass, with whatever it does to its logits (caps,
    scales, biases). [rows, length, vocabulary] is never held: of rows and positions only so many
    that their logits are at most `SCORED_VALUES`.
    """

    def __init__(self, model: Any, k: int, pad: int, start: int | None, *, draws: int = 0) -> None:
        """Tell the top `k`, and `draws` of the full distribution; `start`: see `_encode`."""
        self._model, self._k, self._pad, self._start = model, k, pad, start
        self._draws = draws
        self._vocabulary = vocabulary(model)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def score(self, passages: Sequence[Passage]) -> list[Scored]:
        """Score passages, best of like length."""
        rows = max(1, min(len(passages), SCORED_VALUES // self._vocabulary))
        scored: list[Scored] = []
        with torch.inference_mode():
            for first in range(0, len(passages), rows):
                scored += self._batch(passages[first : first + rows])
        return scored

    def _batch(self, passages: Sequence[Passage]) -> list[Scored]:
        reading = self._read_both(passages) if self._start is None else self._encode(passages)
        points = self._points(reading, passages)
        step = max(1, SCORED_VALUES // (self._vocabulary * len(passages)))
        cache = self._skip(reading, step)
        parts = []
        for first in range(reading.skipped, reading.wanted.shape[1], step):
            last = min(first + step, reading.wanted.shape[1])
            out = reading.call(first, last, cache)
            cache = out.past_key_values
            parts.append(self._told(out.logits, reading.wanted[:, first:last], points[first:last]))
        told = [torch.cat(kind, dim=1).cpu().numpy() for kind in zip(*parts, strict=True)]
        places = zip(reading.starts, passages, strict=True)
        return [
            _scored([kind[row, start : start + len(passage.target)] for kind in told])
            for row, (start, passage) in enumerate(places)
        ]

    def _points(self, reading: _Reading, passages: Sequence[Passage]) -> torch.Tensor:
        """float64 [length, rows, draws]: where each position's draws fall; -1 outside targets."""
        rows, length = reading.wanted.shape
        points = np.full((length, rows, self._draws), -1.0)
        for row, (start, passage) in enumerate(zip(reading.starts, passages, strict=True)):
            if self._draws:
                first, size = reading.skipped + start, len(passage.target)
                points[first : first + size, row] = uniforms(passage.seed, size, self._draws)
        return torch.from_numpy(points).to(reading.wanted.device)

    def _told(
        self, logits: torch.Tensor, wanted: torch.Tensor, points: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(self._k, dim=-1)
        realised = logprobs.gather(-1, wanted[..., None])[..., 0]
        told = realised, top.indices.to(torch.int32), top.values
        if not self._draws:
            return told
        drawn = draw(logprobs.flatten(0, 1), points.transpose(0, 1).flatten(0, 1))
        return *told, *(kind.reshape(*wanted.shape, self._draws) for kind in drawn)

    def _skip(self, reading: _Reading, step: int) -> Any:
        """Read what stands before all targets, for its cache alone."""
        cache, width = None, reading.skipped if self._keeps else step
        extra = {"logits_to_keep": 1} if self._keeps else {}
        for first in range(0, reading.skipped, width or 1):
            last = min(first + width, reading.skipped)
            cache = reading.call(first, last, cache, **extra).past_key_values
        return cache

    def _read_both(self, passages: Sequence[Passage]) -> _Reading:
        """Prompt and target in one, as a causal model reads them; padded behind."""
        device = self._model.device
        joined = [passage.prompt + passage.target for passage in passages]
        ids, mask = (t.to(device) for t in padded([row[:-1] for row in joined], self._pad))
        wanted, _ = padded([row[1:] for row in joined], self._pad)
        places = [len(passage.prompt) - 1 for passage in passages]

        def call(first: int, last: int, cache: Any, **extra: Any) -> Any:
            return self._model(
                input_ids=ids[:, first:last],
                attention_mask=mask[:, :last],
                past_key_values=cache,
                use_cache=True,
                **extra,
            )

        skipped = min(places)
        return _Reading(call, wanted.to(device), skipped, [place - skipped for place in places])

    def _encode(self, passages: Sequence[Passage]) -> _Reading:
        """The prompt through the encoder; the target, shifted behind `start`, as portions."""
        device = self._model.device
        prompts, targets = [p.prompt for p in passages], [p.target for p in passages]
        ids, mask = (t.to(device) for t in padded(prompts, self._pad))
        shifted, _ = padded([[self._start or 0, *target[:-1]] for target in targets], self._pad)
        wanted, _ = padded(targets, self._pad)
        shifted = shifted.to(device)
        encoded = self._model.get_encoder()(input_ids=ids, attention_mask=mask)

        def call(first: int, last: int, cache: Any) -> Any:
            return self._model(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=shifted[:, first:last],
                past_key_values=cache,
                use_cache=True,
            )

        return _Reading(call, wanted.to(device), 0, [0] * len(passages))


def _scored(told: Sequence[npt.NDArray[Any]]) -> Scored:
    realised, ids, logprobs, *drawn = told
    return Scored(realised, ids, logprobs, distinct(*drawn) if drawn else None)


def vocabulary(model: Any) -> int:
    """How many values the model's logits have at a position."""
    head = model.get_output_embeddings()
    size = model.config.get_text_config().vocab_size if head is None else head.weight.shape[0]
    return int(size)
