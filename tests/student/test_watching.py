"""A training that is looked at from another process, while it goes on and after it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from factory.cli import app
from factory.records import RunDirectory
from factory.verify import verify
from student.prepare import prepare_run
from tests.student.tiny import environment, save_teacher, student_run

STAGES: list[dict[str, Any]] = [
    {"name": "short", "data": "gold", "steps": 2, "validate_steps": 2},
    {
        "name": "long",
        "data": "pseudolabels",
        "objective": {"ce": 0.5, "forward_kl": 0.5},
        "steps": 100_000,
        "validate_steps": 6,
    },
]
STUDENT = {
    "init": {"from_teacher": {"layers": 1}},
    "checkpoint_steps": 4,
    "validate_rows": 2,
    "stages": [{"batch_tokens": 64, **stage} for stage in STAGES],
}
# As `seqkd train` starts it: under the run's lock, with a parent that follows its reports.
TRAIN = """
import sys
from pathlib import Path
from factory.records import RunDirectory
from factory.workers import run_worker
from tests.student.tiny import launch_command

run = RunDirectory(Path(sys.argv[1]))
with run.locked() as lock:
    run_worker(run, "train", launch_command(run), lock)
"""
SUMS = """
    SELECT stage, count(*) AS steps, count(DISTINCT step) AS known, max(stage_step) AS last,
        count(validation) AS scored, count(grad_norm) AS norms, bool_and(seconds > 0) AS timed
    FROM train_log GROUP BY stage ORDER BY min(step)
"""


@contextmanager
def training(run: RunDirectory) -> Iterator[subprocess.Popen[bytes]]:
    """Train in a session of its own; all of it is killed at the end."""
    command = [sys.executable, "-c", TRAIN, str(run.root)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment(), start_new_session=True, **quiet) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def asked(*words: str) -> Any:
    """What a command answers in JSON."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def stages_when(
    run: RunDirectory, holds: Callable[[dict[str, Any]], bool], process: Any = None
) -> list[dict[str, Any]]:
    """What `seqkd status` says of the stages as soon as it says so of the second."""
    while process is None or process.poll() is None:
        stages: list[dict[str, Any]] = asked("status", str(run.root), "--json")["stages"]
        if holds(stages[1]):
            return stages
        time.sleep(0.1)
    raise AssertionError(run.path("logs", "train.log").read_text("utf-8")[-2000:])


def test_a_stage_is_seen_while_it_trains_and_once_it_was_killed(tmp_path: Path):
    run = student_run(tmp_path / "run", save_teacher(tmp_path / "teacher"), STUDENT)
    prepare_run(run, "train-key")
    with training(run) as process:
        first, second = stages_when(run, lambda stage: bool(stage["validations"]), process)
        assert (first["state"], first["step"], first["steps"]) == ("done", 2, 2)
        assert second["state"] == "training"
        assert second["terms"].keys() == {"ce", "forward_kl"}
        assert 0 < second["step"] < second["steps"] == 100_000
        assert second["seconds_left"] > 0
        assert second["validations"][0]["step"] == 6
        short, long = asked("sql", str(run.root), SUMS, "--format", "json")
        assert process.poll() is None
    assert (short["steps"], short["scored"], short["timed"]) == (2, 1, True)
    assert long["steps"] == long["known"] == long["last"] == long["norms"] >= 6
    assert long["scored"]
    second = stages_when(run, lambda stage: stage["state"] == "stopped")[1]
    assert second["checkpoint"] <= second["step"]
    assert verify(run)["problems"] == []
