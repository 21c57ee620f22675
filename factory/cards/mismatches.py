"""Where a card says other than its run: by row and column in tables, by line in text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from factory.cards.blocks import Page

BAR = re.compile(r"(?<!\\)\|")
ESCAPED = re.compile(r"\\([^a-zA-Z0-9\s])")
RULER = re.compile(r"\|(\s*:?-+:?\s*\|)+")
WIDTH = 80

Said = tuple[int | None, str | None]  # line in the card, what stands there
Key = tuple[tuple[str, ...], tuple[str, ...], int]  # table's columns, row's words, which of such
Row = tuple[int | None, dict[str, str]]  # line in the card, figures by column
NOTHING: Said = (None, None)
ABSENT: Row = (None, {})


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A place where card and run differ: the card's line, and what each says (None: nothing)."""

    line: int | None
    place: str
    card: str | None
    run: str | None

    def __str__(self) -> str:
        """One line for people."""
        where = "card.md" if self.line is None else f"card.md:{self.line}"
        return (
            f"{where}: {self.place}: the card says {_short(self.card)}, the run {_short(self.run)}"
        )


def mismatches(card: Page, run: Page, skip: Iterable[str], ours: Iterable[str]) -> list[Mismatch]:
    """How a card differs from what its run gives now; what is outside blocks is not looked at.

    Args:
        card: the page as it stands.
        run: the page as it would be written.
        skip: blocks that are not compared, beyond that they are there.
        ours: keys of the front matter that are compared, beside those of `run`.
    """
    found = list(_matter(card, run, ours))
    for name in dict.fromkeys([*run.blocks, *card.blocks]):
        here, there = card.blocks.get(name), run.blocks.get(name)
        line = card.starts.get(name)
        if here is None or there is None:
            has = [None if block is None else "has it" for block in (here, there)]
            found.append(Mismatch(line, f"section {name}", *has))
        elif here != there and name not in skip:
            found += _differences(name, _Block(here, line or 0), _Block(there, 0))
    return found


class _Block:
    """What a block says: the rows of its tables by their words, and its other lines in order."""

    def __init__(self, lines: list[str], start: int) -> None:
        self.rows: dict[Key, Row] = {}
        self.text: list[Said] = []
        heads: list[str] = []
        sides: list[str] = []
        for count, (line, below) in enumerate(zip_longest(lines, lines[1:], fillvalue="")):
            if RULER.fullmatch(below):
                heads, sides = _cells(line), _cells(below)
            if not line.startswith("|") or RULER.fullmatch(line) or _cells(line) == heads:
                self.text += [(start + count + 1, line)] if line else []
            else:
                self._add_row(start + count + 1, _cells(line), heads, sides)

    def _add_row(self, line: int, row: list[str], heads: list[str], sides: list[str]) -> None:
        """Keep a row's figures, the cells on the right side; of words all but the first cell."""
        figures = [i for i, side in enumerate(sides) if side.endswith(":")] or range(1, len(sides))
        words = tuple(cell for i, cell in enumerate(row) if i not in figures)
        times = sum(key[:2] == (tuple(heads), words) for key in self.rows)
        found = {heads[i]: row[i] if i < len(row) else "" for i in figures}
        self.rows[(tuple(heads), words, times)] = (line, found)


def _differences(name: str, card: _Block, run: _Block) -> Iterator[Mismatch]:
    for key in dict.fromkeys([*card.rows, *run.rows]):
        place = [name, *key[1]]
        (line, said), (_, told) = card.rows.get(key, ABSENT), run.rows.get(key, ABSENT)
        if said and told:
            for head in (head for head in told if said[head] != told[head]):
                yield Mismatch(line, _named([*place, head]), said[head], told[head])
        else:
            yield Mismatch(line, _named(place), _joined(said), _joined(told))
    extra, lacking = _beyond(card.text, run.text), _beyond(run.text, card.text)
    for one, other in zip_longest(extra, lacking, fillvalue=NOTHING):
        yield Mismatch(one[0], f"{name}, text", one[1], other[1])


def _named(parts: list[str]) -> str:
    return ", ".join(_short(part) for part in parts if part)


def _joined(row: dict[str, str]) -> str | None:
    """A whole row that stands on one side alone."""
    return " | ".join(row.values()) if row else None


def _matter(card: Page, run: Page, ours: Iterable[str]) -> Iterator[Mismatch]:
    said, told = card.values(), run.values() or {}
    if said is None:
        yield Mismatch(1, "front matter", "what is no YAML", "keys and values")
        return
    for key in dict.fromkeys([*told, *ours]):
        if said.get(key) != told.get(key):
            shown = [str(values[key]) if key in values else None for values in (said, told)]
            yield Mismatch(1, f"front matter, {key}", *shown)


def _cells(line: str) -> list[str]:
    return [ESCAPED.sub(r"\1", cell.strip()) for cell in BAR.split(line.strip())[1:-1]]


def _beyond(these: list[Said], those: list[Said]) -> list[Said]:
    """Lines that stand here more often than there."""
    left = Counter(text for _, text in those)
    found = []
    for line, text in these:
        left[text] -= 1
        found += [(line, text)] if left[text] < 0 else []
    return found


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    short = text.strip()
    return short if len(short) <= WIDTH else short[: WIDTH - 1] + "…"
