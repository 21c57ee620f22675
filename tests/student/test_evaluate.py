"""Decoding in processes of their own, scores as sacreBLEU gives them, folds of equal size."""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from factory.evaluation import Program
from factory.query.catalog import connect
from factory.reading import write_manifest
from factory.records import RunDirectory
from factory.workers import module_command
from student.plan import plan
from student.scores import Texts, fold_bounds, scores
from tests.student.tiny import environment, pairs, save_teacher, start_prepare, student_run

STAGES = [{"name": "gold", "data": "gold"}]


@given(st.integers(1, 500), st.integers(1, 12))
def test_folds_differ_by_one_row_at_most(rows: int, folds: int):
    bounds = fold_bounds(rows, folds)
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1


GOOD = ["the cat sat on the mat today", "a dog ran in the park now", "birds fly over the old house"]
TEXTS = Texts(
    "student", "gold", "test", [GOOD[0], "a dog ran in a park", "birds sing"] * 7, GOOD * 7
)


def test_scores_and_intervals_are_those_of_sacrebleu():
    bleu = BLEU()
    wanted = bleu.corpus_score(list(TEXTS.hypotheses), [list(TEXTS.references)], n_bootstrap=1000)
    row = next(scores(TEXTS, {"bleu": None}, 0))
    assert row["score"] == wanted.score
    assert row["ci_low"] == pytest.approx(wanted._mean - wanted._ci, abs=1e-4)
    assert row["ci_high"] == pytest.approx(wanted._mean + wanted._ci, abs=1e-4)
    assert row["signature"] == str(bleu.get_signature())
    assert "tok:13a" in row["signature"]
    assert row["fold"] is None


def test_every_metric_is_scored_whole_and_by_fold():
    rows = list(scores(TEXTS, {"bleu": None, "chrf": None}, 5))
    assert [(r["metric"], r["fold"]) for r in rows] == [
        (metric, fold) for metric in ("bleu", "chrf") for fold in (None, 0, 1, 2, 3, 4)
    ]
    assert all((r["ci_low"] is None) == (r["fold"] is not None) for r in rows)
    first = Texts("x", None, "test", TEXTS.hypotheses[:4], TEXTS.references[:4])
    assert rows[1]["score"] == next(scores(first, {"bleu": None}, 0))["score"]


def test_a_system_that_says_nothing_scores_zero():
    silent = Texts("x", None, "test", ["", "", "a dog"], GOOD)
    rows = list(scores(silent, {"bleu": None, "chrf": None}, 2))
    assert rows[0]["score"] == 0
    assert 0 <= rows[0]["ci_low"] <= rows[0]["ci_high"]


SPLIT = Texts("x", None, "test", [*GOOD, "a"], [*GOOD, "b"], ["1", "2", "3", "4"], list("abcd"))


def test_a_command_scores_the_whole_and_every_fold_and_says_what_it_was():
    program = Program(command="wc -l")
    rows = list(scores(SPLIT, {"exact_match": None, "lines": program}, 2))
    assert [(r["metric"], r["fold"], r["score"]) for r in rows] == [
        ("exact_match", None, 75.0),
        ("exact_match", 0, 100.0),
        ("exact_match", 1, 50.0),
        ("lines", None, 4.0),
        ("lines", 0, 2.0),
        ("lines", 1, 2.0),
    ]
    assert {(r["ci_low"], r["ci_high"], r["signature"]) for r in rows[3:]} == {
        (None, None, "command:wc -l")
    }


def test_a_command_is_given_the_rows_of_its_fold():
    script = "import sys, json; r = [*map(json.loads, sys.stdin)]; print(int(r == [ROW]))"
    row = {"sample_id": "d", "source": "4", "prediction": "a", "reference": "b"}
    code = script.replace("ROW", repr(row))
    program = Program(command=shlex.join([sys.executable, "-c", code]))
    rows = list(scores(SPLIT, {"own": program}, 4))
    assert [r["score"] for r in rows] == [0, 0, 0, 0, 1]


def evaluate(run: RunDirectory) -> subprocess.CompletedProcess[str]:
    command = module_command("student.evaluate", run, "evaluate-key")
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose teacher alone is measured, on both splits."""
    root = tmp_path_factory.mktemp("evaluate")
    metrics = ["bleu", "exact_match", {"lines": {"command": "wc -l"}}]
    asked = {"systems": ["teacher"], "splits": ["validation", "test"], "folds": 2}
    sections = {"evaluate": asked | {"metrics": metrics}}
    student = {"init": {"from_teacher": {"layers": 1}}, "stages": STAGES}
    return student_run(root / "run", save_teacher(root / "teacher"), student, **sections)


def test_texts_and_scores_are_recorded(run: RunDirectory):
    done = evaluate(run)
    assert done.returncode == 0, done.stderr
    step = run.step("evaluate")
    assert step["key"] == "evaluate-key"
    assert step["systems"]["teacher"]["parameters"] == 46368
    assert step["systems"]["teacher"]["rows"] == 8
    assert step["systems"]["teacher"]["engine"] == "transformers"
    assert step["systems"]["teacher"]["engine_asked"] == "teacher's own"
    assert step["systems"]["teacher"]["tokens_per_second"] > 0
    with connect(run) as catalog:
        texts = catalog.sql("SELECT split, sample_id, token_ids FROM predictions").fetchall()
        count = catalog.sql("SELECT count(*) FROM evals").fetchall()
        lines = catalog.sql(
            "SELECT fold, score FROM evals WHERE metric = 'lines' AND split = 'test' "
            "ORDER BY fold NULLS FIRST"
        ).fetchall()
    assert sorted(row[:2] for row in texts) == [
        *(("test", f"s{i}") for i in range(44, 48)),
        *(("validation", f"s{i}") for i in range(40, 44)),
    ]
    assert all(0 < len(ids) <= 12 for _, _, ids in texts)
    assert count == [(2 * 3 * 3,)]
    assert lines == [(None, 4.0), (0, 2.0), (1, 2.0)]


def test_texts_that_stand_are_not_decoded_again(run: RunDirectory):
    path = run.path("predictions", "teacher-test.parquet")
    before = path.stat().st_mtime_ns
    assert evaluate(run).returncode == 0
    assert path.stat().st_mtime_ns == before


def test_a_command_that_fails_is_one_line(run: RunDirectory, tmp_path: Path):
    asked = run.manifest().evaluate
    failing = Program(command=shlex.join([sys.executable, "-c", "raise SystemExit('no model')"]))
    changed = asked.model_copy(update={"metrics": ({"own": failing},)})
    copy = shutil.copytree(run.root, tmp_path / "run")
    there = RunDirectory(copy)
    write_manifest(run.manifest().model_copy(update={"evaluate": changed}), copy / "manifest.yaml")
    done = evaluate(there)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("seqkd:")]
    assert line.startswith("seqkd: evaluate.metrics.own: ")
    assert line.endswith("ended with status 1: no model")


def test_a_student_that_is_not_trained_is_one_line(tmp_path: Path):
    student = {"init": {"from_teacher": {"layers": 1}}, "stages": STAGES}
    run = student_run(tmp_path / "run", save_teacher(tmp_path / "teacher"), student)
    assert start_prepare(run).returncode == 0
    assert [planned.stage.name for planned in plan(run, run.manifest())] == ["gold"]
    done = evaluate(run)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("seqkd:")]
    assert line.endswith("the student is not trained: seqkd train first")
    assert len(pairs()) == 48
