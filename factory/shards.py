"""Parquet parts: typed, signed, whole or absent, and recorded with rows and SHA-256."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import DamagedFile
from factory.files import file_digest, replacing
from factory.records import FileRecord, RunDirectory

SIGNATURE = b"seqkd.signature"
# A row group is what a reader holds at the least: of long lists it takes fewer rows.
ROW_GROUP = 4096
ROW_GROUP_BYTES = 1 << 25
# What is split by byte compresses best so, the more the longer its pages are: docs/decisions.md.
SPLIT_BY_BYTE = (
    "topk_ids",
    "topk_logprobs",
    "topk_codes",
    "topk_runs",
    "counts",
    "token_logprobs",
    "tail_logprob",
)
PAGE_BYTES = 1 << 24


@contextmanager
def part_writer(
    run: RunDirectory, path: Path, table: str, schema: pa.Schema, signature: dict[str, Any]
) -> Iterator[tuple[pq.ParquetWriter, FileRecord]]:
    """Open a part for streaming. The record yielded beside the writer is filled in on success."""
    record: FileRecord = {"table": table, "path": run.relative(path)}
    signed = schema.with_metadata({SIGNATURE: json.dumps(signature, default=str).encode()})
    with replacing(path) as temporary:
        with pq.ParquetWriter(temporary, signed, **_layout(schema)) as writer:
            yield writer, record
        record["rows"] = pq.read_metadata(temporary).num_rows
        record["sha256"] = file_digest(temporary)


def write_part(
    run: RunDirectory,
    path: Path,
    table: str,
    batches: Iterable[pa.Table | pa.RecordBatch],
    schema: pa.Schema,
    signature: dict[str, Any],
) -> FileRecord:
    """Write batches of rows, streamed, as one part; returns its record."""
    with part_writer(run, path, table, schema, signature) as (writer, record):
        for batch in batches:
            fitting = ROW_GROUP_BYTES * len(batch) // max(1, batch.nbytes)
            writer.write(batch.cast(schema), row_group_size=min(ROW_GROUP, max(1, fitting)))
    return record


def record_file(run: RunDirectory, path: Path, table: str) -> FileRecord:
    """The record of a file that something else has written in place; only Parquet has rows."""
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
    return {"table": table, "path": run.relative(path), "rows": rows, "sha256": file_digest(path)}


def check_file(run: RunDirectory, record: FileRecord) -> None:
    """Re-read a file against its record.

    Raises:
        DamagedFile: it is missing, or its bytes or row count differ.
    """
    path = run.path(record["path"])
    if not path.is_file():
        raise DamagedFile(f"{path}: is missing")
    if file_digest(path) != record["sha256"]:
        raise DamagedFile(f"{path}: does not match its SHA-256")
    if record["rows"] is not None and pq.read_metadata(path).num_rows != record["rows"]:
        raise DamagedFile(f"{path}: does not hold {record['rows']} rows")


def _layout(schema: pa.Schema) -> dict[str, Any]:
    split = [f"{name}.list.element" for name in SPLIT_BY_BYTE if name in schema.names]
    layout: dict[str, Any] = {"compression": "zstd", "compression_level": 11 if split else 3}
    if split:
        layout["data_page_size"] = PAGE_BYTES
        encoded = set(split)
        layout["use_dictionary"] = [c for c in _leaves(schema) if c not in encoded]
        layout["use_byte_stream_split"] = split
    return layout


def _leaves(schema: pa.Schema) -> list[str]:
    nested = (pa.types.is_list, pa.types.is_map)
    return [
        f"{field.name}.list.element" if any(test(field.type) for test in nested) else field.name
        for field in schema
    ]
