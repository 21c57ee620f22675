"""Learning rates as literal tables; which parameters decay."""

from __future__ import annotations

import pytest
import torch

from factory.training import Stage
from student.schedule import learning_rate, parameter_groups

RATES = [
    ("linear", 0.0, 0.0, 5, [1, 0.75, 0.5, 0.25, 0]),
    ("linear", 0.4, 0.0, 5, [0.5, 1, 1, 0.5, 0]),
    ("linear", 0.0, 0.5, 3, [1, 0.75, 0.5]),
    ("cosine", 0.0, 0.0, 5, [1, 0.853553, 0.5, 0.146447, 0]),
    ("constant", 0.5, 0.0, 4, [0.5, 1, 1, 1]),
    ("linear", 0.05, 0.0, 1, [1]),
    ("linear", 1.0, 0.0, 2, [0.5, 1]),
]


@pytest.mark.parametrize(("schedule", "warmup", "final", "total", "rates"), RATES)
def test_rates(schedule, warmup, final, total, rates):
    stage = Stage(
        name="s",
        data="gold",
        learning_rate=1.0,
        final_learning_rate=final,
        schedule=schedule,
        warmup=warmup,
    )
    found = [learning_rate(stage, step, total) for step in range(total)]
    assert found == pytest.approx(rates, abs=1e-6)


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    decayed, kept = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert [p.shape for p in kept["params"]] == [(2,), (2,), (2,)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
