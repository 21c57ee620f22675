"""Progress of long work: done, rate, time left.

A worker process reports into a small file, and its parent shows one bar for all its workers; any
other process shows the bar itself. Nothing is shown where nobody is watching.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

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
STEPS_OF_PACE = 20  # of training, over which tokens a second are told
SECONDS_OF_SPEED = 300.0  # a step of training may take a minute, a validation several


class Advance(Protocol):
    """Report `done` more units, and optionally a note, and the tokens per second so far."""

    def __call__(self, done: int, note: str = "", *, rate: float | None = None) -> None:
        """Add `done` units."""


class RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """Show the current speed, or a dash before it is known."""
        speed = task.speed
        digits = 0 if (speed or 0) >= 10 else 1
        return Text(f"{speed:,.{digits}f}/s" if speed else "–/s", style="progress.data.speed")


@contextmanager
def progress(title: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Report the progress of the body, under a title, in units of which there are `total`.

    `done` of them were done before, by a worker that this one takes the place of.
    """
    if report := os.environ.get(REPORT_TO):
        yield _reporter(Path(report), title, total, done)
        return
    with drawn() as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(done: int, note: str = "", *, rate: float | None = None) -> None:
            bar.update(task, advance=done, note=_noted(note, rate))

        yield advance


def gathered(reports: Iterable[Path]) -> list[dict[str, Any]]:
    """What workers report, title by title: `done` and `rate` are sums over the workers."""
    titles: dict[str, dict[str, Any]] = {}
    for state in [read_json(report) for report in reports if report.is_file()]:
        so_far = titles.setdefault(state["title"], state | {"done": 0, "rate": None})
        so_far["done"] += state["done"]
        so_far["note"] = state["note"]
        if state["rate"] is not None:
            so_far["rate"] = (so_far["rate"] or 0.0) + state["rate"]
    return list(titles.values())


class Follower:
    """Shows what workers report into files, whenever it is asked to look."""

    def __init__(self, bar: Progress, reports: Sequence[Path]) -> None:
        self._bar, self._reports = bar, reports
        self._tasks: dict[str, TaskID] = {}

    def look(self) -> None:
        """Bring the bar up to the latest reports; a title not seen before gets a bar of its own."""
        for state in gathered(self._reports):
            title, total = state["title"], state["total"]
            if title not in self._tasks:
                self._tasks[title] = self._bar.add_task(title, total=total, note="")
            note = _noted(state["note"], state["rate"])
            task = self._tasks[title]
            self._bar.update(task, completed=state["done"], total=total, note=note)


@contextmanager
def following(reports: Sequence[Path]) -> Iterator[Follower]:
    """Show the progress that worker processes report into `reports`."""
    with drawn() as bar:
        yield Follower(bar, reports)


def drawn(console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> Progress:
    """The bars of all titles, on standard error where that is a terminal."""
    seen = console is not None or sys.stderr.isatty()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
        disable=not seen,
        get_time=clock,
        speed_estimate_period=SECONDS_OF_SPEED,
    )


def told_loss(loss: float, terms: Mapping[str, float]) -> str:
    """A loss in words, with its terms where it has several."""
    named = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
    return f"loss {loss:.3f} ({named})" if len(terms) > 1 else f"loss {loss:.3f}"


def _noted(note: str, rate: float | None) -> str:
    told = [note] if note else []
    return ", ".join(told if rate is None else [*told, f"{rate:,.0f} tok/s"])


def _reporter(report: Path, title: str, total: int | None, done_before: int) -> Advance:
    done_so_far, last = done_before, 0.0

    def advance(done: int, note: str = "", *, rate: float | None = None) -> None:
        nonlocal done_so_far, last
        done_so_far += done
        waited = time.monotonic() - last > SECONDS_BETWEEN_REPORTS
        changed = bool(note) and not done  # it is at something else now, maybe for long
        if waited or changed or done_so_far == total:
            last = time.monotonic()
            state = {"title": title, "done": done_so_far, "total": total, "note": note}
            replace_json(report, state | {"rate": rate})

    advance(0)
    return advance
