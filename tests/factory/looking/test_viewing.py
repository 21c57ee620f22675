"""The digest, the status and the verification of a run made by hand."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from factory.files import read_json, write_json
from factory.looking import viewing
from factory.looking.status import show_status, status
from factory.query import catalog
from factory.verify import verify
from tests.runs import add_samples, add_shard, make_run


def printed(renderable) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_the_digest_says_what_sql_says(finished):
    facts = viewing.digest_run(finished)
    json.dumps(facts)
    assert facts["sources"] == [
        {"split": "train", "sources": 20, "with_gold": 2, "visible_gold": 1},
        {"split": "test", "sources": 1, "with_gold": 1, "visible_gold": 0},
    ]
    assert facts["refused"] == [{"reason": "empty source", "rows": 1}]
    assert facts["candidates"] | {"tokens": None} == {
        "candidates": 21,
        "errors": 1,
        "sources": 20,
        "tokens": None,
    }
    reasons = {row["rule"]: row["candidates"] for row in facts["verdicts"]["reasons"]}
    assert reasons == finished.step("judge")["reasons"]
    assert {k: facts["verdicts"][k] for k in ("kept", "selected")} == {"kept": 18, "selected": 18}
    with catalog.connect(finished) as connection:
        [(p5, median)] = connection.execute(
            "SELECT quantile_cont(mean_logprob, 0.05), median(mean_logprob) FROM signals"
        ).fetchall()
    measures = {(row["of"], row["measure"]): row for row in facts["measures"]}
    found = measures["candidates", "mean_logprob"]
    assert (found["p5"], found["median"]) == (p5, median)
    assert measures["selected", "length_ratio"]["min"] >= 0.5


def test_the_digest_holds_scores_and_stages(finished):
    facts = viewing.digest_run(finished)
    [score] = facts["scores"]
    assert (score["score"], score["folds"], score["fold_mean"]) == (21.5, 5, 22.0)
    assert score["fold_sd"] == pytest.approx(2.5**0.5)
    assert [(s["stage"], s["steps"], s["first_loss"], s["last_loss"]) for s in facts["stages"]] == [
        ("pseudolabel", 3, 4.0, 2.0),
        ("gold", 3, 4.0, 2.0),
    ]
    assert facts["stages"][0]["best_epoch"] == 1
    shown = printed(viewing.show_digest(facts))
    for heading in ("sources", "refused rows", "reasons", "stages", "scores", "of all candidates"):
        assert heading in shown


def test_the_digest_of_a_run_that_has_done_nothing(tmp_path):
    facts = viewing.digest_run(make_run(tmp_path / "run"))
    assert facts["verdicts"] == {"candidates": 0, "kept": 0, "selected": 0, "reasons": []}
    assert printed(viewing.show_digest(facts)).strip() == ""


# --- status --------------------------------------------------------------------------------------


def test_status_of_a_run_half_way(tmp_path):
    run = make_run(tmp_path / "run", generate={"shard_size": 2})
    add_samples(run, [{"sample_id": f"{i}", "source": "a"} for i in range(7)])
    add_shard(run, 0, [{"sample_id": "0", "text": "x y"}, {"sample_id": "1", "error": "no"}])
    facts = status(run)
    assert facts["shards"] == {"done": 1, "missing": 3, "failed": 0}
    assert facts["samples"] == {"done": 2, "missing": 5}
    assert (facts["candidates"], facts["errors"], facts["tokens"]) == (2, 1, 3)
    assert (facts["tokens_per_second"], facts["seconds_left"]) == (1.5, 5.0)
    assert [step["step"] for step in facts["steps"]] == ["samples"]
    assert "3 missing" in printed(show_status(facts))


def test_status_of_a_finished_and_of_an_empty_run(finished, tmp_path):
    facts = status(finished)
    assert facts["shards"] == {"done": 2, "missing": 0, "failed": 0}
    assert facts["seconds_left"] == 0
    empty = status(make_run(tmp_path / "empty"))
    assert empty["shards"] == {"done": 0, "missing": None, "failed": 0}
    assert empty["seconds_left"] is None
    assert "unknown" in printed(show_status(empty))


def test_status_counts_a_shard_whose_file_is_gone_as_failed(finished):
    finished.path("candidates", "00001.parquet").unlink()
    facts = status(finished)
    assert facts["shards"] == {"done": 1, "missing": None, "failed": 1}


# --- verify --------------------------------------------------------------------------------------


def test_a_sound_run_verifies(finished):
    facts = verify(finished)
    assert facts["problems"] == []
    # samples, refused, two shards, signals, verdicts, two logs, evals, predictions; the families
    assert facts["files"] == 10 + len(finished.files("measured"))
    assert facts["bytes"] > 0


FILES = [
    "samples/part-0.parquet",
    "candidates/00001.parquet",
    "verdicts/judge-key/part-0.parquet",
    "student/gold/train_log.parquet",
    "evals.parquet",
]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found(finished, name):
    path = finished.path(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    facts = verify(finished)
    assert facts["problems"] == [f"{path}: does not match its SHA-256"]
    assert facts["files"] == 9 + len(finished.files("measured"))


def test_a_missing_file_and_a_wrong_count_are_found(finished):
    gone = finished.path("candidates", "00000.parquet")
    gone.unlink()
    path = finished.path("shards", "00001.json")
    record = read_json(path)
    write_json(path, record | {"candidates": 99})
    assert verify(finished)["problems"] == [
        f"{path}: counts 99 candidates, its files hold 11",
        f"{gone}: is missing",
    ]
