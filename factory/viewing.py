"""Looking at a run: one sample with all that became of it, or a digest of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from factory.catalog import Connection, connect
from factory.errors import RunError
from factory.files import shipped
from factory.records import RunDirectory
from factory.tables import plain

Facts = dict[str, Any]
QUANTILES = ("min", "p5", "p25", "median", "p75", "p95", "max")
WORDS = frozenset(
    ("name", "text", "split", "reason", "rule", "verdict", "measure", "stage", "system", "metric")
)
STAGE_FACTS = ("epochs", "best_epoch", "metric", "scores", "rows", "seconds", "parameters")


def inspect_sample(run: RunDirectory, sample_id: str) -> Facts:
    """One source: its row, `candidates` with signals and verdicts, and `predictions`.

    Raises:
        RunError: the run has no such sample.
    """
    asked = {"sample_id": sample_id}
    with connect(run) as connection:
        found = fetch(connection, "inspect/sample", asked)
        if not found:
            near = [row["sample_id"] for row in fetch(connection, "inspect/nearest", asked)]
            remedy = f"did you mean {', '.join(near)}?" if near else "the run has no samples yet"
            raise RunError("sample", sample_id, f"is not in this run: {remedy}")
        return found[0] | {
            "candidates": fetch(connection, "inspect/sample_candidates", asked),
            "predictions": fetch(connection, "inspect/sample_predictions", asked),
        }


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


def show_sample(facts: Facts) -> Group:
    """A sample as tables for the terminal."""
    head = _table(None, "name", "text")
    for name in ("sample_id", "split", "source", "gold", "prompt", "meta"):
        head.add_row(name, _text(facts[name]))
    candidates = _table("candidates", "rank", "score", "tokens", "verdict", "text")
    for row in facts["candidates"]:
        text = row["error"] if row["text"] is None else row["text"]
        cells = (row["rank"], row["score"], row["n_tokens"], _verdict(row), text)
        candidates.add_row(*map(_text, cells))
    systems = _table("predictions", "system", "stage", "text")
    for row in facts["predictions"]:
        systems.add_row(*map(_text, row.values()))
    return Group(head, *(part for part in (candidates, systems) if part.row_count))


def show_digest(facts: Facts) -> Group:
    """A digest as tables for the terminal; what the run has not come to is left out."""
    made, judged = facts["candidates"], facts["verdicts"]
    measured = [row for row in facts["measures"] if row["of"] == "candidates"]
    parts = [
        _rows("sources", facts["sources"], ("split", "sources", "with_gold", "visible_gold")),
        _rows("refused rows", facts["refused"], ("reason", "rows")),
        _rows("candidates", [made] if made["candidates"] else [], tuple(made)),
        _rows(
            "verdicts",
            [judged] if judged["candidates"] else [],
            ("candidates", "kept", "selected"),
        ),
        _rows("reasons", judged["reasons"], ("rule", "candidates", "share")),
        _rows("of all candidates", measured, ("measure", "mean", "p5", "median", "p95", "max")),
        _rows("stages", facts["stages"], ("stage", "steps", "first_loss", "last_loss", "tokens")),
        show_scores(facts["scores"]),
    ]
    return Group(*(part for part in parts if part.row_count))


def show_scores(scores: Iterable[Facts]) -> Table:
    """Scores of the whole split beside mean and standard deviation of its folds."""
    numbers = ("score", "fold_mean", "fold_sd")
    columns = ("system", "stage", "split", "metric", *numbers)
    rounded = [
        row | {name: f"{row[name]:.2f}" for name in numbers if row[name] is not None}
        for row in scores
    ]
    return _rows("scores", rounded, columns)


def _table(title: str | None, *columns: str) -> Table:
    """An empty table: words to the left, numbers to the right."""
    made = Table(title=title, title_justify="left", show_header=title is not None)
    for name in columns:
        side: JustifyMethod = "left" if name in WORDS else "right"
        made.add_column(name.replace("_", " "), justify=side, overflow="fold")
    return made


def _rows(title: str, rows: Iterable[Facts], columns: Sequence[str]) -> Table:
    made = _table(title, *columns)
    for row in rows:
        made.add_row(*(_text(row[name]) for name in columns))
    return made


def _text(value: Any) -> Text:
    if value is None:
        return Text("–", style="dim")
    if isinstance(value, float):
        return Text(f"{value:,.4g}")
    return Text(f"{value:,}" if isinstance(value, int) else plain(str(value)))


def _verdict(row: Facts) -> str:
    if row["kept"] is None:
        return "not judged"
    if row["reasons"]:
        return ", ".join(row["reasons"])
    return "selected" if row["selected"] else "kept"


def _in_order(run: RunDirectory, failed: dict[str, int]) -> list[tuple[str, int]]:
    """Rules as the judge applied them, those that nobody failed included."""
    recorded = run.step("judge").get("reasons", {})
    return [(rule, failed.get(rule, 0)) for rule in recorded]


def _with_record(run: RunDirectory, stage: Facts) -> Facts:
    recorded = {record["stage"]: record for record in run.stage_records()}
    record = recorded.get(stage["stage"], {})
    return stage | {name: record.get(name) for name in STAGE_FACTS}
