"""What two runs made of the same sources: targets and verdicts that changed, and by how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Group

from factory.errors import RunError
from factory.looking.panels import Facts, filled
from factory.looking.viewing import fetch
from factory.query.catalog import Connection, connect, shipped_sql
from factory.records import RunDirectory
from factory.schemas import SIGNALS

EXAMPLES = 5
ASIDE = ("top_", "duplicate_")  # of signals, in JSON only: `repetition` sums them up


def diff(run: RunDirectory, other: RunDirectory, examples: int = EXAMPLES) -> Facts:
    """Compare two judged runs, source by source; tokenizers and signals may differ.

    Returns:
        `first` and `second` (the runs), `sources`, `targets`, `verdicts` (counts), `reasons` (a
        list, by rule), `measures` (a list, by signal: its means over targets of sources that have
        one in both), `examples` (a list: the targets that changed most).

    Raises:
        RunError: a run has not been judged.
    """
    for one in (run, other):
        if not one.step("judge"):
            raise RunError(one.root, None, "has no verdicts: judge it first, with seqkd judge")
    with connect(run, other) as connection:
        for name in ("common", "pairs", "judged"):
            connection.execute(f"CREATE TEMP TABLE {name} AS {shipped_sql('diff', name)}")
        counts = {
            name: fetch(connection, f"diff/{name}")[0]
            for name in ("sources", "targets", "verdicts")
        }
        return {
            "first": str(run.root),
            "second": str(other.root),
            **counts,
            "reasons": fetch(connection, "diff/reasons"),
            "measures": _measures(connection),
            "examples": fetch(connection, "diff/examples", {"examples": examples}),
        }


def show_diff(facts: Facts) -> Group:
    """A comparison as tables for the terminal; what did not change is left out."""
    targets = facts["targets"]
    moved = [m for m in facts["measures"] if m["change"] and not m["measure"].startswith(ASIDE)]
    counts = ("same", "changed", "chosen_otherwise", "only_first", "only_second", "neither")
    alike = ("alike_mean", "alike_median", "alike_p5")
    means = ("measure", "targets", "first", "second", "change")
    shown = [
        ("sources to learn from", [facts["sources"]], tuple(facts["sources"])),
        ("targets of sources in both", [targets], counts),
        ("how alike those that changed are", [targets] if targets["changed"] else [], alike),
        ("candidates judged", [facts["verdicts"]], tuple(facts["verdicts"])),
        ("reasons", facts["reasons"], ("rule", "first", "second", "gained", "lost")),
        ("means over targets in both", moved, means),
    ]
    runs = [{"name": name, "run": _near(facts[name])} for name in ("first", "second")]
    parts = [filled("runs", runs, ("name", "run")), *(filled(*part) for part in shown)]
    return Group(*(part for part in parts if part.row_count), *map(_example, facts["examples"]))


def _near(path: str) -> str:
    """A run as people name it: from where they stand."""
    root, here = Path(path), Path.cwd()
    return str(root.relative_to(here) if root.is_relative_to(here) else root)


def _example(row: Facts) -> Any:
    """A target that changed, under its source."""
    title = f"{row['sample_id']}, alike {row['alike']:.2f}"
    lines: list[Facts] = [{"name": "source", "text": row["source"], "mean_logprob": None}]
    for name in ("first", "second"):
        logprob = row[f"{name}_logprob"]
        text = row[f"{name}_target"]
        lines.append({"name": f"{name} run", "text": text, "mean_logprob": logprob})
    return filled(title, lines, ("name", "text", "mean_logprob"))


def _measures(connection: Connection) -> list[Facts]:
    """Means of every signal that is a number, over pairs of targets for which both runs have it."""
    averaged = [field for field in SIGNALS if _is_averaged(field)]
    columns = ", ".join(f'{_means(field)} AS "{field.name}"' for field in averaged)
    sql = f"""
        SELECT {columns}
        FROM pairs
        JOIN signals h ON h.sample_id = pairs.sample_id AND h.rank = first_rank
        JOIN other.signals t ON t.sample_id = pairs.sample_id AND t.rank = second_rank
    """
    [row] = connection.sql(sql).to_arrow_table().to_pylist()
    return [{"measure": name} | means for name, means in row.items() if means["targets"]]


def _means(field: pa.Field) -> str:
    cast = "" if pa.types.is_floating(field.type) else "::INT::DOUBLE"
    first, second = (f'{side}."{field.name}"{cast}' for side in "ht")
    both = f"FILTER ({first} + {second} IS NOT NULL)"
    return (
        f"{{'targets': count(*) {both}, 'first': avg({first}) {both}, "
        f"'second': avg({second}) {both}, 'change': avg({second} - {first})}}"
    )


def _is_averaged(field: pa.Field) -> bool:
    """Whether a signal can be averaged."""
    return field.name not in ("sample_id", "rank") and not pa.types.is_string(field.type)
