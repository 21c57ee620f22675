"""The first step: every input row read, refused or identified, its prompt encoded, and stored."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import ManifestError, PromptError, SourceError
from factory.files import shipped
from factory.manifest import Manifest
from factory.progress import Advance, progress
from factory.prompting.prompts import Prompter, prompt_hashes
from factory.prompting.template import Parts
from factory.records import FileRecord, RunDirectory
from factory.schemas import REFUSED, SAMPLES
from factory.shards import part_writer, write_part
from factory.sources import BATCH, Refusal, Row, as_json, read_split

MEMORY = "512MB"
RAW = pa.schema(
    [
        ("split", pa.string()),
        ("split_order", pa.int32()),
        ("row", pa.int64()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("key", pa.string()),
        ("conversation", pa.string()),
        ("source", pa.string()),
        ("gold", pa.string()),
        ("meta", pa.string()),
        ("prompt", pa.string()),
        ("n_prompt_tokens", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("prompt_hash", pa.int64()),
    ]
)

Prompted = tuple[Row, Parts]


@dataclass
class Intake:
    """What has been read so far: usable rows by split, and the rows set aside."""

    refused_writer: pq.ParquetWriter
    rows: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    last: Refusal | None = None
    _waiting: list[Refusal] = field(default_factory=list)

    def refuse(self, refusal: Refusal) -> None:
        """Set a row aside, with its reason."""
        self.refused += 1
        self.last = refusal
        self._waiting.append(refusal)
        if len(self._waiting) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the refused rows that still wait in memory."""
        rows = [{"file": r.file, "line": r.line, "reason": r.reason} for r in self._waiting]
        self.refused_writer.write(pa.Table.from_pylist(rows, schema=REFUSED))
        self._waiting.clear()


def build_samples(
    run: RunDirectory,
    manifest: Manifest,
    prompter: Prompter,
    key: str,
    limit: int = 0,
) -> None:
    """Read every split into `samples/`, and record the step under `key`.

    Raises:
        SourceError: a row cannot be used and `data.bad_rows` is `error`, or no row is left.
        ManifestError: training rows stand in the test split and `data.overlap` is `error`.
    """
    began = time.monotonic()
    work = run.path("samples.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    refused_path = run.path("samples", f"{key}-refused.parquet")
    try:
        with part_writer(run, refused_path, "refused", REFUSED, {"samples": key}) as (
            writer,
            refused,
        ):
            intake = Intake(writer)
            parts = [
                _read(run, manifest, prompter, split, order, intake, work)
                for order, split in enumerate(manifest.data.splits())
            ]
            with _database(work) as database:
                database.read_parquet([str(part) for part in parts]).create_view("raw")
                overlap = _overlap(manifest, database, intake)
                stored, golden = _store(run, manifest, database, key, limit)
            intake.flush()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    run.finish(
        "samples",
        key,
        time.monotonic() - began,
        files=[stored, refused],
        rows=intake.rows,
        refused=intake.refused,
        overlap=overlap,
        visible_gold=golden,
        limit=limit,
    )


def _read(
    run: RunDirectory,
    manifest: Manifest,
    prompter: Prompter,
    split: str,
    order: int,
    intake: Intake,
    work: Path,
) -> Path:
    part = work / f"{split}.parquet"
    entries = read_split(manifest.data.splits()[split], manifest.prompt.messages)
    with progress(f"reading {split}", None) as advance:
        rows = _usable(entries, prompter, manifest, intake)
        batches = _batches(rows, prompter, split, order, intake, advance)
        write_part(run, part, "raw", batches, RAW, {})
    _require_rows(split, intake)
    return part


def _usable(
    entries: Iterable[Row | Refusal], prompter: Prompter, manifest: Manifest, intake: Intake
) -> Iterator[Prompted]:
    for read in entries:
        entry = _prompted(read, prompter) if isinstance(read, Row) else read
        if not isinstance(entry, Refusal):
            yield entry
        elif manifest.data.bad_rows == "error":
            remedy = f"{entry.reason}: mend it, or set data.bad_rows to set_aside"
            raise SourceError(f"{entry.file}:{entry.line}", None, remedy)
        else:
            intake.refuse(entry)


def _prompted(row: Row, prompter: Prompter) -> Prompted | Refusal:
    """The row with its prompt in pieces, if it has what the prompt needs."""
    try:
        return row, prompter.parts({**row.meta, "source": row.source})
    except PromptError as error:
        return Refusal(row.file, row.line, error.remedy)


def _batches(
    rows: Iterator[Prompted],
    prompter: Prompter,
    split: str,
    order: int,
    intake: Intake,
    advance: Advance,
) -> Iterator[pa.RecordBatch]:
    intake.rows[split] = 0
    while batch := list(itertools.islice(rows, BATCH)):
        first = intake.rows[split]
        intake.rows[split] += len(batch)
        yield _encode(batch, prompter, split, order, first)
        advance(len(batch))


def _encode(
    prompted: list[Prompted], prompter: Prompter, split: str, order: int, first: int
) -> pa.RecordBatch:
    batch = [row for row, _ in prompted]
    texts, encoded = prompter.encode_parts([parts for _, parts in prompted])
    known = prompter.tokenizer is not None
    nothing = [None] * len(batch)
    columns = {
        "split": [split] * len(batch),
        "split_order": [order] * len(batch),
        "row": range(first, first + len(batch)),
        "file": [row.file for row in batch],
        "line": [row.line for row in batch],
        "key": [row.key for row in batch],
        "conversation": [row.conversation for row in batch],
        "source": [row.source for row in batch],
        "gold": [row.gold for row in batch],
        "meta": [as_json(row.meta) for row in batch],
        "prompt": texts,
        "n_prompt_tokens": [len(ids) for ids in encoded] if known else nothing,
        "prompt_ids": encoded if known else nothing,
        "prompt_hash": prompt_hashes(encoded) if known else nothing,
    }
    arrays = [pa.array(columns[f.name], type=f.type) for f in RAW]
    return pa.RecordBatch.from_arrays(arrays, schema=RAW)


def _require_rows(split: str, intake: Intake) -> None:
    if intake.rows[split] == 0:
        last = f"; the last: {intake.last.line}: {intake.last.reason}" if intake.last else ""
        remedy = f"no usable row ({intake.refused} refused{last}): check the file"
        raise SourceError(f"data.{split}", None, remedy)


def _overlap(
    manifest: Manifest, database: duckdb.DuckDBPyConnection, intake: Intake
) -> dict[str, int]:
    """Count training rows that stand in held-out splits; refuse or drop those of the test split."""
    overlap = {held_out: _shared(database, held_out) for held_out in ("validation", "test")}
    counts = {held_out: _count(rows) for held_out, rows in overlap.items()}
    if counts["test"] and manifest.data.overlap == "error":
        [(_, file, line)] = overlap["test"].limit(1).fetchall()
        remedy = (
            f"{counts['test']} training sources stand in the test split, the first at "
            f"{file}:{line}: set data.overlap to drop or keep"
        )
        raise ManifestError("data.overlap", None, remedy)
    if manifest.data.overlap == "drop":
        _drop(overlap["test"], intake)
    return counts


def _shared(database: duckdb.DuckDBPyConnection, held_out: str) -> duckdb.DuckDBPyRelation:
    return database.sql(_sql("overlap"), params={"held_out": held_out})


def _count(rows: duckdb.DuckDBPyRelation) -> int:
    [(count,)] = rows.aggregate("count(*)").fetchall()
    return int(count)


def _drop(rows: duckdb.DuckDBPyRelation, intake: Intake) -> None:
    for batch in rows.to_arrow_reader(BATCH):
        for split, file, line in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            intake.refuse(Refusal(file, line, "its source stands in the test split"))
            intake.rows[split] -= 1
    for split in intake.rows:
        _require_rows(split, intake)


def _store(
    run: RunDirectory, manifest: Manifest, database: duckdb.DuckDBPyConnection, key: str, limit: int
) -> tuple[FileRecord, int]:
    """Identify and store the rows; exactly round(f·n) training rows show their gold."""
    drop = manifest.data.overlap == "drop"
    values = {"drop_overlap": drop, "limit": limit, "seed": str(manifest.seed)}
    database.execute(_sql("identify"), values)
    [(golden,)] = database.execute("SELECT count(gold_rank) FROM identified").fetchall()
    visible = round(golden * manifest.data.train.gold_fraction) if manifest.data.train else 0
    rows = database.sql(_sql("samples"), params={"visible": visible}).to_arrow_reader(BATCH)
    path = run.path("samples", f"{key}.parquet")
    return write_part(run, path, "samples", rows, SAMPLES, {"samples": key}), visible


def _database(work: Path) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:")
    database.execute(f"SET memory_limit = '{MEMORY}'")
    database.execute("SET temp_directory = ?", [str(work)])
    # One thread keeps the rows in file order and the memory flat.
    database.execute("SET threads = 1")
    return database


def _sql(name: str) -> str:
    return (shipped("sql") / "samples" / f"{name}.sql").read_text(encoding="utf-8")
