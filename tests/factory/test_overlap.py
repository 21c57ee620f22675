"""ROUGE as published, exact match as stated, both resampled as sacreBLEU's own metrics are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.evaluation import MEASURES
from factory.metrics import LOWER_IS_BETTER, METRICS, interval, paired
from factory.overlap import ExactMatch, Rouge, longest_common, words

# From the tests of the package rouge-score (google-research/rouge, Apache 2.0): the first eight of
# rouge_scorer_test.py; the others are the second pair of its testdata, scored there with
# ROUGE-1.5.5.pl: recall and precision of 17 of 42 and of 26 words give F 0.5.
TARGET = (
    "KsJdPByEtAor fE-Qg Dpdbring cw-WeFyu vC MoBL Xdn g wkvcEiGvKtion BDFhrpMtion psing sbKao Q m "
    "qiing LMmer HqqLFXe,XPY,J XsurkMer ,ed nB'wH'bWVHjWFEing tQ.saefZwJtKrTlixYpMMsJing "
    "UCAPwNHeYVjDing c T BUySKtion gMPfJpwGw p'NvxAoping eu pBwMBKV'I DNxqelhu,PHPxDEq,mtion SN"
)
PREDICTION = (
    "n cw-WeFyu vC MoBL Xdn g wkvcEiGvKtion BDFhrpMer pstion sbKao Q m qier LMmed HqqLFXe,XPY,J "
    "XsurkMeo ,ed nB'wH'bWVHjWFEer tQ.saefZwJtKrTlixYpMMNJtion UCAPwNHeYVjD"
)
PUBLISHED = [
    ("1", "testing one two", "testing", 1 / 2),
    ("1", "testing one two", "testing one", 4 / 5),
    ("2", "testing one two", "testing one", 2 / 3),
    ("L", "testing one two", "testing one", 4 / 5),
    ("L", "testing one two", "testing two", 4 / 5),
    ("1", "testing one two", "", 0.0),
    ("2", "testing one two", "", 0.0),
    ("L", "testing one two", "", 0.0),
    ("1", TARGET, PREDICTION, 0.50000),
    ("2", TARGET, PREDICTION, 0.36364),
    ("L", TARGET, PREDICTION, 0.50000),
    # Lin 2004, section 3.1: S1 is the reference; "the gunman" is all that S3 has in order.
    ("L", "police killed the gunman", "police kill the gunman", 0.75),
    ("L", "police killed the gunman", "the gunman kill police", 0.5),
    ("L", "police killed the gunman", "the gunman police killed", 0.5),
]


@pytest.mark.parametrize(("kind", "reference", "text", "f1"), PUBLISHED)
def test_rouge_is_the_published_one(kind, reference, text, f1):
    assert Rouge(kind).sentence(text, reference) == pytest.approx(f1, abs=5e-6)
    assert Rouge(kind).corpus_score([text], [[reference]]).score == pytest.approx(
        100 * f1, abs=5e-4
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("L'Été, it's 2_000!", ["l", "été", "it", "s", "2", "000"]),
        ("/ … —", []),
        ("Straße 東京", ["straße", "東京"]),
    ],
)
def test_words_are_letters_and_digits_of_any_script(text, found):
    assert words(text) == found


def table_length(first: list[str], second: list[str]) -> int:
    """The textbook's table."""
    row = [0] * (len(second) + 1)
    for one in first:
        above, row = row, [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if one == other else max(above[place + 1], row[place]))
    return row[-1]


SEQUENCES = st.lists(st.sampled_from("abcd"), max_size=80)


@given(SEQUENCES, SEQUENCES)
def test_the_longest_common_subsequence_is_the_tables(first, second):
    assert longest_common(first, second) == table_length(first, second)


@given(st.sampled_from("12L"), SEQUENCES, SEQUENCES)
def test_rouge_is_symmetric_and_within_its_scale(kind, first, second):
    one, other = " ".join(first), " ".join(second)
    score = Rouge(kind).sentence(one, other)
    assert score == Rouge(kind).sentence(other, one)
    assert 0 <= score <= 1


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ("a b", " a \t b\n", 1.0),
        ("e\u0301t\u00e9", "\u00e9te\u0301", 1.0),
        ("A b", "a b", 0.0),
        ("a b.", "a b", 0.0),
        ("", " ", 1.0),
        ("ab", "a b", 0.0),
    ],
)
def test_exact_match_forgives_blanks_and_nothing_else(text, reference, same):
    assert ExactMatch().corpus_score([text], [[reference]]).score == 100 * same


GOLD = [f"the {colour} cat sat on mat {n}" for n in range(12) for colour in ("red", "blue")]
SAID = [text if i % 3 else text.replace("cat sat", "dog") for i, text in enumerate(GOLD)]
# Of every third text: two words for one, of seven: one deletion and one substitution.
EXPECTED = {
    "ter": 100 * 2 * 8 / (7 * 24),
    "rouge1": 100 * (16 + 8 * 10 / 13) / 24,
    "rouge2": 100 * (16 + 8 * 6 / 11) / 24,
    "rougeL": 100 * (16 + 8 * 10 / 13) / 24,
    "exact_match": 100 * 16 / 24,
}


@pytest.mark.parametrize(("name", "score"), EXPECTED.items())
def test_corpora_are_scored_signed_and_resampled(name, score):
    metric = METRICS[name]()
    assert metric.corpus_score(SAID, [GOLD]).score == pytest.approx(score)
    low, high = interval(metric, SAID, GOLD)
    assert low < score < high
    assert "nrefs:1|bs:1000|seed:12345|case:" in str(metric.get_signature())


@pytest.mark.parametrize("name", EXPECTED)
def test_systems_are_paired_whichever_way_is_better(name):
    poor = [text.replace("cat", "dog") for text in SAID]
    there, signature = paired(name, GOLD, poor, GOLD)
    assert there == paired(name, poor, GOLD, GOLD)[0] < 0.05
    assert "bs:1000" in signature
    assert paired(name, SAID, SAID, GOLD)[0] == 1.0


def test_a_signature_says_what_is_counted():
    for name, told in {
        "rougeL": "case:lc|tok:alnum|stem:no|mean:f1",
        "exact_match": "case:mixed|norm:nfc+blanks",
        "ter": "case:lc|tok:tercom",
    }.items():
        metric = METRICS[name]()
        metric.corpus_score(SAID, [GOLD])
        assert told in str(metric.get_signature())


def test_what_a_manifest_may_name_is_what_there_is():
    assert tuple(METRICS) == MEASURES
    assert set(METRICS) > LOWER_IS_BETTER
