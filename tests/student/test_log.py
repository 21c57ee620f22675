"""The train log in parts: few, sound, and every step once, whatever is killed when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import DamagedFile
from factory.files import read_json, write_json
from factory.query.catalog import connect
from factory.records import RunDirectory
from factory.schemas import TRAIN_LOG
from factory.shards import check_file
from student import log as logs
from student.checkpoints import Position
from student.log import TrainLog
from tests.runs import make_run

STUDENT = {"init": {"model": "some/student"}, "stages": [{"name": "gold", "data": "gold"}]}
FACTS = {"stage": "gold", "key": "stage-key", "planned_steps": 600}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run", student=STUDENT)


def opened(run: RunDirectory, position: Position, clock: Any = None) -> TrainLog:
    """A log as a process that is at `position` begins with it."""
    log = TrainLog(run, run.path("student", "gold"), FACTS, 1000, clock=clock or Clock())
    log.begin(position)
    return log


def take(log: TrainLog, position: Position, steps: int) -> None:
    """So many steps, each with a loss that tells which it was."""
    for _ in range(steps):
        position.step += 1
        log.add(position, 1 / position.step, {"ce": 2.0, "tvd": 0.5}, 1e-3, 50, 0.25, 1.5)


def rows_of(run: RunDirectory) -> list[dict[str, Any]]:
    """What another process sees."""
    with connect(run) as connection:
        answer = connection.sql("FROM train_log ORDER BY step").to_arrow_table().to_pylist()
    return [dict(row) for row in answer]


def record_of(run: RunDirectory) -> dict[str, Any]:
    """The record of the live log."""
    record: dict[str, Any] = read_json(run.path("student", "gold", "log.json"))
    return record


def test_rows_are_seen_as_they_are_written(run: RunDirectory):
    position = Position("stage-key")
    log = opened(run, position)
    assert rows_of(run) == []
    take(log, position, 2)
    assert len(log.write(position)) == 2
    assert rows_of(run)[1] == {
        "stage": "gold",
        "step": 1002,
        "stage_step": 2,
        "epoch": 1,
        "loss": 0.5,
        "terms": [("ce", 2.0), ("tvd", 0.5)],
        "lr": 1e-3,
        "tokens": 50,
        "tokens_per_second": 200.0,
        "seconds": 0.25,
        "grad_norm": 1.5,
        "validation": None,
    }


def test_a_part_is_due_after_some_seconds(run: RunDirectory):
    clock, position = Clock(), Position("stage-key")
    log = opened(run, position, clock)
    take(log, position, 1)
    clock.now = 4.9
    assert not log.due()
    clock.now = 5.0
    assert log.due()
    log.write(position)
    assert not log.due()


def test_a_score_belongs_to_the_step_that_waits_for_it(run: RunDirectory):
    position = Position("stage-key")
    log = opened(run, position)
    take(log, position, 3)
    assert [row["stage_step"] for row in log.write(position, hold=1)] == [1, 2]
    assert len(rows_of(run)) == 2
    log.score(33.5)
    position.scores, position.steps, position.epochs = [33.5], [3], [1.0]
    log.write(position)
    assert [row["validation"] for row in rows_of(run)] == [None, None, 33.5]
    assert record_of(run)["scores"] == [33.5]


def test_the_pace_is_that_of_this_process_and_counts_what_lies_between_steps(run: RunDirectory):
    clock, position = Clock(), Position("stage-key")
    log = opened(run, position, clock)
    assert record_of(run)["seconds_per_step"] is None
    take(log, position, 4)
    clock.now = 10.0
    log.write(position)
    assert record_of(run)["seconds_per_step"] == 2.5
    clock.now = 1000.0
    log = opened(run, position, clock)
    take(log, position, 2)
    clock.now = 1001.0
    log.write(position)
    assert record_of(run)["seconds_per_step"] == 0.5


def test_parts_stay_few(run: RunDirectory):
    """A binary counter: each part has at least twice the rows of the next."""
    position = Position("stage-key")
    log = opened(run, position)
    sizes = []
    for _ in range(12):
        take(log, position, 1)
        log.write(position)
        sizes.append([file["rows"] for file in record_of(run)["files"]])
    assert sizes[:8] == [[1], [2], [2, 1], [4], [4, 1], [4, 2], [4, 2, 1], [8]]
    assert sizes[8:] == [[8, 1], [8, 2], [8, 2, 1], [8, 4]]


def test_a_long_part_is_left_alone(run: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "CLOSED", 4)
    position = Position("stage-key")
    log = opened(run, position)
    for steps in (3, 4, 5, 2, 1):
        take(log, position, steps)
        log.write(position)
    assert [file["rows"] for file in record_of(run)["files"]] == [7, 5, 2, 1]


def test_a_part_that_was_taken_up_stays_a_while_for_who_reads_it(run: RunDirectory):
    clock, position = Clock(), Position("stage-key")
    log = opened(run, position, clock)
    take(log, position, 1)
    log.write(position)
    before = record_of(run)["files"]
    for now, stands in ((30.0, True), (89.0, True), (91.0, False)):
        clock.now = now
        take(log, position, 1)
        log.write(position)
        assert run.path(before[0]["path"]).is_file() == stands


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(1, 7)),
            st.tuples(st.just("write"), st.just(0)),
            st.tuples(st.just("save"), st.just(0)),
            st.tuples(st.just("kill"), st.just(0)),
        ),
        max_size=30,
    )
)
def test_every_step_stands_once_whatever_is_killed(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]]
):
    """The log is written before the state is saved; a kill loses what is in memory."""
    run = make_run(tmp_path_factory.mktemp("logs") / "run", student=STUDENT)
    position, saved = Position("stage-key"), 0
    log, told = opened(run, position), 0
    for event, steps in story:
        if event == "take":
            take(log, position, steps)
        elif event == "kill":
            position = Position("stage-key", step=saved)
            log, told = opened(run, position), saved
        else:
            log.write(position)
            saved = position.step if event == "save" else saved
            told = position.step
        live = run.live_log("gold")
        assert live is not None
        assert sum(file["rows"] for file in live["files"]) == told
    log.write(position)
    file = log.finish(position)
    assert pq.read_table(run.path(file["path"]))["stage_step"].to_pylist() == [
        step + 1 for step in range(position.step)
    ]
    check_file(run, file)


def test_it_ends_as_one_file_and_nothing_else(run: RunDirectory):
    position = Position("stage-key")
    log = opened(run, position)
    for _ in range(5):
        take(log, position, 1)
        log.write(position)
    file = log.finish(position)
    assert len(rows_of(run)) == 5
    write_json(run.path("student", "gold", "stage.json"), {"files": [file]})
    assert len(rows_of(run)) == 5
    log.close()
    assert len(rows_of(run)) == 5
    left = sorted(path.name for path in run.path("student", "gold").iterdir())
    assert left == ["stage.json", "train_log.parquet"]


def test_a_log_from_before_there_were_parts_is_gone_on_with(run: RunDirectory):
    columns = TRAIN_LOG.names[:9]
    schema = TRAIN_LOG.empty_table().select(columns).schema
    old = pa.Table.from_pylist([{"step": i, "stage_step": i} for i in range(1, 7)], schema=schema)
    folder = run.path("student", "gold")
    folder.mkdir(parents=True)
    pq.write_table(old, folder / "train_log.parquet")
    position = Position("stage-key", step=4)
    log = opened(run, position)
    take(log, position, 1)
    log.write(position)
    assert [row["stage_step"] for row in rows_of(run)] == [1, 2, 3, 4, 5]


def test_a_log_that_lacks_steps_is_told(run: RunDirectory):
    position = Position("stage-key")
    log = opened(run, position)
    take(log, position, 3)
    log.write(position)
    shutil.rmtree(run.path("student", "gold", "train_log"))
    run.path("student", "gold", "log.json").unlink()
    with pytest.raises(DamagedFile, match=r"log\.json: holds 0 of 3 steps: begin the stage anew"):
        opened(run, Position("stage-key", step=3))


def test_other_processes_keep_no_log(run: RunDirectory):
    log = TrainLog(run, run.path("student", "gold"), FACTS, keeps=False)
    position = Position("stage-key")
    log.begin(position)
    take(log, position, 1)
    log.score(1.0)
    assert not log.due()
    assert log.write(position) == []
    assert log.finish(position) == {}
    log.close()
    assert not run.path("student").exists()
