"""The seam at the engine: what goes in, what comes out, and the loop that keeps it busy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to decode. `key` comes back with the result."""

    key: str
    prompt_ids: list[int]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One decoded target of n tokens, the end token included where it was produced.

    Attributes:
        token_ids: int32 [n].
        token_logprobs: float32 [n], natural log over the full vocabulary at T = 1.
        finish_reason: `stop` or `length`.
        topk_ids: int32 [n, k], most probable first; None where no distribution was asked for.
        topk_logprobs: float32 [n, k], as `token_logprobs`.
    """

    token_ids: npt.NDArray[np.int32]
    token_logprobs: npt.NDArray[np.float32]
    finish_reason: str
    topk_ids: npt.NDArray[np.int32] | None = None
    topk_logprobs: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request: its hypotheses, best first, or the reason there are none."""

    key: str
    hypotheses: list[Hypothesis]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is opened. `k` 0 asks for the log-probability of the realised tokens alone."""

    model: str
    revision: str | None = None
    dtype: str = "float32"
    k: int = 0
    window: int = 512
    options: dict[str, object] | None = None


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
    """Why a prompt cannot be decoded in the engine's context, or None if it can."""
    if not request.prompt_ids:
        return "the prompt is empty"
    room = 0 if engine.encoder_decoder else 1
    length = len(request.prompt_ids)
    if engine.context is not None and length + room > engine.context:
        return f"prompt of {length} tokens does not fit the context of {engine.context}"
    return None


def _within(engine: Engine, request: Request) -> Request:
    """Cut a request's token limit to what the context leaves."""
    if engine.context is None:
        return request
    taken = 0 if engine.encoder_decoder else len(request.prompt_ids)
    return replace(request, max_new_tokens=min(request.max_new_tokens, engine.context - taken))
