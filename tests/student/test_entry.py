"""How a process ends when its run is gone, or its user was wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from factory.errors import StepFailed
from factory.workers import module_command
from student.entry import PARENT, stop_if_abandoned
from tests.student.tiny import environment, save_teacher, start_prepare, student_run

WILD = "SELECT 1 AS sample_id"


def test_a_process_goes_on_while_its_run_lives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PARENT, raising=False)
    stop_if_abandoned()
    monkeypatch.setenv(PARENT, str(os.getppid()))
    stop_if_abandoned()


def test_a_process_stops_when_its_run_is_gone(monkeypatch: pytest.MonkeyPatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    monkeypatch.setenv(PARENT, str(gone.pid))
    with pytest.raises(StepFailed, match="is gone"):
        stop_if_abandoned()


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path):
    stages = [{"name": "odd", "data": WILD}]
    student = {"init": {"from_teacher": {"layers": 1}}, "stages": stages}
    run = student_run(tmp_path / "run", save_teacher(tmp_path / "teacher"), student)
    done = start_prepare(run)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "seqkd: student.stages.odd.data: 'SELECT 1 AS sample_id': lacks the column source: "
        "select sample_id, source and target"
    )


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path):
    command = [*module_command("student.prepare", type("Run", (), {"root": tmp_path})()), "key"]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_student_larger_than_its_teacher_is_a_warning(tmp_path: Path):
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64}
    init = {"config": {**config, "num_hidden_layers": 2, "num_attention_heads": 2}}
    stages = [{"name": "gold", "data": "gold"}]
    run = student_run(
        tmp_path / "run", save_teacher(tmp_path / "teacher"), {"init": init, "stages": stages}
    )
    done = start_prepare(run)
    assert done.returncode == 0
    assert "seqkd: warning: the student has" in done.stderr
