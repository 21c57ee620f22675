"""Switches of throughput, through the launcher: the same losses by another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.training import Student
from tests.student.test_training import STUDENT
from tests.student.tiny import launch, losses, save_teacher, start_prepare, student_run

FIRST = [3.268958, 2.636097, 2.149589]  # golden: taken before there was any of them


def trained(root: Path, **switches: bool) -> list[float]:
    """The losses of the first stage, of which a few steps are enough."""
    stage = {**STUDENT["stages"][0], "schedule": "constant", "warmup": 0.0}
    stage = {name: value for name, value in stage.items() if name != "epochs"} | {"steps": 3}
    student: dict[str, Any] = {**STUDENT, "stages": [stage], **switches}
    run = student_run(root / "run", save_teacher(root / "teacher"), student)
    done = start_prepare(run)
    assert done.returncode == 0, done.stderr
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(run, "pseudolabel")


def test_packed_rows_and_a_chunked_head_have_the_same_curve(tmp_path: Path):
    assert trained(tmp_path, packing=True, chunked_head=True) == pytest.approx(FIRST, abs=2e-4)


@pytest.mark.slow
def test_a_compiled_model_has_the_same_curve(tmp_path: Path):
    assert trained(tmp_path, compile=True) == pytest.approx(FIRST, abs=2e-4)


def test_a_parted_head_is_not_chunked():
    with pytest.raises(ValidationError, match="zero_stage 3 parts the head"):
        Student(
            init={"model": "somewhere"},
            stages=[{"name": "gold", "data": "gold"}],
            chunked_head=True,
            deepspeed={"zero_stage": 3},
        )


def test_switches_that_are_off_leave_no_trace():
    """What was trained before they were there goes on standing."""
    student = Student(init={"model": "somewhere"}, stages=[{"name": "gold", "data": "gold"}])
    assert not {"packing", "chunked_head", "compile"} & student.model_dump(mode="json").keys()
