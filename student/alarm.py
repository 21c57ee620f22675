"""What stops a stage: a loss, gradients or weights that are not finite, and where from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from factory.errors import StepFailed
from student.batches import Indices
from student.checkpoints import Checkpoints
from student.dataset import StageRows

NAMED = 3  # rows
REMEDY = "lower learning_rate or clip, run again"


class Alarm:
    """Watches the steps of a stage. Every process comes to the same finding, and stops with it."""

    def __init__(self, stage: str, rows: StageRows, checkpoints: Checkpoints) -> None:
        self._stage, self._rows, self._checkpoints = stage, rows, checkpoints
        self._step = 0
        self._seen: list[tuple[Indices, Tensor]] = []

    def begin(self, step: int) -> None:
        """A step begins, numbered from 1."""
        self._step = step
        self._seen.clear()

    def see(self, piece: Indices, losses: Tensor) -> None:
        """Remember a micro-batch: its rows, and their target tokens' losses, [n] row by row."""
        self._seen.append((piece, losses.detach()))

    def check_loss(self, loss: float) -> None:
        """Stop where the step's loss, of all processes, is not finite.

        Raises:
            StepFailed: with the rows that make it so, and the last good checkpoint.
        """
        if math.isfinite(loss):
            return
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (self._broken(), sum(len(piece) for piece, _ in self._seen)))
        rows = sorted({int(row) for broken, _ in found for row in broken})
        whole = sum(count for _, count in found)
        self._stop(f"the loss is {loss}, in {len(rows)} of {whole} rows{self._names(rows)}")

    def check_gradients(self, engine: Any) -> None:
        """Stop where the step that was just taken had gradients that are not finite.

        Without ZeRO DeepSpeed does not tell a norm in float32; clipping has spread what is not
        finite to the weights then.

        Raises:
            StepFailed: the norm of the gradients, or a weight, is not finite.
        """
        norm = engine.get_global_grad_norm()
        if norm is None:
            self.check_weights(engine)
        elif not math.isfinite(norm) or norm < 0:  # some of DeepSpeed's norms say -1 for it
            self._stop("the gradients are not finite, though the loss is")

    def check_weights(self, engine: Any) -> None:
        """Stop before weights that are not finite are kept.

        Raises:
            StepFailed: a weight of any process is not finite.
        """
        held = [getattr(p, "ds_tensor", p).detach() for p in engine.module.parameters()]
        sound = torch.stack([part.isfinite().all() for part in held]).all()
        all_sound = sound.to(engine.device, torch.int32)
        dist.all_reduce(all_sound, dist.ReduceOp.MIN)
        if not all_sound.item():
            self._stop("the weights are not finite, though the loss was")

    def _broken(self) -> list[int]:
        """Rows of this process with a token whose loss is not finite."""
        found: list[int] = []
        for piece, losses in self._seen:
            rows = np.repeat(piece, self._rows.target_lengths[piece])
            bad = ~losses[: len(rows)].isfinite().cpu().numpy()
            found += np.unique(rows[bad]).tolist()
        return found

    def _names(self, rows: list[int]) -> str:
        if not rows:
            return ""
        ids = self._rows.sample_ids()
        named = ", ".join(str(ids[row]) for row in rows[:NAMED])
        return f" ({named}{', …' if len(rows) > NAMED else ''})"

    def _stop(self, what: str) -> None:
        kept = self._checkpoints.newest
        good = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
        raise StepFailed(f"stage {self._stage}, step {self._step}: {what}; {good}: {REMEDY}")
