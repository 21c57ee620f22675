"""Hard tokens and hard rows: literal splits, and a loss that does not see micro-batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.manifest import Prompt
from factory.prompting.tokenizing import load_tokenizer, tokenizer_fingerprint
from factory.training import OVER_DISTRIBUTIONS, Stage
from student.batches import Layout, collate
from student.dataset import StageRows, Text, prepare
from student.difficulty import halves, realised_of, row_weight
from student.objectives import Weights, per_token
from student.rows import Wanted
from tests.student.tiny import TEMPLATE, save_teacher, student_run

# log-probabilities: (easy, hard)
SPLITS = [
    ([-0.1, -3.0, -0.2, -4.0], [2, 0, 2, 0], [0, 2, 0, 2]),
    ([-1.0, -1.0, -1.0, -1.0], [0, 0, 2, 2], [2, 2, 0, 0]),
    ([-0.1, -3.0, -0.2], [3, 0, 0], [0, 1.5, 1.5]),
    ([-0.1], [0], [1]),
    ([], [], []),
    ([0.0, -math.inf], [2, 0], [0, 2]),
]


@pytest.mark.parametrize(("logprobs", "easy", "hard"), SPLITS)
def test_the_half_the_teacher_is_least_sure_of_is_hard(logprobs, easy, hard):
    found = halves(np.array(logprobs, np.float32))
    assert [side.tolist() for side in found] == [easy, hard]
    assert {side.dtype for side in found} == {np.dtype(np.float32)}


@given(st.lists(st.floats(-20, 0, width=32), min_size=2, max_size=60))
def test_each_half_weighs_as_much_as_all(logprobs: list[float]):
    easy, hard = halves(np.array(logprobs, np.float32))
    assert easy.mean() == pytest.approx(1)
    assert hard.mean() == pytest.approx(1)
    assert ((easy > 0) != (hard > 0)).all()


# log-probabilities of a row, progress, weight: exp(−√(L/t))
WEIGHTS = [
    ([0.0, 0.0], 0.01, 1.0),
    ([-1.0, -3.0], 1.0, math.exp(-math.sqrt(2))),
    ([-1.0, -3.0], 0.5, math.exp(-2)),
    ([0.001], 0.5, 1.0),
    ([-math.inf], 0.5, 0.0),
]


@pytest.mark.parametrize(("logprobs", "progress", "weight"), WEIGHTS)
def test_hard_rows_count_more_and_more(logprobs: list[float], progress: float, weight: float):
    assert row_weight(np.array(logprobs, np.float32), progress) == pytest.approx(weight)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> StageRows:
    root = tmp_path_factory.mktemp("difficulty")
    teacher = save_teacher(root / "teacher")
    run = student_run(root / "run", teacher, {"init": {"from_teacher": {"layers": 1}}})
    tokenizer = load_tokenizer(str(teacher))
    fingerprint = tokenizer_fingerprint(tokenizer)
    text = Text(tokenizer, Prompt(template=TEMPLATE), fingerprint, True, 64)
    stage = Stage.model_validate({"name": "s", "data": "pseudolabels", "objective": {"atkd": 1}})
    folder: Path = run.path("student", "s", "data")
    prepare(run, Wanted(stage, True, 320), text, folder)
    return StageRows(folder)


def test_a_step_is_the_same_however_it_is_cut(rows: StageRows):
    """Sums of every term over micro-batches of one row, of three, and over the step as a whole."""
    step = np.array([7, 3, 0, 39, 12, 21])
    told = realised_of(rows, step, 0.25)
    weights = Weights(dict.fromkeys(("ce", *OVER_DISTRIBUTIONS), 1.0), temperature=2.0)
    torch.manual_seed(1)
    logits = {int(i): torch.randn(int(rows.target_lengths[i]), 320) for i in step}
    found = []
    for size in (1, 3, 6):
        sums = dict.fromkeys(weights.terms, 0.0)
        for first in range(0, len(step), size):
            piece = step[first : first + size]
            batch = collate(rows, piece, Layout(0), True, told)
            given_logits = torch.cat([logits[int(i)] for i in piece])
            rest = (batch.targets, batch.teacher, batch.mask, weights, batch.realised)
            for name, values in per_token(given_logits, *rest).items():
                sums[name] += float(values.sum())
        found.append(sums)
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-5)
    assert min(found[2].values()) > 0


def test_a_process_without_rows_keeps_step(rows: StageRows):
    batch = collate(rows, [], Layout(0), True, realised_of(rows, [3], None))
    assert not batch.mask.any()
    assert batch.realised is not None
    assert batch.realised.weight.tolist() == [1.0] * len(batch.targets)
