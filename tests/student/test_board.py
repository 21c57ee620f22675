"""TensorBoard's copy of the log: the same numbers, no step twice; and what is said without it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from factory.errors import ManifestError
from factory.manifest import Manifest
from factory.steps import make_plan
from student.board import Board
from tests.runs import MANIFEST

STUDENT = {
    "init": {"config": {"model_type": "llama"}},
    "stages": [{"name": "gold", "data": "gold"}],
}


def row(step: int, **more: Any) -> dict[str, Any]:
    """A row as the log gives it."""
    pace = {"loss": 1.0 / step, "lr": 1e-3, "tokens_per_second": 200.0, "grad_norm": None}
    return {"stage_step": step, "terms": {"ce": 2.0, "tvd": 0.5}, **pace, **more}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_the_board_shows_the_log(tmp_path: Path):
    pytest.importorskip("tensorboard")
    board = Board(tmp_path, 0)
    board.add([row(1), row(2, grad_norm=1.5, validation=33.5)])
    board.close()
    assert scalars(tmp_path) == {
        "loss": [(1, 1.0), (2, 0.5)],
        "lr": [(1, pytest.approx(1e-3)), (2, pytest.approx(1e-3))],
        "tokens_per_second": [(1, 200.0), (2, 200.0)],
        "grad_norm": [(2, 1.5)],
        "validation": [(2, 33.5)],
        "terms/ce": [(1, 2.0), (2, 2.0)],
        "terms/tvd": [(1, 0.5), (2, 0.5)],
    }


def test_a_stage_that_goes_on_shows_no_step_twice(tmp_path: Path):
    pytest.importorskip("tensorboard")
    killed = Board(tmp_path, 0)
    killed.add([row(step) for step in (1, 2, 3, 4)])
    killed.close()
    onward = Board(tmp_path, 2)
    onward.add([row(step, loss=9.0) for step in (3, 4, 5)])
    onward.close()
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 0.5), (3, 9.0), (4, 9.0), (5, 9.0)]


def test_a_stage_that_begins_anew_shows_nothing_of_the_last(tmp_path: Path):
    pytest.importorskip("tensorboard")
    for loss in (1.0, 2.0):
        board = Board(tmp_path / "gold", 0)
        board.add([row(1, loss=loss)])
        board.close()
    assert scalars(tmp_path / "gold")["loss"] == [(1, 2.0)]


def test_what_is_not_installed_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch):
    """A folder of the name, such as a run's own, is not the library."""
    manifest = Manifest.model_validate(MANIFEST | {"student": STUDENT | {"tensorboard": True}})
    there = importlib.util.spec_from_loader("tensorboard", None)
    for found in (None, there):
        monkeypatch.setattr("importlib.util.find_spec", lambda _, found=found: found)
        with pytest.raises(ManifestError) as error:
            make_plan(manifest)
        assert str(error.value) == (
            "student.tensorboard: True: TensorBoard is not installed: "
            "pip install 'seqkd[tensorboard]', or remove it"
        )


def test_what_cannot_be_imported_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    with pytest.raises(ManifestError, match=r"pip install 'seqkd\[tensorboard\]'"):
        Board(tmp_path, 0)
