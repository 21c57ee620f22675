"""The judge: measures every candidate once, applies the rules, and selects a target per source.

Everything is SQL. Signals and verdicts lie under keys of their own: a changed threshold costs the
rules and the selection, not the signals; judging anew writes beside the old.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from factory.catalog import Connection, connect, parquet, quoted
from factory.files import replacing, shipped
from factory.judging.families import Measuring
from factory.judging.rules import predicates
from factory.judging.signals import measure
from factory.records import FileRecord, RunDirectory
from factory.shards import SIGNATURE, record_file


def judge(run: RunDirectory, key: str, lock: int | None = None) -> dict[str, Any]:
    """Judge all candidates under `key`, and record the step. `lock` is the run's, if held.

    Returns:
        The figures recorded: candidates, kept, selected, reasons (candidates that fail each rule),
        without_target (sources left without one), verdicts_digest (of what was selected).
    """
    began = time.monotonic()
    manifest = run.manifest()
    rules, chosen = predicates(manifest), manifest.judge.select
    with connect(run) as connection:
        signals = measure(Measuring(run, manifest, connection, lock))
        connection.execute(_judged(run, signals[0], rules))
        connection.execute(f"CREATE TEMP VIEW decided AS {_query('select', str(chosen))}")
        path = run.path("verdicts", key, "part-0.parquet")
        verdicts = _store(run, connection, "decided", "verdicts", path, {"judge": key} | rules)
        figures = _figures(connection, path, rules)
    run.finish("judge", key, time.monotonic() - began, files=[*signals, verdicts], **figures)
    return figures


def _judged(run: RunDirectory, signals: FileRecord, rules: dict[str, str]) -> str:
    """The signals with a list of the rules that each candidate fails. NULL does not fail."""
    failing = [f"CASE WHEN NOT ({keeps}) THEN {quoted(name)} END" for name, keeps in rules.items()]
    return f"""
        CREATE TEMP VIEW judged AS
        SELECT *, list_filter([{", ".join(failing)}], lambda r: r IS NOT NULL) AS reasons
        FROM ({parquet([run.path(signals["path"])])})
    """


def _store(
    run: RunDirectory,
    connection: Connection,
    relation: str,
    table: str,
    path: Path,
    signature: dict[str, Any],
) -> FileRecord:
    """Stream a relation into a signed Parquet part."""
    signed = f"{{{quoted(SIGNATURE.decode())}: {quoted(json.dumps(signature))}}}"
    with replacing(path) as temporary:
        connection.execute(
            f"COPY (FROM {relation}) TO {quoted(str(temporary))} "
            f"(FORMAT parquet, COMPRESSION zstd, KV_METADATA {signed})"
        )
    return record_file(run, path, table)


def _figures(connection: Connection, verdicts: Path, rules: dict[str, str]) -> dict[str, Any]:
    connection.execute(f"CREATE OR REPLACE VIEW verdicts AS {parquet([verdicts])}")
    figures: dict[str, Any]
    [figures] = connection.sql(_query("judge", "figures")).to_arrow_table().to_pylist()
    failed = dict(connection.execute(_query("judge", "reasons")).fetchall())
    figures["verdicts_digest"] = f"{int(figures['verdicts_digest'] or 0):032x}"
    return figures | {"reasons": {name: failed.get(name, 0) for name in rules}}


def _query(folder: str, name: str) -> str:
    return shipped("sql").joinpath(folder, f"{name}.sql").read_text("utf-8")
