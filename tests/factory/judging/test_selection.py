"""Selection among kept candidates: by rank, gold, agreement, a user's order; one or several."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import ManifestError
from factory.exchange.exporting import export
from factory.judging.judge import judge
from factory.judging.selection import selection_of
from factory.query import catalog
from factory.training import Stage
from student.rows import Wanted, stage_rows
from tests.ruling import manifest_of, ruled
from tests.runs import add_samples, add_shard, make_run

# sample, rank, copy (rejects), chrf_gold, bleu_gold, agreement, n_tokens
CANDIDATES = [
    ("a", 0, False, 50.0, 10.0, 60.0, 9),
    ("a", 1, False, 70.0, 10.0, 60.0, 7),
    ("a", 2, True, 90.0, 90.0, 90.0, 1),
    ("b", 0, True, None, None, 10.0, 5),
    ("b", 1, False, None, None, 20.0, 6),
    ("b", 2, False, None, None, 30.0, 6),
    ("c", 0, True, 99.0, 99.0, None, 3),
    ("d", 0, False, 40.0, None, None, None),
    ("d", 1, False, None, 40.0, None, 2),
]
COLUMNS = ("sample_id", "rank", "copy", "chrf_gold", "bleu_gold", "agreement", "n_tokens")
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in CANDIDATES]

# what is asked for, what is selected, and of how many sources rank alone decides
SELECTED = [
    ({}, "a0 b1 d0", 0),
    ({"select": "best"}, "a0 b1 d0", 0),
    ({"select": "gold_chrf"}, "a1 b1 d0", 1),
    ({"select": "gold_bleu"}, "a0 b1 d1", 1),
    ({"select": "mbr"}, "a0 b2 d0", 1),
    ({"select": {"order_by": "n_tokens"}}, "a1 b1 d1", 0),
    ({"select": {"order_by": "n_tokens DESC -- longest"}}, "a0 b1 d1", 0),
    ({"select": {"order_by": "n_tokens NULLS FIRST"}}, "a1 b1 d0", 0),
    ({"select": {"order_by": "agreement, n_tokens"}}, "a1 b1 d1", 0),
    ({"select": {"order_by": "rank DESC"}}, "a1 b2 d1", 0),
    ({"per_source": 2}, "a0 a1 b1 b2 d0 d1", 0),
    ({"select": "gold_chrf", "per_source": 2}, "a0 a1 b1 b2 d0 d1", 1),
    ({"per_source": 9}, "a0 a1 b1 b2 d0 d1", 0),
]


@pytest.mark.parametrize(("asked", "selected", "by_rank"), SELECTED)
def test_targets_are_taken_among_the_kept(asked, selected, by_rank):
    verdicts, counted, _ = ruled(ROWS, asked | {"rules": ["copy"]})
    found = [f"{row['sample_id']}{row['rank']}" for row in verdicts if row["selected"]]
    assert " ".join(found) == selected
    assert counted["by_rank"] == by_rank


def test_verdicts_are_in_order_whatever_order_candidates_come_in():
    verdicts, _, _ = ruled(reversed(ROWS), {"rules": ["copy"], "select": "mbr"})
    assert verdicts == ruled(ROWS, {"rules": ["copy"], "select": "mbr"})[0]
    assert [(row["sample_id"], row["rank"]) for row in verdicts] == [row[:2] for row in CANDIDATES]


def best(rows, signal, per_source):
    """What should be selected, in plain Python: kept, highest first, NULL last, then rank."""
    found = set()
    for sample in {row["sample_id"] for row in rows}:
        kept = [row for row in rows if row["sample_id"] == sample and not row["copy"]]
        kept.sort(key=lambda row: (row[signal] is None, -(row[signal] or 0), row["rank"]))
        found |= {(sample, row["rank"]) for row in kept[:per_source]}
    return found


RANKED = st.lists(
    st.fixed_dictionaries(
        {
            "sample_id": st.sampled_from("abc"),
            "rank": st.integers(0, 4),
            "copy": st.booleans(),
            "chrf_gold": st.none() | st.integers(-2, 2).map(float),
        }
    ),
    unique_by=lambda row: (row["sample_id"], row["rank"]),
    max_size=15,
)


@settings(max_examples=30, deadline=None)
@given(RANKED, st.integers(1, 3))
def test_selection_is_what_sorting_gives(rows, per_source):
    asked = {"rules": ["copy"], "select": "gold_chrf", "per_source": per_source}
    verdicts, counted, _ = ruled(rows, asked)
    found = {(row["sample_id"], row["rank"]) for row in verdicts if row["selected"]}
    assert found == best(rows, "chrf_gold", per_source)
    kept = {row["sample_id"] for row in rows if not row["copy"]}
    known = [row for row in rows if not row["copy"] and row["chrf_gold"] is not None]
    assert counted["by_rank"] == len(kept - {row["sample_id"] for row in known})


BAD = [
    ({"select": {"order_by": "chrf DESC"}}, "judge.select.order_by: 'chrf DESC': 'chrf' is no"),
    ({"select": {"order_by": "1"}}, "has a term that reads no signal"),
    ({"select": {"order_by": "rank; SELECT 1"}}, "holds 2 statements"),
    ({"select": {"order_by": "(SELECT 1 FROM read_csv('/etc/passwd'))"}}, "holds a subquery"),
    ({"select": "mbr", "signals": ["text"]}, "judge.select: 'agreement': judge.signals leaves its"),
    ({"select": {"order_by": "reverse_logprob"}}, "goes by judge.reverse: add it"),
]


@pytest.mark.parametrize(("asked", "message"), BAD)
def test_mistakes_are_told_without_data(asked, message):
    with pytest.raises(ManifestError) as caught:
        selection_of(manifest_of(asked))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- several targets of a source, and who reads them ----------------------------------------------


@pytest.fixture
def several(tmp_path):
    given = {"rules": ["copy"], "per_source": 2, "signals": ["text"]}
    run = make_run(tmp_path / "run", judge=given)
    sources = {"b": "one", "a": "two", "c": "x"}
    add_samples(run, [{"sample_id": i, "source": source} for i, source in sources.items()])
    texts = {"a": ["u", "v", "w"], "b": ["one", "y"], "c": ["x"]}
    add_shard(
        run,
        0,
        [
            {"sample_id": i, "rank": rank, "text": text}
            for i, found in texts.items()
            for rank, text in enumerate(found)
        ],
    )
    return run


def test_sources_without_a_target_are_counted_once(several):
    figures = judge(several, "key")
    assert {name: figures[name] for name in ("kept", "selected", "without_target")} == {
        "kept": 4,
        "selected": 3,
        "without_target": 1,
    }


def test_a_student_reads_every_target_of_a_source(several):
    judge(several, "key")
    wanted = Wanted(Stage(name="first", data="pseudolabels"), distributions=False, vocabulary=0)
    with stage_rows(several, wanted) as batches:
        rows = [row for batch in batches for row in batch.to_pylist()]
    told = [(row["sample_id"], row["rank"], row["target"], row["fault"]) for row in rows]
    assert told == [("a", 0, "u", None), ("a", 1, "v", None), ("b", 1, "y", None)]


def test_every_target_of_a_source_is_exported_by_rank(several, tmp_path):
    judge(several, "key")
    with catalog.connect(several) as connection:
        rows = connection.execute("SELECT sample_id, rank, target FROM pseudolabels ORDER BY ALL")
        assert rows.fetchall() == [("a", 0, "u"), ("a", 1, "v"), ("b", 1, "y")]
    path = tmp_path / "out.jsonl"
    export(several, output=path)
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    told = [(row["sample_id"], row["rank"], row["target"]) for row in found]
    assert told == [("b", 1, "y"), ("a", 0, "u"), ("a", 1, "v")]
