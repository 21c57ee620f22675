"""How near a candidate is to its gold, where that may be seen: sentence chrF and BLEU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pyarrow as pa
from sacrebleu.metrics.bleu import BLEU

from factory.judging.families import Measuring
from factory.judging.ngrams import chrf
from factory.judging.texts import answer, by_sample, measured

NAME = "similarity"


def compare(batch: pa.RecordBatch) -> pa.RecordBatch:
    """SacreBLEU's sentence chrF, and BLEU with effective order, of each text against its gold.

    0…100; NULL without text or without gold. Equal texts of a sample are compared once.
    """
    golds: list[str | None] = [gold for gold, *_ in by_sample(batch, "gold")]
    samples = list(zip(golds, by_sample(batch, "text"), strict=True))
    groups = [_compared(gold, texts) for gold, texts in samples]
    chrfs, bleus = list[float | None](), list[float | None]()
    for (_, texts), group, scores in zip(samples, groups, chrf(groups, 1), strict=True):
        found = dict(zip(group[1:], scores[1:, 0].tolist(), strict=True))
        chrfs += map(found.get, texts)
        bleus += map({text: _bleu(text, group[0]) for text in found}.get, texts)
    return answer(batch, NAME, chrf_gold=chrfs, bleu_gold=bleus)


def _compared(gold: str | None, texts: list[str | None]) -> list[str]:
    """The gold, and the texts to be held against it."""
    if gold is None:
        return [""]
    return [gold, *dict.fromkeys(text for text in texts if text is not None)]


def _bleu(text: str, gold: str) -> float:
    score: float = _metric().sentence_score(text, [gold]).score
    return score


@cache
def _metric() -> BLEU:
    return BLEU(effective_order=True)


def measure_similarity(work: Measuring) -> Iterator[pa.RecordBatch]:
    """Measure every candidate against its gold.

    Raises:
        StepFailed: a worker process died.
    """
    return measured(work, NAME, compare, ["text", "gold"])
