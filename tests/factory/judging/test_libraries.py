"""Language, similarity and agreement: literal tables, and the libraries asked directly."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from factory.errors import ManifestError
from factory.judging.agreement import agree
from factory.judging.judge import judge
from factory.judging.language import identify
from factory.judging.similarity import compare
from factory.query.catalog import connect
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, make_run

ENGLISH = "The children are playing in the garden behind the house."
FRENCH = "Les enfants jouent dans le jardin derrière la maison."
CATS = "Trois chats dorment sur le canapé."
GERMAN = "Die Kinder spielen im Garten hinter dem Haus."
HOSTILE = ["", " \t", "\U0001f600", "12 34", "...", "x" * 50_000, FRENCH, None]

SAMPLES = st.lists(
    st.tuples(
        st.none() | st.text("ab .", max_size=12),
        st.lists(st.none() | st.text("ab .", max_size=12), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=5,
)


def batch(samples: list[tuple[Any, list[str | None]]], name: str) -> pa.RecordBatch:
    """Candidates of samples, each a value for all of them and their texts."""
    rows = [
        {"sample_id": f"{i:03}", "rank": rank, name: value, "text": text}
        for i, (value, texts) in enumerate(samples)
        for rank, text in enumerate(texts)
    ]
    schema = [("sample_id", pa.string()), ("rank", pa.int32())]
    schema += [(name, pa.string()), ("text", pa.string())]
    return pa.RecordBatch.from_pylist(rows, schema=pa.schema(schema))


def test_languages_are_told_apart():
    found = identify(batch([(ENGLISH, [FRENCH, GERMAN, ENGLISH])], "source")).to_pylist()
    assert [(row["language_source"], row["language_target"]) for row in found] == [
        ("en", "fr"),
        ("en", "de"),
        ("en", "en"),
    ]
    assert all(0.9 < row["language_confidence"] <= 1 for row in found)


def test_languages_are_those_that_the_library_finds():
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = [FRENCH, GERMAN, "Haus", "deux chiens", "\u4e2d\u6587"]
    for row, text in zip(identify(batch([("x", texts)], "source")).to_pylist(), texts, strict=True):
        assert (row["language_target"], row["language_confidence"]) == identifier.classify(text)


def test_a_text_without_letters_is_of_no_language():
    found = identify(batch([("12", HOSTILE)], "source")).to_pylist()
    told = [row["language_target"] for row in found]
    assert told == [None, None, None, None, None, told[5], "fr", None]
    assert [row["language_confidence"] is None for row in found] == [t is None for t in told]
    assert {row["language_source"] for row in found} == {None}


def test_similarity_by_hand():
    found = compare(batch([("a b c d", ["a b c d", "x", None, ""]), (None, ["a"])], "gold"))
    assert found.column("chrf_gold").to_pylist() == [100, 0, None, 0, None]
    assert found.column("bleu_gold").to_pylist() == [pytest.approx(100), 0, None, 0, None]


@settings(max_examples=100, deadline=None)
@given(samples=SAMPLES)
def test_similarity_is_sacrebleu_s(samples):
    chrf, bleu = CHRF(), BLEU(effective_order=True)
    wanted = [
        (None, None)
        if None in (gold, text)
        else (chrf.sentence_score(text, [gold]).score, bleu.sentence_score(text, [gold]).score)
        for gold, texts in samples
        for text in texts
    ]
    found = compare(batch(samples, "gold"))
    columns = found.column("chrf_gold").to_pylist(), found.column("bleu_gold").to_pylist()
    assert list(zip(*columns, strict=True)) == wanted


@settings(max_examples=100, deadline=None)
@given(samples=SAMPLES)
def test_agreement_is_the_mean_over_the_others_as_references(samples):
    wanted: list[float | None] = []
    for _, texts in samples:
        for i, text in enumerate(texts):
            others = [other for j, other in enumerate(texts) if j != i and other is not None]
            scored = [CHRF().sentence_score(text, [o]).score for o in others if text is not None]
            wanted.append(sum(scored) / len(scored) if scored else None)
    found = agree(batch(samples, "gold")).column("agreement").to_pylist()
    assert found == [None if w is None else pytest.approx(w, abs=1e-9) for w in wanted]


def test_agreement_takes_a_text_as_the_hypothesis():
    found = agree(batch([(None, ["ab", "abcd"]), (None, ["alone"])], "gold"))
    chrf = CHRF()
    short, long = (
        chrf.sentence_score(*pair).score for pair in (("ab", ["abcd"]), ("abcd", ["ab"]))
    )
    assert short != long
    assert found.column("agreement").to_pylist() == [short, long, None]


def judged(root: Any, rules: list[Any], gold: str = CATS, seen: bool = False) -> RunDirectory:
    run = make_run(root, judge={"rules": rules}, languages=["en", "fr"])
    add_samples(
        run,
        [
            {"sample_id": "a", "source": ENGLISH, "gold": FRENCH, "gold_visible": True},
            {
                "sample_id": "b",
                "source": "Three cats are sleeping on the sofa.",
                "gold": gold,
                "gold_visible": seen,
            },
            {"sample_id": "t", "source": ENGLISH, "gold": gold, "split": "test"},
            {
                "sample_id": "v",
                "source": "Three cats are sleeping on the sofa.",
                "gold": gold,
                "split": "validation",
            },
        ],
    )
    texts = [FRENCH, GERMAN, "12"]
    add_shard(run, 0, [{"sample_id": "a", "rank": i, "text": t} for i, t in enumerate(texts)])
    add_shard(run, 1, [{"sample_id": "b", "text": CATS}])
    judge(run, "key")
    return run


def test_gold_that_may_not_be_seen_changes_no_signal(tmp_path):
    found = [
        rows(judged(tmp_path / str(i), [], gold), "SELECT * FROM signals ORDER BY ALL")
        for i, gold in enumerate([CATS, "quelque chose d'autre", FRENCH])
    ]
    assert found[0] == found[1] == found[2]
    query = "SELECT chrf_gold, bleu_gold FROM signals WHERE sample_id = 'b'"
    assert rows(judged(tmp_path / "hidden", []), query) == [(None, None)]
    assert rows(judged(tmp_path / "seen", [], seen=True), query)[0][0] == 100


@pytest.mark.parametrize(
    ("rules", "reasons"),
    [
        (["language"], [[], ["language"], [], []]),
        ([{"language": {"target": "de"}}], [["language"], [], [], ["language"]]),
        (["chrf_gold"], [[], ["chrf_gold"], ["chrf_gold"], []]),
        ([{"agreement": {"min": 99}}], [["agreement"]] * 3 + [[]]),
        (["contamination"], [["contamination"]] * 3 + [[]]),
        (["near_duplicate"], [[]] * 4),
    ],
)
def test_rules(tmp_path, rules, reasons):
    run = judged(tmp_path / "run", rules)
    query = "SELECT reasons FROM verdicts ORDER BY sample_id, rank"
    assert [found for (found,) in rows(run, query)] == reasons


def test_a_language_must_be_named(tmp_path):
    run = make_run(tmp_path / "run", judge={"rules": ["language"]})
    with pytest.raises(ManifestError, match=r"languages"):
        judge(run, "key")


def rows(run: RunDirectory, query: str) -> list[tuple[Any, ...]]:
    with connect(run) as connection:
        return connection.execute(query).fetchall()
