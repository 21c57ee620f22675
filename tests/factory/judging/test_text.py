"""Signals of one candidate and its source: literal tables, and oracles that scan by character."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.measuring import measured

BLANKS = "\t\n\f\r "


def of(column: str, rows: list[tuple]) -> list[tuple]:
    """Table rows (source, text, value) as (column, source, text, value)."""
    return [(column, *row) for row in rows]


LENGTHS = [
    *of("n_words_target", [("a", "x  y\tz\nw", 4), ("a", "x\u00a0y\u3000z", 3), ("a", "", 0)]),
    *of("n_words_source", [("a b", None, 2), ("\u2003", "x", 0)]),
    *of("n_chars_source", [(" ab ", "x", 2), ("é👩‍🚀", "x", 4)]),
    *of("n_chars_target", [("a", "\u00a0añ\u3000", 2), ("a", "日本語", 3), ("a", None, None)]),
    *of("char_ratio", [("ab", "xyz", 1.5), ("", "x", None), ("ab", "", 0.0), ("a", None, None)]),
    *of("length_ratio", [("a b", "x", 0.5), ("", "x", None), ("a", None, None)]),
    *of("truncated", [("a", "x", None)]),
]
COPIES = [
    *of("copy", [("Élan vital ", " élan VITAL", True), ("a b", "a  b", False), ("a", None, None)]),
    *of(
        "copy_overlap",
        [
            ("a b c", "a b c", 1.0),
            ("A b", "a x", 0.5),
            ("a b", "x y", 0.0),
            ("a", "a a a x", 0.75),
            ("ÉTÉ chaud", "été", 1.0),
            ("a b", "", None),
            ("a b", None, None),
            ("", "x", 0.0),
        ],
    ),
]
LETTERS = [
    *of(
        "letter_share",
        [
            ("a", "abc", 1.0),
            ("a", "ab 12", 0.5),
            ("a", "été", 1.0),
            ("a", "e\u0301te\u0301", 1.0),  # decomposed: a mark goes with its letter
            ("a", "नमस्ते", 1.0),
            ("a", "日本語。", 0.75),
            ("a", "❤\ufe0f", 0.0),  # a mark behind a sign is no letter
            ("a", "...", 0.0),
            ("a", " \n", None),
            ("a", "", None),
            ("a", None, None),
        ],
    ),
    *of(
        "letter_word_share",
        [
            ("a", "x y", 1.0),
            ("a", "x 12", 0.5),
            ("a", "«x» (y) — !", 0.5),
            ("a", "3rd x", 0.5),
            ("a", "éa", 1.0),
            ("a", "12", 0.0),
            ("a", "", None),
            ("a", None, None),
        ],
    ),
]
# source, text → missing, added, match
NUMBERS = [
    ("no number", "rien", (0, 0, 1.0)),
    ("2 dogs", "2 chiens", (0, 0, 2.0)),
    ("2 dogs", "deux chiens", (1, 0, 0.5)),
    ("two dogs", "2 chiens", (0, 1, 0.5)),
    ("2 and 3", "3 et 2", (0, 0, 3.0)),
    ("2 and 2", "2", (1, 0, 1.0)),
    ("2", "2 et 2 et 2", (0, 2, 2 / 3)),
    ("1,000 m", "1.000 m", (0, 0, 2.0)),
    ("1,000 m", "1000 m", (0, 0, 2.0)),
    ("1,000 m", "1 000 m", (0, 0, 2.0)),
    ("1,000 m", "1\u00a0000 m", (0, 0, 2.0)),
    ("1,000 m", "1\u202f000 m", (0, 0, 2.0)),
    ("1,000 m", "1'000 m", (0, 0, 2.0)),
    ("1,000 m", "1’000 m", (0, 0, 2.0)),
    ("1,000km", "1000km", (0, 0, 2.0)),
    ("1,234,567.89", "1.234.567,89", (0, 0, 3.0)),
    ("1,234,567.05", "1234567,05", (0, 0, 3.0)),
    ("1,0000", "10000", (2, 1, 0.25)),
    ("in 2012 300 came", "300 en 2012", (0, 0, 3.0)),
    ("3.5 l", "3,5 l", (0, 0, 3.0)),
    ("3.5 l", "35 l", (2, 1, 0.25)),
    ("3.05 l", "3,5 l", (1, 1, 2 / 3)),
    ("at 10:30", "à 10h30", (0, 0, 3.0)),
    ("at 9:00", "à 09h00", (0, 0, 3.0)),
    ("2026-11-21", "21/11/2026", (0, 0, 4.0)),
    ("agent 007", "agent 7", (0, 0, 2.0)),
    ("-5 °C", "5 °C", (0, 0, 2.0)),
    ("A4 paper", "papier A4", (0, 0, 2.0)),
    ("12 cats", "١٢ قطة", (0, 0, 2.0)),
    ("12 cats", "१२ बिल्लियाँ", (0, 0, 2.0)),
    ("12 cats", "猫１２匹", (0, 0, 2.0)),
    ("x² ½ Ⅳ", "x", (0, 0, 1.0)),
    ("2", "", (1, 0, 0.5)),
    ("2", None, (None, None, None)),
]
# source, text → missing, added
URLS = [
    ("see it", "vois", (0, 0)),
    ("see https://a.org/x?y=1#z.", "voir https://a.org/x?y=1#z !", (0, 0)),
    ("see https://a.org/x/", "voir (https://a.org/x/)", (0, 0)),
    ("see https://a.org/x", "voir https://a.org/y", (1, 1)),
    ("see www.a.org, http://b.org", "voir www.a.org", (1, 0)),
    ("see it", "voir ftp://a.org", (0, 1)),
    ("http://a.org http://a.org", "http://a.org", (1, 0)),
    ("HTTP://A.org", "HTTP://A.org", (0, 0)),
    ("https://a.org/été", "«https://a.org/été»", (0, 0)),
    ("http:// www. ://", "x", (0, 0)),
    ("http://a.org", None, (None, None)),
]


@pytest.mark.parametrize("table", [LENGTHS, COPIES, LETTERS], ids=["lengths", "copies", "letters"])
def test_single_signals(table):
    rows = measured("text", [(source, text) for _, source, text, _ in table])
    found = [(*case[:3], row[case[0]]) for case, row in zip(table, rows, strict=True)]
    assert found == [(*case[:3], pytest.approx(case[3])) for case in table]


def test_numbers_of_both_sides():
    rows = measured("text", [(source, text) for source, text, _ in NUMBERS])
    columns = ("numbers_missing", "numbers_added", "number_match")
    found = [
        (s, t, tuple(r[c] for c in columns)) for (s, t, _), r in zip(NUMBERS, rows, strict=True)
    ]
    assert found == [(s, t, pytest.approx(wanted)) for s, t, wanted in NUMBERS]


def test_addresses_of_both_sides():
    rows = measured("text", [(source, text) for source, text, _ in URLS])
    found = [(r["urls_missing"], r["urls_added"]) for r in rows]
    assert found == [wanted for *_, wanted in URLS]


# --- oracles -------------------------------------------------------------------------------------

ALPHABET = "abAÉé\u0301ß日न्\u0660١2０05.,:'’-«» \t\n\u00a0\u202f\u3000❤\ufe0f€_"
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=24)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=40)


def blank(c: str) -> bool:
    return c in BLANKS or unicodedata.category(c).startswith("Z")


def split(text: str) -> list[str]:
    return "".join("\0" if blank(c) else c for c in text).replace("\0", " ").split(" ")


def words(text: str) -> list[str]:
    return [word for word in split(text) if word]


def letters(text: str) -> int:
    """Letters, and the marks that follow one."""
    count, open_ = 0, False
    for c in text:
        kind = unicodedata.category(c)[0]
        open_ = kind == "L" or (kind == "M" and open_)
        count += open_
    return count


def begins_with_letter(word: str) -> bool:
    kinds = [unicodedata.category(c)[0] for c in word]
    return next((kind for kind in kinds if kind in "LN"), "") == "L"


def numbers(text: str) -> list[str]:
    """Runs of digits, groups of three joined, by looking at one character after another."""
    plain = "".join(str(unicodedata.decimal(c, c)) for c in text)
    digit = [c.isascii() and c.isdigit() for c in plain] + [False] * 5
    found, i = [], 0

    def run(start: int) -> int:
        end = start
        while digit[end]:
            end += 1
        return end

    while i < len(plain):
        if not digit[i]:
            i += 1
            continue
        start, end = i, run(i)
        decimal = start > 0 and plain[start - 1] in ".,"
        value, grouped = plain[start:end], end - start <= 3 and not decimal
        while grouped and end < len(plain) and run(end + 1) - end == 4:
            sign = plain[end]
            if sign not in ".,'’٬" and not unicodedata.category(sign).startswith("Z"):
                break
            value += plain[end + 1 : end + 4]
            end += 4
        found.append(value if decimal else value.lstrip("0") or "0")
        i = end
    return found


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_the_oracles_agree(pairs):
    for (source, text), row in zip(pairs, measured("text", pairs), strict=True):
        theirs, ours = words(source), words(text)
        assert (row["n_words_source"], row["n_words_target"]) == (len(theirs), len(ours))
        printed = "".join(ours)
        known = {w.lower() for w in theirs}
        assert row["letter_share"] == approx(letters(text), len(printed))
        assert row["letter_word_share"] == approx(sum(map(begins_with_letter, ours)), len(ours))
        assert row["copy_overlap"] == approx(sum(w.lower() in known for w in ours), len(ours))
        here, there = Counter(numbers(source)), Counter(numbers(text))
        missing, added = (here - there).total(), (there - here).total()
        assert (row["numbers_missing"], row["numbers_added"]) == (missing, added), (source, text)
        match = ((here & there).total() + 1) / (missing + added + 1)
        assert row["number_match"] == pytest.approx(match)


def approx(part: float, whole: float):
    return pytest.approx(part / whole) if whole else None
