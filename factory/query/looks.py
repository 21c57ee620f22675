"""Questions that ship with seqkd, asked by name: `@uncertain` is `FROM uncertain(…)`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import duckdb

from factory.errors import QueryError, nearest
from factory.query.catalog import OTHER, looks, quoted, shipped_sql
from factory.query.fence import select
from factory.records import RunDirectory

HEAD = re.compile(r"^CREATE MACRO \w+\((.*?)\) AS TABLE", re.MULTILINE | re.DOTALL)


def ask(
    run: RunDirectory, query: str, values: Sequence[str] = (), other: RunDirectory | None = None
) -> duckdb.DuckDBPyRelation:
    """The answer to SQL from outside, or to `@NAME`, fenced; see `statement` and `fence.select`.

    Raises:
        QueryError: it cannot be asked.
    """
    return select(run, statement(query, values, other is not None), other)


def statement(query: str, values: Sequence[str] = (), beside: bool = False) -> str:
    """The SQL to ask: the query itself, or for `@NAME` the one that calls the look of that name.

    Args:
        query: SQL, `@NAME`, or `@` for the names of all, what they answer and their parameters.
        values: a look's parameters, each `NAME=VALUE`; a VALUE that is no JSON is text.
        beside: whether there is another run beside this one, for looks at two.

    Raises:
        QueryError: there is no such look, it has no such parameter, or it lacks the other run.
    """
    if not query.startswith("@"):
        if values:
            raise QueryError("--param", values[0], "is for a query by name: write it into the SQL")
        return query
    name = query[1:]
    if not name and not values:
        return _contents()
    if not name:
        raise QueryError("--param", values[0], "is for a query with a name: write @NAME")
    if name not in looks():
        raise QueryError("sql", query, f"is no query: {nearest(name, looks())}")
    if not beside and f"{OTHER}." in _statement(name):
        raise QueryError("sql", query, "looks at two runs: name the other one by --with RUN")
    return f"FROM {name}({', '.join(_argument(name, value) for value in values)})"


def parameters(name: str) -> dict[str, str]:
    """A look's parameters and their defaults, as `--param` takes them."""
    head = HEAD.search(shipped_sql("look", name))
    found = re.findall(r"(\w+) := ([^,]+)", head[1]) if head else []
    return {name: default.strip("'") for name, default in found}


def question(name: str) -> str:
    """What a look answers."""
    return shipped_sql("look", name).splitlines()[0].removeprefix("-- ")


def _contents() -> str:
    rows = []
    for name in looks():
        given = ", ".join(f"{key}={default}" for key, default in parameters(name).items())
        rows.append(f"({quoted('@' + name)}, {quoted(question(name))}, {quoted(given)})")
    return f"FROM (VALUES {', '.join(rows)}) AS looks(name, answers, parameters)"


def _statement(name: str) -> str:
    """A look's SQL without its comments."""
    return re.sub(r"^--.*$", "", shipped_sql("look", name), flags=re.MULTILINE)


def _argument(name: str, pair: str) -> str:
    parameter, given, value = pair.partition("=")
    known = parameters(name)
    if not given:
        raise QueryError("--param", pair, f"has no value: write {parameter}=VALUE")
    if parameter not in known:
        remedy = nearest(parameter, known) if known else "it has none"
        raise QueryError("--param", parameter, f"is no parameter of @{name}: {remedy}")
    return f"{parameter} := {_literal(value)}"


def _literal(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    return text if isinstance(value, int | float | None) else quoted(text)
