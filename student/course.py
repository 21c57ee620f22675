"""The course of a stage: the rows of every optimiser step, epoch by epoch, and where it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from factory.errors import RunError
from factory.training import Stage
from student.batches import Indices, plan_epoch, seed_of
from student.dataset import StageRows
from student.portions import Portion


def check_course(stage: Stage, rows: StageRows, portions: Sequence[int], processes: int) -> None:
    """Refuse what a stage's rows do not allow.

    Raises:
        RunError: there are fewer rows than processes, or no source has the targets to choose from.
    """
    if len(rows) < processes:
        remedy = f"the stage {stage.name} has {len(rows)} rows: start no more processes than rows"
        raise RunError("student.processes", processes, remedy)
    if stage.targets == "one_each_epoch":
        parts = [ids for _, ids in _parts(rows, portions)]
        if all(len(ids.unique()) == len(ids) for ids in parts):
            place = f"student.stages.{stage.name}.targets"
            raise RunError(place, stage.targets, "no source has two: raise judge.per_source")


def _parts(rows: StageRows, portions: Sequence[int]) -> Iterator[tuple[Indices, pa.StringArray]]:
    """Row indices and sample ids of each portion."""
    ids, first = rows.sample_ids(), 0
    for count in portions:
        yield np.arange(first, first + count), ids.slice(first, count)
        first += count


class Course:
    """A function of seed, stage and rows alone: whoever takes it up goes on as it was begun.

    An epoch of a mixture is as long as its portions together, and takes of each as many rows as
    its share says: of a small one some rows several times, of a large one not all.

    Attributes:
        lengths: int32 [rows], prompt and target tokens of each row.
        steps: optimiser steps of the whole stage.
    """

    def __init__(
        self, stage: Stage, rows: StageRows, seed: int, portions: Sequence[int] = ()
    ) -> None:
        self._stage, self._rows, self._seed = stage, rows, seed
        self.lengths = rows.prompt_lengths + rows.target_lengths
        by_source = stage.targets == "one_each_epoch"
        self._portions = [
            Portion(indices, seed_of(seed, stage.name, number), ids if by_source else None)
            for number, (indices, ids) in enumerate(_parts(rows, portions or [len(rows)]))
        ]
        whole = sum(map(len, self._portions))
        self._counts = [max(1, round(share * whole)) for share in stage.shares.values()]
        self.steps = self._count()

    def epoch(self, number: int) -> list[Indices]:
        """Row indices of each step of an epoch, from 1; the stage may end within it."""
        seed = seed_of(self._seed, self._stage.name, number)
        rows = self._rows_of(number)
        steps = plan_epoch(self.lengths[rows], self._stage.batch_tokens, seed)
        return [rows[step] for step in steps]

    def tokens(self, step: Indices) -> int:
        """Target tokens of a step."""
        return int(self._rows.target_lengths[step].sum())

    def _rows_of(self, number: int) -> Indices:
        parts = zip(self._portions, self._counts, strict=True)
        return np.concatenate([part.take((number - 1) * count, count) for part, count in parts])

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
