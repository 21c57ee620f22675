"""Where a card says other than its run: by row and column in tables, by line in text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from factory.blocks import Page

BAR = re.compile(r"(?<!\\)\|")
ESCAPED = re.compile(r"\\([^a-zA-Z0-9\s])")
RULER = re.compile(r"\|(\s*:?-+:?\s*\|)+")
WIDTH = 80

Said = tuple[int | None, str | None]  # line in the card, what stands there
NOTHING: Said = (None, None)


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
    """What a block says: figures by row and column, and its other lines in their order."""

    def __init__(self, lines: list[str], start: int) -> None:
        self.cells: dict[str, Said] = {}
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
        names = [cell for i, cell in enumerate(row) if i not in figures]
        for i in figures:
            parts = [*names, heads[i] if i < len(heads) else ""]
            place = ", ".join(part for part in parts if part)
            while place in self.cells:
                place += " again"
            self.cells[place] = (line, row[i] if i < len(row) else "")


def _differences(name: str, card: _Block, run: _Block) -> Iterator[Mismatch]:
    for place in dict.fromkeys([*card.cells, *run.cells]):
        line, said = card.cells.get(place, NOTHING)
        told = run.cells.get(place, NOTHING)[1]
        if said != told:
            yield Mismatch(line, f"{name}, {place}", said, told)
    extra, lacking = _beyond(card.text, run.text), _beyond(run.text, card.text)
    for one, other in zip_longest(extra, lacking, fillvalue=NOTHING):
        yield Mismatch(one[0], f"{name}, text", one[1], other[1])


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
