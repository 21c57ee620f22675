"""What two runs made of the same sources, over literal tables; and how alike two texts are."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from factory.cli import app
from factory.errors import RunError
from factory.looking.diff import diff, show_diff
from factory.query.catalog import shipped_sql
from factory.records import RunDirectory
from tests.factory.looking.test_viewing import printed
from tests.runs import add_samples, add_shard, add_tokens, finish_judge, make_run

Row = dict[str, object]


def build(root: Path, samples: list[Row], candidates: list[Row], judged: list[Row]) -> RunDirectory:
    """Candidates and what was judged of them, of the same keys in the same order."""
    run = make_run(root)
    add_samples(run, samples)
    add_shard(run, 0, candidates)
    keys = [{"sample_id": c["sample_id"], "rank": c.get("rank", 0)} for c in candidates]
    finish_judge(run, [key | row for key, row in zip(keys, judged, strict=True)])
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, RunDirectory]:
    folder = tmp_path_factory.mktemp("diff")
    sources = [{"sample_id": name, "source": f"of {name}"} for name in "abcdef"]
    test = {"sample_id": "t", "source": "held out", "split": "test"}
    first = build(
        folder / "first",
        [*sources, {"sample_id": "x", "source": "first"}, {"sample_id": "y", "source": "s"}, test],
        [
            {"sample_id": "a", "text": "same"},
            {"sample_id": "b", "text": "abc", "mean_logprob": -0.1},
            {"sample_id": "b", "rank": 1, "text": "abd", "mean_logprob": -0.2},
            {"sample_id": "c", "text": "lost"},
            {"sample_id": "d", "text": "found"},
            {"sample_id": "e", "error": "too long"},
            {"sample_id": "f", "text": "one two three", "mean_logprob": -0.3},
            {"sample_id": "x", "text": "of the first alone"},
            {"sample_id": "y", "text": "of another text"},
        ],
        [
            {"mean_logprob": -0.5},
            {"mean_logprob": -0.1, "chrf_gold": 50.0},
            {"selected": False},
            {},
            {"reasons": ["copy", "length_ratio"]},
            {"reasons": ["error"]},
            {"mean_logprob": -0.3},
            {},
            {},
        ],
    )
    second = build(
        folder / "second",
        [*sources, {"sample_id": "z", "source": "second"}, {"sample_id": "y", "source": "S"}, test],
        [
            {"sample_id": "a", "text": "same"},
            {"sample_id": "b", "text": "abd", "mean_logprob": -0.2},
            {"sample_id": "b", "rank": 1, "text": "abc", "mean_logprob": -0.4},
            {"sample_id": "c", "text": "lost"},
            {"sample_id": "d", "text": "found"},
            {"sample_id": "e", "error": "too long"},
            {"sample_id": "f", "text": "four", "mean_logprob": -0.9},
            {"sample_id": "z", "text": "of the second alone"},
            {"sample_id": "y", "text": "of another text"},
        ],
        [
            {"mean_logprob": -0.4},
            {"mean_logprob": -0.2, "chrf_gold": 60.0},
            {"selected": False},
            {"reasons": ["near_test"]},
            {"reasons": []},
            {"reasons": ["error"]},
            {"mean_logprob": -0.9, "agreement": 3.0},
            {},
            {},
        ],
    )
    return first, second


def test_sources_of_both_and_of_one(runs):
    assert diff(*runs)["sources"] == {
        "first": 8,
        "second": 8,
        "both": 6,
        "only_first": 1,
        "only_second": 1,
        "other_text": 1,
        "other_prompt": 0,
    }


def test_targets_that_changed_and_by_how_much(runs):
    found = diff(*runs)["targets"]
    alike = sorted(similarity(*pair) for pair in (("abc", "abd"), ("one two three", "four")))
    assert found["alike_mean"] == pytest.approx(sum(alike) / 2)
    assert found["alike_p5"] == pytest.approx(alike[0] + 0.05 * (alike[1] - alike[0]))
    assert {name: found[name] for name in list(found)[:6]} == {
        "same": 1,
        "changed": 2,
        "chosen_otherwise": 1,
        "only_first": 1,
        "only_second": 1,
        "neither": 1,
    }


def test_verdicts_of_the_candidates_that_both_hold(runs):
    assert diff(*runs)["verdicts"] == {
        "first": 9,
        "second": 9,
        "both": 6,
        "kept": 3,
        "rejected": 1,
        "newly_rejected": 1,
        "newly_kept": 1,
    }


def test_reasons_gained_and_lost_by_rule(runs):
    found = {
        r["rule"]: (r["first"], r["second"], r["gained"], r["lost"]) for r in diff(*runs)["reasons"]
    }
    assert found == {
        "near_test": (0, 1, 1, 0),
        "copy": (1, 0, 0, 1),
        "length_ratio": (1, 0, 0, 1),
        "error": (1, 1, 0, 0),
    }


def test_means_over_targets_in_both_where_both_have_the_signal(runs):
    found = {row.pop("measure"): row for row in diff(*runs)["measures"]}
    assert set(found) == {"mean_logprob", "chrf_gold"}
    assert found["chrf_gold"] == {"targets": 1, "first": 50.0, "second": 60.0, "change": 10.0}
    assert found["mean_logprob"] == pytest.approx(
        {"targets": 3, "first": -0.3, "second": -0.5, "change": -0.2}
    )


def test_the_most_changed_first(runs):
    examples = diff(*runs)["examples"]
    assert [row["sample_id"] for row in examples] == ["f", "b"]
    assert examples[1] == {
        "sample_id": "b",
        "source": "of b",
        "alike": pytest.approx(similarity("abc", "abd")),
        "first_rank": 0,
        "second_rank": 0,
        "first_target": "abc",
        "second_target": "abd",
        "first_logprob": -0.1,
        "second_logprob": -0.2,
    }
    assert diff(*runs, examples=1)["examples"] == examples[:1]


def test_the_other_way_round_gains_and_losses_change_places(runs):
    here, back = diff(*runs), diff(*reversed(runs))
    assert back["targets"]["only_first"] == here["targets"]["only_second"]
    assert back["verdicts"]["newly_kept"] == here["verdicts"]["newly_rejected"]
    swapped = [(r["rule"], r["lost"], r["gained"]) for r in back["reasons"]]
    assert sorted(swapped) == sorted((r["rule"], r["gained"], r["lost"]) for r in here["reasons"])


def test_a_run_is_what_it_is(runs):
    facts = diff(runs[0], runs[0])
    assert facts["targets"]["changed"] == facts["targets"]["only_first"] == 0
    assert facts["verdicts"]["both"] == 9
    assert not any(row["gained"] + row["lost"] for row in facts["reasons"])
    assert not any(row["change"] for row in facts["measures"])
    assert facts["examples"] == []


def test_several_targets_a_source_stand_side_by_side(tmp_path):
    source = [{"sample_id": "a", "source": "x"}]
    first = [{"sample_id": "a", "rank": r, "text": text} for r, text in enumerate(("p", "q", "r"))]
    second = [{"sample_id": "a", "rank": r, "text": text} for r, text in enumerate(("p", "s"))]
    here = build(tmp_path / "here", source, first, [{}, {}, {}])
    there = build(tmp_path / "there", source, second, [{}, {}])
    found = diff(here, there)["targets"]
    assert (found["same"], found["changed"], found["only_first"]) == (1, 1, 1)


def test_runs_of_other_signals_and_tokenizers_are_compared(runs, tmp_path):
    first, _ = runs
    older = build(
        tmp_path / "older",
        [{"sample_id": "b", "source": "of b"}],
        [{"sample_id": "b", "text": "abd"}],
        [{"mean_logprob": -0.7, "length_ratio": 1.0}],
    )
    add_tokens(older, ["other", "tokens"])
    path = older.path("signals", "part-0.parquet")
    pq.write_table(pq.read_table(path, columns=["sample_id", "rank", "mean_logprob"]), path)
    facts = diff(older, first)
    assert facts["sources"]["both"] == 1
    assert [row["measure"] for row in facts["measures"]] == ["mean_logprob"]


def test_runs_with_nothing_in_common_and_runs_not_judged(runs, tmp_path):
    empty = build(tmp_path / "empty", [{"sample_id": "q", "source": "q"}], [], [])
    facts = diff(empty, runs[0])
    assert (facts["sources"]["both"], facts["targets"]["changed"]) == (0, 0)
    assert (facts["measures"], facts["examples"]) == ([], [])
    printed(show_diff(facts))
    with pytest.raises(RunError, match="has no verdicts: judge it first"):
        diff(runs[0], make_run(tmp_path / "new"))


def test_the_command(runs):
    first, second = (str(run.root) for run in runs)
    told = CliRunner().invoke(app, ["diff", first, second, "--json"])
    assert json.loads(told.stdout) == json.loads(json.dumps(diff(*runs)))
    told = CliRunner().invoke(app, ["diff", first, second, "--examples", "1"])
    assert all(word in told.stdout for word in ("one two three", "near_test", "chosen", "f, alike"))
    assert "abd" not in told.stdout


# --- how alike -----------------------------------------------------------------------------------


def grams(text: str) -> set[str]:
    padded = f"  {text} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def similarity(a: str, b: str) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


@pytest.fixture(scope="module")
def shell() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for name in ("trigrams", "alike"):
        connection.execute(shipped_sql("macros", name))
    return connection


TEXT = st.text(st.sampled_from("ab é日\n"), max_size=12)


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT)
def test_alike_is_the_share_of_trigrams_in_common(shell, a, b):
    sql = "SELECT alike($a, $b), alike($b, $a), alike($a, $a)"
    there, back, itself = shell.execute(sql, {"a": a, "b": b}).fetchall()[0]
    assert there == back == pytest.approx(similarity(a, b))
    assert itself == 1
