"""SacreBLEU over decoded splits: whole with a confidence interval, and in folds of equal size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from factory.metrics import METRICS, interval


@dataclass(frozen=True, slots=True)
class Texts:
    """One system's texts of one split beside the gold, in the order of their ids' hashes."""

    system: str
    stage: str | None
    split: str
    hypotheses: Sequence[str]
    references: Sequence[str]


def fold_bounds(rows: int, folds: int) -> list[int]:
    """Where each fold begins, and the end of the last: sizes differ by one at most."""
    return [fold * rows // folds for fold in range(folds + 1)]


def scores(texts: Texts, metrics: Sequence[str], folds: int) -> Iterator[dict[str, Any]]:
    """Rows of `evals`: each metric over the whole split (fold None), then over every fold.

    The interval is the central 95 % of bootstrap resamples (Koehn 2004), as sacreBLEU draws them;
    folds carry none.
    """
    for name in metrics:
        yield _row(texts, name, None, slice(None))
        bounds = fold_bounds(len(texts.hypotheses), folds) if folds else []
        for fold, (first, last) in enumerate(itertools.pairwise(bounds)):
            if last > first:
                yield _row(texts, name, fold, slice(first, last))


def _row(texts: Texts, name: str, fold: int | None, cut: slice) -> dict[str, Any]:
    metric = METRICS[name]()
    hypotheses, references = list(texts.hypotheses[cut]), list(texts.references[cut])
    score = float(metric.corpus_score(hypotheses, [references]).score)
    low, high = (None, None) if fold is not None else interval(metric, hypotheses, references)
    return {
        "system": texts.system,
        "stage": texts.stage,
        "split": texts.split,
        "metric": name,
        "fold": fold,
        "score": score,
        "ci_low": low,
        "ci_high": high,
        "signature": str(metric.get_signature()),
    }
