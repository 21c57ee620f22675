"""Small tables of facts for the terminal: words to the left, numbers to the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from factory.query.tables import plain

Facts = dict[str, Any]
WORDS = frozenset(
    "name text split reason rule verdict measure stage system metric run signal least_sure".split()
)


def panel(title: str | None, *columns: str) -> Table:
    """An empty table; without a title it has no heads either."""
    made = Table(title=title, title_justify="left", show_header=title is not None)
    for name in columns:
        side: JustifyMethod = "left" if name in WORDS else "right"
        made.add_column(name.replace("_", " "), justify=side, overflow="fold")
    return made


def filled(title: str, rows: Iterable[Facts], columns: Sequence[str]) -> Table:
    """A table of some columns of rows."""
    made = panel(title, *columns)
    for row in rows:
        made.add_row(*(cell(row[name]) for name in columns))
    return made


def cell(value: Any) -> Text:
    """A value as people read it; what steers a terminal is spelt out."""
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("–", style="dim")
    if isinstance(value, float):
        return Text(f"{value:,.4g}")
    return Text(f"{value:,}" if isinstance(value, int) else plain(str(value)))
