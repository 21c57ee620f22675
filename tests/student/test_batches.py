"""Batches: every row once, budgets kept, the same steps for any number of processes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from student.batches import collate, plan_epoch, seed_of, split_step

LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=200).map(np.array)


class Rows:
    """Rows as `StageRows` gives them, from lists."""

    def __init__(self, *parts: tuple[list[int], list[int]], k: int = 2) -> None:
        self.parts, self.k = parts, k

    def row(self, index: int) -> dict[str, np.ndarray]:
        prompt, target = self.parts[index]
        n, k = len(target), self.k + index
        return {
            "prompt_ids": np.array(prompt, np.int32),
            "target_ids": np.array(target, np.int32),
            "k": np.array([k], np.int32),
            "topk_ids": np.arange(n * k, dtype=np.int32),
            "topk_logprobs": -np.arange(n * k, dtype=np.float32),
            "tail_logprob": np.full(n, -3.0, np.float32),
        }


@given(LENGTHS, st.integers(50, 400), st.integers(0, 5))
def test_an_epoch_holds_every_row_once_within_the_budget(lengths, budget, seed):
    steps = plan_epoch(lengths, budget, seed)
    assert sorted(np.concatenate(steps)) == list(range(len(lengths)))
    assert all(lengths[step].sum() <= budget for step in steps)


@given(LENGTHS, st.integers(50, 400), st.integers(1, 4), st.integers(50, 120))
def test_processes_share_a_step_without_overlap(lengths, budget, world, limit):
    for step in plan_epoch(lengths, budget, 1):
        rounds = split_step(step, lengths, world, limit)
        pieces = [piece for pieces in rounds for piece in pieces]
        assert {len(pieces) for pieces in rounds} == {world}
        assert sorted(np.concatenate(pieces)) == sorted(step)
        assert all(len(p) * lengths[p].max() <= limit for p in pieces if len(p))


@given(LENGTHS, st.integers(1, 6))
def test_no_process_idles_while_there_are_rows(lengths, world):
    order = np.argsort(-lengths, kind="stable")
    pieces = [p for round_ in split_step(order, lengths, world, 10**6) for p in round_]
    assert sum(len(p) == 0 for p in pieces) == max(0, len(pieces) - len(lengths))


def test_epochs_differ_and_repeat():
    lengths = np.arange(2, 60)
    plans = [plan_epoch(lengths, 100, seed_of(17, "gold", epoch)) for epoch in (1, 2, 1)]
    flat = [np.concatenate(plan).tolist() for plan in plans]
    assert flat[0] == flat[2] != flat[1]


def test_rows_of_like_length_train_together():
    lengths = np.array([2, 50] * 100)
    steps = plan_epoch(lengths, 100, 0)
    assert sum(len(set(lengths[step])) > 1 for step in steps) <= 2  # one a pool


def test_collate_predicts_targets_alone():
    rows = Rows(([5, 6, 7], [8, 2]), ([9], [10, 11, 2]))
    batch = collate(rows, [0, 1], pad=0, teacher=True)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 2], [9, 10, 11, 2, 0]]
    assert batch.predicts.tolist() == [
        [False, False, True, True, False],
        [True, True, True, False, False],
    ]
    assert batch.targets.tolist() == [8, 2, 10, 11, 2]
    assert batch.mask.all()
    assert batch.teacher is not None
    assert batch.teacher.ids.tolist() == [[0, 1, 0], [2, 3, 0], [0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert batch.teacher.logprobs[0].tolist() == [0.0, -1.0, -np.inf]
    assert batch.teacher.tail_logprob.tolist() == [-3.0] * 5


def test_a_process_without_rows_gets_one_masked_token():
    batch = collate(Rows(([1], [2])), [], pad=0, teacher=True)
    assert batch.mask.tolist() == [False]
    assert batch.predicts.sum() == len(batch.targets) == 1
    assert batch.teacher is not None
    assert batch.teacher.ids.shape == (1, 2)
