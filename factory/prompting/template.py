"""Text with {fields}: how a row's values come into a prompt, and stay told apart from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from factory.errors import PromptError, nearest

FIELD = re.compile(r"\{(\w+)\}")
Parts = list[str]  # the prompt's own text and the row's by turns, the prompt's first


def pattern_of(template: str) -> list[str]:
    """Literal, field name, literal, field name, …, literal."""
    return FIELD.split(template)


def fill(pattern: list[str], row: dict[str, Any], tag: Callable[[str], str] = str) -> Parts:
    """The pattern with a row's values, each through `tag`, in place of its fields.

    Raises:
        PromptError: the row lacks a field, or it is empty.
    """
    values = [tag(str(value_of(row, name))) for name in pattern[1::2]]
    parts = list(pattern)
    parts[1::2] = values
    return parts


def value_of(row: dict[str, Any], name: str) -> Any:
    """A field of a row, which must be there and not null."""
    if row.get(name) is not None:
        return row[name]
    what = "is empty" if name in row else f"is no field of this row, {nearest(name, row)}"
    raise PromptError("prompt", None, f"the prompt's {{{name}}} {what}")
