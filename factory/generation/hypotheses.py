"""From an engine's results to rows: candidates with ranks and scores, and their distributions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factory.distributions.logits import nucleus, tail_logprob
from factory.engines.base import Hypothesis, Result
from factory.generation.responses import Responses
from factory.schemas import CANDIDATES, LOGITS


@dataclass(frozen=True, slots=True)
class Ranked:
    """A hypothesis with its place among those of its source; None where decoding failed.

    Attributes:
        score: None where nothing is left of the hypothesis.
        reasoning_ids: int32 [m], what was cut off before it; None where nothing was.
    """

    sample_id: str
    prompt_hash: int
    rank: int
    ordinal: int
    score: float | None
    hypothesis: Hypothesis | None
    error: str | None
    reasoning_ids: npt.NDArray[np.int32] | None = None


def ranked(
    sample_ids: Sequence[str],
    prompt_hashes: Sequence[int],
    results: Sequence[Result],
    exponent: float = 1.0,
    responses: Responses | None = None,
) -> list[Ranked]:
    """Every hypothesis with its score and rank, in the order of the sources, ranks ascending.

    The score is sum_logprob / tokens^exponent, in nats, the end token counted where it was
    produced, and reasoning not, where `responses` cuts it off. Rank 0 has the highest; equal scores
    keep the order in which they were drawn; what has no token left has no score, and comes last.
    """
    return [
        row
        for source in zip(sample_ids, prompt_hashes, results, strict=True)
        for row in _rank(*source, exponent, responses)
    ]


def candidate_table(rows: Sequence[Ranked], responses: Responses) -> pa.Table:
    """Rows of `schemas.CANDIDATES`."""
    answers = [row.hypothesis.token_ids.tolist() for row in rows if row.hypothesis]
    thoughts = [row.reasoning_ids.tolist() for row in rows if row.reasoning_ids is not None]
    texts, reasoning = iter(responses.texts(answers)), iter(responses.reasoning(thoughts))
    candidates = [_candidate(row, texts, reasoning, responses) for row in rows]
    _mark_duplicates(candidates)
    return pa.Table.from_pylist(candidates, schema=CANDIDATES)


def logits_table(ranks: Sequence[Ranked], p: float | None = None) -> pa.Table:
    """Rows of `schemas.LOGITS`, one a decoded candidate; lists are flat, position by position.

    Log-probabilities are as the engine told them, float32. Of the top k all are held, or with `p`
    the nucleus of that mass; of draws the distinct tokens, with their counts.
    """
    rows = [row for row in ranks if row.hypothesis]
    kept = [row.hypothesis for row in rows if row.hypothesis]
    lengths = np.array([len(h.token_ids) for h in kept], np.int64)
    places, held = _offsets(lengths), _held(kept, p)
    tops = _offsets(held.widths)[places]
    told = [h.token_logprobs for h in kept if h.token_logprobs is not None]
    columns = {
        "sample_id": [row.sample_id for row in rows],
        "prompt_hash": [row.prompt_hash for row in rows],
        "origin": ["candidate"] * len(rows),
        "rank": [row.rank for row in rows],
        "n_tokens": lengths,
        "k": held.k,
        "widths": None if held.k is not None else _lists(held.widths, places, "int32"),
        "token_ids": _lists(_flat([h.token_ids for h in kept], "int32"), places, "int32"),
        "token_logprobs": _lists(_flat(told, "float32"), places, "float32"),
        "topk_ids": _lists(held.ids, tops, "int32"),
        "topk_logprobs": _lists(held.logprobs, tops, "float32"),
        "tail_logprob": _lists(tail_logprob(held.logprobs, held.widths), places, "float32"),
        "counts": None if held.counts is None else _lists(held.counts, tops, "int32"),
        "draws": held.draws,
    }
    return pa.table(
        [_column(columns[field.name], field.type, len(rows)) for field in LOGITS], schema=LOGITS
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """What is held of the distributions of some hypotheses, flat, position by position.

    Attributes:
        widths: int32 [n], entries of each position.
        k: of each hypothesis the entries a position; None where they differ by position.
        counts, draws: of each entry, and of each hypothesis's positions, where they were drawn.
    """

    widths: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    k: npt.NDArray[np.int64] | None = None
    counts: npt.NDArray[np.int32] | None = None
    draws: npt.NDArray[np.int64] | None = None


def _held(kept: Sequence[Hypothesis], p: float | None) -> _Held:
    if drawn := [h.drawn for h in kept if h.drawn is not None]:
        return _Held(
            widths=_flat([d.widths for d in drawn], "int32"),
            ids=_flat([d.ids for d in drawn], "int32"),
            logprobs=_flat([d.logprobs for d in drawn], "float32"),
            counts=_flat([d.counts for d in drawn], "int32"),
            draws=np.full(len(drawn), max(d.draws for d in drawn)),
        )
    ids = [h.topk_ids for h in kept if h.topk_ids is not None]
    logprobs = [h.topk_logprobs for h in kept if h.topk_logprobs is not None]
    if p is not None and ids:
        return _Held(*nucleus(np.concatenate(ids), np.concatenate(logprobs), p))
    shapes = np.array([top.shape for top in ids], np.int64).reshape(-1, 2)
    return _Held(
        widths=np.repeat(shapes[:, 1], shapes[:, 0]).astype(np.int32),
        ids=_flat(ids, "int32"),
        logprobs=_flat(logprobs, "float32"),
        k=shapes[:, 1],
    )


def _rank(
    sample_id: str,
    prompt_hash: int,
    result: Result,
    exponent: float,
    responses: Responses | None,
) -> Iterator[Ranked]:
    if result.error is not None:
        yield Ranked(sample_id, prompt_hash, 0, 0, None, None, result.error)
    answers = [responses.answer(h) if responses else (h, None) for h in result.hypotheses]
    scores = [_score(hypothesis, exponent) for hypothesis, _ in answers]
    drawn = sorted(range(len(scores)), key=lambda ordinal: -_or_least(scores[ordinal]))
    for rank, ordinal in enumerate(drawn):
        hypothesis, cut = answers[ordinal]
        yield Ranked(sample_id, prompt_hash, rank, ordinal, scores[ordinal], hypothesis, None, cut)


def _score(hypothesis: Hypothesis, exponent: float) -> float | None:
    """Nothing has no mean: an answer that was all reasoning is left without a score."""
    length = len(hypothesis.token_ids)
    return hypothesis.sum_logprob / length**exponent if length else None


def _or_least(score: float | None) -> float:
    return -math.inf if score is None else score


def _candidate(
    row: Ranked, texts: Iterator[str], reasoning: Iterator[str], responses: Responses
) -> dict[str, Any]:
    known = {
        "sample_id": row.sample_id,
        "prompt_hash": row.prompt_hash,
        "rank": row.rank,
        "ordinal": row.ordinal,
    }
    hypothesis = row.hypothesis
    if hypothesis is None:
        return known | {"finish_reason": "error", "error": row.error}
    return known | {
        "score": row.score,
        "text": next(texts),
        "token_ids": hypothesis.token_ids,
        "n_tokens": len(hypothesis.token_ids),
        "sum_logprob": hypothesis.sum_logprob,
        "mean_logprob": _score(hypothesis, 1.0),
        "finish_reason": hypothesis.finish_reason,
        "seed": hypothesis.seed,
        "control_tokens": responses.control_tokens(hypothesis),
        "reasoning": None if row.reasoning_ids is None else next(reasoning),
        "reasoning_ids": row.reasoning_ids,
    }


def _mark_duplicates(candidates: Sequence[dict[str, Any]]) -> None:
    """Name the lowest rank of the same sample that has the same text."""
    first: dict[tuple[str, str], int] = {}
    for candidate in candidates:
        if (text := candidate.get("text")) is None:
            continue
        rank = first.setdefault((candidate["sample_id"], text), candidate["rank"])
        candidate["duplicate_of"] = rank if rank != candidate["rank"] else None


def _flat(parts: Sequence[npt.NDArray[Any]], dtype: str) -> npt.NDArray[Any]:
    """Arrays end to end; matrices row by row."""
    if not parts:
        return np.array([], dtype)
    whole: npt.NDArray[Any] = np.concatenate(parts, axis=None).astype(dtype, copy=False)
    return whole


def _offsets(lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Where each stretch begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _lists(values: npt.NDArray[Any], offsets: npt.NDArray[Any], dtype: str) -> pa.ListArray:
    flat = pa.array(values.astype(dtype, copy=False))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _column(values: Any, kind: pa.DataType, length: int) -> pa.Array:
    return pa.nulls(length, kind) if values is None else pa.array(values, kind)
