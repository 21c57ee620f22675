"""Quantile rules: which candidates are the worst share, ties, ends, and who is counted at all."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.judging.quantiles import HIGH, LOW, NUMBERS
from tests.ruling import ruled

TEN = [-0.1 * i for i in range(10)]

# values, share, worst, threshold, places of the values that are dropped
TABLE = [
    (TEN, 0.0, "low", -0.9, []),
    (TEN, 0.05, "low", -0.9, []),
    (TEN, 0.1, "low", -0.8, [9]),
    (TEN, 0.29, "low", -0.7000000000000001, [8, 9]),
    (TEN, 0.3, "low", -0.6000000000000001, [7, 8, 9]),
    (TEN, 0.1, "high", -0.1, [0]),
    ([1.0, 1.0, 1.0, 2.0], 0.5, "low", 1.0, []),
    ([1.0, 1.0, 1.0, 0.0], 0.5, "low", 1.0, [3]),
    ([1.0, None, None, 0.0], 0.5, "low", 1.0, [3]),
    ([None, None], 0.5, "low", None, []),
    ([], 0.5, "low", None, []),
    ([-math.inf, -1.0], 0.5, "low", -1.0, [0]),
    ([-math.inf, -math.inf, -1.0], 0.34, "low", -math.inf, []),
]


def drop(values, share, worst, errors=()):
    rows = [
        {"sample_id": f"{i:04}", "mean_logprob": value, "error": i in errors}
        for i, value in enumerate(values)
    ]
    rule = {"mean_logprob": {"drop_worst": share, "worst": worst}}
    verdicts, _, thresholds = ruled(rows, {"rules": [rule]})
    dropped = [i for i, row in enumerate(verdicts) if "mean_logprob" in row["reasons"]]
    return thresholds["mean_logprob"], dropped


@pytest.mark.parametrize(("values", "share", "worst", "threshold", "dropped"), TABLE)
def test_the_worst_share_is_dropped(values, share, worst, threshold, dropped):
    assert drop(values, share, worst) == (threshold, dropped)


def test_a_candidate_with_an_error_is_not_of_the_population():
    assert drop([-9.0, -1.0, -2.0], 0.34, "low", errors=[0]) == (-2.0, [0])


@pytest.mark.parametrize(
    ("signal", "worst"),
    [
        ("mean_logprob", 0),
        ("chrf_gold", 0),
        ("agreement", 0),
        ("letter_share", 0),
        ("repetition", 1),
        ("top_2gram_share", 1),
        ("numbers_missing", 1),
        ("entropy", 1),
        ("copy_overlap", 1),
    ],
)
def test_which_end_is_the_worse_one(signal, worst):
    rows = [{"sample_id": str(i), signal: i} for i in range(2)]
    verdicts, _, _ = ruled(rows, {"rules": [{signal: {"drop_worst": 0.5}}]})
    assert [row["kept"] for row in verdicts] == [worst != 0, worst != 1]


def test_of_every_number_it_is_known_which_end_is_worse_or_that_neither_is():
    assert HIGH.isdisjoint(LOW)
    lengths = {
        *("n_words_source", "n_words_target", "n_chars_source", "n_chars_target", "n_tokens"),
        *("length_ratio", "char_ratio"),
    }
    assert lengths | HIGH | LOW == NUMBERS
    assert lengths.isdisjoint(HIGH | LOW)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.none() | st.integers(-3, 3).map(float), max_size=30),
    st.integers(0, 99),
    st.sampled_from(["low", "high"]),
)
def test_at_most_the_share_is_dropped_and_nothing_worse_stays(values, percent, worst):
    threshold, dropped = drop(values, percent / 100, worst)
    known = [value for value in values if value is not None]
    assert len(dropped) <= Fraction(percent, 100) * len(known)
    sign = 1 if worst == "low" else -1
    kept = [v for i, v in enumerate(values) if i not in dropped and v is not None]
    assert all(sign * values[i] < sign * value for i in dropped for value in kept)
    ties = sum(value == threshold for value in known)
    assert not known or len(dropped) + ties > Fraction(percent, 100) * len(known)
