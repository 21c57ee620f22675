"""Trainings that are killed and gone on with, by as many processes as before or by others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factory.files import read_json
from factory.records import RunDirectory
from tests.student.test_training import copy
from tests.student.tiny import environment, launch, losses, save_teacher, start_prepare, student_run

NAME = "pseudolabel"
STAGE: dict[str, Any] = {
    "name": NAME,
    "data": "pseudolabels",
    "objective": {"ce": 0.5, "forward_kl": 0.5},
    "tokens": 1200,
    "validate_steps": 1000,
    "learning_rate": 0.01,
    "batch_tokens": 128,
    "micro_batch_tokens": 64,
}


def prepared(root: Path, stage: dict[str, Any] | None = None, **keys: Any) -> RunDirectory:
    """A run of one stage that is ready to train."""
    student = {"init": {"from_teacher": {"layers": 2}}, "checkpoint_steps": 3, **keys}
    stages = [STAGE | (stage or {})]
    run = student_run(root / "run", save_teacher(root / "teacher"), student | {"stages": stages})
    done = start_prepare(run)
    assert done.returncode == 0, done.stderr
    return run


def sittings(run: RunDirectory, *words: str) -> list[int]:
    """Train a run in these sittings; returns the step of the checkpoint that each left."""
    command = [sys.executable, "-m", "tests.student.sittings", str(run.root), *words]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(line) for line in done.stdout.splitlines() if line.isdigit()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that is ready to train, with ZeRO 1."""
    return prepared(tmp_path_factory.mktemp("sittings"))


@pytest.fixture(scope="module")
def curves(plain: RunDirectory) -> dict[int, list[float]]:
    """Its losses where nothing disturbs one process, or two."""
    runs = {processes: copy(plain, f"whole-{processes}") for processes in (1, 2)}
    for processes, run in runs.items():
        sittings(run, str(processes))
    return {processes: losses(run, NAME) for processes, run in runs.items()}


def test_two_processes_killed_go_on_to_the_same_bits(
    plain: RunDirectory, curves: dict[int, list[float]]
):
    run = copy(plain, "two-killed")
    at, end = sittings(run, "2:3", "2")
    assert 3 <= at < end == len(curves[2])
    assert losses(run, NAME) == curves[2]
    assert curves[2] == pytest.approx(curves[1], abs=1e-4)


def test_other_processes_go_on_with_a_killed_stage(
    plain: RunDirectory, curves: dict[int, list[float]]
):
    """Two, then one, then two again."""
    run = copy(plain, "changing")
    first, second, end = sittings(run, "2:3", "1:6", "2")
    assert 3 <= first < second < end == len(curves[1])
    assert losses(run, NAME) == pytest.approx(curves[1], abs=1e-4)
    newest = read_json(run.path("student", NAME, "checkpoints", "newest.json"))
    assert newest["processes"] == 2
    left = [path.name for path in run.path("student", NAME, "checkpoints").iterdir()]
    assert sorted(left) == ["newest.json", newest["tag"]]


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_other_processes_go_on_whatever_the_zero_stage(
    tmp_path: Path, zero_stage: int, dtype: str, tolerance: float
):
    run = prepared(tmp_path, dtype=dtype, deepspeed={"zero_stage": zero_stage})
    whole = copy(run, "whole")
    sittings(whole, "1")
    sittings(run, "2:3", "1:6", "2")
    assert losses(run, NAME) == pytest.approx(losses(whole, NAME), abs=tolerance)


def test_a_damaged_checkpoint_is_one_line(plain: RunDirectory):
    run = copy(plain, "damaged")
    sittings(run, "1:3")
    folder = run.path("student", NAME, "checkpoints")
    newest = read_json(folder / "newest.json")
    state = folder / newest["tag"] / newest["files"][-1]
    os.truncate(state, state.stat().st_size // 2)
    done = launch(run)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("seqkd: ")]
    assert told == [
        f"seqkd: {state}: is not as it was written: remove {folder}, and the stage starts anew"
    ]
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_manifest_is_not_gone_on_with(
    plain: RunDirectory, curves: dict[int, list[float]]
):
    run = copy(plain, "changed")
    sittings(run, "1:6")
    manifest = run.path("manifest.yaml")
    manifest.write_text(manifest.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    sittings(run, "1")
    assert len(losses(run, NAME)) == len(curves[1])
    assert losses(run, NAME)[0] == curves[1][0]
    assert losses(run, NAME)[1] != curves[1][1]


def test_a_step_in_small_pieces_is_the_step_in_one(tmp_path: Path, curves: dict[int, list[float]]):
    run = prepared(tmp_path, {"micro_batch_tokens": 4096})
    sittings(run, "1")
    assert losses(run, NAME) == pytest.approx(curves[1], abs=1e-5)
