"""What steers transformers' `generate` step by step: forced tokens, ends, penalties, draws.

Called with the ids so far, int64 [rows · copies, length], prompts padded on the left: a row's
copies are its beams, or its candidates, and stand together. Each looks at its own row alone, so
that what becomes of a row does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from factory.decoding import Generate
from factory.prompting.tokenizing import decode_targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LEAST = torch.finfo(torch.float64).tiny


class RowLimits:
    """Stops each row at its own limit of new tokens, `start` being where they begin.

    In beam search the candidates at the limit are finished, and what runs on does so at a score of
    −1e9 that no finished one falls below: the row ends as it would alone.
    """

    def __init__(self, limits: torch.Tensor, start: int) -> None:
        self._limits, self._start = limits, start

    def __call__(self, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Tell which rows are at their limit: bool [rows · copies]."""
        return ids.shape[1] - self._start >= _spread(self._limits, ids)


class StopStrings:
    """Ends a target with the token that completes a string in its text.

    A string is looked for in the text of the last tokens, as many as the longest string has bytes,
    and one more; never in the prompt, and not before `least` tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, strings: Sequence[str], least: int
    ) -> None:
        self._tokenizer, self._strings, self._least = tokenizer, strings, least
        self._reach = 1 + max(len(string.encode()) for string in strings)

    def criterion(self, start: int) -> Callable[..., torch.Tensor]:
        """A stopping criterion for targets that begin at `start`."""

        def criterion(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            if ids.shape[1] - start < self._least:
                return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            tails = ids[:, max(start, ids.shape[1] - self._reach) :].tolist()
            return torch.tensor(self._hit(tails), device=ids.device)

        return criterion

    def end(self, target: Sequence[int]) -> int | None:
        """How many tokens a target has when it first completes a string; None if it never does."""
        counts = range(max(1, self._least), len(target) + 1)
        hits = self._hit([target[max(0, count - self._reach) : count] for count in counts])
        return next((count for count, hit in zip(counts, hits, strict=True) if hit), None)

    def _hit(self, tails: Sequence[Sequence[int]]) -> list[bool]:
        texts = decode_targets(self._tokenizer, tails)
        return [any(string in text for string in self._strings) for text in texts]


class FirstToken:
    """Leaves one token to choose from at the first place."""

    def __init__(self, token: int, start: int) -> None:
        self._token, self._start = token, start

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores, of which all others are −inf where the first token comes next."""
        return _only([self._token], scores) if ids.shape[1] == self._start else scores


class LastToken:
    """Leaves the end tokens alone to choose from at the last place that a row's limit allows."""

    def __init__(self, tokens: Sequence[int], limits: torch.Tensor, start: int) -> None:
        self._tokens, self._limits, self._start = tokens, limits, start

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores, of which all others are −inf where a row's last token comes next."""
        last = torch.eq(_spread(self._limits, ids) - 1, ids.shape[1] - self._start)
        return torch.where(last[:, None], _only(self._tokens, scores), scores)


class Unpadded:
    """Shows a processor that looks back each row without its padding, which it would count."""

    def __init__(self, inner: Processor, padding: Sequence[int]) -> None:
        self._inner, self._padding = inner, padding

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores as the inner processor leaves them, row by row where anything is padded."""
        if not any(self._padding):
            return self._inner(ids, scores)
        copies = len(ids) // len(self._padding)
        rows = [slice(i * copies, (i + 1) * copies) for i in range(len(self._padding))]
        parts = zip(rows, self._padding, strict=True)
        return torch.cat([self._inner(ids[row, pad:], scores[row]) for row, pad in parts])


class GumbelMax:
    """Makes the greatest score an exact draw: each row's noise comes from its own seed.

    argmax(log p + G) with independent Gumbel noise G = −log E, E exponential, is distributed as p:
    the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030). Temperature and
    filters are Hugging Face's own, in its order. Every step draws one number for each token of the
    vocabulary, so that a row's noise at a place is a function of its seed and the place. Drawn in
    float64: float32 is too coarse near 0, where the rare tokens' chances lie.
    """

    def __init__(self, generate: Generate, seeds: Sequence[int], device: torch.device) -> None:
        self._warp = _warpers(generate)
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities up to a constant, warped, plus noise: float64 [rows, vocabulary]."""
        noise = torch.empty_like(scores, dtype=torch.float64)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return self._warp(ids, scores) - noise.clamp_(min=LEAST).log_()


def penalties(generate: Generate, padding: Sequence[int]) -> list[Processor]:
    """What looks back over prompt and target: the repetition penalty and n-gram blocking."""
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    inner: list[Processor] = []
    if generate.repetition_penalty != 1:
        inner.append(RepetitionPenaltyLogitsProcessor(generate.repetition_penalty))
    if generate.no_repeat_ngram_size:
        inner.append(NoRepeatNGramLogitsProcessor(generate.no_repeat_ngram_size))
    return [Unpadded(processor, padding) for processor in inner]


def _warpers(generate: Generate) -> Processor:
    from transformers.generation import (
        EpsilonLogitsWarper,
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers: Processor = LogitsProcessorList(
        warper(value)
        for warper, value, idle in (
            (TemperatureLogitsWarper, generate.temperature, 1),
            (TopKLogitsWarper, generate.top_k, 0),
            (TopPLogitsWarper, generate.top_p, 1),
            (MinPLogitsWarper, generate.min_p, 0),
            (EpsilonLogitsWarper, generate.epsilon, 0),
        )
        if value != idle
    )
    return warpers


def _spread(limits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return limits.repeat_interleave(len(ids) // len(limits))


def _only(tokens: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
    left = torch.full_like(scores, -torch.inf)
    left[:, list(tokens)] = 0
    return left
