"""What a stage tells of itself while it trains, in the words of the progress line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from factory.errors import StepFailed
from factory.manifest import Manifest
from factory.prompting.prompts import Prompter
from factory.records import RunDirectory
from factory.steps import Plan, train_key
from student.checkpoints import Position
from student.log import TrainLog
from student.watch import Watch, watching
from tests.runs import MANIFEST, make_run

STUDENT: dict[str, Any] = {
    "init": {"model": "some/student"},
    "stages": [{"name": "gold", "data": "gold"}],
}
FACTS = {"stage": "gold", "key": "stage-key", "planned_steps": 600}


class Line:
    """Keeps what the progress line is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, float | None]] = []

    def __call__(self, done: int, note: str = "", *, rate: float | None = None) -> None:
        self.told.append((done, note, rate))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run", student=STUDENT)


def log_of(run: RunDirectory) -> TrainLog:
    """The log of a stage that begins."""
    return TrainLog(run, run.path("student", "gold"), FACTS)


def step(watch: Watch, position: Position, tokens: int = 100, seconds: float = 0.5) -> None:
    """A step was done."""
    position.step += 1
    watch.took(2.5, {"ce": 3.0, "tvd": 0.5}, 1e-3, tokens, seconds, None)


def test_the_line_is_told_all_that_happens(run: RunDirectory):
    line, position = Line(), Position("stage-key")
    with watching(log_of(run), line) as watch:
        watch.begin(position)
        step(watch, position)
        step(watch, position, tokens=500)
        position.steps = [2]
        watch.validating()(64, 1200)
        position.scores, position.best = [51.26], 1
        watch.scored(51.26)
        watch.saving()
        watch.ended()
    loss = "loss 2.500 (ce 3.000, tvd 0.500)"
    assert line.told == [
        (0, "", None),
        (1, loss, 200.0),
        (1, loss, 600.0),  # over both
        (0, "validating 64/1,200", None),
        (0, "saving the state", None),
        (0, "chrF 51.3 at step 2", None),
    ]


def test_the_pace_is_of_the_last_twenty_steps(run: RunDirectory):
    line, position = Line(), Position("stage-key")
    with watching(log_of(run), line) as watch:
        watch.begin(position)
        for seconds in [100.0, *[0.5] * 20]:
            step(watch, position, seconds=seconds)
    assert line.told[-1][2] == 200.0
    assert line.told[-2][2] == pytest.approx(2000 / 109.5)


def test_a_stage_that_fails_has_logged_what_it_did(run: RunDirectory):
    position = Position("stage-key")
    with suppress(StepFailed), watching(log_of(run), Line()) as watch:
        watch.begin(position)
        step(watch, position)
        raise StepFailed("the loss is nan")
    live = run.live_log("gold")
    assert live is not None
    assert [file["rows"] for file in live["files"]] == [1]


def test_a_board_changes_no_key(run: RunDirectory):
    """Asked for later, it trains nothing anew; and what was trained before it was known stands."""
    keys = []
    for student in (STUDENT, STUDENT | {"tensorboard": True}):
        manifest = Manifest.model_validate(MANIFEST | {"student": student})
        plan = Plan(manifest, None, Prompter(None, manifest.prompt), None)
        keys.append(train_key(plan, run))
    assert keys[0] == keys[1]
    assert "tensorboard" not in run.path("manifest.yaml").read_text("utf-8")
