"""A Markdown file that holds blocks of ours among a person's own text.

A block stands between `<!-- seqkd:NAME -->` and `<!-- /seqkd -->`, each on a line of its own. What
is outside all blocks is the person's, and stays when blocks are written anew; so do the keys of
the front matter that are not ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

BEGIN = re.compile(r"<!-- seqkd:(\w+) -->")
END = "<!-- /seqkd -->"
FENCE = "---"
KEY = re.compile(r"([^\s#:-][^:]*):")


@dataclass(slots=True)
class Page:
    """A file taken apart.

    `matter` is the front matter's YAML; `head` the lines before all blocks; `blocks` the lines of
    each block, `after` those that follow it, `starts` the number of the file's line it begins with;
    `open` names the first block that nothing ends.
    """

    matter: str = ""
    head: list[str] = field(default_factory=list)
    blocks: dict[str, list[str]] = field(default_factory=dict)
    after: dict[str, list[str]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    open: str | None = None

    def __str__(self) -> str:
        """The file again."""
        lines = [FENCE, *self.matter.splitlines(), FENCE] if self.matter else []
        lines += self.head
        for name, block in self.blocks.items():
            lines += [f"<!-- seqkd:{name} -->", *block, END, *self.after.get(name, ())]
        return "".join(f"{line}\n" for line in lines)

    def values(self) -> dict[str, Any] | None:
        """The front matter's keys and values; None where it is no such thing."""
        try:
            found = YAML(typ="safe", pure=True).load(self.matter) or {}
        except YAMLError:
            return None
        return found if isinstance(found, dict) else None


def take_apart(text: str) -> Page:
    """A file as a page. A second block of a name is a person's own text."""
    page, lines = Page(), text.splitlines()
    first = lines.index(FENCE, 1) + 1 if lines[:1] == [FENCE] and FENCE in lines[1:] else 0
    page.matter = "".join(f"{line}\n" for line in lines[1 : first - 1])
    taken, inside = page.head, None
    for count, line in enumerate(lines[first:], first + 1):
        found = BEGIN.fullmatch(line)
        if found and found[1] not in page.blocks:
            page.open = page.open or inside
            inside = name = found[1]
            page.after[name], page.starts[name] = [], count
            taken = page.blocks[name] = []
        elif line == END and inside:
            taken, inside = page.after[inside], None
        else:
            taken.append(line)
    page.open = page.open or inside
    return page


def put_together(old: Page, new: Page, ours: Iterable[str]) -> Page:
    """The new page, with the old one's own text where it stood and its own front matter.

    Text after a block that is gone follows the block before it. `ours` names the keys of the front
    matter that are never a person's.
    """
    made = Page(new.matter + _own_matter(old, {*ours, *(new.values() or {})}), [*old.head])
    made.blocks = new.blocks
    made.after = {name: [] if name in old.blocks else text for name, text in new.after.items()}
    place = made.head
    for name, text in old.after.items():
        place = made.after.get(name, place)
        place += text
    return made


def _own_matter(page: Page, ours: set[str]) -> str:
    """The lines of the front matter under keys that are not ours."""
    kept, own = [], False
    for line in page.matter.splitlines(keepends=True):
        if key := KEY.match(line):
            own = key[1] not in ours
        kept += [line] if own else []
    return "".join(kept)
