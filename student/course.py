"""The course of a stage: the rows of every optimiser step, epoch by epoch, and where it ends."""

from __future__ import annotations

import itertools

from factory.training import Stage
from student.batches import Indices, plan_epoch, seed_of
from student.dataset import StageRows


class Course:
    """A function of seed, stage and rows alone: whoever takes it up goes on as it was begun.

    Attributes:
        lengths: int32 [rows], prompt and target tokens of each row.
        steps: optimiser steps of the whole stage.
    """

    def __init__(self, stage: Stage, rows: StageRows, seed: int) -> None:
        self._stage, self._rows, self._seed = stage, rows, seed
        self.lengths = rows.prompt_lengths + rows.target_lengths
        self.steps = self._count()

    def epoch(self, number: int) -> list[Indices]:
        """Row indices of each step of an epoch, from 1; the stage may end within it."""
        seed = seed_of(self._seed, self._stage.name, number)
        return plan_epoch(self.lengths, self._stage.batch_tokens, seed)

    def tokens(self, step: Indices) -> int:
        """Target tokens of a step."""
        return int(self._rows.target_lengths[step].sum())

    def _count(self) -> int:
        if self._stage.steps:
            return self._stage.steps
        if self._stage.tokens:
            return self._until(self._stage.tokens)
        return sum(len(self.epoch(number + 1)) for number in range(self._stage.epochs or 1))

    def _until(self, tokens: int) -> int:
        """Steps up to the one that reaches so many target tokens."""
        epochs = (self.epoch(number) for number in itertools.count(1))
        reached = itertools.accumulate(map(self.tokens, itertools.chain.from_iterable(epochs)))
        return next(step for step, sum_ in enumerate(reached, 1) if sum_ >= tokens)
