"""Sources as they lie on disk: JSONL, TSV, CSV, Parquet and line-aligned text, streamed.

A row that cannot be used becomes a `Refusal` with its file and line; nothing is skipped in silence.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import SourceError, nearest
from factory.manifest import Split
from factory.prompting.turns import canonical, last_user_text, read_turns

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
BATCH = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """A usable input row: its place, source, gold, the user's id, and its other fields.

    `conversation` is the canonical text of the row's turns, where the prompt is made of them.
    """

    file: str
    line: int
    source: str
    gold: str | None
    key: str | None
    meta: dict[str, Any]
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An input row that cannot be used, and why."""

    file: str
    line: int
    reason: str


Parsed = dict[str, Any] | str  # a row's fields, or the reason why there are none


def read_split(split: Split, messages: str | None = None) -> Iterator[Row | Refusal]:
    """Stream one split's rows in file order, never more than a few at a time in memory.

    Where the field `messages` holds a row's turns, the source is what the last user turn says,
    unless the manifest names a column for it.

    Raises:
        SourceError: a file is missing, of an unknown kind, or lacks a named column.
    """
    try:
        yield from _read_columns(split, messages) if split.path else _read_lines(split)
    except (OSError, pa.ArrowInvalid) as error:
        files = " or ".join(split_files(split))
        reason = " ".join(str(error).split())
        raise SourceError(files, None, f"is damaged or cut short: {reason}") from None


def split_files(split: Split) -> list[str]:
    """The files that a split is read from."""
    by_line = [split.source, split.target]
    return [split.path] if split.path else [file for file in by_line if file]


def content_digest(file: str) -> str:
    """SHA-256 of an input file's stored bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with _opened(file) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_rows(file: str) -> Iterator[tuple[int, Parsed]]:
    """Stream a file with columns: line by line its fields, or the reason why there are none.

    Raises:
        SourceError: the file is missing, or of an unknown kind.
    """
    return _reader(file)(file)


def opened(file: str) -> IO[bytes]:
    """The bytes of a file, unpacked where its ending says that it is packed.

    Raises:
        SourceError: it is missing, or cannot be opened.
    """
    stream = _opened(file)
    # Arrow's decompression notices a file that was cut short, and reads every frame of it.
    if kind := next((kind for ending, kind in COMPRESSION.items() if file.endswith(ending)), None):
        return io.BufferedReader(pa.CompressedInputStream(stream, kind), 1 << 16)
    unpacked: IO[bytes] = stream
    return unpacked


def as_json(value: Any) -> str:
    """JSON text of a value; numbers that JSON lacks become null, unknown kinds of value text."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


def _read_lines(split: Split) -> Iterator[Row | Refusal]:
    sources = _lines(split.source)
    targets: Iterator[str | None] = itertools.repeat(None)
    if split.target:
        targets = itertools.chain(_lines(split.target), itertools.repeat(_END))
    count = 0
    for count, (source, target) in enumerate(zip(sources, targets, strict=False), 1):
        if target is _END:
            yield Refusal(split.source, count, f"has no counterpart: {split.target} is shorter")
        else:
            yield _usable(split.source, count, source, target, None, {})
    if split.target:
        surplus = itertools.takewhile(lambda line: line is not _END, targets)
        for line, _ in enumerate(surplus, count + 1):
            yield Refusal(split.target, line, f"has no counterpart: {split.source} is shorter")


_END = "\0end of file\0"


def _read_columns(split: Split, messages: str | None) -> Iterator[Row | Refusal]:
    file = str(split.path)
    for line, parsed in read_rows(file):
        if isinstance(parsed, str):
            yield Refusal(file, line, parsed)
        elif messages is None:
            yield _from_fields(split, file, line, parsed, split.source)
        else:
            yield _from_turns(split, file, line, parsed, messages)


def _from_turns(
    split: Split, file: str, line: int, fields: dict[str, Any], messages: str
) -> Row | Refusal:
    if messages not in fields:
        return Refusal(file, line, f"has no field {messages!r}: {nearest(messages, fields)}")
    turns = read_turns(fields[messages])
    if isinstance(turns, str):
        return Refusal(file, line, f"{messages} {turns}")
    named = split.source if split.names_source else None
    row = _from_fields(split, file, line, fields, named, last_user_text(turns))
    return row if isinstance(row, Refusal) else replace(row, conversation=canonical(turns))


def _from_fields(
    split: Split,
    file: str,
    line: int,
    fields: dict[str, Any],
    source: str | None,
    text: str = "",
) -> Row | Refusal:
    """A row whose source is in the column `source`, or is the given text."""
    named = [column for column in (source, split.target, split.id) if column]
    for column in named:
        if column not in fields:
            return Refusal(file, line, f"has no field {column!r}: {nearest(column, fields)}")
    if broken := _broken_field(fields):
        return Refusal(file, line, f"field {broken!r} is not valid UTF-8")
    key = None if split.id is None else fields[split.id]
    if split.id and key in (None, ""):
        return Refusal(file, line, f"field {split.id!r} is empty")
    gold = fields[split.target] if split.target else None
    meta = {name: value for name, value in fields.items() if name not in named}
    told = fields[source] if source else text
    return _usable(file, line, told, gold, None if key is None else str(key), meta)


def _usable(
    file: str, line: int, source: Any, gold: Any, key: str | None, meta: dict[str, Any]
) -> Row | Refusal:
    for name, text in (("source", source), ("target", gold)):
        if text is None and name == "target":
            continue
        if not isinstance(text, str):
            return Refusal(file, line, f"{name} is not text")
        if not _is_unicode(text):
            return Refusal(file, line, f"{name} is not valid UTF-8")
        if not text.strip():
            return Refusal(file, line, f"{name} is empty")
    return Row(file, line, source, gold, key, meta)


def _is_unicode(text: str) -> bool:
    """Bytes that were not UTF-8 come in as lone surrogates (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _broken_field(fields: dict[str, Any]) -> str | None:
    if _is_unicode(as_json(fields)):
        return None
    return next(name for name, value in fields.items() if not _is_unicode(as_json({name: value})))


def _reader(file: str) -> Callable[[str], Iterator[tuple[int, Parsed]]]:
    name = file
    for suffix in COMPRESSION:
        name = name.removesuffix(suffix)
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise SourceError(file, None, f"ending not known: use {known}, plain, .gz or .zst")
    if suffix == ".parquet" and name != file:
        raise SourceError(file, None, "Parquet is compressed inside: unpack it")
    return READERS[suffix]


def _read_jsonl(file: str) -> Iterator[tuple[int, Parsed]]:
    for number, line in enumerate(_lines(file), 1):
        yield number, _parse_json(line)


def _parse_json(line: str) -> Parsed:
    if not line.strip():
        return "is an empty line"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return fields if isinstance(fields, dict) else "is not a JSON object"


def _read_tsv(file: str) -> Iterator[tuple[int, Parsed]]:
    rows = enumerate((line.split("\t") for line in _lines(file)), 1)
    return _with_header(file, rows)


def _read_csv(file: str) -> Iterator[tuple[int, Parsed]]:
    csv.field_size_limit(sys.maxsize)
    with _opened_text(file) as stream:
        reader = csv.reader(stream, strict=True)
        try:
            yield from _with_header(file, ((reader.line_num, row) for row in reader))
        except csv.Error as error:
            raise SourceError(f"{file}:{reader.line_num}", None, f"{error}: mend the CSV") from None


def _with_header(file: str, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Parsed]]:
    _, header = next(rows, (0, []))
    if not header:
        raise SourceError(file, None, "is empty: the first line names the columns")
    _require_distinct(file, header)
    for line, cells in rows:
        if len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        else:
            yield line, f"has {len(cells)} fields where the header has {len(header)}"


def _require_distinct(file: str, names: Sequence[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SourceError(file, twice, "two columns have this name: rename one")


def _read_parquet(file: str) -> Iterator[tuple[int, Parsed]]:
    line = 0
    with _opened(file) as stream, pq.ParquetFile(stream) as parquet:
        _require_distinct(file, parquet.schema_arrow.names)
        for batch in parquet.iter_batches(BATCH):
            batch.validate(full=True)
            for fields in batch.to_pylist():
                line += 1
                yield line, fields


READERS: dict[str, Callable[[str], Iterator[tuple[int, Parsed]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _lines(file: str) -> Iterator[str]:
    """Lines end at LF (or CRLF) alone; other separators are part of the text."""
    with _opened_text(file) as stream:
        for line in stream:
            yield line.removesuffix("\n").removesuffix("\r")


def _opened_text(file: str) -> IO[str]:
    # A byte order mark is no text; bytes that are not UTF-8 stay recognisable (PEP 383).
    return io.TextIOWrapper(opened(file), "utf-8-sig", errors="surrogateescape", newline="\n")


def _opened(file: str) -> Any:
    try:
        return fsspec.open(file, "rb").open()
    except FileNotFoundError:
        raise SourceError(file, None, "is missing: check the path and data.root") from None
    except (IsADirectoryError, PermissionError, ImportError, ValueError) as error:
        raise SourceError(file, None, f"cannot be opened: {error}") from None
