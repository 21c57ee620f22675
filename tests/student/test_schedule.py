"""Learning rates as literal tables; which parameters decay, and which stay as they are."""

from __future__ import annotations

import pytest
import torch

from factory.errors import RunError
from factory.training import Stage
from student.schedule import freeze, learning_rate, parameter_groups

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


def network() -> torch.nn.ModuleDict:
    """Embeddings tied to a head, and a norm."""
    parts = {"embed": torch.nn.Embedding(5, 3), "norm": torch.nn.LayerNorm(3)}
    network = torch.nn.ModuleDict({**parts, "head": torch.nn.Linear(3, 5, bias=False)})
    network["head"].weight = network["embed"].weight
    return network


def frozen(*patterns: str) -> Stage:
    """A stage that freezes what the patterns find."""
    return Stage(name="s", data="gold", freeze=patterns)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), ["embed.weight", "norm.weight", "norm.bias"]),
        (("embed",), ["norm.weight", "norm.bias"]),
        (("^head",), ["norm.weight", "norm.bias"]),
        ((r"norm\.(weight|bias)$",), ["embed.weight"]),
        (("bias", "head"), ["norm.weight"]),
    ],
)
def test_what_a_pattern_finds_is_not_optimised(patterns: tuple[str, ...], left: list[str]):
    model = network()
    freeze(model, frozen(*patterns))
    groups = parameter_groups(model, 0.1)
    optimised = [id(p) for group in groups for p in group["params"]]
    assert [n for n, p in model.named_parameters() if id(p) in optimised] == left
    assert all(group["params"] for group in groups)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("embeding",), ["student.stages.s.freeze: 'embeding': is in no parameter's name"]),
        (("weight", "bias"), ["leaves nothing to train"]),
    ],
)
def test_patterns_that_make_no_sense(patterns: tuple[str, ...], words: list[str]):
    with pytest.raises(RunError) as error:
        freeze(network(), frozen(*patterns))
    assert all(word in str(error.value) for word in words)
