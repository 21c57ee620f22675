"""SQL over the signals of one candidate, as users write it: parsed, fenced and bound without data.

What may stand in it is listed, not what may not: signals, constants, operators, and functions whose
outcome hangs on their arguments alone. So it reads no table and no file, and says the same twice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb

from factory.errors import ManifestError, nearest
from factory.schemas import SIGNALS

Node = dict[str, Any]
Kind = tuple[str, str | None]  # of a function: scalar, aggregate, …, and how stable it is

CLASSES = {
    *("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION"),
    *("BETWEEN", "CASE", "CAST", "TYPE", "COLLATE"),
}
PURE: frozenset[Kind] = frozenset({("scalar", "CONSISTENT")})
MACROS = {"if", "nullif", "split_part", "fdiv", "fmod"}
OF_SQL = {"json_serialize_sql", "json_serialize_plan", "json_deserialize_sql"}
CONDITION = "write one condition over signals, such as n_words_target <= 60"
ORDER = "write an order over signals, such as chrf_gold DESC, n_tokens"


def check_condition(sql: str, place: str) -> frozenset[str]:
    """The columns of `signals` that a condition reads.

    Raises:
        ManifestError: it is not one boolean expression over the signals of a candidate.
    """
    written = _Written(sql, place, CONDITION)
    query = f"SELECT (\n{sql}\n) FROM signals"
    columns = written.columns(written.parsed(query, "SELECT (true) FROM signals", _select_list))
    if (kind := written.bound(query)) != duckdb.sqltypes.BOOLEAN:
        raise written.mistake(f"gives {kind}, not true or false")
    return columns


def check_order(sql: str, place: str) -> frozenset[str]:
    """The columns of `signals` that an ORDER BY reads.

    Raises:
        ManifestError: it is not a list of expressions over the signals of a candidate.
    """
    written = _Written(sql, place, ORDER)
    query = f"SELECT true FROM signals ORDER BY\n{sql}\n"
    terms = written.parsed(query, "SELECT true FROM signals ORDER BY 1", _orders)
    columns = written.columns(terms)
    written.bound(query)
    if not all(any(_columns(term)) for term in terms):
        raise written.mistake("has a term that reads no signal")
    return columns


@dataclass(frozen=True, slots=True)
class _Written:
    """An expression of a user's, and where its mistakes are told."""

    sql: str
    place: str
    remedy: str

    def parsed(self, query: str, like: str, take: Callable[[Node], list[Node]]) -> list[Node]:
        """The expressions taken from a query around it, which must be else like another."""
        tree, model = _tree(query), _tree(like)
        count = len(tree.get("statements", ())) or _count_statements(f"SELECT {self.sql}")
        if count > 1:
            raise self.mistake(f"holds {count} statements")
        if tree["error"]:
            raise self.mistake(f"is no SQL ({tree['error_message']})")
        around, expected = (known["statements"][0]["node"] for known in (tree, model))
        found, _ = take(around), take(expected)
        if _placeless(around) != _placeless(expected):
            raise self.mistake("holds more than expressions")
        return found

    def columns(self, parts: list[Node]) -> frozenset[str]:
        """The signals in parts of a query; other than expressions over them is refused."""
        for node in _nodes(parts):
            if node["class"] not in CLASSES:
                raise self.mistake(f"holds a {node['class'].lower().replace('_', ' ')}")
            if node["class"] == "FUNCTION":
                self._check_function(node["function_name"].lower())
        return frozenset(map(self._signal, _columns(parts)))

    def bound(self, query: str) -> Any:
        """The type of what the query gives, asked of an empty table."""
        try:
            found = _signals().sql(query)
            found.fetchall()
        except duckdb.Error as error:
            raise self.mistake(" ".join(str(error).split("\n\n")[0].split())) from None
        return found.types[0]

    def mistake(self, what: str) -> ManifestError:
        """The error that tells of it."""
        return ManifestError(self.place, self.sql, f"{what}: {self.remedy}")

    def _check_function(self, name: str) -> None:
        """Refuse aggregates, and functions that tell of more than their arguments."""
        kinds = _functions().get(name, PURE)  # what is not known does not bind
        if (not kinds & PURE and name not in MACROS) or name in OF_SQL:
            gathers = ("aggregate", "CONSISTENT") in kinds
            what = "gathers candidates" if gathers else "tells of more than its arguments"
            raise self.mistake(f"calls {name}(), which {what}")

    def _signal(self, names: tuple[str, ...]) -> str:
        *table, column = (name.lower() for name in names)
        if table not in ([], ["signals"]) or column not in SIGNALS.names:
            remedy = f"{'.'.join(names)!r} is no signal: {nearest(column, SIGNALS.names)}"
            raise ManifestError(self.place, self.sql, remedy)
        return column


@cache
def _signals() -> duckdb.DuckDBPyConnection:
    """A database that holds the table `signals`, without rows, and reaches nothing else."""
    connection = duckdb.connect(
        config={"enable_external_access": False, "python_enable_replacements": False}
    )
    relation = connection.from_arrow(SIGNALS.empty_table())
    pairs = zip(relation.columns, relation.types, strict=True)
    columns = ", ".join(f'"{name}" {kind}' for name, kind in pairs)
    connection.execute(f"CREATE TABLE signals ({columns})")
    return connection


@cache
def _functions() -> dict[str, frozenset[Kind]]:
    """The kinds of every function that DuckDB knows, by name."""
    kinds = defaultdict(set)
    query = "SELECT function_name, function_type, stability FROM duckdb_functions()"
    for name, kind, stability in _signals().execute(query).fetchall():
        kinds[name].add((kind, stability))
    return {name: frozenset(found) for name, found in kinds.items()}


def _count_statements(sql: str) -> int:
    """How many statements SQL holds; 0 if it is none."""
    try:
        return len(_signals().extract_statements(sql))
    except duckdb.ParserException:
        return 0


def _tree(sql: str) -> Node:
    [text] = _signals().execute("SELECT json_serialize_sql($1)", [sql]).fetchall()[0]
    tree: Node = json.loads(text)
    return tree


def _select_list(node: Node) -> list[Node]:
    taken: list[Node] = node.pop("select_list", [])
    return taken


def _orders(node: Node) -> list[Node]:
    [modifier, *_] = node.get("modifiers") or [{}]
    taken: list[Node] = modifier.pop("orders", [])
    return taken


def _placeless(tree: Any) -> Any:
    """A tree without where in the text its parts stood."""
    if isinstance(tree, dict):
        return {k: _placeless(v) for k, v in tree.items() if not k.startswith("query_location")}
    return [_placeless(child) for child in tree] if isinstance(tree, list) else tree


def _nodes(tree: Any) -> Iterator[Node]:
    """Every expression in a tree."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _columns(tree: Any) -> Iterator[tuple[str, ...]]:
    return (tuple(node["column_names"]) for node in _nodes(tree) if node["class"] == "COLUMN_REF")
