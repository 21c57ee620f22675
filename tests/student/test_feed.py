"""The feed: every piece in its order, as collated at once; faults told, the thread gone."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from factory.training import Stage
from student.batches import Layout, collate, split_step
from student.course import Course
from student.dataset import PLAIN, ROWS, StageRows
from student.feed import Feed, Piece

STAGE = Stage(name="gold", data="gold", batch_tokens=60, micro_batch_tokens=30)


@pytest.fixture
def rows(tmp_path: Path) -> StageRows:
    table = [
        {"sample_id": str(i), "prompt_ids": [1] * (i % 7 + 1), "target_ids": [5 + i] * (i % 5 + 1)}
        for i in range(40)
    ]
    with pa.ipc.new_file(str(tmp_path / ROWS), PLAIN) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(table, schema=PLAIN))
    return StageRows(tmp_path)


def feed_of(rows: StageRows, world: int = 1, rank: int = 0) -> Feed:
    return Feed(STAGE, rows, Course(STAGE, rows, 17), Layout(0), world, rank)


@pytest.mark.parametrize(("world", "rank"), [(1, 0), (2, 1)])
def test_pieces_are_those_of_collating_step_by_step(rows: StageRows, world: int, rank: int):
    feed = feed_of(rows, world, rank)
    steps = feed.course.epoch(1)
    got = list(feed.over(steps, 0))
    assert sum(piece.last for piece in got) == len(steps)
    wanted = []
    for step in steps:
        rounds = split_step(step, feed.course.lengths, world, STAGE.micro_batch_tokens)
        parts = [pieces[rank] for pieces in rounds]
        batches = [collate(rows, part, feed.layout, False) for part in parts]
        last = [batch is batches[-1] for batch in batches]
        wanted += map(Piece, parts, batches, last)
    assert len(got) == len(wanted) > len(steps)
    for piece, should in zip(got, wanted, strict=True):
        assert piece.last == should.last
        assert piece.rows.tolist() == should.rows.tolist()
        assert torch.equal(piece.batch.inputs["input_ids"], should.batch.inputs["input_ids"])
        assert torch.equal(piece.batch.targets, should.batch.targets)
        assert torch.equal(piece.batch.mask, should.batch.mask)


def test_a_fault_is_raised_at_its_own_piece(rows: StageRows):
    before = threading.active_count()
    pieces = feed_of(rows).over([np.array([0]), np.array([1]), np.array([len(rows)])], 0)
    assert [next(pieces).last, next(pieces).last] == [True, True]
    with pytest.raises(IndexError):
        next(pieces)
    assert threading.active_count() == before


def test_its_thread_ends_with_it(rows: StageRows):
    before = threading.active_count()
    feed = feed_of(rows)
    pieces = feed.over(feed.course.epoch(1), 0)
    next(pieces)
    assert threading.active_count() == before + 1
    pieces.close()
    assert threading.active_count() == before
