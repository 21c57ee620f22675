"""A family's SQL over candidates made by hand, without a run: for tables and properties."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import duckdb
import pyarrow as pa

from factory import schemas
from factory.query.catalog import shipped_sql


def measured(family: str, pairs: Iterable[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """The signals of one candidate for each (source, text), in their order."""
    given = list(enumerate(pairs))
    samples = [{"sample_id": f"{i:09}", "source": s, "prompt": s} for i, (s, _) in given]
    candidates = [
        {"sample_id": f"{i:09}", "rank": 0, "text": t, "error": None if t is not None else "failed"}
        for i, (_, t) in given
    ]
    with duckdb.connect() as connection:
        for name, rows, schema in (
            ("samples", samples, schemas.SAMPLES),
            ("candidates", candidates, schemas.CANDIDATES),
        ):
            connection.register(name, pa.Table.from_pylist(rows, schema=schema))
        query = f"FROM ({shipped_sql('signals', family)}) ORDER BY sample_id"
        return connection.sql(query).to_arrow_table().to_pylist()
