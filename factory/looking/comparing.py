"""Several runs side by side: scores with paired significance, sizes, data, tokens, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from factory.errors import RunError, nearest
from factory.looking.viewing import fetch
from factory.metrics import LOWER_IS_BETTER, METRICS, paired
from factory.query.catalog import connect, shipped_sql
from factory.records import STEPS, RunDirectory

Row = dict[str, Any]
SYSTEMS = ("student", "teacher")
DATA = ("pseudolabels", "gold")
SAME = ("sample_id", "source", "gold")  # what two test sets must share to be paired
UNPAIRED: Row = dict.fromkeys(("reference", "difference", "p_value", "test_signature"))


@dataclass(frozen=True, slots=True)
class Side:
    """One run as it is compared: its name in the table, its scores, and the texts under them."""

    name: str
    run: RunDirectory
    scores: list[Row]
    texts: pa.Table


def compare(
    runs: Sequence[RunDirectory],
    baseline: RunDirectory | None = None,
    against: str | None = None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """Compare what runs came to.

    Every score is compared with the baseline's of the same system, split and metric: the same
    stage's if the baseline has it, else the last by name. Texts are joined by `sample_id`, and
    tested for significance only where both sides decoded the same sources with the same references.

    Args:
        runs: at least one; the first is the baseline unless another is named.
        baseline: the run to compare with; put first where it is not among `runs`.
        against: `student` or `teacher`: compare every system with that one of the baseline.
        price_per_hour: of the machine, in any currency.

    Returns:
        `baseline`: its name. `against`: as asked for.
        `scores`: a row for each run, system, stage, split and metric: `run`, `system`, `stage`
            (None for a teacher), `split`, `metric`, `score`, `ci_low` and `ci_high` (95 %,
            bootstrap), `reference` (`run/system` compared with, None where nothing is),
            `difference` (score minus the reference's), `lower_is_better` (None of a command's
            number), `p_value` (`metrics.paired`; None of a command's number, which cannot be
            resampled), `signature`, `test_signature`, `parameters`, `tokens_per_second` (decoding).
        `runs`: a row for each run: `run`, `path`, `teacher`, `student_parameters`,
            `teacher_parameters`, `teacher_tokens` (generated), `trained_tokens` (target tokens
            over all epochs), `pseudolabels` and `gold` (rows trained on), `stages` (rows: `stage`,
            `data`, `rows`, `epochs`, `tokens`, `parameters`, `portions`: rows by selection),
            `seconds` (of each step, wall time), `total_seconds`, `cost` (None without a price).
        `notes`: a line for everything that could not be compared, and why.

    Raises:
        RunError: `against` is no system.
    """
    if against is not None and against not in SYSTEMS:
        raise RunError("--against", against, f"is no system: {nearest(against, SYSTEMS)}")
    first = baseline or runs[0]
    listed = list(runs) if any(run.root == first.root for run in runs) else [first, *runs]
    sides = [_side(name, run) for name, run in zip(_names(listed), listed, strict=True)]
    base = next(side for side in sides if side.run.root == first.root)
    notes: list[str] = []
    scores = [row for side in sides for row in _scores(side, base, against, notes)]
    return {
        "baseline": base.name,
        "against": against,
        "scores": scores,
        "runs": [_figures(side, price_per_hour) for side in sides],
        "notes": list(dict.fromkeys(notes)),
    }


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """Names that tell runs apart: the last parts of their paths, as few as do."""
    depth = 1
    while len({run.root.parts[-depth:] for run in runs}) < len({run.root for run in runs}):
        depth += 1
    names = ["/".join(run.root.parts[-depth:]) for run in runs]
    again: Counter[str] = Counter()
    for index, name in enumerate(names):
        again[name] += 1
        names[index] = name if again[name] == 1 else f"{name} ({again[name]})"
    return names


def _side(name: str, run: RunDirectory) -> Side:
    with connect(run) as connection:
        scores = fetch(connection, "compare/scores")
        texts = connection.sql(shipped_sql("compare", "texts")).to_arrow_table()
    measured = run.step("evaluate").get("systems", {})
    sizes = ("parameters", "tokens_per_second")
    facts = {row["system"]: measured.get(row["system"], {}) for row in scores}
    rows = [row | {size: facts[row["system"]].get(size) for size in sizes} for row in scores]
    return Side(name, run, rows, texts)


def _scores(side: Side, base: Side, against: str | None, notes: list[str]) -> Iterator[Row]:
    if not side.scores:
        notes.append(f"{side.name}: has no scores: seqkd evaluate {side.run.root.name} first")
    for row in side.scores:
        reference = _reference(row, base, against or row["system"])
        compared: Row = {}
        if reference is None:
            missing = f"{base.name} has no such score of its {against or row['system']}"
            notes.append(f"{side.name}: {row['system']}, {row['split']}: not compared: {missing}")
        elif side is not base or reference is not row:
            compared = _compared(side, row, base, reference, notes)
        yield {"run": side.name, **row, "lower_is_better": _lower(row), **UNPAIRED, **compared}


def _lower(row: Row) -> bool | None:
    return row["metric"] in LOWER_IS_BETTER if row["metric"] in METRICS else None


def _reference(row: Row, base: Side, system: str) -> Row | None:
    """The baseline's score to compare with: of the same stage, or else of the last."""
    asked = (system, row["split"], row["metric"])
    found = [r for r in base.scores if (r["system"], r["split"], r["metric"]) == asked]
    same = [r for r in found if r["stage"] == row["stage"]]
    return next(reversed(same or found), None)


def _compared(side: Side, row: Row, base: Side, reference: Row, notes: list[str]) -> Row:
    ours, theirs = _texts(side, row), _texts(base, reference)
    against = f"{base.name}/{reference['system']}"
    if why := _unlike(row, reference, ours, theirs):
        head = f"{side.name}: {row['system']}, {row['split']}"
        notes.append(f"{head}: not compared with {against}: {why}")
        return {}
    texts = (ours["text"].to_pylist(), theirs["text"].to_pylist(), ours["gold"].to_pylist())
    resampled = row["metric"] in METRICS
    p_value, signature = paired(row["metric"], *texts) if resampled else (None, None)
    return {
        "reference": against,
        "difference": row["score"] - reference["score"],
        "p_value": p_value,
        "test_signature": signature,
    }


def _texts(side: Side, row: Row) -> pa.Table:
    """The texts under a score, in the order of their ids."""
    system, stage, split = (side.texts[name] for name in ("system", "stage", "split"))
    wanted = pc.and_(pc.equal(system, row["system"]), pc.equal(split, row["split"]))
    same = pc.is_null(stage) if row["stage"] is None else pc.equal(stage, row["stage"])
    return side.texts.filter(pc.and_(wanted, same))


def _unlike(row: Row, reference: Row, ours: pa.Table, theirs: pa.Table) -> str | None:
    """Why two scores cannot be paired, if they cannot."""
    if row["signature"] != reference["signature"]:
        return f"measured as {row['signature']} and as {reference['signature']}"
    if not ours.num_rows or not theirs.num_rows:
        return "predictions are missing: seqkd evaluate makes them"
    if all(ours[name].equals(theirs[name]) for name in SAME):
        return None
    [(sources, unlike)] = _counted(ours, theirs)
    return f"{unlike:,} of {sources:,} sources or references are not the same"


def _counted(ours: pa.Table, theirs: pa.Table) -> list[tuple[int, int]]:
    with duckdb.connect() as connection:
        connection.register("ours", ours)
        connection.register("theirs", theirs)
        return connection.execute(shipped_sql("compare", "unlike")).fetchall()


def _figures(side: Side, price_per_hour: float | None) -> Row:
    manifest, record = side.run.manifest(), side.run.record()
    stages = list(_stages(side.run))
    sizes = {row["system"]: row["parameters"] for row in side.scores}
    trained = [s["parameters"] for s in stages if s["parameters"]]
    seconds = {
        step: record["steps"][step].get("wall_seconds", record["steps"][step]["seconds"])
        for step in STEPS
        if step in record["steps"]
    }
    total = round(sum(seconds.values()), 3)
    used = {kind: max((s["portions"].get(kind, 0) for s in stages), default=0) for kind in DATA}
    return {
        "run": side.name,
        "path": str(side.run.root),
        "teacher": manifest.teacher.model if manifest.teacher else None,
        "student_parameters": trained[-1] if trained else sizes.get("student"),
        "teacher_parameters": sizes.get("teacher"),
        "teacher_tokens": record["steps"].get("generate", {}).get("tokens"),
        "trained_tokens": sum(s["tokens"] or 0 for s in stages),
        **used,
        "stages": stages,
        "seconds": seconds,
        "total_seconds": total,
        "cost": None if price_per_hour is None else round(total / 3600 * price_per_hour, 4),
    }


def _stages(run: RunDirectory) -> Iterator[Row]:
    student = run.manifest().student
    shares = {stage.name: stage.shares for stage in student.stages} if student else {}
    for record in run.stage_records():
        data = shares.get(record["stage"], {})
        facts = {"stage": record["stage"], "data": _mixture(data)}
        names = {"rows": 0, "epochs": None, "parameters": None}
        facts |= {name: record.get(name, default) for name, default in names.items()}
        portions = record.get("portions") or dict.fromkeys(data, record.get("rows", 0))
        yield facts | {"tokens": record.get("target_tokens"), "portions": portions}


def _mixture(shares: dict[str, float]) -> str | None:
    """The data of a stage in words: one selection, or several with their shares."""
    if len(shares) > 1:
        return " + ".join(f"{share:.0%} {data}" for data, share in shares.items())
    return next(iter(shares), None)
