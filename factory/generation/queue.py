"""One queue of shards for all replicas of a step: a frozen plan, and claims that are made once.

Before a sitting its parent freezes which rows form which shard, as the row groups of a Parquet
file. A replica claims the next shard by linking its own name to `NNNNN.claim`, which only one can
do, and claims are whole from the first moment. A shard is done when its record stands beside.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from factory.files import TEMPORARY, replacing, write_text

PLAN = "plan.parquet"
LEFT = (PLAN, "*.claim", "replica-*")
FIRST = b"seqkd.first"  # number of the plan's first shard

Portion = tuple[Hashable, pa.RecordBatch]


def freeze(folder: Path, portions: Iterable[Portion], schema: pa.Schema, size: int) -> int:
    """Write the plan of a sitting, streamed: shards of `size` rows, numbers going on.

    Each batch comes with the portion it belongs to; a shard holds rows of one portion alone.

    Returns:
        how many rows are planned.
    """
    rows = 0
    planned = schema.with_metadata({FIRST: str(_next_number(folder)).encode()})
    with (
        replacing(folder / PLAN) as temporary,
        pq.ParquetWriter(temporary, planned, compression="zstd") as writer,
    ):
        for shard in _shards(portions, size):
            writer.write_table(shard.cast(planned), row_group_size=size)
            rows += len(shard)
    return rows


def clear(folder: Path) -> None:
    """Remove plan and claims: those of a sitting that is over, or was killed."""
    for leftover in [p for pattern in LEFT for p in folder.glob(pattern)]:
        leftover.unlink(missing_ok=True)


def release(folder: Path, replica: int) -> None:
    """Give back what a dead replica had claimed and not finished."""
    for claim in _claims(folder, replica):
        if not _record(claim).is_file():
            claim.unlink()


def finished(folder: Path, replica: int) -> list[int]:
    """Numbers of the shards that a replica has finished in this sitting."""
    return [int(c.stem) for c in _claims(folder, replica) if _record(c).is_file()]


class Queue:
    """The queue as one replica sees it."""

    def __init__(self, folder: Path, replica: int) -> None:
        """Open the plan that `freeze` wrote."""
        self._folder, self._replica = folder, replica
        self._plan = pq.ParquetFile(folder / PLAN)
        self.first = int(self._plan.schema_arrow.metadata[FIRST])
        self.rows: int = self._plan.metadata.num_rows
        self._name = folder / f"replica-{replica}{TEMPORARY}"

    def shards(self) -> Iterator[tuple[int, pa.Table]]:
        """Claim shard after shard, each when it is asked for: its number and its rows."""
        write_text(self._name, str(self._replica))
        for index in range(self._plan.num_row_groups):
            if self._claim(self.first + index):
                yield self.first + index, self._plan.read_row_group(index)

    def finished_rows(self) -> int:
        """Rows of the shards that this replica, or the one it takes the place of, has finished."""
        metadata = self._plan.metadata
        numbers = finished(self._folder, self._replica)
        return sum(metadata.row_group(number - self.first).num_rows for number in numbers)

    def record(self, number: int) -> Path:
        """Where the record of a shard stands once it is done."""
        return self._folder / f"{number:05d}.json"

    def _claim(self, number: int) -> bool:
        try:
            os.link(self._name, self._folder / f"{number:05d}.claim")
        except FileExistsError:
            return False
        return True


def _claims(folder: Path, replica: int) -> list[Path]:
    return [c for c in folder.glob("*.claim") if c.read_text() == str(replica)]


def _record(claim: Path) -> Path:
    return claim.with_suffix(".json")


def _next_number(folder: Path) -> int:
    return 1 + max((int(path.stem) for path in folder.glob("[0-9]*.json")), default=-1)


def _shards(portions: Iterable[Portion], size: int) -> Iterator[pa.Table]:
    for _, portion in itertools.groupby(portions, key=lambda item: item[0]):
        held: list[pa.RecordBatch] = []
        for _, batch in portion:
            held.append(batch)
            while sum(map(len, held)) >= size:
                table = pa.Table.from_batches(held)
                yield table.slice(0, size)
                held = table.slice(size).to_batches()
        if sum(map(len, held)):
            yield pa.Table.from_batches(held)
