"""Decoding in processes of their own, scores as sacreBLEU gives them, folds of equal size."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from factory.query.catalog import connect
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
    row = next(scores(TEXTS, ["bleu"], 0))
    assert row["score"] == wanted.score
    assert row["ci_low"] == pytest.approx(wanted._mean - wanted._ci, abs=1e-4)
    assert row["ci_high"] == pytest.approx(wanted._mean + wanted._ci, abs=1e-4)
    assert row["signature"] == str(bleu.get_signature())
    assert "tok:13a" in row["signature"]
    assert row["fold"] is None


def test_every_metric_is_scored_whole_and_by_fold():
    rows = list(scores(TEXTS, ["bleu", "chrf"], 5))
    assert [(r["metric"], r["fold"]) for r in rows] == [
        (metric, fold) for metric in ("bleu", "chrf") for fold in (None, 0, 1, 2, 3, 4)
    ]
    assert all((r["ci_low"] is None) == (r["fold"] is not None) for r in rows)
    first = Texts("x", None, "test", TEXTS.hypotheses[:4], TEXTS.references[:4])
    assert rows[1]["score"] == next(scores(first, ["bleu"], 0))["score"]


def test_a_system_that_says_nothing_scores_zero():
    silent = Texts("x", None, "test", ["", "", "a dog"], GOOD)
    rows = list(scores(silent, ["bleu", "chrf"], 2))
    assert rows[0]["score"] == 0
    assert 0 <= rows[0]["ci_low"] <= rows[0]["ci_high"]


def evaluate(run: RunDirectory) -> subprocess.CompletedProcess[str]:
    command = module_command("student.evaluate", run, "evaluate-key")
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose teacher alone is measured, on both splits."""
    root = tmp_path_factory.mktemp("evaluate")
    sections = {"evaluate": {"systems": ["teacher"], "splits": ["validation", "test"], "folds": 2}}
    student = {"init": {"from_teacher": {"layers": 1}}, "stages": STAGES}
    return student_run(root / "run", save_teacher(root / "teacher"), student, **sections)


def test_texts_and_scores_are_recorded(run: RunDirectory):
    done = evaluate(run)
    assert done.returncode == 0, done.stderr
    step = run.step("evaluate")
    assert step["key"] == "evaluate-key"
    assert step["systems"]["teacher"]["parameters"] == 46368
    assert step["systems"]["teacher"]["rows"] == 8
    assert step["systems"]["teacher"]["tokens_per_second"] > 0
    with connect(run) as catalog:
        texts = catalog.sql("SELECT split, sample_id, token_ids FROM predictions").fetchall()
        count = catalog.sql("SELECT count(*) FROM evals").fetchall()
    assert sorted(row[:2] for row in texts) == [
        *(("test", f"s{i}") for i in range(44, 48)),
        *(("validation", f"s{i}") for i in range(40, 44)),
    ]
    assert all(0 < len(ids) <= 12 for _, _, ids in texts)
    assert count == [(2 * 2 * 3,)]


def test_texts_that_stand_are_not_decoded_again(run: RunDirectory):
    path = run.path("predictions", "teacher-test.parquet")
    before = path.stat().st_mtime_ns
    assert evaluate(run).returncode == 0
    assert path.stat().st_mtime_ns == before


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
