"""A digest of a run: the whole of it in figures, each of them SQL over the views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group
from rich.table import Table

from factory.cards.markdown import score_digits
from factory.files import shipped
from factory.looking.panels import filled
from factory.query.catalog import Connection, connect
from factory.records import RunDirectory

Facts = dict[str, Any]
QUANTILES = ("min", "p5", "p25", "median", "p75", "p95", "max")
STAGE_FACTS = ("epochs", "best_epoch", "metric", "scores", "rows", "seconds", "parameters")


def digest_run(run: RunDirectory) -> Facts:
    """The whole run in figures, each of them SQL over the views.

    Returns:
        `sources` and `refused` (lists), `candidates`, `verdicts` with `reasons` and their shares of
        all candidates, `measures` (quantiles of lengths and confidence), `scores`, `stages`.
    """
    with connect(run) as connection:
        [candidates] = fetch(connection, "inspect/candidates")
        [verdicts] = fetch(connection, "inspect/verdicts")
        failed = {r["reason"]: r["candidates"] for r in fetch(connection, "judge/reasons")}
        facts = {
            name: fetch(connection, f"inspect/{name}")
            for name in ("sources", "refused", "measures", "scores", "stages")
        }
    for measure in facts["measures"]:
        measure |= dict(zip(QUANTILES, measure.pop("quantiles"), strict=True))
    verdicts["reasons"] = [
        {"rule": rule, "candidates": n, "share": n / max(1, verdicts["candidates"])}
        for rule, n in _in_order(run, failed)
    ]
    facts["stages"] = [_with_record(run, stage) for stage in facts["stages"]]
    return {"run": str(run.root), **facts, "candidates": candidates, "verdicts": verdicts}


def fetch(connection: Connection, query: str, parameters: Facts | None = None) -> list[Facts]:
    """The rows of a shipped query (`FOLDER/NAME` below `sql`)."""
    text = shipped("sql").joinpath(f"{query}.sql").read_text("utf-8")
    rows: list[Facts] = connection.sql(text, params=parameters or {}).to_arrow_table().to_pylist()
    return rows


def show_digest(facts: Facts) -> Group:
    """A digest as tables for the terminal; what the run has not come to is left out."""
    made, judged = facts["candidates"], facts["verdicts"]
    measured = [row for row in facts["measures"] if row["of"] == "candidates"]
    parts = [
        filled("sources", facts["sources"], ("split", "sources", "with_gold", "visible_gold")),
        filled("refused rows", facts["refused"], ("reason", "rows")),
        filled("candidates", [made] if made["candidates"] else [], tuple(made)),
        filled(
            "verdicts",
            [judged] if judged["candidates"] else [],
            ("candidates", "kept", "selected"),
        ),
        filled("reasons", judged["reasons"], ("rule", "candidates", "share")),
        filled("of all candidates", measured, ("measure", "mean", "p5", "median", "p95", "max")),
        filled("stages", facts["stages"], ("stage", "steps", "first_loss", "last_loss", "tokens")),
        show_scores(facts["scores"]),
    ]
    return Group(*(part for part in parts if part.row_count))


def show_scores(scores: Iterable[Facts]) -> Table:
    """Scores of the whole split beside mean and standard deviation of its folds."""
    numbers = ("score", "fold_mean", "fold_sd")
    columns = ("system", "stage", "split", "metric", *numbers)
    rounded = [
        row | {n: f"{row[n]:.{score_digits(row['score'])}f}" for n in numbers if row[n] is not None}
        for row in scores
    ]
    return filled("scores", rounded, columns)


def _in_order(run: RunDirectory, failed: dict[str, int]) -> list[tuple[str, int]]:
    """Rules as the judge applied them, those that nobody failed included."""
    recorded = run.step("judge").get("reasons", {})
    return [(rule, failed.get(rule, 0)) for rule in recorded]


def _with_record(run: RunDirectory, stage: Facts) -> Facts:
    recorded = {record["stage"]: record for record in run.stage_records()}
    record = recorded.get(stage["stage"], {})
    return stage | {name: record.get(name) for name in STAGE_FACTS}
