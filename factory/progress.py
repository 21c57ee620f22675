"""Progress of long work: done, rate, time left.

A worker process reports into a small file that its parent shows, and that `seqkd status` reads;
any other process shows the bar itself. Nothing is shown where nobody is watching.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from factory.files import read_json, replace_json

REPORT_TO = "SEQKD_PROGRESS"
SECONDS_BETWEEN_REPORTS = 0.3


class Advance(Protocol):
    """Report `done` more units, and optionally a note such as a second rate."""

    def __call__(self, done: int, note: str = "") -> None:
        """Add `done` units."""


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """Show the current speed, or a dash before it is known."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="progress.data.speed")


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Advance]:
    """Report the progress of the body, under a title, in units of which there are `total`."""
    if report := os.environ.get(REPORT_TO):
        yield _reporter(Path(report), title, total)
        return
    with _bar() as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(done: int, note: str = "") -> None:
            bar.update(task, advance=done, note=note)

        yield advance


class Follower:
    """Shows what a worker reports into a file, whenever it is asked to look."""

    def __init__(self, bar: Progress, report: Path) -> None:
        self._bar, self._report = bar, report
        self._tasks: dict[str, TaskID] = {}

    def look(self) -> None:
        """Bring the bar up to the latest report; a title not seen before gets a bar of its own."""
        if not self._report.is_file():
            return
        state = read_json(self._report)
        title, total = state["title"], state["total"]
        if title not in self._tasks:
            self._tasks[title] = self._bar.add_task(title, total=total, note="")
        task = self._tasks[title]
        self._bar.update(task, completed=state["done"], total=total, note=state["note"])


@contextmanager
def following(report: Path) -> Iterator[Follower]:
    """Show the progress that a worker process reports into `report`."""
    with _bar() as bar:
        yield Follower(bar, report)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _reporter(report: Path, title: str, total: int | None) -> Advance:
    done_so_far, last = 0, 0.0

    def advance(done: int, note: str = "") -> None:
        nonlocal done_so_far, last
        done_so_far += done
        if time.monotonic() - last > SECONDS_BETWEEN_REPORTS or done_so_far == total:
            last = time.monotonic()
            state = {"title": title, "done": done_so_far, "total": total, "note": note}
            replace_json(report, state)

    advance(0)
    return advance
