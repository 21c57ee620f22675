"""What can be seen of a stage while it trains: the progress line, the log, TensorBoard's copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.progress import STEPS_OF_PACE, Advance, told_loss
from student.board import Board
from student.checkpoints import Position
from student.log import TrainLog


class Watch:
    """One stage as it is watched: it is told what happens, and tells it on."""

    def __init__(self, log: TrainLog, advance: Advance, board: Path | None = None) -> None:
        self._log, self._advance, self._folder = log, advance, board
        self._board: Board | None = None
        self._position: Position | None = None
        self._pace: deque[tuple[int, float]] = deque(maxlen=STEPS_OF_PACE)

    def begin(self, position: Position) -> None:
        """Begin with the first step, or go on from a checkpoint; `position` is followed on.

        Raises:
            DamagedFile: the log does not reach the checkpoint.
            ManifestError: TensorBoard is asked for and not installed.
        """
        self._log.begin(position)
        self._position = position
        if self._folder:
            self._board = Board(self._folder, position.step)
        self._advance(position.step, "")

    def took(
        self,
        loss: float,
        terms: dict[str, float],
        rate: float,
        tokens: int,
        seconds: float,
        norm: Any,
    ) -> None:
        """A step was done; see `TrainLog.add`."""
        assert self._position is not None
        self._log.add(self._position, loss, terms, rate, tokens, seconds, norm)
        self._pace.append((tokens, seconds))
        pace = sum(t for t, _ in self._pace) / sum(s for _, s in self._pace)
        self._advance(1, told_loss(loss, terms), rate=pace)
        if self._log.due():
            self.write()

    def validating(self) -> Callable[[int, int], None]:
        """The model of the last step is being scored: what is returned takes done and total."""
        self.write(hold=1)
        return lambda done, total: self._advance(0, f"validating {done:,}/{total:,}")

    def scored(self, score: float) -> None:
        """The model of the last step has a score."""
        self._log.score(score)

    def saving(self) -> None:
        """The state is being saved; the log must reach as far."""
        self.write()
        self._advance(0, "saving the state")

    def ended(self) -> None:
        """The stage has come to its end."""
        assert self._position is not None
        self._advance(0, _best(self._position))

    def write(self, hold: int = 0) -> None:
        """Write all steps so far but the last `hold`."""
        if self._position is None:
            return
        rows = self._log.write(self._position, hold)
        if self._board:
            self._board.add(rows)

    def close(self) -> None:
        """Write what is not written yet, however the stage ended."""
        self.write()
        if self._board:
            self._board.close()


def _best(position: Position) -> str:
    if not position.scores:
        return "done"
    best = position.best - 1
    return f"chrF {position.scores[best]:.1f} at step {position.steps[best]:,}"


@contextmanager
def watching(log: TrainLog, advance: Advance, board: Path | None = None) -> Iterator[Watch]:
    """Watch a stage; what is known when it fails is in the log."""
    watch = Watch(log, advance, board)
    try:
        yield watch
    finally:
        watch.close()
