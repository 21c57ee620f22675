"""Our chrF of many texts against each other is sacreBLEU's of two."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF

from factory.judging import ngrams
from factory.judging.ngrams import chrf

HOSTILE = [
    "",
    " \t\n",
    "a",
    "aa",
    "\U0001f600\U0001f600 x",
    "abcdef",
    "a b c d e f",
    "\u00e9",
    "e\u0301",
]
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text("ab \u00e9\u4e2d\U0001f600", max_size=20))
GROUPS = st.lists(st.lists(TEXTS, max_size=5), max_size=6)


def scores(group: list[str], references: int | None = None) -> list[list[float]]:
    metric = CHRF()
    return [[metric.sentence_score(h, [r]).score for r in group[:references]] for h in group]


@settings(max_examples=200, deadline=None)
@given(groups=GROUPS)
def test_every_text_against_every_other_to_the_last_bit(groups):
    assert [found.tolist() for found in chrf(groups)] == [scores(group) for group in groups]


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.lists(TEXTS, min_size=2, max_size=4), max_size=4))
def test_the_first_alone_as_references(groups):
    assert [found.tolist() for found in chrf(groups, 1)] == [scores(g, 1) for g in groups]


def test_chunks_make_no_difference(monkeypatch):
    groups = [["one two", "one too", "two"], ["x" * 50, "xy" * 25], [], ["alone"], HOSTILE]
    whole = [found.tolist() for found in chrf(groups)]
    monkeypatch.setattr(ngrams, "AT_ONCE", 8)
    monkeypatch.setattr(ngrams, "CELLS", 20)
    assert [found.tolist() for found in chrf(groups)] == whole
    assert whole == [scores(group) for group in groups]


def test_a_very_long_text():
    long = "lorem ipsum dolor " * 20_000
    [found] = chrf([[long, long, "lorem"]])
    assert found[0, 1] == found[2, 2] == 100
    assert 0 < found[2, 0] < 1
