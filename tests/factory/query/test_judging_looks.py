"""The queries by name that help a person judge what the teacher wrote, over literal tables."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from factory.errors import QueryError
from factory.query import catalog
from factory.query.fence import query_errors
from factory.query.looks import ask
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, finish_judge, make_run

Row = dict[str, object]
SAMPLES: list[Row] = [
    {"sample_id": "a", "source": "the red house", "gold": "la maison rouge", "gold_visible": True},
    {"sample_id": "b", "source": "two cats", "split": "unlabeled"},
    {"sample_id": "c", "source": "three dogs sleep"},
    {"sample_id": "d", "source": "far too long"},
    {"sample_id": "t", "source": "three dogs slept", "split": "test", "gold": "trois chiens"},
    {"sample_id": "v", "source": "something else", "split": "test", "gold": "autre chose"},
]
CANDIDATES: list[Row] = [
    {"sample_id": "a", "rank": 0, "text": "la maison", "score": -0.1},
    {"sample_id": "a", "rank": 1, "text": "la maison rouge", "score": -0.3},
    {"sample_id": "b", "rank": 0, "text": "je ne sais pas", "score": -0.2},
    {"sample_id": "b", "rank": 1, "text": "deux chats", "score": -0.4},
    {"sample_id": "c", "rank": 0, "text": "je ne sais pas", "score": -0.3},
    {"sample_id": "c", "rank": 1, "text": "je ne sais pas", "score": -0.6},
    {"sample_id": "d", "rank": 0, "error": "does not fit"},
]
JUDGED: list[Row] = [
    {"sample_id": "a", "mean_logprob": -0.1, "chrf_gold": 50.0, "length_ratio": 0.7,
     "selected": False},
    {"sample_id": "a", "rank": 1, "mean_logprob": -0.3, "chrf_gold": 100.0, "length_ratio": 1.0},
    {"sample_id": "b", "mean_logprob": -0.2, "length_ratio": 2.0, "reasons": ["length_ratio"]},
    {"sample_id": "b", "rank": 1, "mean_logprob": -0.4, "length_ratio": 1.0},
    {"sample_id": "c", "mean_logprob": -0.9, "near_test": True, "length_ratio": 1.3,
     "reasons": ["near_test", "near_duplicate"]},
    {"sample_id": "c", "rank": 1, "near_test": True, "reasons": ["near_test"]},
    {"sample_id": "d", "error": True, "reasons": ["error"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    made = make_run(tmp_path_factory.mktemp("judged") / "run")
    add_samples(made, SAMPLES)
    add_shard(made, 0, CANDIDATES)
    finish_judge(made, JUDGED)
    return made


def answer(run: RunDirectory, query: str, *values: str) -> list[tuple]:
    return ask(run, query, values).fetchall()


def test_the_worst_are_of_any_signal_from_either_end(run):
    def found(*values: str) -> list[tuple]:
        return [row[:3] for row in answer(run, "@worst", *values)]

    assert found() == [("b", 1, -0.4), ("a", 1, -0.3)]
    assert found("among=kept", "n=2") == [("b", 1, -0.4), ("a", 1, -0.3)]
    assert found("among=rejected") == [("c", 0, -0.9), ("b", 0, -0.2)]
    assert found("among=all", "signal=length_ratio", "highest=true", "n=2") == [
        ("b", 0, 2.0),
        ("c", 0, 1.3),
    ]
    assert found("signal=near_test", "highest=true", "among=all") == [
        ("c", 0, True),
        ("c", 1, True),
    ]
    assert answer(run, "@worst", "n=1") == [("b", 1, -0.4, "two cats", "deux chats", [])]


WRONG = [
    (
        "signal=mean_logpro",
        'Could not find key "mean_logpro" in struct Candidate Entries: "mean_lo',
    ),
    ("among=some", "among is selected, kept, rejected or all"),
    ("highest=maybe", "'maybe'"),
    ("n=many", "'many'"),
]


@pytest.mark.parametrize(("value", "told"), WRONG)
def test_a_wrong_parameter_is_told(run, value, told):
    with pytest.raises(QueryError) as caught, query_errors():
        answer(run, "@worst", value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_left_without_a_target_and_why(run):
    assert answer(run, "@untargeted") == [
        ("c", 2, {"near_duplicate": 1, "near_test": 2}, "three dogs sleep", "je ne sais pas"),
        ("d", 1, {"error": 1}, "far too long", "does not fit"),
    ]
    assert len(answer(run, "@untargeted", "n=1")) == 1


def test_what_each_rule_rejects_alone_and_with_others(run):
    assert answer(run, "@reasons") == [
        ("near_test", 2, 2 / 7, 1, 1, "near_duplicate 1"),
        ("error", 1, 1 / 7, 1, 1, None),
        ("length_ratio", 1, 1 / 7, 1, 0, None),
        ("near_duplicate", 1, 1 / 7, 0, 0, "near_test 1"),
    ]


def test_what_is_near_the_test_split_beside_what_it_is_near_to(run):
    found = answer(run, "@contaminated")
    assert [row[:3] for row in found] == [("c", 0, False), ("c", 1, False)]
    assert found[0][3] == 14 / 20  # runs of three characters
    assert found[0][4:] == (
        "three dogs sleep",
        "three dogs slept",
        "je ne sais pas",
        "trois chiens",
    )


def test_texts_that_stand_for_many_sources(run):
    assert answer(run, "@duplicates") == [
        ("je ne sais pas", 2, 0, ["two cats", "three dogs sleep"]),
    ]


def test_quality_by_rank(run):
    assert answer(run, "@rank_quality") == [
        (0, 4, 0.25, 0.0, -0.2, None, 50.0, None, 0.0, 50.0),
        (1, 3, 0.6667, 0.6667, -0.433, None, 100.0, None, 1.0, 0.0),
    ]


def test_in_the_plain_shell_they_say_the_same(run, monkeypatch):
    catalog.refresh(run)
    monkeypatch.chdir(Path(run.root).parent)
    with duckdb.connect("run/catalog.duckdb", read_only=True) as shell:
        for name in (
            *("worst", "untargeted", "reasons", "contaminated", "duplicates", "rank_quality"),
        ):
            assert shell.sql(f"FROM {name}()").fetchall() == answer(run, f"@{name}") != []
