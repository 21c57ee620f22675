"""Repetition: literal tables, and the paper's definitions counted character by character."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.schemas import MEASURED
from tests.measuring import measured

LIMITS = {2: 0.20, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
LINES = 0.30
COLUMNS = [name for name, _ in MEASURED["repetition"]]


def column(n: int) -> str:
    return f"{'top' if n < 5 else 'duplicate'}_{n}gram_share"


# text → the shares that are not 0
TABLE = [
    ("", {}),
    (" \n", {}),
    ("x", {}),
    ("a dog runs", {}),  # its only 3-gram is all of it, and no repetition
    ("a b", {}),
    ("a a", {}),
    ("a a a", {2: 1.0}),
    ("ab cd ab cd", {2: 1.0}),
    ("ab cd xyz ab cd", {2: 8 / 11}),
    ("aa bb c aa bb d e d e d e", {2: 6 / 15, 3: 5 / 15, 4: 6 / 15}),  # most often, not longest
    ("aa bb x aa bb y c d z c d", {2: 8 / 15}),  # as often: the one that covers most
    ("a b c x a b c", {2: 4 / 7, 3: 6 / 7}),
    ("a b c d e x a b c d e", {2: 4 / 11, 3: 6 / 11, 4: 8 / 11, 5: 10 / 11}),
    ("no no no no no no no no", dict.fromkeys(range(2, 8), 1.0)),
    ("a\u00a0b\u3000a\tb", {2: 1.0}),
    ("Été vert été vert", {}),  # words as they are written
    ("é\u0301t vert é\u0301t vert", {2: 1.0}),
    ("哈 哈 哈", {2: 1.0}),
]
LINE_TABLE = [
    ("x", 0.0),
    ("x\ny", 0.0),
    ("x\nx", 0.5),
    ("x\n\n x \r\ny\nx", 0.5),
    ("\n\n", 0.0),
    ("x\nX", 0.0),
]


def test_shares():
    rows = measured("repetition", [("s", text) for text, _ in TABLE])
    for (text, wanted), row in zip(TABLE, rows, strict=True):
        found = {n: row[column(n)] for n in LIMITS if row[column(n)]}
        assert found == pytest.approx(wanted), text
        largest = max((share / LIMITS[n] for n, share in wanted.items()), default=0.0)
        assert row["repetition"] == pytest.approx(largest), text


def test_duplicate_lines():
    rows = measured("repetition", [("s", text) for text, _ in LINE_TABLE])
    assert [row["duplicate_line_share"] for row in rows] == [share for _, share in LINE_TABLE]
    assert rows[2]["repetition"] == pytest.approx(0.5 / LINES)


def test_what_has_no_text_has_no_share():
    [row] = measured("repetition", [("s", None)])
    assert {row[name] for name in COLUMNS} == {None}


# --- the paper's definitions ---------------------------------------------------------------------


def shares(text: str) -> dict[str, float]:
    words, marks = text.split(" "), []
    for i, word in enumerate(words):
        marks += [i] * len(word)  # the word that each character belongs to

    def covered(starts: list[int], n: int) -> int:
        inside = {i for start in starts for i in range(start, start + n)}
        return sum(mark in inside for mark in marks)

    found = {}
    for n in LIMITS:
        at: dict[tuple[str, ...], list[int]] = {}
        for i in range(len(words) - n + 1):
            at.setdefault(tuple(words[i : i + n]), []).append(i)
        twice = [starts for starts in at.values() if len(starts) > 1]
        often = max(map(len, twice), default=0)
        top = max((covered(s, n) for s in twice if len(s) == often), default=0)
        every = covered([start for starts in twice for start in starts], n)
        found[column(n)] = (top if n < 5 else every) / len(marks)
    return found


def line_share(text: str) -> float:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return sum(count - 1 for count in Counter(lines).values()) / len(lines)


WORDS = st.lists(st.sampled_from(["a", "bb", "é", "dddd"]), min_size=1, max_size=40)
LOOPS = st.tuples(WORDS, WORDS, st.integers(1, 5)).map(lambda t: t[0] + t[1] * t[2] + t[0])


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS | LOOPS, min_size=1, max_size=12))
def test_the_papers_definitions_agree(texts):
    pairs = [("s", " ".join(words)) for words in texts]
    for (_, text), row in zip(pairs, measured("repetition", pairs), strict=True):
        wanted = shares(text)
        assert {name: row[name] for name in wanted} == pytest.approx(wanted), text
        assert row["repetition"] == pytest.approx(
            max(wanted[column(n)] / limit for n, limit in LIMITS.items())
        )


LINE_SETS = st.lists(st.sampled_from(["x", " y", "z\r", "", " "]), min_size=1, max_size=8)


@settings(max_examples=10, deadline=None)
@given(st.lists(LINE_SETS, min_size=1, max_size=40))
def test_lines_agree(sets):
    texts = ["\n".join([*lines, "x"]) for lines in sets]
    rows = measured("repetition", [("s", text) for text in texts])
    found = [row["duplicate_line_share"] for row in rows]
    assert found == pytest.approx([line_share(text) for text in texts])
