"""Trainings that are killed and gone on with, by as many processes as before or by others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from factory.files import read_json
from factory.records import RunDirectory
from tests.student.test_training import copy
from tests.student.tiny import environment, losses, save_teacher, start_prepare, student_run

NAME = "pseudolabel"
LIMIT = 280  # seconds
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


def prepared(root: Path, **keys: Any) -> RunDirectory:
    """A run of one stage that is ready to train."""
    student = {
        "init": {"from_teacher": {"layers": 2}},
        "checkpoint_steps": 3,
        "validate_rows": 2,
        **keys,
    }
    run = student_run(root / "run", save_teacher(root / "teacher"), student | {"stages": [STAGE]})
    done = start_prepare(run)
    assert done.returncode == 0, done.stderr
    return run


def sittings(works: dict[RunDirectory, str]) -> tuple[dict[str, list[int]], str]:
    """Have all runs do their work; returns the steps each came to, and what was said of it."""
    words = [word for run, work in works.items() for word in (str(run.root), *work.split(), "--")]
    command = [sys.executable, "-m", "tests.student.sittings", *words[:-1]]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return steps, done.stderr


WORKS = {
    "one": "1",
    "two": "2",
    "two-killed": "2:3 2",
    "changing": "2:3 1:6 2",
    "damaged": "1:3 damage 1",
    "changed": "1:6 learning_rate=0.02 1",
    "in-one-piece": "micro_batch_tokens=4096 1",
}


@dataclass(frozen=True)
class Done:
    """What came of `WORKS`: where the runs are, their steps, and what was said."""

    folder: Path
    steps: dict[str, list[int]]
    said: str

    def curve(self, name: str) -> list[float]:
        """The losses of a run."""
        return losses(RunDirectory(self.folder / name), NAME)

    def checkpoints(self, name: str) -> Path:
        """Where a run keeps its checkpoints."""
        return self.folder / name / "student" / NAME / "checkpoints"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All works, on copies of one run that is ready to train."""
    folder = tmp_path_factory.mktemp("sittings")
    run = prepared(folder)
    steps, said = sittings({copy(run, name): work for name, work in WORKS.items()})
    return Done(folder, steps, said)


def test_two_processes_train_a_stage_of_tokens_as_one(done: Done):
    assert done.curve("two") == pytest.approx(done.curve("one"), abs=1e-4)


def test_two_processes_killed_go_on_to_the_same_bits(done: Done):
    at, end = done.steps["two-killed"]
    assert 3 <= at < end == len(done.curve("two"))
    assert done.curve("two-killed") == done.curve("two")


def test_other_processes_go_on_with_a_killed_stage(done: Done):
    """Two, then one, then two again."""
    first, second, end = done.steps["changing"]
    assert 3 <= first < second < end == len(done.curve("one"))
    assert done.curve("changing") == pytest.approx(done.curve("one"), abs=1e-4)
    newest = read_json(done.checkpoints("changing") / "newest.json")
    assert newest["processes"] == 2
    states = [path.name for path in done.checkpoints("changing").iterdir() if path.is_dir()]
    assert states == [newest["tag"]]


def test_a_damaged_checkpoint_is_one_line(done: Done):
    at, failed = done.steps["damaged"]
    assert at >= 3
    assert failed == -1
    folder = done.checkpoints("damaged")
    newest = read_json(folder / "newest.json")
    state = folder / newest["tag"] / newest["files"][-1]
    told = [line for line in done.said.splitlines() if line.startswith("seqkd: ")]
    assert told == [
        f"seqkd: {state}: is not as it was written: remove {folder}, and the stage starts anew"
    ]
    assert "Traceback" not in done.said


def test_a_checkpoint_of_another_manifest_is_not_gone_on_with(done: Done):
    plain, changed = done.curve("one"), done.curve("changed")
    assert len(changed) == len(plain)
    assert changed[0] == plain[0]
    assert changed[1] != plain[1]


def test_a_step_in_small_pieces_is_the_step_in_one(done: Done):
    assert done.curve("one") == pytest.approx(done.curve("in-one-piece"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_other_processes_go_on_whatever_the_zero_stage(
    tmp_path: Path, zero_stage: int, dtype: str, tolerance: float
):
    run = prepared(tmp_path, dtype=dtype, deepspeed={"zero_stage": zero_stage})
    whole = copy(run, "whole")
    sittings({whole: "1", run: "2:3 1:6 2"})
    assert losses(run, NAME) == pytest.approx(losses(whole, NAME), abs=tolerance)
