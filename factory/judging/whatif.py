"""What if: the funnel of changed rules beside the present one, from stored signals alone.

Nothing is measured and nothing is written.
"""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.text import Text

from factory.errors import RunError
from factory.judging.signals import stored
from factory.judging.verdicts import Ruling, count, lay_out, rule_errors
from factory.looking.panels import filled
from factory.manifest import Manifest
from factory.query.catalog import Connection, connect, shipped_sql
from factory.query.tables import plain
from factory.records import RunDirectory

Facts = dict[str, Any]
TOTALS = ("candidates", "kept", "selected", "without_target")
BY_RULE = ("reasons", "reasons_alone")
FAILED = {
    "now": ("now", "reasons"),
    "now_alone": ("now", "reasons_alone"),
    "then": ("then", "reasons"),
    "then_alone": ("then", "reasons_alone"),
}


def what_if(run: RunDirectory, manifest: Manifest) -> Facts:
    """What the rules and the selection of a manifest would make of a judged run.

    Returns:
        `now` and `then`, each with `candidates`, `kept`, `selected`, `without_target`, and by rule
        `reasons` and `reasons_alone`; of `then` also `by_rank` and `thresholds`. `targets` counts
        selected candidates that stay, are added or dropped, and the sources that this touches.

    Raises:
        ManifestError: a rule or the order cannot work.
        RunError: the run is not judged, or a signal that is read was not measured.
    """
    ruling = Ruling.of(manifest)
    present = run.step("judge")
    if not present:
        raise RunError(run.root, None, "is not judged yet: seqkd judge first")
    with connect(run) as connection:
        relation = f"({stored(run, manifest, ruling.reads)})"
        with rule_errors(connection, relation, ruling):
            thresholds = lay_out(connection, relation, ruling)
            counted = count(connection, ruling)
            connection.execute('CREATE TEMP TABLE "then" AS FROM decided')
        changed = _row(connection, "changed")
    now = {name: present[name] for name in (*TOTALS, *BY_RULE)}
    then = {name: (changed | counted)[name] for name in (*TOTALS, *BY_RULE, "by_rank")}
    targets = {name: changed[name] for name in ("same", "added", "dropped", "sources")}
    then["thresholds"] = thresholds
    return {"run": str(run.root), "now": now, "then": then, "targets": targets}


def show(facts: Facts) -> Group:
    """The two funnels side by side, for the terminal."""
    now, then, targets = facts["now"], facts["then"], facts["targets"]
    totals = [{"name": n.replace("_", " "), "now": now[n], "then": then[n]} for n in TOTALS]
    rules = [
        {"rule": rule, **{name: facts[when][of].get(rule) for name, (when, of) in FAILED.items()}}
        for rule in then["reasons"] | now["reasons"]
    ]
    limits = [f"{name} {limit:.6g}" for name, limit in then["thresholds"].items() if limit]
    told = (
        f"targets: {targets['same']:,} stay, {targets['added']:,} added, "
        f"{targets['dropped']:,} dropped, of {targets['sources']:,} sources"
    )
    lines = [told, *([f"thresholds: {', '.join(limits)}"] if limits else []), "nothing was written"]
    return Group(
        filled("what if", totals, ("name", "now", "then")),
        filled("candidates that fail", rules, ("rule", *FAILED)),
        *map(Text, map(plain, lines)),
    )


def _row(connection: Connection, query: str) -> Facts:
    [row] = connection.sql(shipped_sql("judge", query)).to_arrow_table().to_pylist()
    found: Facts = row
    return found
