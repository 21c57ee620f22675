"""Conversations as rows hold them: lists of turns, each with a role and content."""

from __future__ import annotations

import json
import re
from typing import Any

Turn = dict[str, Any]
ROLE = re.compile(r"[\w-]+")  # what a template may print: nothing that could end a turn


def read_turns(value: Any) -> list[Turn] | str:
    """The turns of a conversation, or the reason why there are none.

    Keys that hold null are dropped: a Parquet struct has every key in every turn.
    """
    if not isinstance(value, list):
        return "is no list of turns"
    if not value:
        return "holds no turn"
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            return f"turn {number} is no mapping of role and content"
        turns.append(_without_nulls(turn))
        if reason := _fault(turns[-1]):
            return f"turn {number} {reason}"
    if not any(turn["role"] == "user" for turn in turns):
        return "holds no user turn"
    return turns


def last_user_text(turns: list[Turn]) -> str:
    """What the last user turn says: what a target answers."""
    return next(str(turn["content"]) for turn in reversed(turns) if turn["role"] == "user")


def canonical(turns: list[Turn]) -> str:
    """One text for equal conversations, whatever the order of a turn's keys."""
    return json.dumps(turns, sort_keys=True, ensure_ascii=False, default=str)


def _fault(turn: Turn) -> str | None:
    role = turn.get("role")
    if role is None:
        return f"has no role, only {', '.join(map(str, turn)) or 'nothing'}"
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        return f"has a role that is no word: {role!r:.40}"
    if isinstance(turn.get("content"), str):
        return None
    if "content" in turn:
        return "has content that is not text"
    called = role == "assistant" and "tool_calls" in turn
    return None if called else "has no content"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
