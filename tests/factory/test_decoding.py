"""What is a function of one row alone: limits and seeds; and what `generate` says of itself."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.decoding import DECODING_KEYS, Generate, Lengths, draw_seed, token_limit


@pytest.mark.parametrize(
    ("spec", "prompt", "limit"),
    [
        (7, 1000, 7),
        (Lengths(ratio=2.0, plus=10, cap=256), 5, 20),
        (Lengths(ratio=2.0, plus=10, cap=256), 200, 256),
        (Lengths(ratio=1.1, cap=256), 100, 110),  # 1.1 · 100 is a hair more in floating point
        (Lengths(ratio=1.5, cap=256), 3, 5),
        (Lengths(plus=4, cap=256), 0, 4),
        (Lengths(ratio=0.001, cap=256), 1, 1),
        (Lengths(ratio=1.0, cap=256), 0, 1),
    ],
)
def test_token_limits(spec: int | Lengths, prompt: int, limit: int) -> None:
    assert token_limit(spec, prompt) == limit


@given(
    st.integers(0, 300).map(lambda hundredths: Fraction(hundredths, 100)),
    st.integers(1, 50),
    st.integers(1, 500),
    st.integers(0, 10_000),
)
def test_a_limit_is_the_rounded_up_line_under_its_cap(ratio, plus, cap, prompt):
    spec = Lengths(ratio=float(ratio), plus=plus, cap=cap)
    assert token_limit(spec, prompt) == min(cap, math.ceil(ratio * prompt + plus))


def test_seeds_stay_what_they_were():
    """A changed seed changes every sampled run: these are for ever."""
    assert draw_seed(17, "a", 0) == 16841149858259026
    assert draw_seed(17, "a", 1) == 1742687806689362204
    assert draw_seed(18, "a", 0) == 5591730953995660228
    assert draw_seed(0, "", 0) == 1615735844314199618


def test_seeds_are_distinct_and_of_63_bits():
    """Run seed, id and ordinal are told apart, where their digits run together too."""
    places = [
        (run, str(sample), draw) for run in (1, 11) for sample in range(300) for draw in (1, 11)
    ]
    seeds = {draw_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert max(seeds) > 1 << 62


@given(st.integers(), st.text(), st.integers(0))
def test_a_seed_fits_a_signed_column(run, sample, ordinal):
    assert 0 <= draw_seed(run, sample, ordinal) < 1 << 63


@pytest.mark.parametrize(
    ("settings", "exponent"),
    [
        ({}, 1.0),
        ({"decoding": "beam"}, 1.0),
        ({"decoding": "beam", "length_penalty": 0.6}, 0.6),
        ({"decoding": "beam", "length_penalty": 0.0}, 0.0),
        ({"decoding": "sample", "temperature": 0.5}, 1.0),
    ],
    ids=str,
)
def test_only_a_beam_weighs_lengths(settings, exponent):
    assert Generate(**settings).exponent == exponent


def test_greedily_keeps_limits_and_stops_alone():
    drawn = Generate(
        decoding="sample",
        num_return=5,
        temperature=0.7,
        top_p=0.9,
        max_new_tokens=Lengths(ratio=2.0, cap=99),
        min_new_tokens=2,
        stop=("\n",),
        stop_token_ids=(7,),
        repetition_penalty=1.1,
        window=3,
    )
    kept = Generate(
        max_new_tokens=Lengths(ratio=2.0, cap=99),
        min_new_tokens=2,
        stop=("\n",),
        stop_token_ids=(7,),
        repetition_penalty=1.1,
        window=3,
    )
    assert drawn.greedily() == kept
    assert kept.greedily() == kept
    assert Generate(decoding="beam", beam_width=8, early_stopping=True).greedily() == Generate()


@pytest.mark.parametrize("decoding", DECODING_KEYS)
def test_a_key_belongs_to_the_decodings_that_heed_it(decoding):
    default = Generate()
    for key in sorted(frozenset().union(*DECODING_KEYS.values())):
        given_key = {"decoding": decoding, key: getattr(default, key)}
        if key in DECODING_KEYS[decoding]:
            assert getattr(Generate(**given_key), key) == getattr(default, key)
        else:
            with pytest.raises(ValidationError, match=f"ignores {key}: remove it, or set decoding"):
                Generate(**given_key)


@pytest.mark.parametrize("value", [True, False, "never"])
def test_early_stopping_is_true_false_or_never(value):
    assert Generate(decoding="beam", early_stopping=value).early_stopping is value
