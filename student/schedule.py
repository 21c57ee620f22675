"""Learning rates and parameter groups of a stage."""

from __future__ import annotations

import math
from typing import Any

import torch

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


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases, which are vectors, do not (arXiv 2208.01448)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
