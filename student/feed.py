"""Micro-batches in the order of training, the next one put together while the last is worked on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from factory.training import Stage
from student.batches import Batch, Indices, Layout, collate, split_step
from student.course import Course
from student.dataset import StageRows
from student.difficulty import Known, realised_of


@dataclass(frozen=True, slots=True)
class Piece:
    """One micro-batch of this process; an optimiser step ends with one that is `last`."""

    rows: Indices
    batch: Batch
    last: bool


@dataclass(frozen=True, slots=True)
class Feed:
    """Makes one process's share of a stage's micro-batches.

    Attributes:
        world: processes of the launch; `rank` is the number of this one.
        pinned: whether batches are put where an accelerator copies from without waiting.
    """

    stage: Stage
    rows: StageRows
    course: Course
    layout: Layout
    world: int
    rank: int
    pinned: bool = False

    def over(self, steps: Sequence[Indices], done: int) -> Generator[Piece]:
        """The pieces of some optimiser steps, one ahead of the caller; close it to end its thread.

        Args:
            steps: row indices of each step.
            done: optimiser steps of the stage before them.
        """
        return _ahead(self._pieces(steps, done))

    def _pieces(self, steps: Sequence[Indices], done: int) -> Iterator[Piece]:
        told = bool(self.stage.objective.distributions)
        for number, step in enumerate(steps, done):
            realised = self._realised(step, number)
            rounds = split_step(
                step,
                self.course.lengths,
                self.world,
                self.stage.micro_batch_tokens,
                self.layout.packed,
            )
            for left, pieces in zip(range(len(rounds) - 1, -1, -1), rounds, strict=True):
                rows = pieces[self.rank]
                batch = collate(self.rows, rows, self.layout, told, realised)
                yield Piece(rows, batch.pinned() if self.pinned else batch, left == 0)

    def _realised(self, step: Indices, number: int) -> Known | None:
        """What the teacher makes of the step's target tokens, where the objective reads it."""
        objective = self.stage.objective
        if not objective.realised:
            return None
        easy_first = objective.instance_weights == "easy_first"
        progress = (number + 1) / self.course.steps if easy_first else None
        return realised_of(self.rows, step, progress)


def _ahead(pieces: Iterator[Piece]) -> Generator[Piece]:
    """The same pieces, each made in a thread while the caller has the one before it.

    What goes wrong there is raised here, at the piece that it befell.
    """
    with ThreadPoolExecutor(1, "feed") as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = thread.submit(next, pieces, None)
            yield piece
