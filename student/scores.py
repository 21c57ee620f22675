"""SacreBLEU over decoded splits: whole with a confidence interval, and in folds of equal size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import estimate_ci

METRICS: dict[str, type[BLEU] | type[CHRF]] = {"bleu": BLEU, "chrf": CHRF}
RESAMPLES = 1000
SEED = 12345  # sacreBLEU's own


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
    hypotheses, references = list(texts.hypotheses[cut]), [list(texts.references[cut])]
    score = float(metric.corpus_score(hypotheses, references).score)
    low, high = (None, None) if fold is not None else _interval(metric, hypotheses, references)
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


def _interval(
    metric: BLEU | CHRF, hypotheses: list[str], references: list[list[str]]
) -> tuple[float, float]:
    """What `corpus_score(…, n_bootstrap=1000)` finds, draws included, row by row.

    SacreBLEU's own copies every resample's statistics at once, and fails where some of the
    resamples score 0.
    """
    statistics = metric._extract_corpus_statistics(hypotheses, references)
    stacked = np.asarray(statistics, dtype=np.float32)
    random = np.random.default_rng(SEED)
    draws = random.choice(len(stacked), size=(RESAMPLES, len(stacked)), replace=True)
    found = [metric._compute_score_from_stats(stacked[draw].sum(0)).score for draw in draws]
    middle, half = estimate_ci(np.asarray(found, dtype=np.float64))
    metric.n_bootstrap, metric.seed = RESAMPLES, str(SEED)  # for the signature
    return float(middle - half), float(middle + half)
