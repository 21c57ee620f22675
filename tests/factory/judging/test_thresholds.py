"""Shipped rules over text and repetition, at and beside their published thresholds."""

from __future__ import annotations

import pytest

from tests.measuring import measured
from tests.ruling import ruled

# rule → signals, whether they are kept
TABLE = [
    ("repetition", {"repetition": 1.0, "n_words_target": 50}, True),
    ("repetition", {"repetition": 1.01, "n_words_target": 50}, False),
    ("repetition", {"repetition": 2.0, "n_words_target": 49}, True),
    ("repetition", {"repetition": 2.01, "n_words_target": 49}, False),
    ("repetition", {"repetition": None, "n_words_target": None}, True),
    ({"repetition": {"short": 0}}, {"repetition": 1.01, "n_words_target": 3}, False),
    ({"repetition": {"short_max": 9}}, {"repetition": 5.0, "n_words_target": 3}, True),
    ("numbers", {"number_match": 1.0}, True),
    ("numbers", {"number_match": 0.99}, False),
    ("numbers", {"number_match": None}, True),
    ({"numbers": {"min": 0.5}}, {"number_match": 0.5}, True),
    ("letters", {"letter_share": 0.5, "letter_word_share": 0.4}, True),
    ("letters", {"letter_share": 0.49, "letter_word_share": 1.0}, False),
    ("letters", {"letter_share": 1.0, "letter_word_share": 0.39}, False),
    ("letters", {"letter_share": None, "letter_word_share": None}, True),
    ("urls", {"urls_missing": 0, "urls_added": 0}, True),
    ("urls", {"urls_missing": 1, "urls_added": 0}, False),
    ("urls", {"urls_missing": 0, "urls_added": 1}, False),
    ("urls", {"urls_missing": None, "urls_added": None}, True),
    ("length", {"n_words_source": 1, "n_words_target": 150}, True),
    ("length", {"n_words_source": 1, "n_words_target": 151}, False),
    ("length", {"n_words_source": 0, "n_words_target": 1}, False),
    ("length", {"n_words_source": 3, "n_words_target": None}, True),
    ("char_ratio", {"char_ratio": 3.0}, True),
    ("char_ratio", {"char_ratio": 0.3}, False),
    ("char_ratio", {"char_ratio": None}, True),
    ("copy_overlap", {"copy_overlap": 0.49}, True),
    ("copy_overlap", {"copy_overlap": 0.5}, False),
    ("copy_overlap", {"copy_overlap": None}, True),
]


@pytest.mark.parametrize(("rule", "signals", "kept"), TABLE)
def test_thresholds(rule, signals, kept):
    # A companion that every rule keeps: rules that keep nothing are refused.
    given = [{"sample_id": "a"} | signals, {"sample_id": "companion"}]
    [verdict, _], *_ = ruled(given, {"rules": [rule]})
    assert verdict["kept"] is kept


# text → whether it is kept: what is short fails by a loop, not by accident
SHORT = [
    ("two men", True),
    ("a b c", True),
    ("a boy in a street in a town with a dog", True),
    ("no no no no no no", False),
    ("a man runs runs runs runs runs", False),
    ("in the park of the town in the park of the town", False),
]


def test_what_is_short_fails_by_a_loop_only():
    rows = measured("repetition", [("s", text) for text, _ in SHORT])
    words = [{"n_words_target": len(text.split())} for text, _ in SHORT]
    given = [row | count for row, count in zip(rows, words, strict=True)]
    verdicts, *_ = ruled(given, {"rules": ["repetition"]})
    found = [(text, verdict["kept"]) for (text, _), verdict in zip(SHORT, verdicts, strict=True)]
    assert found == SHORT
