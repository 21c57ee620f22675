"""The seam at the engine: what goes in, what comes out, and the loop that keeps it busy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from factory.decoding import Generate


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to decode, or to score a given target after. `key` comes back with the result.

    Attributes:
        max_new_tokens: the most tokens of a hypothesis, the end token included.
        seeds: one for each draw, where the decoding samples.
        target_ids: the target to score; its end token stands in it. None: decode.
        capture_seed: what tokens are drawn with, where distributions are kept as draws.
    """

    key: str
    prompt_ids: list[int]
    max_new_tokens: int
    seeds: tuple[int, ...] = ()
    target_ids: list[int] | None = None
    capture_seed: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens drawn with replacement from the full distribution at each of n positions.

    Attributes:
        widths: int32 [n], distinct tokens of a position.
        ids: int32 [m], the distinct tokens, position by position, most probable first.
        counts: int32 [m], how often each was drawn.
        logprobs: float32 [m], natural log over the full vocabulary at T = 1.
    """

    widths: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]

    @property
    def draws(self) -> int:
        """Draws of a position; 0 where there is no position."""
        return int(self.counts[: self.widths[0]].sum()) if len(self.widths) else 0

    def after(self, cut: int) -> Drawn:
        """The same without the first `cut` positions."""
        gone = int(self.widths[:cut].sum())
        return Drawn(self.widths[cut:], self.ids[gone:], self.counts[gone:], self.logprobs[gone:])


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded target of n tokens, the end token included where it was produced.

    Attributes:
        token_ids: int32 [n].
        token_logprobs: float32 [n], natural log over the full vocabulary at T = 1; None where an
            engine tells only their sum.
        finish_reason: `stop` or `length`.
        topk_ids: int32 [n, k], most probable first; None where no distribution was asked for.
        topk_logprobs: float32 [n, k], as `token_logprobs`.
        told_sum: the sum as the engine tells it, where it tells nothing finer.
        seed: what the draw was seeded with; None where nothing was drawn.
        drawn: draws from the full distribution; None where none were asked for.
    """

    token_ids: npt.NDArray[np.int32]
    token_logprobs: npt.NDArray[np.float32] | None
    finish_reason: str
    topk_ids: npt.NDArray[np.int32] | None = None
    topk_logprobs: npt.NDArray[np.float32] | None = None
    told_sum: float | None = None
    seed: int | None = None
    drawn: Drawn | None = None

    @property
    def sum_logprob(self) -> float:
        """Log-probability of the whole target, in nats, summed in float64."""
        if self.token_logprobs is None:
            return float("nan") if self.told_sum is None else self.told_sum
        return float(self.token_logprobs.astype(np.float64).sum())


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request: its hypotheses in the order found, or why there are none."""

    key: str
    hypotheses: list[Hypothesis]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is opened. `k` 0 asks for the log-probability of the realised tokens alone.

    `draws` asks for so many tokens drawn from the full distribution at each position.
    `logprobs` False says that ids alone are wanted: an engine may leave out what costs it more.
    `cache` is a folder where an engine may keep a converted copy of the model.
    """

    model: str
    revision: str | None = None
    dtype: str = "float32"
    k: int = 0
    generate: Generate = field(default_factory=Generate)
    options: dict[str, object] | None = None
    cache: str | None = None
    draws: int = 0
    logprobs: bool = True

    @property
    def window(self) -> int:
        """Requests the engine may be asked to hold at once."""
        return self.generate.window


class Engine(Protocol):
    """A decoder that works on many requests at once and gives each back when it is done."""

    context: int | None
    encoder_decoder: bool

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet given back."""

    def submit(self, request: Request) -> None:
        """Queue a request. A request the engine refuses comes back as a result with `error`."""

    def step(self) -> list[Result]:
        """Work for a while, and give back what is finished."""

    def close(self) -> None:
        """Give back the memory."""


def decode(engine: Engine, requests: Iterable[Request], window: int) -> Iterator[Result]:
    """Stream requests through an engine, keeping at most `window` of them inside.

    New requests are queued before finished ones are handed on, so that the engine always has
    work; results come in the order in which they finish.
    """
    waiting = iter(requests)
    exhausted = False
    finished: list[Result] = []
    while True:
        while not exhausted and engine.unfinished < window:
            request = next(waiting, None)
            if request is None:
                exhausted = True
            elif unfit := does_not_fit(engine, request):
                finished.append(Result(request.key, [], unfit))
            else:
                engine.submit(_within(engine, request))
        yield from finished
        if exhausted and not engine.unfinished:
            return
        finished = engine.step()


def does_not_fit(engine: Engine, request: Request) -> str | None:
    """Why a request cannot be worked on in the engine's context, or None if it can."""
    if not request.prompt_ids:
        return "the prompt is empty"
    if request.target_ids == []:
        return "the target is empty"
    if engine.context is None:
        return None
    length, target = len(request.prompt_ids), len(request.target_ids or [0])
    if engine.encoder_decoder:
        longest = max(length, 0 if request.target_ids is None else target)
        return _unfit("prompt", longest, engine) if longest > engine.context else None
    if request.target_ids is not None and length + target > engine.context:
        return _unfit("prompt and target", length + target, engine)
    return _unfit("prompt", length, engine) if length + 1 > engine.context else None


def _unfit(what: str, length: int, engine: Engine) -> str:
    return f"{what} of {length} tokens does not fit the context of {engine.context}"


def _within(engine: Engine, request: Request) -> Request:
    """Cut a request's token limit to what the context leaves."""
    if engine.context is None or request.target_ids is not None:
        return request
    taken = 0 if engine.encoder_decoder else len(request.prompt_ids)
    return replace(request, max_new_tokens=min(request.max_new_tokens, engine.context - taken))
