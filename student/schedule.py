"""Learning rates and parameter groups of a stage, and what of its model stays as it is."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from factory.errors import RunError, nearest
from factory.training import Stage


def learning_rate(stage: Stage, step: int, total: int) -> float:
    """The rate of a step: linear warm-up, then the stage's curve down to its final rate.

    Args:
        stage: its `learning_rate`, `final_learning_rate`, `schedule`, `warmup` (share of steps).
        step: from 0.
        total: optimiser steps of the whole stage.
    """
    warmup = round(stage.warmup * total)
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    if stage.schedule == "constant":
        return stage.learning_rate
    gone = (step - warmup) / max(1, total - 1 - warmup)
    left = 1 - gone if stage.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return stage.final_learning_rate + (stage.learning_rate - stage.final_learning_rate) * left


def freeze(model: torch.nn.Module, stage: Stage) -> None:
    """Leave the parameters that the stage's patterns find without gradient.

    A parameter that stands under two names, as a tied head does, is found by either.

    Raises:
        RunError: a pattern is in no name, or nothing is left to train.
    """
    place = f"student.stages.{stage.name}.freeze"
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for pattern in stage.freeze:
        found = [p for name, p in parameters.items() if re.search(pattern, name)]
        if not found:
            remedy = f"is in no parameter's name: {nearest(pattern, parameters)}"
            raise RunError(place, pattern, remedy)
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise RunError(place, list(stage.freeze), "leaves nothing to train: take fewer patterns")


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases, which are vectors, do not (arXiv 2208.01448)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
