"""The course of a stage: where it ends, and which rows its epochs hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.training import Stage
from student.batches import plan_epoch, seed_of
from student.course import Course


class Rows:
    """What a course asks of `StageRows`."""

    def __init__(self, targets: list[int]) -> None:
        self.target_lengths = np.array(targets, np.int32)
        self.prompt_lengths = np.ones_like(self.target_lengths)


def course(targets: list[int], **keys: Any) -> Course:
    """The course of a stage over rows of so many target tokens, and a prompt of one."""
    rows: Any = Rows(targets)
    return Course(Stage(name="s", data="gold", batch_tokens=12, **keys), rows, seed=17)


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
