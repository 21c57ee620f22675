"""The course of a stage: where it ends, and which rows its epochs hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import RunError
from factory.training import Stage
from student.batches import plan_epoch, seed_of
from student.course import Course, check_course
from student.portions import Portion


class Rows:
    """What a course asks of `StageRows`."""

    def __init__(self, targets: list[int], ids: str = "") -> None:
        self.target_lengths = np.array(targets, np.int32)
        self.prompt_lengths = np.ones_like(self.target_lengths)
        self.ids = ids

    def __len__(self) -> int:
        return len(self.target_lengths)

    def sample_ids(self) -> pa.Array:
        return pa.array(list(self.ids))


def course(sizes: list[int], ids: str = "", portions: tuple[int, ...] = (), **keys: Any) -> Course:
    """The course of a stage over rows of so many target tokens, and a prompt of one."""
    rows: Any = Rows(sizes, ids or "?" * len(sizes))
    stage = Stage(**{"name": "s", "data": "gold", "batch_tokens": 12} | keys)
    return Course(stage, rows, 17, portions)


LENGTHS = st.lists(st.integers(1, 11), min_size=1, max_size=40)
TEN = [2] * 10  # ten rows of three tokens: four to a step, three steps an epoch


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({}, 3),
        ({"epochs": 4}, 12),
        ({"epochs": None, "steps": 7}, 7),
        ({"steps": 1}, 1),
        ({"tokens": 1}, 1),
        ({"tokens": 20}, 3),
        ({"tokens": 21}, 4),
        ({"tokens": 40}, 6),
    ],
)
def test_a_length_in_epochs_steps_or_tokens(length: dict[str, Any], steps: int):
    assert course(TEN, **length).steps == steps


@given(LENGTHS, st.integers(1, 300))
def test_a_stage_ends_with_the_step_that_reaches_its_tokens(targets: list[int], tokens: int):
    made = course(targets, tokens=tokens)
    taken: list[int] = []
    for number in range(1, made.steps + 1):  # an epoch is a step at least
        taken += [made.tokens(step) for step in made.epoch(number)]
    assert sum(taken[: made.steps]) >= tokens > sum(taken[: made.steps - 1])


def test_epochs_are_planned_as_they_always_were():
    """A run that was begun before stages had courses goes on with the same rows."""
    made = course(list(range(1, 11)), epochs=2)
    planned = plan_epoch(np.arange(1, 11) + 1, 12, seed_of(17, "s", 2))
    assert [step.tolist() for step in made.epoch(2)] == [step.tolist() for step in planned]


def test_keys_that_came_later_are_in_no_key_where_they_say_nothing():
    before = {"name", "data", "objective", "epochs", "learning_rate", "final_learning_rate"}
    before |= {"schedule", "warmup", "batch_tokens", "micro_batch_tokens", "weight_decay", "clip"}
    dumped = Stage(name="s", data="gold").model_dump(mode="json")
    assert dumped.keys() == before | {"label_smoothing"}
    assert dumped["epochs"] == 1
    cut = Stage(name="s", data="gold", steps=3).model_dump(mode="json")
    assert (cut["epochs"], cut["steps"]) == (None, 3)
    assert Stage.model_validate(cut).steps == 3


def rows_of(made: Course, epoch: int) -> list[int]:
    """The rows of an epoch, in the order of the file."""
    return sorted(int(row) for step in made.epoch(epoch) for row in step)


IDS = "aabacbcccdd"  # rows of the sources a, b, c, d: three, two, four and two of them
OF = {name: [row for row, other in enumerate(IDS) if other == name] for name in "abcd"}


def test_one_target_of_each_source_an_epoch_and_another_each_time():
    made = course([1] * len(IDS), IDS, targets="one_each_epoch", epochs=12)
    epochs = [rows_of(made, number) for number in range(1, 13)]
    assert all("".join(sorted(IDS[row] for row in rows)) == "abcd" for rows in epochs)
    for rows in OF.values():
        taken = [row for epoch in epochs for row in epoch if row in rows]
        first = rows.index(taken[0])
        assert taken == [rows[(first + turn) % len(rows)] for turn in range(12)]
    again = course([1] * len(IDS), IDS, targets="one_each_epoch", epochs=1)
    assert rows_of(again, 5) == epochs[4]


def test_sources_begin_with_unlike_targets():
    made = course(
        [1] * 200, "".join(chr(100 + i) * 2 for i in range(100)), targets="one_each_epoch"
    )
    assert 30 < sum(row % 2 for row in rows_of(made, 1)) < 70


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_a_sequence_passes_over_every_row_before_any_comes_again(rows, first, count):
    portion = Portion(np.arange(rows) + 100, seed=3)
    taken = portion.take(first, count)
    assert len(taken) == count
    whole = portion.take(0, first + count).tolist()
    assert sorted([*portion.take(0, first), *taken]) == whole
    seen = [whole.count(row) for row in range(100, 100 + rows)]
    assert max(seen) - min(seen) <= 1


@pytest.mark.parametrize(
    ("ids", "processes", "words"),
    [
        ("abc", 4, ["student.processes: 4:", "has 3 rows"]),
        ("abc", 3, ["student.stages.s.targets: 'one_each_epoch':", "raise judge.per_source"]),
    ],
)
def test_what_the_rows_do_not_allow(ids: str, processes: int, words: list[str]):
    rows: Any = Rows([1] * len(ids), ids)
    stage = Stage(name="s", data="gold", targets="one_each_epoch")
    with pytest.raises(RunError) as error:
        check_course(stage, rows, [len(ids)], processes)
    assert all(word in str(error.value) for word in words)


MIXTURE = {"pseudolabels": 1.4, "gold": 0.6}


def test_a_mixture_draws_by_its_weights_and_passes_over_every_row():
    made = course([1] * 40, portions=(30, 10), data=MIXTURE)
    epochs = [rows_of(made, number) for number in range(1, 6)]
    for rows in epochs:
        assert (sum(row < 30 for row in rows), sum(row >= 30 for row in rows)) == (28, 12)
    taken = [row for rows in epochs for row in rows]
    assert {taken.count(row) for row in range(30)} == {4, 5}
    assert {taken.count(row) for row in range(30, 40)} == {6}
    assert rows_of(course([1] * 40, portions=(30, 10), data=MIXTURE), 4) == epochs[3] != epochs[2]


def test_a_selection_of_next_to_no_weight_is_not_left_out():
    made = course([1] * 9, portions=(8, 1), data={"pseudolabels": 1.0, "gold": 1e-6})
    assert rows_of(made, 1).count(8) == 1


def test_a_mixture_takes_one_target_of_each_source_of_its_selection():
    """Sources a, b and c of the first selection have two targets; a and b stand in both."""
    made = course([1] * 8, "aabbccab", (6, 2), data=MIXTURE, targets="one_each_epoch")
    for number in range(1, 4):
        rows = rows_of(made, number)  # five sources: 3.5 and 1.5 of them are four and two
        assert (len([row for row in rows if row < 6]), len(rows)) == (4, 6)
        assert {row // 2 for row in rows} == {0, 1, 2, 3}
