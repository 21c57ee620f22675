"""Markdown out of data: cells in which nothing is markup, figures for people, tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from factory.query.tables import plain

SPECIAL = re.compile(r"([\\`*_\[\]|~#!$])")
CELL_WIDTH = 200


def cell(value: Any) -> Markup:
    """Text from the data as a cell of a Markdown table: one line, nothing in it is markup."""
    text = plain("–" if value is None else str(value))
    short = text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"
    safe = html.escape(short, quote=False)  # as &#39; an apostrophe would be cut by the next line
    return Markup(SPECIAL.sub(r"\\\1", safe))  # noqa: S704 — escaped just here


def number(value: float | None, digits: int = 2) -> str:
    """A figure for people: thousands apart, so many decimals unless it is whole."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def score_digits(score: float) -> int:
    """Decimals of a score: two, and four where it lies between 0 and 1."""
    return 4 if 0 < abs(score) < 1 else 2


def small(value: float) -> str:
    """A figure that may be far below one: two digits that count."""
    return f"{value:.2g}"


def short_path(path: str) -> str:
    """A hub id as it is, of a folder its last part."""
    return path.rstrip("/").rpartition("/")[2] if path.startswith("/") else path


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], words: Sequence[bool]) -> str:
    """A table of cells that are text already or are made so; `words` stand to the left."""
    sides = ["---" if left else "---:" for left in words]
    texts = [[str(cell(value)) for value in row] for row in (columns, *rows)]
    lines = [texts[0], sides, *texts[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
