"""The train log of a stage: a row an optimiser step, written whole at every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.records import FileRecord, RunDirectory
from factory.schemas import TRAIN_LOG
from factory.shards import write_part
from student.checkpoints import Position


class TrainLog:
    """Rows of one stage; only the first process keeps and writes them."""

    def __init__(
        self, run: RunDirectory, path: Path, stage: str, steps_before: int, keeps: bool
    ) -> None:
        self._run, self._path, self._stage = run, path, stage
        self._before, self._keeps = steps_before, keeps
        self._rows: list[dict[str, Any]] = []

    def cut(self, step: int) -> None:
        """Take up the rows of a killed process, as far as the checkpoint that goes on."""
        if self._keeps and step:
            kept = pq.read_table(self._path).slice(0, step).to_pylist()
            self._rows = [{**row, "terms": dict(row["terms"])} for row in kept]

    def add(
        self,
        position: Position,
        loss: float,
        terms: dict[str, float],
        rate: float,
        tokens: int,
        seconds: float,
    ) -> None:
        """Add the step that `position` has just done; losses are per target token."""
        if not self._keeps:
            return
        self._rows.append(
            {
                "stage": self._stage,
                "step": self._before + position.step,
                "stage_step": position.step,
                "epoch": position.epoch,
                "loss": loss,
                "terms": terms,
                "lr": rate,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
            }
        )

    def write(self) -> FileRecord:
        """Write all rows so far; returns the record of the file, empty where nothing is kept."""
        if not self._keeps:
            return {}
        rows = [{**row, "terms": list(row["terms"].items())} for row in self._rows]
        table = pa.Table.from_pylist(rows, schema=TRAIN_LOG)
        signature = {"stage": self._stage}
        return write_part(self._run, self._path, "train_log", [table], TRAIN_LOG, signature)
