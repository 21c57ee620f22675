"""Near duplicates among the candidates, and sources that are near to one of the test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.files import TEMPORARY
from factory.judging.families import Measuring
from factory.judging.minhash import BANDS, Hashes, Shingles, bands, shingles
from factory.judging.texts import by_sample, measured
from factory.query.catalog import parquet, shipped_sql
from factory.schemas import KEY

NAME = "near"
BATCH = 1 << 14

BANDED = pa.schema(
    [*KEY, ("place", pa.int32()), ("bands", pa.list_(pa.uint64())), ("near_test", pa.bool_())]
)


def banded(batch: pa.RecordBatch, held: Hashes) -> pa.RecordBatch:
    """The bands of each pair of source and text, and whether the source shares any of `held`.

    Bands are NULL without text.
    """
    samples = list(zip(by_sample(batch, "source"), by_sample(batch, "text"), strict=True))
    sources = [shingles(source, "source") for (source, *_), _ in samples]
    near = np.isin(bands(sources), held).any(1) & np.array(list(map(bool, sources)))
    pairs = [
        set[str]() if text is None else source | shingles(text, "target")
        for source, (_, texts) in zip(sources, samples, strict=True)
        for text in texts
    ]
    sizes = [len(texts) for _, texts in samples]
    places = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    keys = [batch.column(name) for name, _ in KEY]
    columns = [places, _listed(pairs, batch.column("text").is_null()), np.repeat(near, sizes)]
    return pa.record_batch([*keys, *columns], schema=BANDED)


def _listed(pairs: Sequence[Shingles], failed: pa.Array) -> pa.Array:
    """Lists of bands: none for a pair without words, NULL for one without text."""
    there = np.array(list(map(bool, pairs)))
    offsets = pa.array(np.append(0, np.cumsum(there * BANDS)), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(bands(pairs)[there].ravel()), mask=failed)


def _held(work: Measuring) -> Hashes:
    """The bands of the test split's sources. Its gold stays unseen here as everywhere."""
    found = work.connection.sql("SELECT DISTINCT source FROM samples WHERE split = 'test'")
    sets = [shingles(source, "source") for (source,) in found.fetchall()]
    return np.unique(bands([each for each in sets if each]))


def measure_near(work: Measuring) -> Iterator[pa.RecordBatch]:
    """Measure which candidates are near to another's, or their sources to one of the test split.

    Raises:
        StepFailed: a worker process died.
    """
    path = work.run.path("signals", f"bands{TEMPORARY}")
    path.parent.mkdir(exist_ok=True)
    try:
        with pq.ParquetWriter(path, BANDED) as writer:
            function = partial(banded, held=_held(work))
            for batch in measured(work, NAME, function, ["source", "text"]):
                writer.write_batch(batch)
        with work.connection.cursor() as cursor:
            relation = parquet([path], options="file_row_number = true")
            cursor.execute(f"CREATE TEMP VIEW banded AS {relation}")
            yield from cursor.sql(shipped_sql("judge", "near")).to_arrow_reader(BATCH)
    finally:
        path.unlink(missing_ok=True)
