"""Verdicts: what rules and a selection make of measured candidates, and the funnel of it; all SQL.

`lay_out` leaves two views on a connection: `judged`, the signals with the reasons against each
candidate, and `decided`, the verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb

from factory.errors import ManifestError, StepFailed
from factory.judging.quantiles import Quantile
from factory.judging.rules import Rule, rules_of
from factory.judging.selection import Selection, selection_of
from factory.manifest import Manifest
from factory.query.catalog import Connection, quoted, shipped_sql

Facts = dict[str, Any]
FAILURES = (duckdb.DataError, duckdb.ProgrammingError, duckdb.OutOfMemoryException)


@dataclass(frozen=True, slots=True)
class Ruling:
    """Everything that a manifest says of verdicts."""

    rules: tuple[Rule, ...]
    selection: Selection

    @classmethod
    def of(cls, manifest: Manifest) -> Ruling:
        """The rules and the selection of a manifest.

        Raises:
            ManifestError: one of them cannot work, whatever the data.
        """
        return cls(rules_of(manifest), selection_of(manifest))

    @property
    def reads(self) -> frozenset[str]:
        """The columns of `signals` that it needs."""
        return self.selection.reads.union(*(rule.reads for rule in self.rules))

    def told(self) -> list[Any]:
        """As JSON, for keys."""
        return [[rule.told() for rule in self.rules], self.selection.told()]


def lay_out(connection: Connection, relation: str, ruling: Ruling) -> dict[str, float | None]:
    """Create the views `judged` and `decided` over a relation of signals.

    Returns:
        the thresholds of the quantile rules, by name; None where no candidate has the signal.
    """
    thresholds = {
        rule.name: rule.keeps.threshold(connection, relation)
        for rule in ruling.rules
        if isinstance(rule.keeps, Quantile)
    }
    failing = [
        f"CASE WHEN NOT (\n{rule.condition(thresholds)}\n) THEN {quoted(rule.name)} END"
        for rule in ruling.rules
    ]
    connection.execute(f"""
        CREATE TEMP VIEW judged AS
        SELECT *, list_filter([{", ".join(failing)}], lambda r: r IS NOT NULL) AS reasons
        FROM {relation}
    """)
    connection.execute(f"CREATE TEMP VIEW decided AS {ruling.selection.verdicts('judged')}")
    return thresholds


def count(connection: Connection, ruling: Ruling) -> Facts:
    """The funnel of the view `judged`.

    Returns:
        `candidates`, `kept`, `with_text` (those without an error), `by_rank` (sources whose target
        the rank alone chose, as no signal of the order is known), and by rule `reasons`
        (candidates that fail it), `reasons_alone` (that fail no other) and `reasons_with_text`.
    """
    [facts] = _rows(connection, shipped_sql("judge", "totals"))
    [(facts["by_rank"],)] = connection.execute(ruling.selection.by_rank_alone("judged")).fetchall()
    failed = {row.pop("reason"): row for row in _rows(connection, shipped_sql("judge", "funnel"))}
    for column in ("reasons", "reasons_alone", "reasons_with_text"):
        facts[column] = {r.name: failed.get(r.name, {}).get(column, 0) for r in ruling.rules}
    return facts


def require_kept(counted: Facts) -> None:
    """Refuse rules that keep no candidate at all, where there is one that has a text.

    Raises:
        ManifestError: naming the first rule that every candidate fails, or else all of them.
    """
    total = counted["with_text"]
    if counted["kept"] or not total:
        return
    by_rule = counted["reasons_with_text"]
    every = [name for name, failed in by_rule.items() if failed == total]
    named = every[0] if every else [name for name, n in by_rule.items() if n]
    kept = "keeps" if every else "together keep"
    remedy = f"{kept} none of {total:,} candidates: loosen a threshold, try it with --what-if"
    raise ManifestError("judge.rules", named, remedy)


@contextmanager
def rule_errors(connection: Connection, relation: str, ruling: Ruling) -> Iterator[None]:
    """Name the user's expression that fails on a candidate, such as a cast of a word to a number.

    Raises:
        ManifestError: DuckDB could not compute a rule, or the order.
        StepFailed: no rule is to blame; the verdicts do not fit the memory.
    """
    try:
        yield
    except FAILURES as error:
        for rule in ruling.rules:
            if isinstance(rule.keeps, str) and not _computes(connection, relation, rule.keeps):
                place = f"judge.rules.{rule.name}"
                raise ManifestError(place, rule.keeps, _said(error)) from None
        if isinstance(error, duckdb.OutOfMemoryException):
            raise StepFailed(f"judge: {_said(error)}") from None
        raise ManifestError("judge.select", ruling.selection.order, _said(error)) from None


def _computes(connection: Connection, relation: str, condition: str) -> bool:
    try:
        connection.execute(f"SELECT count(*) FILTER (\n{condition}\n) FROM {relation}").fetchall()
    except FAILURES:
        return False
    return True


def _said(error: duckdb.Error) -> str:
    return " ".join(str(error).split("\n\n")[0].split())


def _rows(connection: Connection, query: str) -> list[Facts]:
    rows: list[Facts] = connection.sql(query).to_arrow_table().to_pylist()
    return rows
