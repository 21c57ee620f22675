"""Beam searches over an engine that decodes greedily: live beams are its running requests.

A greedy request tells the distribution after its prompt, and after every prefix of what it goes on
to say, each for one step with its cache in place. So a live beam that adds its parent's most
probable token stays in its parent's request, a *rollout*; only a beam that adds another token is a
new request, of prompt and prefix. A rollout whose continuation no longer lives is aborted. Sources
do not wait for each other: a search goes on as soon as its own rows are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.beam import Beam, Finished, Row, Rules, Search
from factory.engines.base import Hypothesis, Request, Result


@dataclass(slots=True, eq=False)
class _Rollout:
    """A running request, and what it said that its search has not come to yet."""

    name: str
    source: _Source
    ahead: deque[tuple[int, Row]] = field(default_factory=deque)
    last: int = -1
    running: bool = True


@dataclass(slots=True, eq=False)
class _Source:
    """A source inside: its search, and the rollouts that its live beams continue."""

    request: Request
    search: Search
    serving: dict[Beam, _Rollout] = field(default_factory=dict)
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or self.search.done

    def deliver(self) -> None:
        """Give the search the rows that its beams' rollouts have told."""
        for beam, rollout in self.serving.items():
            if beam.row is None and rollout.ahead:
                rollout.last, beam.row = rollout.ahead.popleft()

    def follow(self) -> list[_Rollout]:
        """Let each rollout serve the live beam it went on to; give back those that have none."""
        before, self.serving = self.serving, {}
        for beam in self.search.live:
            rollout = before.get(beam.parent) if beam.parent else None
            goes_on = rollout is not None and (rollout.running or rollout.ahead)
            if rollout and goes_on and rollout.last == beam.token:
                self.serving[beam] = rollout
        kept = set(self.serving.values())
        return [rollout for rollout in before.values() if rollout not in kept]


@dataclass(slots=True)
class Handle:
    """What is needed of a vLLM engine.

    Attributes:
        engine: an `LLMEngine`: add_request and abort_request are called.
        sampling: the parameters of a rollout of so many tokens: greedy, raw log-probabilities in
            flat form, each step's output by itself, ended by the end tokens.
        refusals: what add_request raises for a request it does not take.
    """

    engine: Any
    sampling: Callable[[int], Any]
    refusals: tuple[type[Exception], ...]


class Rollouts:
    """The beam searches inside one engine; its owner steps it, and hands on what is for them."""

    def __init__(self, handle: Handle, rules: Rules, k: int, capacity: int) -> None:
        """Hold at most `capacity` sources in the engine; hypotheses come with their top `k`."""
        self._handle, self._rules, self._k, self._capacity = handle, rules, k, max(1, capacity)
        # The better half of a beam is nearly always wanted: its branches do not wait to be sure.
        # The others wait a step for the rollouts' rows, and a fifth of them is never asked for.
        self._sure = rules.width // 2
        self._waiting: deque[Request] = deque()
        self._active: dict[_Source, None] = {}
        self._touched: dict[_Source, None] = {}
        self._rollouts: dict[str, _Rollout] = {}
        self._dead: list[str] = []
        self._serial = 0

    def __len__(self) -> int:
        """Sources submitted and not yet given back."""
        return len(self._waiting) + len(self._active)

    def submit(self, request: Request) -> None:
        """Queue a source; it enters the engine with the next `turn`."""
        self._waiting.append(request)

    def take(self, output: Any) -> bool:
        """File what a request said in this step; False where it is none of ours."""
        if not output.request_id.isdecimal():
            return False
        # What was aborted in this step may still report.
        if rollout := self._rollouts.get(output.request_id):
            said = output.outputs[0]
            rollout.ahead.extend(_rows(said))
            if output.finished:
                self._end(rollout, said.finish_reason)
            self._touched[rollout.source] = None
        return True

    def turn(self) -> list[Result]:
        """Carry every search as far as its rows go; what is done, and new sources in its place."""
        for source in self._touched:
            self._pursue(source)
        done = [source for source in self._touched if source.done]
        self._touched.clear()
        for source in done:
            del self._active[source]
            self._retire(source.serving.values())
        while self._waiting and len(self._active) < self._capacity:
            done.extend(self._enter(self._waiting.popleft()))
        if self._dead:
            self._handle.engine.abort_request(self._dead)
            self._dead = []
        return [self._result(source) for source in done]

    def _enter(self, request: Request) -> list[_Source]:
        """Start a source; it is given back where the engine refuses it at once."""
        source = _Source(request, Search(self._rules, request.max_new_tokens))
        self._pursue(source)
        if source.done:
            return [source]
        self._active[source] = None
        return []

    def _pursue(self, source: _Source) -> None:
        """Go on until rows are wanting, and ask for those that no rollout is about to tell."""
        search = source.search
        while not source.done:
            source.deliver()
            wanted = search.wanted()
            branches = [beam for beam in wanted if beam not in source.serving]
            if len(branches) < len(wanted):
                branches = [beam for beam in branches if beam in search.live[: self._sure]]
            self._branch(source, branches)
            if wanted:
                return
            search.advance()
            self._retire(source.follow())

    def _branch(self, source: _Source, beams: list[Beam]) -> None:
        """A new request for each of these beams."""
        request = source.request
        for beam in beams:
            prefix = beam.prefix()
            self._serial += 1
            rollout = _Rollout(str(self._serial), source)
            prompt = {"prompt_token_ids": request.prompt_ids + prefix}
            sampling = self._handle.sampling(request.max_new_tokens - len(prefix))
            try:
                self._handle.engine.add_request(rollout.name, prompt, sampling)
            except self._handle.refusals as error:
                source.error = " ".join(str(error).split())
                return
            self._rollouts[rollout.name] = source.serving[beam] = rollout

    def _end(self, rollout: _Rollout, reason: str) -> None:
        """The engine has ended a rollout: at an end token, at the limit, or by a fault."""
        rollout.running = False
        del self._rollouts[rollout.name]
        if reason not in ("stop", "length"):
            rollout.source.error = f"the engine ended the request: {reason}"

    def _retire(self, rollouts: Iterable[_Rollout]) -> None:
        """Abort those that still run, with the end of this turn."""
        for rollout in rollouts:
            if rollout.running:
                rollout.running = False
                del self._rollouts[rollout.name]
                self._dead.append(rollout.name)

    def _result(self, source: _Source) -> Result:
        key = source.request.key
        hypotheses = [_hypothesis(h, self._k) for h in source.search.hypotheses]
        if source.error is None and not hypotheses:
            source.error = "no hypothesis was found: log-probabilities are not numbers"
        return Result(key, [] if source.error else hypotheses, source.error)


def _rows(said: Any) -> Iterator[tuple[int, Row]]:
    """One step's tokens, each with the row it was taken from, as flat log-probabilities tell it."""
    flat, tokens = said.logprobs, said.token_ids
    width = len(flat.token_ids) // len(tokens) if tokens else 0
    for place, token in enumerate(tokens):
        # The first column is the realised token; it stands again in its place among the others.
        columns = slice(place * width + 1, (place + 1) * width)
        yield token, Row(flat.token_ids[columns], flat.logprobs[columns])


def _hypothesis(finished: Finished, k: int) -> Hypothesis:
    path = finished.beam.path()
    rows = [beam.parent.row for beam in path if beam.parent and beam.parent.row]
    return Hypothesis(
        token_ids=np.array([beam.token for beam in path], np.int32),
        token_logprobs=np.array([beam.logprob for beam in path], np.float32),
        finish_reason=finished.finish_reason,
        topk_ids=np.array([row.ids[:k] for row in rows], np.int32) if k else None,
        topk_logprobs=np.array([row.logprobs[:k] for row in rows], np.float32) if k else None,
    )
