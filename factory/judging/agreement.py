"""How far a candidate agrees with the others of its sample: its utility of minimum Bayes risk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from factory.judging.families import Measuring
from factory.judging.ngrams import Floats, Ints, chrf
from factory.judging.texts import answer, by_sample, measured

NAME = "agreement"


def agree(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Mean sentence chrF of each text, as hypothesis, with each other of its sample as reference.

    0…100; NULL without text, or where there is no other. A text that was drawn twice agrees with
    itself, and is compared once. (Eikema & Aziz 2020; Freitag et al. 2023, arXiv 2309.10966.)
    """
    samples = by_sample(batch, "text")
    drawn = [Counter(text for text in texts if text is not None) for texts in samples]
    agreement = list[float | None]()
    for texts, times, scores in zip(samples, drawn, chrf(map(list, drawn)), strict=True):
        means = _means(scores, np.array(list(times.values())))
        agreement += map(dict(zip(times, means, strict=True)).get, texts)
    return answer(batch, NAME, agreement=agreement)


def _means(scores: Floats, times: Ints) -> list[float | None]:
    """Of each of n texts that were drawn so many times; scores are (n, n)."""
    others = int(times.sum()) - 1
    if others < 1:
        return [None] * len(times)
    weights = times - np.eye(len(times))  # not against itself, but against its equals
    means: list[float | None] = ((scores * weights).sum(1) / others).tolist()
    return means


def measure_agreement(work: Measuring) -> Iterator[pa.RecordBatch]:
    """Measure every candidate against the others of its sample.

    Raises:
        StepFailed: a worker process died.
    """
    return measured(work, NAME, agree, ["text"])
