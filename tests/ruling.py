"""Rules and selection over signals made by hand, without a run: for tables and properties."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import duckdb
import pyarrow as pa

from factory.judging.verdicts import Ruling, count, lay_out
from factory.manifest import Manifest
from factory.schemas import SIGNALS
from tests.runs import MANIFEST, Row


def manifest_of(judge: Row, **sections: Any) -> Manifest:
    """A manifest with a section `judge`."""
    return Manifest.model_validate(MANIFEST | sections | {"judge": judge})


def ruled(rows: Iterable[Row], judge: Row) -> tuple[list[Row], Row, Row]:
    """Verdicts on candidates of given signals, in their order; the funnel; the thresholds."""
    ruling = Ruling.of(manifest_of(judge))
    table = pa.Table.from_pylist([{"error": False, "rank": 0} | row for row in rows], SIGNALS)
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("given", table)
        thresholds = lay_out(connection, "given", ruling)
        verdicts = connection.sql("FROM decided").to_arrow_table().to_pylist()
        return verdicts, count(connection, ruling), thresholds
