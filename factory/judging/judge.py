"""The judge: measures every candidate once, applies the rules, and selects targets per source.

Everything is SQL. Signals and verdicts lie under keys of their own: a changed threshold costs the
rules and the selection, not the signals; judging anew writes beside the old.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from factory.files import replacing
from factory.judging.families import Measuring
from factory.judging.signals import measure
from factory.judging.verdicts import Ruling, count, lay_out, require_kept, rule_errors
from factory.query.catalog import Connection, connect, parquet, quoted, shipped_sql
from factory.records import FileRecord, RunDirectory
from factory.shards import SIGNATURE, record_file

COUNTED = ("reasons", "reasons_alone", "by_rank")


def judge(run: RunDirectory, key: str, lock: int | None = None) -> dict[str, Any]:
    """Judge all candidates under `key`, and record the step. `lock` is the run's, if held.

    Returns:
        The figures recorded: candidates, kept, selected, without_target (sources left without one),
        verdicts_digest (of what was selected), reasons and reasons_alone (candidates that fail each
        rule, and that fail no other), by_rank (see `verdicts.count`), thresholds.

    Raises:
        ManifestError: a rule or the rules together keep no candidate; the old verdicts stay.
        SeqkdError: a signal could not be measured.
    """
    began = time.monotonic()
    manifest = run.manifest()
    ruling = Ruling.of(manifest)
    path = run.path("verdicts", key, "part-0.parquet")
    with connect(run) as connection:
        signals = measure(Measuring(run, manifest, connection, lock))
        relation = f"({parquet([run.path(signals[0]['path'])])})"
        with rule_errors(connection, relation, ruling):
            thresholds = lay_out(connection, relation, ruling)
            counted = count(connection, ruling)
            require_kept(counted)
            verdicts = _store(run, connection, path, _signature(key, ruling, thresholds))
        figures = _figures(connection, path) | {name: counted[name] for name in COUNTED}
    figures["thresholds"] = thresholds
    run.finish("judge", key, time.monotonic() - began, files=[*signals, verdicts], **figures)
    return figures


def _signature(key: str, ruling: Ruling, thresholds: dict[str, float | None]) -> dict[str, Any]:
    """What verdicts hang on: every condition with its thresholds, and the order."""
    rules = {rule.name: rule.condition(thresholds) for rule in ruling.rules}
    order = {"select": ruling.selection.order, "per_source": ruling.selection.per_source}
    return {"judge": key, "rules": rules, **order}


def _store(
    run: RunDirectory, connection: Connection, path: Path, signature: dict[str, Any]
) -> FileRecord:
    """Stream the verdicts into a signed Parquet part."""
    signed = f"{{{quoted(SIGNATURE.decode())}: {quoted(json.dumps(signature))}}}"
    with replacing(path) as temporary:
        connection.execute(
            f"COPY (FROM decided) TO {quoted(str(temporary))} "
            f"(FORMAT parquet, COMPRESSION zstd, KV_METADATA {signed})"
        )
    return record_file(run, path, "verdicts")


def _figures(connection: Connection, verdicts: Path) -> dict[str, Any]:
    connection.execute(f"CREATE OR REPLACE VIEW verdicts AS {parquet([verdicts])}")
    figures: dict[str, Any]
    query = shipped_sql("judge", "figures")
    [figures] = connection.sql(query).to_arrow_table().to_pylist()
    figures["verdicts_digest"] = f"{int(figures['verdicts_digest'] or 0):032x}"
    return figures
