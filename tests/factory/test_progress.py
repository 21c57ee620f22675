"""The line of a training: what a worker reports, as its parent draws it at a literal time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factory.files import read_json, write_json
from factory.progress import REPORT_TO, Follower, drawn, progress, told_loss


class Screen:
    """What stands on a terminal of 120 columns after so many seconds."""

    def __init__(self, report: Path) -> None:
        self.now = 0.0
        self._report = report
        console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
        self._bar = drawn(console, lambda: self.now)
        self._follower = Follower(self._bar, [report])

    def at(self, seconds: float, **state: Any) -> str:
        """Draw a report."""
        self.now = seconds
        told = {"title": "training gold (2 of 2)", "total": 600, "note": "", "rate": None}
        write_json(self._report, told | state)
        self._follower.look()
        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self._bar.get_renderable())
        drawn_line: str = console.file.getvalue()  # type: ignore[attr-defined]
        return " ".join(word for word in drawn_line.split() if not set(word) & set("━╸╺"))


def test_the_line_tells_stage_step_loss_pace_and_time_left(tmp_path: Path):
    screen = Screen(tmp_path / "report.json")
    assert screen.at(0, done=0) == "training gold (2 of 2) 0/600 –/s 0:00:00 -:--:--"
    screen.at(10, done=100, note="loss 2.500")  # a checkpoint that is gone on from: no pace yet
    told = "loss 1.800 (ce 2.000, forward_kl 1.600)"
    line = screen.at(30, done=120, note=told, rate=12034.4)
    told = f"{told}, 12,034 tok/s"
    assert line == f"training gold (2 of 2) 120/600 1.0/s {told} 0:00:30 0:08:00"
    line = screen.at(32, done=120, note="validating 64/200")
    assert line == "training gold (2 of 2) 120/600 1.0/s validating 64/200 0:00:32 0:08:00"


def test_slow_steps_keep_their_pace(tmp_path: Path):
    """A step a minute: Rich forgets after half of one."""
    screen = Screen(tmp_path / "report.json")
    for done in range(4):
        line = screen.at(60.0 * done, done=done)
    assert line.endswith("0:03:00 9:57:00")


@pytest.mark.parametrize(
    ("loss", "terms", "told"),
    [
        (2.0, {"ce": 2.0}, "loss 2.000"),
        (1.23456, {"ce": 2.0, "tvd": 0.4691}, "loss 1.235 (ce 2.000, tvd 0.469)"),
    ],
)
def test_terms_are_told_where_there_are_several(loss: float, terms: dict[str, float], told: str):
    assert told_loss(loss, terms) == told


def test_a_report_says_at_once_what_a_worker_turns_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = tmp_path / "report.json"
    monkeypatch.setenv(REPORT_TO, str(report))
    monkeypatch.setattr("time.monotonic", lambda: 5.0)
    with progress("training gold", 600) as advance:
        advance(1, "loss 2.000", rate=100.0)
        assert read_json(report)["note"] == ""  # told a moment ago
        advance(0, "saving the state")
    told = {"title": "training gold", "done": 1, "total": 600, "note": "saving the state"}
    assert read_json(report) == told | {"rate": None}


def test_nothing_is_drawn_where_nobody_watches(capsys: pytest.CaptureFixture[str]):
    with progress("training gold", 2) as advance:
        advance(1, "loss 2.000")
    assert capsys.readouterr().err == ""
