"""Signals: one column for each measurement, on every candidate, computed once.

They come in families, each under a key of its own: what it measures, how, and of which candidates.
A family is a file of `sql/signals`, or a function that streams batches. All are stored in the order
of (sample_id, rank) and laid side by side, id by id, into the part that the view `signals` reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import RunError
from factory.files import TEMPORARY, digest, sweep
from factory.judging.agreement import measure_agreement
from factory.judging.families import Family, Measuring, distributions, library
from factory.judging.language import measure_language
from factory.judging.near import measure_near
from factory.judging.protected import check_protected, measure_protected, protected_settings
from factory.judging.reverse import check_reverse, measure_reverse, reverse_settings
from factory.judging.similarity import measure_similarity
from factory.manifest import Manifest
from factory.query.catalog import parquet, shipped_sql
from factory.records import FileRecord, RunDirectory
from factory.schemas import MEASURED, SIGNALS
from factory.shards import record_file, write_part

TABLE = "measured"  # of a family's part, which no view reads
BATCH = 1 << 14

FAMILIES = (
    Family("text"),
    Family("repetition"),
    Family("confidence", distributions),
    Family("duplicates"),
    Family("language", library("py3langid"), measure_language),
    Family("similarity", library("sacrebleu"), measure_similarity),
    Family("agreement", library("sacrebleu"), measure_agreement),
    Family("near", library("rensa"), measure_near),
    Family("protected", protected_settings, measure_protected, check_protected),
    Family("reverse", reverse_settings, measure_reverse, check_reverse),
)
FAMILY = {family.name: family for family in FAMILIES}


def measure(work: Measuring) -> list[FileRecord]:
    """Measure what the last judgement did not leave; the records of all signals, together first.

    Raises:
        SeqkdError: a family could not be measured.
    """
    keys = signal_keys(work.run, work.manifest)
    sweep(work.run.path("signals"))
    parts = {name: _part(work, FAMILY[name], key) for name, key in keys.items()}
    path = work.run.path("signals", digest(keys), "part-0.parquet")
    together = _standing(work.run, "signals", path)
    if together is None:
        files = {name: work.run.path(part["path"]) for name, part in parts.items()}
        together = _write(work, path, "signals", _side_by_side(files), SIGNALS, keys)
    return [together, *parts.values()]


def stored(run: RunDirectory, manifest: Manifest, columns: Collection[str]) -> str:
    """SQL of the signals that are measured, without measuring any; others are NULL.

    Raises:
        RunError: one of `columns` would have to be measured.
    """
    paths = {
        name: run.path("signals", key, f"{name}.parquet")
        for name, key in signal_keys(run, manifest).items()
    }
    for name in paths:
        missing = not _standing(run, TABLE, paths[name])
        if missing and (read := {column for column, _ in MEASURED[name]}.intersection(columns)):
            remedy = "is not measured of these candidates: seqkd judge first"
            raise RunError(run.root, min(read), remedy)
    standing = {name: path for name, path in paths.items() if _standing(run, TABLE, path)}
    return _side_by_side(standing)


def check_signals(manifest: Manifest) -> None:
    """Look at what the wanted families need, without any data.

    Raises:
        UserError: something is missing or malformed.
    """
    for family in FAMILIES:
        if manifest.judge.measures(family.name):
            family.check(manifest)


def signal_keys(run: RunDirectory, manifest: Manifest) -> dict[str, str]:
    """The keys of the families that are to be measured, by name.

    Raises:
        SeqkdError: something that a family needs is missing.
    """
    wanted = [family for family in FAMILIES if manifest.judge.measures(family.name)]
    told = {family.name: family.settings(run, manifest) for family in wanted}
    rows = [[file["sha256"] for file in run.files("candidates")], run.step("samples").get("key")]
    return {
        name: digest([rows, name, settings, _sql(FAMILY[name])])
        for name, settings in told.items()
        if settings is not None
    }


def _sql(family: Family) -> str | None:
    return None if family.measure else shipped_sql("signals", family.name)


def _part(work: Measuring, family: Family, key: str) -> FileRecord:
    """A family's part, sorted, measured unless it stands."""
    path = work.run.path("signals", key, f"{family.name}.parquet")
    if standing := _standing(work.run, TABLE, path):
        return standing
    with _relation(work, family, path.parent) as relation:
        columns = ", ".join(family.schema.names)
        query = f"SELECT {columns} FROM ({relation}) ORDER BY sample_id, rank"
        return _write(work, path, TABLE, query, family.schema, {family.name: key})


@contextmanager
def _relation(work: Measuring, family: Family, folder: Path) -> Iterator[str]:
    """SQL of a family's rows, in any order."""
    if family.measure is None:
        yield shipped_sql("signals", family.name)
        return
    folder.mkdir(parents=True, exist_ok=True)
    unsorted = folder / f"{family.name}.unsorted{TEMPORARY}"
    try:
        with pq.ParquetWriter(unsorted, family.schema) as writer:
            for batch in family.measure(work):
                writer.write_batch(batch.select(family.schema.names).cast(family.schema))
        yield parquet([unsorted])
    finally:
        unsorted.unlink(missing_ok=True)


def _side_by_side(files: dict[str, Path]) -> str:
    """SQL that lays the families' rows side by side, and stops where two speak of others."""
    first, *others = files
    measured = [f"{family}.{name}" for family in files for name, _ in MEASURED[family]]
    known = {name.partition(".")[2] for name in measured}
    nulls = [f"NULL AS {name}" for name in SIGNALS.names[2:] if name not in known]
    same = [f"({first}.sample_id, {first}.rank) = ({o}.sample_id, {o}.rank)" for o in others]
    relations = " POSITIONAL JOIN ".join(
        f"({parquet([path])}) AS {name}" for name, path in files.items()
    )
    sound = " AND ".join(same) or "true"
    return f"""
        SELECT {first}.sample_id, {first}.rank, {", ".join(measured + nulls)}
        FROM {relations}
        WHERE CASE WHEN {sound} THEN true ELSE error('signals of different candidates') END
    """


def _write(
    work: Measuring, path: Path, table: str, query: str, schema: pa.Schema, keys: dict[str, str]
) -> FileRecord:
    """Stream a query's rows into a signed part."""
    rows = work.connection.sql(query).to_arrow_reader(BATCH)
    batches = (batch.select(schema.names) for batch in rows)
    return write_part(work.run, path, table, batches, schema, {"signals": keys})


def _standing(run: RunDirectory, table: str, path: Path) -> FileRecord | None:
    """The record of a part that is there, whole; of a judgement that was refused it is made now."""
    if not path.is_file():
        return None
    records = {record["path"]: record for record in run.files(table)}
    return records.get(run.relative(path)) or record_file(run, path, table)
