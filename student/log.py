"""The train log of a stage: a row an optimiser step, written in parts while the stage goes on.

A part is written every few seconds, and takes up the parts before it that hold less than twice its
rows: so there are few at any time, and a row is written a few times in all. `log.json` records the
parts that count, as `stage.json` records the one file that they become in the end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import DamagedFile
from factory.files import read_json, write_json
from factory.records import LIVE_LOG, FileRecord, RunDirectory
from factory.schemas import TRAIN_LOG
from factory.shards import record_file, write_part
from student.checkpoints import Position

Row = dict[str, Any]
SECONDS_BETWEEN_PARTS = 5.0
SECONDS_TO_READ = 60.0  # what a part that was taken up still stands for who is about to read it
CLOSED = 1 << 16  # rows of a part that is not taken up any more: no write stops the training long


class TrainLog:
    """Rows of one stage; only the first process keeps and writes them."""

    def __init__(
        self,
        run: RunDirectory,
        folder: Path,
        facts: dict[str, Any],
        steps_before: int = 0,
        keeps: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the log of the stage in `folder`; `facts` are its name, key and planned steps."""
        self._run, self._folder, self._facts = run, folder, facts
        self._before, self._keeps, self._clock = steps_before, keeps, clock
        self._parts, self._record = folder / "train_log", folder / LIVE_LOG
        self._files: list[FileRecord] = []
        self._rows: list[Row] = []
        self._taken_up: list[tuple[float, Path]] = []
        self._written = clock()
        self._began = (clock(), 0)

    def begin(self, position: Position) -> None:
        """Take up what a killed process logged, as far as the checkpoint that goes on.

        Raises:
            DamagedFile: there is less of it.
        """
        if not self._keeps:
            return
        self._began = (self._clock(), position.step)
        self._cut(position.step)
        self._tell(position)
        counted = {self._run.path(file["path"]) for file in self._files}
        for path in self._parts.glob("*"):
            if path not in counted:
                path.unlink()

    def add(
        self,
        position: Position,
        loss: float,
        terms: dict[str, float],
        rate: float,
        tokens: int,
        seconds: float,
        norm: Any = None,
    ) -> None:
        """Add the step that `position` has just done; losses are per target token.

        `norm` is the gradient's before clipping, None where it is not known. It may still be
        computed: it is asked for its value when it is written.
        """
        if not self._keeps:
            return
        self._rows.append(
            {
                "stage": self._facts["stage"],
                "step": self._before + position.step,
                "stage_step": position.step,
                "epoch": position.epoch,
                "loss": loss,
                "terms": terms,
                "lr": rate,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
                "seconds": seconds,
                "grad_norm": norm,
            }
        )

    def score(self, score: float) -> None:
        """Add to the last step what its model scores on the validation sources."""
        if self._keeps:
            self._rows[-1]["validation"] = score

    def due(self) -> bool:
        """Whether what was added has waited long enough."""
        return self._keeps and self._clock() - self._written >= SECONDS_BETWEEN_PARTS

    def write(self, position: Position, hold: int = 0) -> list[Row]:
        """Write all rows but the last `hold`; returns those that were not written before."""
        if not self._keeps:
            return []
        cut = len(self._rows) - hold
        rows, self._rows = self._rows[:cut], self._rows[cut:]
        for row in rows:
            row["grad_norm"] = None if row["grad_norm"] is None else float(row["grad_norm"])
        if rows:
            written = [{**row, "terms": list(row["terms"].items())} for row in rows]
            self._put(pa.Table.from_pylist(written, schema=TRAIN_LOG))
        self._tell(position)
        self._tidy()
        self._written = self._clock()
        return rows

    def finish(self, position: Position) -> FileRecord:
        """Make one file of all that is written; its record, empty where nothing is kept."""
        if not self._keeps:
            return {}
        tables = (_read(self._run.path(file["path"])) for file in self._files)
        file = self._write_part(self._folder / "train_log.parquet", tables)
        self._files = [file]
        self._tell(position)
        return file

    def close(self) -> None:
        """Forget the parts, once `stage.json` tells of the one file."""
        if self._keeps:
            self._record.unlink()
            shutil.rmtree(self._parts, ignore_errors=True)

    def _cut(self, step: int) -> None:
        for file in self._left_behind() if step else []:
            begun = self._count()
            if begun + file["rows"] <= step:
                self._files.append(file)
            elif begun < step:
                self._put(_read(self._run.path(file["path"])).slice(0, step - begun))
        if self._count() < step:
            remedy = f"begin the stage anew: remove {self._folder / 'checkpoints'}"
            raise DamagedFile(f"{self._record}: holds {self._count()} of {step} steps: {remedy}")

    def _left_behind(self) -> list[FileRecord]:
        """The parts of this stage, or the file that was written whole at every checkpoint once."""
        record = read_json(self._record) if self._record.is_file() else {}
        whole = self._folder / "train_log.parquet"
        if record.get("key") == self._facts["key"]:
            return list(record["files"])
        return [record_file(self._run, whole, "train_log")] if whole.is_file() else []

    def _put(self, table: pa.Table) -> None:
        while self._files and self._files[-1]["rows"] < min(2 * len(table), CLOSED):
            path = self._run.path(self._files.pop()["path"])
            table = pa.concat_tables([_read(path), table])
            self._taken_up.append((self._clock(), path))
        name = f"{self._count() + 1:08d}-{self._count() + len(table):08d}.parquet"
        self._files.append(self._write_part(self._parts / name, [table]))

    def _write_part(self, path: Path, tables: list[pa.Table] | Iterator[pa.Table]) -> FileRecord:
        signature = {"stage": self._facts["stage"]}
        return write_part(self._run, path, "train_log", tables, TRAIN_LOG, signature)

    def _tell(self, position: Position) -> None:
        scored = {
            "scores": position.scores,
            "scored_steps": position.steps,
            "scored_epochs": position.epochs,
            "seconds_per_step": self._pace(position.step),
        }
        write_json(self._record, self._facts | scored | {"files": self._files})

    def _pace(self, step: int) -> float | None:
        """Seconds a step of this process, all between the steps counted too."""
        began, before = self._began
        return round((self._clock() - began) / (step - before), 4) if step > before else None

    def _tidy(self) -> None:
        """Remove parts that were taken up so long ago that nobody reads them any more."""
        before = self._clock() - SECONDS_TO_READ
        for _, path in [entry for entry in self._taken_up if entry[0] < before]:
            path.unlink(missing_ok=True)
        self._taken_up = [entry for entry in self._taken_up if entry[0] >= before]

    def _count(self) -> int:
        return sum(file["rows"] for file in self._files)


def _read(path: Path) -> pa.Table:
    """The rows of a part; columns that came later are NULL in it."""
    tables = [TRAIN_LOG.empty_table(), pq.read_table(path)]
    return pa.concat_tables(tables, promote_options="default").cast(TRAIN_LOG)
