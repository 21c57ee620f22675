"""TensorBoard's copy of the train log, where it is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from factory.errors import ManifestError
from factory.training import NO_TENSORBOARD

SECONDS_BETWEEN_FLUSHES = 5
COLUMNS = ("loss", "lr", "tokens_per_second", "grad_norm", "validation")


class Board:
    """Scalars of one stage, by its own steps."""

    def __init__(self, folder: Path, step: int) -> None:
        """Write to `folder`, from `step` on: what a killed process wrote beyond it is hidden.

        Raises:
            ManifestError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            remedy = f"{NO_TENSORBOARD} ({error})"
            raise ManifestError("student.tensorboard", True, remedy) from None
        if not step:
            shutil.rmtree(folder, ignore_errors=True)
        after = step + 1 if step else None
        self._writer: Any = SummaryWriter(
            str(folder), purge_step=after, flush_secs=SECONDS_BETWEEN_FLUSHES
        )

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows of the train log."""
        for row in rows:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, row["stage_step"])

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


def _scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield from ((name, row[name]) for name in COLUMNS if row.get(name) is not None)
    yield from ((f"terms/{name}", value) for name, value in row["terms"].items())
