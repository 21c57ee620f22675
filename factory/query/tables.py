"""Rows of a query, as people and programs want them: a table, CSV, JSON, Parquet. Streamed."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from factory.errors import QueryError, nearest
from factory.files import replacing
from factory.query.fence import query_errors

BATCH = 2048
TABLE_ROWS = 100
TABLE_RECORDS = 10  # of rows shown one after another
LEGIBLE = 16  # characters that a column of text needs to be read
WORD = 20  # characters of a word that are not torn apart: an id has as many
BORDER = 3  # characters between two columns
CELL = 1000  # characters shown of one value
FILE_WIDTH = 200
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Rows: TypeAlias = pa.RecordBatchReader


def write_rows(relation: duckdb.DuckDBPyRelation, form: str, output: Path | None = None) -> None:
    """Write a query's rows as `form`, to a file that is whole or absent, or to standard output.

    A table shows the first 100 rows, or where its columns do not fit the terminal the first 10, one
    after another. NULL is empty in CSV and null in JSON, where NaN is null too.

    Raises:
        QueryError: the form is unknown or cannot hold the rows, or the query fails on the way.
    """
    if form not in WRITERS:
        raise QueryError("--format", form, f"is no format: {nearest(form, WRITERS)}")
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise QueryError("--format", form, "is not for a terminal: add --output FILE")
    columns = relation.columns
    if form == "json" and (twice := {name for name in columns if columns.count(name) > 1}):
        raise QueryError("sql", min(twice), "names two columns: give each its own name")
    with query_errors(), _sink(output, binary=form == "parquet") as stream:
        WRITERS[form](relation.to_arrow_reader(BATCH), stream)


def plain(text: str) -> str:
    """Text in which control characters are spelt out, so that data cannot steer a terminal."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


@contextmanager
def _sink(output: Path | None, binary: bool) -> Iterator[IO[Any]]:
    if output is None:
        yield sys.stdout.buffer if binary else sys.stdout
        return
    with replacing(output) as temporary:
        if binary:
            with temporary.open("wb") as stream:
                yield stream
        else:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                yield stream


def _write_table(rows: Rows, stream: IO[str]) -> None:
    """Rows beneath each other, or where columns would be too narrow to read, row after row."""
    console = Console(file=stream, width=None if stream is sys.stdout else FILE_WIDTH)
    records = list(islice(_records(rows), TABLE_ROWS + 1))
    cells = [[_cell(value) for value in record] for record in records[:TABLE_ROWS]]
    widths = _widths(rows.schema, cells, console.width)
    shown = cells if widths else cells[:TABLE_RECORDS]
    console.print(_grid(rows.schema, shown, widths) if widths else _listing(rows.schema, shown))
    if len(records) > len(shown):
        told = f"The first {len(shown)} rows; all of them with --format csv, json, parquet."
        console.print(told)


def _widths(schema: pa.Schema, cells: list[list[Text]], room: int) -> list[int]:
    """The columns' widths, or none where there is no room to read them all.

    Each has what it needs to be read, and of what is left as much as it wants in a fair share.
    """
    texts = [[row[place].plain for row in cells] for place in range(len(schema))]
    wanted = [max(map(cell_len, [field.name, *texts[i]])) for i, field in enumerate(schema)]
    needed = [_needed(field, texts[i], wanted[i]) for i, field in enumerate(schema)]
    spare = room - sum(needed) - BORDER * len(needed) - 1
    by_want = sorted(range(len(needed)), key=lambda place: wanted[place] - needed[place])
    for left, place in zip(range(len(needed), 0, -1), by_want, strict=True):
        given = min(wanted[place] - needed[place], max(0, spare) // left)
        needed[place] += given
        spare -= given
    return needed if spare >= 0 else []


def _needed(field: pa.Field, texts: list[str], wanted: int) -> int:
    """What a column needs to be read: a number its digits, a text a few words, or an id."""
    if _is_number(field):
        return max(map(cell_len, [field.name[:LEGIBLE], *texts]))
    words = [cell_len(word) for text in (field.name, *texts) for word in text.split()]
    return min(wanted, max(LEGIBLE, min(max(words, default=0), WORD)))


def _grid(schema: pa.Schema, cells: list[list[Text]], widths: list[int]) -> Table:
    table = Table()
    for field, width in zip(schema, widths, strict=True):
        side: JustifyMethod = "right" if _is_number(field) else "left"
        table.add_column(plain(field.name), justify=side, width=width, overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def _listing(schema: pa.Schema, cells: list[list[Text]]) -> Group:
    parts: list[Any] = []
    for number, row in enumerate(cells, start=1):
        listed = Table.grid(padding=(0, 2))
        listed.add_column(no_wrap=True, style="bold")
        listed.add_column(overflow="fold")
        for field, cell in zip(schema, row, strict=True):
            listed.add_row(plain(field.name), cell)
        parts += [Rule(f"row {number}", align="left"), listed]
    return Group(*parts)


def _is_number(field: pa.Field) -> bool:
    return bool(pa.types.is_integer(field.type) or pa.types.is_floating(field.type))


def _write_csv(rows: Rows, stream: IO[str]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows.schema.names)
    for record in _records(rows):
        writer.writerow([_field(value) for value in record])


def _write_json(rows: Rows, stream: IO[str]) -> None:
    stream.write("[")
    for index, record in enumerate(_records(rows)):
        stream.write(",\n" if index else "\n")
        stream.write(_json(dict(zip(rows.schema.names, record, strict=True))))
    stream.write("\n]\n")


def _write_parquet(rows: Rows, stream: IO[bytes]) -> None:
    try:
        with pq.ParquetWriter(stream, rows.schema, compression="zstd") as writer:
            for batch in rows:
                writer.write(batch)
    except pa.ArrowNotImplementedError as error:
        raise QueryError("--format", "parquet", f"{error}: cast it to VARCHAR") from None


WRITERS: dict[str, Callable[[Rows, IO[Any]], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
}


def _records(rows: Rows) -> Iterator[tuple[Any, ...]]:
    for batch in rows:
        columns = (column.to_pylist(maps_as_pydicts="strict") for column in batch.columns)
        yield from zip(*columns, strict=True)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("NULL", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.6g}")
    text = plain(value if isinstance(value, str) else _json(value))
    return Text(text if len(text) <= CELL else text[: CELL - 1] + "…")


def _field(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict | bool) else value


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, default=_encoded)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return value


def _encoded(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)
