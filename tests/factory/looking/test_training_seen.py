"""`seqkd status` of a student at work, done, or killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factory.cli import app
from factory.files import write_json
from factory.looking.status import status
from factory.query.catalog import connect
from factory.records import RunDirectory
from factory.verify import verify
from tests.runs import add_stage, begin_stage, make_run

STAGES = [{"name": name, "data": "gold"} for name in ("soft", "gold", "last")]
STEPS = [
    {
        "step": i,
        "stage_step": i,
        "loss": 3.0 - i,
        "tokens": 100,
        "tokens_per_second": 50.0,
        "terms": {"ce": 4.0 - i, "tvd": 2.0 - i},
    }
    for i in range(1, 4)
]
SCORED = {"scores": [31.25, 40.0], "scored_steps": [1, 3], "scored_epochs": [0.5, 1.5]}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Three stages: one done, one at work, one trained long ago."""
    made = make_run(
        tmp_path / "run",
        teacher=None,
        student={"init": {"model": "some/student"}, "stages": STAGES},
    )
    add_stage(made, "soft", STEPS, planned_steps=8, **SCORED)
    begin_stage(made, "gold", STEPS, seconds_per_step=2.0, **SCORED)
    add_stage(made, "last", STEPS)
    newest = made.path("student", "gold", "checkpoints", "newest.json")
    write_json(newest, {"key": "stage-key", "tag": "step-2", "step": 2})
    return made


def told(run: RunDirectory) -> str:
    """What the command prints, without its frame."""
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["status", str(run.root)])
    assert result.exit_code == 0
    return " ".join(word for word in result.output.split() if word != "│")


def stages(run: RunDirectory) -> list[dict[str, Any]]:
    """What `--json` says of the stages."""
    result = CliRunner().invoke(app, ["status", str(run.root), "--json"])
    found: list[dict[str, Any]] = json.loads(result.output)["stages"]
    return found


def report(run: RunDirectory, **state: Any) -> None:
    """What the training reports of its progress."""
    work = {"title": "training gold (2 of 3)", "done": 4, "total": 600, "rate": 52.0}
    write_json(run.path(".progress-train.json"), work | {"note": "loss 0.500"} | state)


def test_a_stage_at_work(run: RunDirectory):
    report(run)
    with run.locked():
        first, second, third = stages(run)
        line = told(run)
    assert (first["state"], first["step"], first["steps"]) == ("done", 3, 8)
    assert second.pop("logged_ago") < 600
    assert second == {
        "stage": "gold",
        "state": "training",
        "step": 4,
        "steps": 600,
        "checkpoint": 2,
        "loss": 0.0,
        "terms": {"ce": 1.0, "tvd": -1.0},
        "tokens_per_second": 50.0,
        "seconds_left": 1194.0,  # 597 steps at two seconds
        "note": "loss 0.500",
        "validations": [
            {"step": 1, "epoch": 0.5, "score": 31.25},
            {"step": 3, "epoch": 1.5, "score": 40.0},
        ],
    }
    assert third["state"] == "waiting"  # it was trained from another model
    assert "stage soft (1 of 3) done: 3 of 8 steps chrF 31.2 at step 1, 40.0 at step 3" in line
    working = "step 4 of 600, loss 0.500, 50 tok/s, time left 0:19:54, logged"
    assert f"stage gold (2 of 3) {working}" in line
    assert "stage last (3 of 3) waiting" in line


def test_a_stage_that_was_killed(run: RunDirectory):
    report(run)  # it had no time to remove it
    second = stages(run)[1]
    assert (second["state"], second["step"], second["checkpoint"]) == ("stopped", 3, 2)
    assert second["seconds_left"] is None
    loss = "loss 0.000 (ce 1.000, tvd -1.000)"
    assert f"stage gold (2 of 3) stopped at step 3 of 600, {loss}, logged" in told(run)
    assert "ago, seqkd run goes on from step 2" in told(run)


def test_another_command_at_work_is_no_training(run: RunDirectory):
    report(run, title="preparing gold", total=None)
    with run.locked():
        assert stages(run)[1]["state"] == "stopped"
        assert "preparing gold 4 of ?" in told(run)


def test_without_a_checkpoint_a_stage_begins_anew(run: RunDirectory):
    newest = run.path("student", "gold", "checkpoints", "newest.json")
    write_json(newest, {"key": "of another stage", "tag": "step-2", "step": 2})
    assert "seqkd run begins anew" in told(run)


def test_a_log_that_has_no_row_yet(run: RunDirectory):
    begin_stage(run, "gold", [])
    report(run, done=0, note="")
    with run.locked():
        assert stages(run)[1]["loss"] is None
        assert "step 0 of 600, time left unknown, logged" in told(run)


def test_the_age_is_that_of_the_last_rows(run: RunDirectory):
    log = run.path("student", "gold", "log.json")
    before = log.stat().st_mtime - 3600
    os.utime(log, (before, before))
    assert 3600 <= stages(run)[1]["logged_ago"] < 4200


def test_a_run_that_trains_nothing_yet_says_nothing(tmp_path: Path):
    made = make_run(
        tmp_path / "run", teacher=None, student={"init": {"model": "s"}, "stages": STAGES}
    )
    assert {stage["state"] for stage in stages(made)} == {"waiting"}
    assert "stage" not in told(made)
    assert status(make_run(tmp_path / "none"))["stages"] == []


def test_views_and_verify_read_the_parts_of_a_stage_at_work(run: RunDirectory):
    """The one at work is the last: what lies beyond it was trained before."""
    with connect(run) as connection:
        rows = connection.sql("SELECT stage, count(*) FROM train_log GROUP BY ALL ORDER BY 1")
        assert rows.fetchall() == [("gold", 3), ("soft", 3)]
    assert verify(run)["problems"] == []
    run.path("student", "gold", "train_log", "2.parquet").write_bytes(b"cut")
    assert [line.split(": ")[1] for line in verify(run)["problems"]] == [
        "does not match its SHA-256"
    ]
