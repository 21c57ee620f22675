"""A file of candidates made elsewhere: its known columns, typed and staged as Parquet."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from factory.errors import SourceError
from factory.sources import COMPRESSION, opened, read_rows

BLOCK = 64 << 20  # bytes of JSON read at a time: no line may be longer
BATCH = 1024
SNIFFED = 1000
TEXT, NUMBER, INTS = pa.string(), pa.float64(), pa.list_(pa.int32())
# Ids are read as float64, which holds them all: one that is no whole number is told by its row.
NUMBERS = pa.list_(NUMBER)
NESTED = pa.list_(NUMBERS)
COLUMNS: dict[str, pa.DataType] = {
    "sample_id": TEXT,
    "source": TEXT,
    "text": TEXT,
    "token_ids": NUMBERS,
    "rank": NUMBER,
    "score": NUMBER,
    "sum_logprob": NUMBER,
    "mean_logprob": NUMBER,
    "token_logprobs": NUMBERS,
    "finish_reason": TEXT,
    "error": TEXT,
    "k": NUMBER,
    "topk_ids": NUMBERS,
    "topk_logprobs": NUMBERS,
    "tail_logprob": NUMBERS,
}
TOPS = ("topk_ids", "topk_logprobs")
STAGED = pa.schema(
    [
        ("row", pa.int64()),
        ("key", TEXT),
        *COLUMNS.items(),
        *((f"{name}_widths", INTS) for name in TOPS),
    ]
)

Types = dict[str, pa.DataType]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file: what each known one is called there, its type, and the unknown."""

    called: dict[str, str]
    types: Types
    ignored: tuple[str, ...]


def stage(file: str, path: Path, ids: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Copy a file's known columns to the Parquet file `path`, its rows numbered from 1.

    Lists of most probable tokens become flat; where they came nested, `topk_ids_widths` and
    `topk_logprobs_widths` (int32 [n]) hold how many entries each position has, 0 where it is null.

    `ids` says what the user's id field may be called; it becomes the column `key`.

    Returns:
        the rows, and the file's columns that mean nothing here.

    Raises:
        SourceError: the file is missing, of an unknown kind, empty, or holds what cannot be read.
    """
    parquet = _is_parquet(file)
    with _readable(file):
        types = _parquet_types(file) if parquet else _json_types(file)
    columns = _columns(types, ids)
    batches = _parquet_batches(file, columns) if parquet else _json_batches(file, columns)
    rows = 0
    with pq.ParquetWriter(path, STAGED, compression="lz4") as writer:
        for batch in _read(file, batches):
            for start in range(0, len(batch), BATCH):
                part = batch.slice(start, BATCH)
                writer.write_batch(_staged(file, part, columns, rows + 1))
                rows += len(part)
    if not rows:
        raise SourceError(file, None, "is empty: give each candidate a row")
    return rows, columns.ignored


@contextmanager
def _readable(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise _mistake(file, 0, " ".join(str(error).split())) from None


def _is_parquet(file: str) -> bool:
    name = file
    for packed in COMPRESSION:
        name = name.removesuffix(packed)
    if name.endswith((".jsonl", ".json")) or file.endswith(".parquet"):
        return name.endswith(".parquet")
    raise SourceError(file, None, "ending not known: use .jsonl, plain, .gz or .zst, or .parquet")


def _columns(types: Types, ids: Sequence[str]) -> Columns:
    """A file without a `text` may call it `target`, as an export of pseudolabels does."""
    called = {name: name for name in COLUMNS}
    if "text" not in types and "target" in types:
        called["text"] = "target"
    if key := next((name for name in ids if name in types and name not in COLUMNS), None):
        called["key"] = key
    wanted = {name: types.get(name, COLUMNS.get(name, TEXT)) for name in called.values()}
    return Columns(called, wanted, tuple(name for name in types if name not in wanted))


def _json_types(file: str) -> Types:
    """Of the first rows: which fields there are, whether lists are nested, and what an id is."""
    values: dict[str, Any] = {}
    for _, row in itertools.islice(read_rows(file), SNIFFED):
        if isinstance(row, dict):
            values |= {name: value for name, value in row.items() if value is not None}
    return {name: _json_type(name, value) for name, value in values.items()}


def _json_type(name: str, value: Any) -> pa.DataType:
    if name in TOPS:
        nested = isinstance(value, list) and any(isinstance(inner, list) for inner in value)
        return NESTED if nested else NUMBERS
    return COLUMNS.get(name, pa.int64() if isinstance(value, int) else TEXT)


def _json_batches(file: str, columns: Columns) -> Iterator[pa.RecordBatch]:
    options = pj.ParseOptions(
        explicit_schema=pa.schema(columns.types.items()), unexpected_field_behavior="ignore"
    )
    with opened(file) as stream:
        yield from pj.open_json(stream, pj.ReadOptions(block_size=BLOCK), options)


def _parquet_types(file: str) -> Types:
    with opened(file) as stream, pq.ParquetFile(stream) as parquet:
        return {field.name: field.type for field in parquet.schema_arrow}


def _parquet_batches(file: str, columns: Columns) -> Iterator[pa.RecordBatch]:
    with opened(file) as stream, pq.ParquetFile(stream) as parquet:
        names = [name for name in columns.types if name in parquet.schema_arrow.names]
        yield from parquet.iter_batches(BATCH, columns=names)


def _read(file: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, their texts looked at too; what Arrow says of a mistake becomes one line."""
    rows = 0
    try:
        for batch in batches:
            batch.validate(full=True)
            yield batch
            rows += len(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise _mistake(file, rows, " ".join(str(error).split())) from None


def _mistake(file: str, rows: int, told: str) -> SourceError:
    if told == "Empty JSON stream":
        return SourceError(file, None, "is empty: give each candidate a row")
    if found := re.search(r"(?:in row|at string index) (\d+)", told):
        place = f"{file} row {rows + int(found[1]) + 1}"
        return SourceError(place, None, f"{told[: found.start()].strip()}: mend it")
    return SourceError(file, None, f"cannot be read after row {rows}: {told}")


def _staged(file: str, batch: pa.RecordBatch, columns: Columns, first: int) -> pa.RecordBatch:
    arrays: dict[str, pa.Array] = {"row": pa.array(range(first, first + len(batch)), pa.int64())}
    for name, called in columns.called.items():
        if called in batch.schema.names:
            column = batch.column(called)
            if name in TOPS and _is_list(column.type) and _is_list(column.type.value_type):
                column, arrays[f"{name}_widths"] = _flattened(_cast(file, name, column, NESTED))
            arrays[name] = _cast(file, name, column, STAGED.field(name).type)
    nothing = {field.name: pa.nulls(len(batch), field.type) for field in STAGED}
    return pa.RecordBatch.from_pydict(nothing | arrays, schema=STAGED)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _cast(file: str, name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in the type that is read on.

    Raises:
        SourceError: its own type cannot be taken for it.
    """
    if kind != TEXT and pa.types.is_string(column.type):
        raise SourceError(f"{file} column {name}", None, f"holds text: make it {_worded(kind)}")
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        remedy = f"holds {column.type}: make it {_worded(kind)}"
        raise SourceError(f"{file} column {name}", None, remedy) from None


def _worded(kind: pa.DataType) -> str:
    return {TEXT: "text", NUMBER: "a number"}.get(kind, "a list of numbers")


def _flattened(column: pa.ListArray) -> tuple[pa.ListArray, pa.ListArray]:
    """Lists of lists as flat lists, and how many entries each inner list has."""
    inner = column.flatten()
    widths = pc.fill_null(pc.list_value_length(inner), 0)
    places = _offsets(pc.fill_null(pc.list_value_length(column), 0).to_numpy())
    entries = _offsets(widths.to_numpy())[places]
    mask = column.is_null()
    flat = pa.ListArray.from_arrays(pa.array(entries, pa.int32()), inner.flatten(), mask=mask)
    return flat, pa.ListArray.from_arrays(pa.array(places, pa.int32()), widths, mask=mask)


def _offsets(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
