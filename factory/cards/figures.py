"""The tables of a data card: each the rows of a shipped query, with the query beneath it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from factory.cards.markdown import number, table
from factory.files import shipped
from factory.query.catalog import Connection, connect
from factory.records import RunDirectory

FINE = 10  # below it a figure has three decimals, above it two
NOISE = 1e-9  # of sums; nearer than this to a whole number is whole
QUOTES = frozenset(
    '"`$\\'
)  # what a query in double quotes must not hold, to be pasted into a shell


@dataclass(frozen=True, slots=True)
class Figure:
    """One table: its columns as the query names them, its rows, which columns are words."""

    sql: str
    columns: tuple[str, ...]
    words: tuple[bool, ...]
    rows: list[tuple[Any, ...]]

    def total(self, column: str) -> int:
        """The sum of a column of counts."""
        place = self.columns.index(column)
        return sum(row[place] or 0 for row in self.rows)

    @property
    def table(self) -> str:
        """The table in Markdown; columns without any value are left out."""
        kept = [i for i in range(len(self.columns)) if any(r[i] is not None for r in self.rows)]
        heads = [self.columns[i].replace("_", " ") for i in kept]
        rows = [[shown(row[i]) for i in kept] for row in self.rows]
        return table(heads, rows, [self.words[i] for i in kept])

    def __str__(self) -> str:
        """The table, and its query, collapsed."""
        query = f'```sh\nseqkd sql RUN "{self.sql}"\n```'
        beneath = f"<details><summary>the query that gives this</summary>\n\n{query}\n\n</details>"
        return f"{self.table}\n{beneath}\n"


def shown(value: Any) -> Any:
    """A value as a cell of a card: figures for people, the rest as it is."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return value
    whole = round(value) if abs(value - round(value)) < NOISE else value
    return number(whole, 2 if abs(value) >= FINE else 3)


def figures(run: RunDirectory) -> dict[str, Figure]:
    """Every query of `sql/card` over a run, by its name."""
    with connect(run) as connection:
        return {name: _figure(connection, sql) for name, sql in queries()}


def queries() -> Iterator[tuple[str, str]]:
    """The queries of `sql/card` with their names, without comments: as a card shows them."""
    for path in sorted(shipped("sql").glob("card/*.sql")):
        lines = path.read_text("utf-8").splitlines()
        yield path.stem, "\n".join(line for line in lines if not line.startswith("--"))


def markup(figure: Figure) -> Markup:
    """A figure as the template takes it; its cells were escaped one by one."""
    return Markup(str(figure))  # noqa: S704 — see above


def _figure(connection: Connection, sql: str) -> Figure:
    answer = connection.sql(sql)
    words = tuple(str(kind) == "VARCHAR" for kind in answer.types)
    return Figure(sql, tuple(answer.columns), words, answer.fetchall())
