"""From an engine's results to rows: candidates with ranks and scores, and their distributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factory.engines.base import Hypothesis, Result
from factory.logits import round_logprobs, tail_logprob
from factory.prompts import decode_targets
from factory.schemas import CANDIDATES, LOGITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Ranked:
    """A hypothesis with its place among those of its source; None where decoding failed."""

    sample_id: str
    prompt_hash: int
    rank: int
    ordinal: int
    hypothesis: Hypothesis | None
    error: str | None


def candidate_table(
    sample_ids: Sequence[str],
    prompt_hashes: Sequence[int],
    results: Sequence[Result],
    tokenizer: PreTrainedTokenizerFast,
) -> pa.Table:
    """Rows of `schemas.CANDIDATES`, in the order of the sources, ranks ascending."""
    ranked = list(_ranked(sample_ids, prompt_hashes, results))
    decoded = [row.hypothesis for row in ranked if row.hypothesis is not None]
    texts = iter(decode_targets(tokenizer, [h.token_ids.tolist() for h in decoded]))
    rows = [_candidate(row, texts) for row in ranked]
    return pa.Table.from_pylist(rows, schema=CANDIDATES)


def logits_table(
    sample_ids: Sequence[str],
    prompt_hashes: Sequence[int],
    results: Sequence[Result],
    precision: str,
) -> pa.Table:
    """Rows of `schemas.LOGITS`, one a decoded candidate; lists are flat, k values a position."""
    rows = [row for row in _ranked(sample_ids, prompt_hashes, results) if row.hypothesis]
    kept = [row.hypothesis for row in rows if row.hypothesis]
    lengths = np.array([len(h.token_ids) for h in kept], np.int64)
    widths = np.array([0 if h.topk_ids is None else h.topk_ids.shape[1] for h in kept], np.int64)
    tops = [h.topk_logprobs for h in kept if h.topk_logprobs is not None]
    columns = {
        "sample_id": [row.sample_id for row in rows],
        "prompt_hash": [row.prompt_hash for row in rows],
        "origin": ["candidate"] * len(rows),
        "rank": [row.rank for row in rows],
        "n_tokens": lengths,
        "k": widths,
        "token_ids": _lists([h.token_ids for h in kept], lengths, "int32"),
        "token_logprobs": _lists(
            [round_logprobs(h.token_logprobs, precision) for h in kept], lengths, "float32"
        ),
        "topk_ids": _lists(
            [h.topk_ids.ravel() for h in kept if h.topk_ids is not None], lengths * widths, "int32"
        ),
        "topk_logprobs": _lists(
            [round_logprobs(top, precision).ravel() for top in tops], lengths * widths, "float32"
        ),
        "tail_logprob": _lists([tail_logprob(top) for top in tops], lengths, "float32"),
    }
    return pa.table(
        [_column(columns.get(field.name), field.type, len(rows)) for field in LOGITS], schema=LOGITS
    )


def _ranked(
    sample_ids: Sequence[str], prompt_hashes: Sequence[int], results: Sequence[Result]
) -> Iterator[Ranked]:
    """Rank 0 has the highest score; equal scores keep the order in which they were drawn."""
    for sample_id, prompt_hash, result in zip(sample_ids, prompt_hashes, results, strict=True):
        if result.error is not None:
            yield Ranked(sample_id, prompt_hash, 0, 0, None, result.error)
        drawn = sorted(enumerate(result.hypotheses), key=lambda pair: -_score(pair[1]))
        for rank, (ordinal, hypothesis) in enumerate(drawn):
            yield Ranked(sample_id, prompt_hash, rank, ordinal, hypothesis, None)


def _score(hypothesis: Hypothesis) -> float:
    """Mean log-probability a token, in nats, the end token counted where it was produced."""
    return float(hypothesis.token_logprobs.astype(np.float64).mean())


def _candidate(row: Ranked, texts: Iterator[str]) -> dict[str, Any]:
    known = {
        "sample_id": row.sample_id,
        "prompt_hash": row.prompt_hash,
        "rank": row.rank,
        "ordinal": row.ordinal,
    }
    if row.hypothesis is None:
        return known | {"finish_reason": "error", "error": row.error}
    total = float(row.hypothesis.token_logprobs.astype(np.float64).sum())
    mean = _score(row.hypothesis)
    return known | {
        "score": mean,
        "text": next(texts),
        "token_ids": row.hypothesis.token_ids,
        "n_tokens": len(row.hypothesis.token_ids),
        "sum_logprob": total,
        "mean_logprob": mean,
        "finish_reason": row.hypothesis.finish_reason,
    }


def _lists(
    parts: list[npt.NDArray[Any]], lengths: npt.NDArray[np.int64], dtype: str
) -> pa.ListArray:
    values = np.concatenate(parts) if parts else np.array([], dtype)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(dtype, copy=False)))


def _column(values: Any, kind: pa.DataType, length: int) -> pa.Array:
    return pa.nulls(length, kind) if values is None else pa.array(values, kind)
