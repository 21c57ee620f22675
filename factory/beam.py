"""Beam search of one source, as Hugging Face defines it; it asks for distributions, and no engine.

The rules are those of `GenerationMixin._beam_search` of transformers 5 (the search itself: Graves
2012, arXiv 1211.3711; Sutskever et al. 2014, arXiv 1409.3215; the score's division by a power of
the length: after Wu et al. 2016, arXiv 1609.08144). At every position, of all children of the w
live beams, in the order of their summed log-probabilities:

- the w best that are not an end token live on;
- an end token among the w best finishes its hypothesis; so does, at the length limit, any token.

Of what has finished the w best by sum_logprob / tokens^length_penalty stay. The search ends when w
have finished and (early_stopping true) at once, or (false) when the best live beam, scored at its
present length, is no better than the worst of them; (never) the same, scored at the length limit
where the penalty is positive.

Two facts keep the search cheap; neither changes its outcome.

*Narrow rows.* Hugging Face looks at the (1 + ends)·w best children. A row of the w + ends most
probable tokens of each beam is enough: a child among the w best, or the w best without end tokens,
has at most w - 1 siblings before it, end tokens aside.

*Lazy expansion.* No child scores more than its parent. Let b be the w-th best of the children
known so far that are not end tokens. A live beam below b has no child above b: none that lives on,
and none among the w best, so that none finishes. Its distribution need not be known. (At b itself
it is asked for, so that ties fall the same whatever came first.)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from factory.decoding import Generate


class Row(NamedTuple):
    """The most probable tokens after a prefix, most probable first; natural logarithms, T = 1."""

    ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(slots=True, eq=False)
class Beam:
    """A prefix: its parent's, and one token. The root is the empty prefix.

    Attributes:
        logprob: of the token after the parent's prefix, in nats; `sum_logprob`: of the prefix.
        row: what may follow; None until it is given.
    """

    parent: Beam | None = None
    token: int = -1
    logprob: float = 0.0
    sum_logprob: float = 0.0
    row: Row | None = None

    def path(self) -> list[Beam]:
        """The beams from the first token's to this one's."""
        found, beam = [], self
        while beam.parent is not None:
            found.append(beam)
            beam = beam.parent
        return found[::-1]

    def prefix(self) -> list[int]:
        """Its token ids."""
        return [beam.token for beam in self.path()]


class Finished(NamedTuple):
    """A hypothesis that is done, by an end token (`stop`) or at the limit (`length`)."""

    score: float
    beam: Beam
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the searches of a run have in common; `ends` are the ids of the end tokens."""

    width: int
    ends: frozenset[int]
    num_return: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    min_new_tokens: int = 0

    @classmethod
    def of(cls, generate: Generate, ends: frozenset[int]) -> Rules:
        """The rules that a manifest's `generate` sets, for a model with these end tokens.

        A width of one is greedy decoding, as in `generate`: it ends at its first end token.
        """
        return cls(
            width=generate.beam_width,
            ends=ends,
            num_return=generate.num_return,
            length_penalty=generate.length_penalty,
            early_stopping=generate.early_stopping if generate.beam_width > 1 else True,
            min_new_tokens=generate.min_new_tokens,
        )

    @property
    def row_width(self) -> int:
        """Tokens a row must have (or the whole vocabulary, where it is smaller)."""
        return self.width + len(self.ends)

    def score(self, sum_logprob: float, length: int) -> float:
        """sum_logprob / length^length_penalty, in nats."""
        return sum_logprob / math.pow(length, self.length_penalty)


@dataclass(slots=True)
class Search:
    """The search of one source: give rows for what is `wanted()`, then `advance()`, until `done`.

    Attributes:
        limit: the most tokens of a hypothesis, the end token included; at least 1.
        live: beams of `length` tokens each, best first; none when the search is done.
        finished: the best hypotheses so far, best first, at most as many as the beam is wide.
    """

    rules: Rules
    limit: int
    live: list[Beam] = field(default_factory=lambda: [Beam()])
    finished: list[Finished] = field(default_factory=list)
    length: int = 0

    @property
    def done(self) -> bool:
        """Whether `hypotheses` is final."""
        return not self.live

    @property
    def hypotheses(self) -> list[Finished]:
        """The `num_return` best of what has finished, best first; equal scores: first come."""
        return self.finished[: self.rules.num_return]

    def wanted(self) -> list[Beam]:
        """Live beams without a row that could still change the outcome, best first."""
        missing = [beam for beam in self.live if beam.row is None]
        if not missing:
            return missing
        bound = self._bound()
        return [beam for beam in missing if beam.sum_logprob >= bound]

    def advance(self) -> None:
        """One position further. Nothing may be wanted."""
        assert not self.wanted(), "rows are wanting"
        self.length += 1
        last = self.length == self.limit
        width, live, ended = self.rules.width, list[Beam](), list[Finished]()
        for rank, child in enumerate(self._children()):
            ends = child.token in self.rules.ends
            if ends or last:
                if rank < width:
                    score = self.rules.score(child.sum_logprob, self.length)
                    ended.append(Finished(score, child, "stop" if ends else "length"))
            elif len(live) < width:
                live.append(child)
        if ended:
            merged = sorted([*self.finished, *ended], key=_by_score)
            self.finished = merged[:width]
        self.live = [] if self._over(live) else live

    def _bound(self) -> float:
        """The w-th best sum of a child that lives on, among those known."""
        width, ends = self.rules.width, self.rules.ends
        sums = [
            beam.sum_logprob + logprob
            for beam in self.live
            if beam.row is not None
            for token, logprob in self._best(beam.row)
            if token not in ends
        ]
        return heapq.nlargest(width, sums)[-1] if len(sums) >= width else -math.inf

    def _children(self) -> Iterator[Beam]:
        """As many of the best children as can matter, best first; ties by parent, then by row."""
        barred = self.rules.ends if self.length <= self.rules.min_new_tokens else frozenset[int]()
        found = [
            (-beam.sum_logprob - logprob, place, column, token, logprob)
            for place, beam in enumerate(self.live)
            if beam.row is not None
            for column, (token, logprob) in enumerate(self._best(beam.row))
            if token not in barred
        ]
        found.sort()
        most = self.rules.width * (1 + len(self.rules.ends))
        for negative, place, _, token, logprob in found[:most]:
            yield Beam(self.live[place], token, logprob, -negative)

    def _best(self, row: Row) -> Iterator[tuple[int, float]]:
        """The first of a row: a wider one, kept for its distribution, is not looked at."""
        width = self.rules.row_width
        return zip(row.ids[:width], row.logprobs[:width], strict=True)

    def _over(self, live: list[Beam]) -> bool:
        """Whether no live beam is followed further."""
        rules = self.rules
        if not live:
            return True
        if len(self.finished) < rules.width:
            return False
        if rules.early_stopping is True:
            return True
        hopeful = rules.early_stopping == "never" and rules.length_penalty > 0
        length = self.limit if hopeful else self.length
        return rules.score(live[0].sum_logprob, length) <= self.finished[-1].score


def _by_score(finished: Finished) -> float:
    return -finished.score
