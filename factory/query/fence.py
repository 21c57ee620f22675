"""The fence around SQL from outside: one statement that selects, over the files records name.

What DuckDB says against a query becomes one line: the place in the query, the word there, and what
may have been meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from factory.errors import QueryError, nearest
from factory.query.catalog import VIEWS, Connection, connect, create_looks, listed, looks, quoted
from factory.query.catalog import recorded_files as files
from factory.records import RunDirectory, StillRun

TABLE_FUNCTIONS = {"unnest", "range", "generate_series", "json_each", "json_tree"}
SPILL = "16GiB"  # of disk that one query may take, beside a run that may be at work
OFFERED = 5  # of what may have been meant
TOO_LARGE = (
    "does not fit its memory and disk: select fewer rows or columns, or aggregate; catalog.duckdb, "
    "opened in the DuckDB shell, may take more"
)
ALL_NAMES = "SHOW TABLES names the views, DESCRIBE VIEW its columns"

Details = dict[str, str]


def select(
    run: RunDirectory, sql: str, other: RunDirectory | None = None
) -> duckdb.DuckDBPyRelation:
    """Bind one statement that selects, fenced; its rows are computed when they are fetched.

    Raises:
        QueryError: it is not exactly one reading statement, or DuckDB refuses it.
    """
    connection = fenced(run, sql, other)
    with query_errors(sql):
        _check_reads(connection, sql)
        return connection.sql(sql)


def fenced(run: RunDirectory, sql: str, other: RunDirectory | None = None) -> Connection:
    """Open all views of a run for `sql` from outside: it can read recorded files and nothing else.

    The looks that it names are there too, and the views of another run may be, as `other.VIEW`.
    """
    run, other = StillRun(run), StillRun(other) if other else None  # views and fence agree
    connection = connect(run, other)
    create_looks(connection, run, [look for look in looks() if look in sql.lower()])
    paths = files(run) + (files(other) if other else [])
    allowed = ", ".join([listed(paths), *(quoted(str(path)) for path in paths)])
    connection.execute(f"SET allowed_paths = [{allowed if paths else ''}]")
    connection.execute(f"SET max_temp_directory_size = '{SPILL}'")
    connection.execute("SET errors_as_json = true")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


@contextmanager
def query_errors(sql: str = "") -> Iterator[None]:
    """Turn what DuckDB says of SQL from outside into one line, with its place in `sql`.

    Raises:
        QueryError: DuckDB refused the query, or could not finish it.
    """
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise QueryError("sql", None, TOO_LARGE) from None
    except duckdb.PermissionException as error:
        said = _said(_details(error))
        raise QueryError("sql", None, f"{said}: read the run's views") from None
    except duckdb.Error as error:
        details = _details(error)
        place, near = _spot(details, sql)
        name = details.get("name", near)
        raise QueryError(place, name, _said(details)) from None


def _check_reads(connection: Connection, sql: str) -> None:
    """Refuse all but one statement that selects, and changes nothing on the way.

    The fence is not enough: DuckDB runs COPY inside WITH, and would overwrite a file it may read.
    It binds such a WITH at the top level only, so the statement is bound as a subquery first; and
    the table functions that run SQL of their own (`query`, `json_execute_serialized_sql`) are out.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError("sql", sql, f"holds {len(statements)} statements: write one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name
        raise QueryError("sql", sql, f"is a statement of kind {kind}: write one SELECT")
    [text] = connection.execute("SELECT json_serialize_sql($1)", [sql]).fetchall()[0]
    tree = json.loads(text)
    if tree["error"]:
        raise QueryError("sql", sql, f"cannot be checked: {tree['error_message']}")
    for function in _table_functions(tree):
        if function not in TABLE_FUNCTIONS.union(looks()):
            known = nearest(function, (*VIEWS, *looks()))
            raise QueryError("sql", function, f"cannot be read: {known}")
    connection.execute(f"EXPLAIN FROM query({quoted(sql)})")


def _table_functions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("type") == "TABLE_FUNCTION":
            yield node["function"]["function_name"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _table_functions(child)


def _details(error: duckdb.Error) -> Details:
    """What DuckDB tells of an error: of a fenced connection, JSON after its kind."""
    text = str(error)
    try:
        details: Details = json.loads(text[text.index("{") :])
    except ValueError:
        return {"exception_message": text or type(error).__name__}
    return details


def _spot(details: Details, sql: str) -> tuple[str, str | None]:
    """Where in the query the error lies, and the text there, if DuckDB tells.

    It tells a start and a length in bytes; those of what stands around the query lie beyond it.
    """
    start, length = json.loads(details.get("location", "[0, 0]"))
    text = sql.encode()
    if "location" not in details or start + length > len(text):
        return "sql", None
    before, near = text[:start].decode(errors="ignore"), text[start : start + length]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return f"sql line {line}, column {column}", near.decode(errors="ignore") or None


def _said(details: Details) -> str:
    """An error in a line: for a name that is not known, those that are like it."""
    subtype = details.get("error_subtype")
    known = [f"'{name}'" for name in details.get("candidates", "").split(",") if name]
    if subtype in ("COLUMN_NOT_FOUND", "MISSING_ENTRY"):
        kind = details.get("type", "column").lower()
        meant = f"did you mean {', '.join(known[:OFFERED])}?" if known else ALL_NAMES
        return f"is no {kind} here: {meant}"
    first, *rest = details["exception_message"].split("\n\n")
    likes = [part for part in rest if part.startswith("Candidate")]
    return " ".join(" ".join([first.split("\n\tCandidate")[0], *likes]).split())
