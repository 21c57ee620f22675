"""The numbers of a report: small tables, aggregated by DuckDB over the views of a run.

No query returns more rows than there are bins, positions, ranks, points or samples to show: what a
report takes does not grow with the run, except in what DuckDB spills.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from factory.looking.comparing import compare
from factory.looking.viewing import Facts, fetch
from factory.query.catalog import Connection, connect
from factory.records import RunDirectory

Tables = dict[str, list[Facts]]

# Measures that have a histogram, in the order of the page.
MEASURES = (
    "n_words_source",
    "n_words_target",
    "n_tokens",
    "length_ratio",
    "char_ratio",
    "mean_logprob",
    "min_logprob",
    "entropy",
    "reverse_logprob",
    "repetition",
    "copy_overlap",
    "language_confidence",
    "chrf_gold",
    "bleu_gold",
    "agreement",
)
SAMPLES = 25  # of each kind
PLAIN = (
    "funnel",
    "reasons",
    "languages",
    "ranks",
    "diversity",
    "positions",
    "caches",
    "training",
    "terms",
    "folds",
)
STORED = {
    "samples": "samples",
    "candidates": "candidates",
    "logits": "distributions",
    "signals": "signals",
    "verdicts": "verdicts",
    "predictions": "predictions",
}
RUN_FACTS = (
    "run",
    "student_parameters",
    "teacher_parameters",
    "pseudolabels",
    "gold",
    "trained_tokens",
    "total_seconds",
)


def collect(run: RunDirectory, beside: Sequence[RunDirectory] = ()) -> Tables:
    """Every table that a report may show, empty where the run has nothing of it.

    Args:
        run: the run to show.
        beside: runs to compare its scores with, see `comparing.compare`.

    Returns:
        rows by name: those of `sql/report/*.sql`; `sources`, `refused`, `candidates`, `verdicts`
        and `scores` as `seqkd inspect` has them; `bytes` (stored, files, bytes) and `validation`
        (stage, epoch, metric, score, best) from the records; `compared` (scores), `compared_runs`
        and `compared_notes`. Numbers that are not finite are None.
    """
    with connect(run) as connection:
        tables = {
            name: fetch(connection, f"inspect/{name}")
            for name in ("sources", "refused", "candidates", "verdicts", "scores")
        }
        tables |= {name: fetch(connection, f"report/{name}") for name in PLAIN}
        tables |= _asked(connection)
    tables["reasons"] = _with_silent(run, tables["reasons"])
    tables |= {"bytes": _bytes(run), "validation": _validation(run)} | _compared(run, beside)
    return {name: [_finite(row) for row in rows] for name, rows in tables.items()}


def _asked(connection: Connection) -> Tables:
    measures = {"measures": list(MEASURES)}
    return {
        "measures": fetch(connection, "report/measures", measures),
        "histograms": fetch(connection, "report/histograms", measures),
        "samples": fetch(connection, "report/samples", {"n": SAMPLES}),
    }


def _with_silent(run: RunDirectory, reasons: list[Facts]) -> list[Facts]:
    """The rules that rejected something, then those that rejected nothing."""
    named = {row["rule"] for row in reasons}
    silent = [rule for rule in run.step("judge").get("reasons", {}) if rule not in named]
    none = {"candidates": 0, "alone": 0, "with_others": 0}
    return reasons + [{"rule": rule} | none for rule in silent]


def _bytes(run: RunDirectory) -> list[Facts]:
    """What the recorded files of each table weigh."""
    rows = []
    for table, label in STORED.items():
        paths = [run.path(file["path"]) for file in run.files(table)]
        if paths:
            size = sum(path.stat().st_size for path in paths)
            rows.append({"stored": label, "files": len(paths), "bytes": size})
    return rows


def _validation(run: RunDirectory) -> list[Facts]:
    """What the models of each stage scored on the validation rows, and after how many epochs."""
    return [
        {
            "stage": record["stage"],
            "epoch": epoch,
            "metric": record["metric"],
            "score": score,
            "best": number == record.get("best", record.get("best_epoch")),
        }
        for record in run.stage_records()
        for number, (epoch, score) in enumerate(_scored(record), 1)
    ]


def _scored(record: Facts) -> list[tuple[float, float]]:
    """Epochs gone and score of each validation; older records have one an epoch."""
    scores = record.get("scores") or []
    return list(zip(record.get("scored_epochs", range(1, len(scores) + 1)), scores, strict=False))


def _compared(run: RunDirectory, beside: Sequence[RunDirectory]) -> Tables:
    found = compare([run, *beside]) if beside else {"scores": [], "runs": [], "notes": []}
    return {
        "compared": found["scores"],
        "compared_runs": [{name: row[name] for name in RUN_FACTS} for row in found["runs"]],
        "compared_notes": [{"note": note} for note in found["notes"]],
    }


def _finite(row: Facts) -> Facts:
    return {name: None if _is_odd(value) else value for name, value in row.items()}


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
