"""Candidates beside source and gold, in batches of whole samples, for libraries to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from factory.generation.placement import available_cores
from factory.judging.families import Measuring
from factory.judging.pool import mapped
from factory.progress import progress
from factory.query.catalog import shipped_sql
from factory.schemas import KEY, MEASURED

BATCH = 2048  # candidates, about
INLINE = 4096  # up to so many, processes cost more than they save


def measured(
    work: Measuring,
    family: str,
    function: Callable[[pa.RecordBatch], pa.RecordBatch],
    columns: Iterable[str],
    processes: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """What `function` makes of every candidate, by as many processes as there are cores.

    `function` takes batches of sample_id, rank and `columns` in the order of (sample_id, rank), no
    sample in two of them, and gives a row for each. `columns` are of source, text (NULL where it
    failed) and gold (NULL where it may not be seen).

    Raises:
        StepFailed: a process died.
    """
    relation = (
        f"SELECT sample_id, rank, {', '.join(columns)} FROM ({shipped_sql('judge', 'texts')})"
    )
    total = sum(shard["candidates"] for shard in work.run.shard_records())
    processes = processes or (1 if total <= INLINE else len(available_cores()))
    # A cursor of its own: the connection may serve other queries while batches come.
    with work.connection.cursor() as cursor, progress(f"measure {family}", total) as advance:
        batches = whole_samples(cursor.sql(relation).to_arrow_reader(BATCH))
        for batch in mapped(function, batches, processes):
            yield batch
            advance(len(batch))


def whole_samples(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, cut so that no batch ends within a sample."""
    left: list[pa.RecordBatch] = []
    for batch in batches:
        together = pa.concat_batches([*left, batch])
        *_, last = [0, *_ends(together)[:-1]]
        yield from [together.slice(0, last)] if last else []
        left = [together.slice(last)]
    yield from left


def by_sample(batch: pa.RecordBatch, column: str) -> list[list[Any]]:
    """A column's values, a list for each sample."""
    values, ends = batch.column(column).to_pylist(), _ends(batch)
    return [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def answer(batch: pa.RecordBatch, family: str, **columns: Any) -> pa.RecordBatch:
    """The keys of a batch, and a family's columns."""
    schema = pa.schema([*KEY, *MEASURED[family]])
    arrays = [batch.column(name) for name, _ in KEY]
    arrays += [pa.array(columns[name], kind) for name, kind in MEASURED[family]]
    return pa.record_batch(arrays, schema=schema)


def _ends(batch: pa.RecordBatch) -> list[int]:
    """Where each sample ends."""
    ends: list[int] = pc.run_end_encode(batch.column("sample_id")).run_ends.to_pylist()
    return ends
