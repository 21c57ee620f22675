"""Metrics over decoded splits: whole with a confidence interval, and in folds of equal size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from factory.evaluation import Program
from factory.metrics import METRICS, interval
from factory.programs import program_signature, run_program

PROGRAM_READS = ("sample_id", "source", "prediction", "reference")
WHOLE = slice(None)


@dataclass(frozen=True, slots=True)
class Texts:
    """One system's texts of one split beside the gold, in the order of their ids' hashes.

    `sources` and `ids` are what a user's command reads beside them.
    """

    system: str
    stage: str | None
    split: str
    hypotheses: Sequence[str]
    references: Sequence[str]
    sources: Sequence[str] = ()
    ids: Sequence[str] = ()


def fold_bounds(rows: int, folds: int) -> list[int]:
    """Where each fold begins, and the end of the last: sizes differ by one at most."""
    return [fold * rows // folds for fold in range(folds + 1)]


def scores(
    texts: Texts, metrics: Mapping[str, Program | None], folds: int
) -> Iterator[dict[str, Any]]:
    """Rows of `evals`: each metric over the whole split (fold None), then over every fold.

    The interval is the central 95 % of bootstrap resamples (Koehn 2004), as sacreBLEU draws them;
    folds carry none, and a command's number neither.

    Args:
        texts: what is scored.
        metrics: by name, the command that computes it, or None for one of `METRICS`.
        folds: how many; 0 for none.

    Raises:
        StepFailed: a command gave no number.
    """
    where = {"system": texts.system, "stage": texts.stage, "split": texts.split}
    for name, program in metrics.items():
        measure = partial(_measured, texts, name)
        if program is not None:
            measure = partial(_asked, texts, name, program, program_signature(program))
        for fold, cut in _cuts(len(texts.hypotheses), folds):
            yield {**where, "metric": name, "fold": fold, **measure(cut)}


def _cuts(rows: int, folds: int) -> Iterator[tuple[int | None, slice]]:
    """The whole, then every fold that holds a row."""
    yield None, WHOLE
    bounds = fold_bounds(rows, folds) if folds else []
    for fold, (first, last) in enumerate(itertools.pairwise(bounds)):
        if last > first:
            yield fold, slice(first, last)


def _measured(texts: Texts, name: str, cut: slice) -> dict[str, Any]:
    metric = METRICS[name]()
    hypotheses, references = list(texts.hypotheses[cut]), list(texts.references[cut])
    score = float(metric.corpus_score(hypotheses, [references]).score)
    low, high = interval(metric, hypotheses, references) if cut is WHOLE else (None, None)
    signature = str(metric.get_signature())
    return {"score": score, "ci_low": low, "ci_high": high, "signature": signature}


def _asked(texts: Texts, name: str, program: Program, signature: str, cut: slice) -> dict[str, Any]:
    columns = (texts.ids, texts.sources, texts.hypotheses, texts.references)
    rows = zip(*(column[cut] for column in columns), strict=True)
    score = run_program(name, program, (dict(zip(PROGRAM_READS, r, strict=True)) for r in rows))
    return {"score": score, "ci_low": None, "ci_high": None, "signature": signature}
