"""What a target must keep of its source: placeholders, tags, a user's spans, a glossary's terms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from factory.errors import ManifestError
from factory.files import file_digest
from factory.judging.families import Measuring
from factory.manifest import Manifest
from factory.query.catalog import quoted, shipped_sql
from factory.records import RunDirectory

BATCH = 1 << 14
FOLDER = "protected"  # of sql
TERMS = pa.schema([("source", pa.string()), ("target", pa.string())])


def check_protected(manifest: Manifest) -> None:
    """Look at the patterns and the glossary, without any data.

    Raises:
        ManifestError: a pattern is none of RE2's or matches no text at all, or the glossary is
            missing or malformed, with its line.
    """
    with duckdb.connect() as connection:
        for index, pattern in enumerate(manifest.judge.protect):
            _check_pattern(connection, f"judge.protect.{index}", pattern)
    if manifest.judge.glossary:
        read_glossary(Path(manifest.judge.glossary))


def protected_settings(run: RunDirectory, manifest: Manifest) -> Any:
    """The patterns, the glossary's content and the SQL.

    Raises:
        ManifestError: see `check_protected`.
    """
    del run
    check_protected(manifest)
    judge = manifest.judge
    glossary = file_digest(Path(judge.glossary)) if judge.glossary else None
    return [judge.protect, glossary, *(shipped_sql(FOLDER, n) for n in ("macros", "measure"))]


def measure_protected(work: Measuring) -> Iterator[pa.RecordBatch]:
    """Stream placeholders_missing and glossary_missing, by `sql/protected`."""
    judge, connection = work.manifest.judge, work.connection
    users = "".join(f"{_grouped(pattern)}|" for pattern in judge.protect)
    connection.execute(f"SET VARIABLE protect = {quoted(users)}")
    connection.execute(f"SET VARIABLE glossary = {judge.glossary is not None}")
    terms = read_glossary(Path(judge.glossary)) if judge.glossary else TERMS.empty_table()
    connection.register("glossary", terms)
    connection.execute(shipped_sql(FOLDER, "macros"))
    yield from connection.sql(shipped_sql(FOLDER, "measure")).to_arrow_reader(BATCH)


def read_glossary(path: Path) -> pa.Table:
    """Terms as [source, target] strings: a line each, a tab between them, blank lines left out.

    Raises:
        ManifestError: the file cannot be read, or a line holds no such pair.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        remedy = f"cannot be read: {error.strerror}"
        raise ManifestError("judge.glossary", str(path), remedy) from None
    except UnicodeDecodeError:
        raise ManifestError("judge.glossary", str(path), "is not UTF-8: save it as such") from None
    rows = [[term.strip() for term in line.split("\t")] for line in lines]
    for number, row in enumerate(rows, 1):
        if row != [""] and (len(row) != 2 or not all(row)):
            remedy = "write it as a source term, a tab, a target term"
            raise ManifestError(f"{path}:{number}", lines[number - 1], remedy)
    pairs = [row for row in rows if row != [""]]
    if not pairs:
        raise ManifestError("judge.glossary", str(path), "holds no terms: add some, or remove it")
    return pa.table([list(column) for column in zip(*pairs, strict=True)], schema=TERMS)


def _grouped(pattern: str) -> str:
    return f"(?:{pattern})"


def _check_pattern(connection: duckdb.DuckDBPyConnection, place: str, pattern: str) -> None:
    both = [pattern, _grouped(pattern)]  # what is whole alone may not be among others, such as \Q
    try:
        found = connection.execute("SELECT [regexp_matches('', p) FOR p IN $1]", [both]).fetchone()
    except duckdb.Error as error:
        reason = str(error).partition("Error: ")[2].splitlines()[0]
        raise ManifestError(place, pattern, f"is no RE2 expression: {reason}") from None
    if found != ([False, False],):
        raise ManifestError(place, pattern, "matches where there is nothing: ask for a character")
