"""Families of signals: what is measured together, under one key, and what it needs to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from factory.manifest import Manifest
from factory.query.catalog import Connection
from factory.records import RunDirectory
from factory.schemas import KEY, MEASURED


@dataclass(frozen=True, slots=True)
class Measuring:
    """What a family needs to measure the candidates of a run.

    `lock` is the run's lock, for worker processes; None where nobody holds it.
    """

    run: RunDirectory
    manifest: Manifest
    connection: Connection
    lock: int | None


@dataclass(frozen=True, slots=True)
class Family:
    """Signals that are computed together.

    `settings` is what shapes them beside the candidates, as JSON for the key; None: there is
    nothing to measure, and the columns are NULL. `measure` yields batches of sample_id, rank and
    the columns, in any order; without it, `sql/signals/NAME.sql` selects them. `check` raises what
    is wrong with the manifest's part in them, before there is any data.
    """

    name: str
    settings: Callable[[RunDirectory, Manifest], Any] = lambda *_: {}
    measure: Callable[[Measuring], Iterator[pa.RecordBatch]] | None = None
    check: Callable[[Manifest], None] = lambda _: None

    @property
    def schema(self) -> pa.Schema:
        """The key and the columns."""
        return pa.schema([*KEY, *MEASURED[self.name]])


def library(name: str) -> Callable[[RunDirectory, Manifest], dict[str, str]]:
    """Settings of a family that the library of that name measures: its version."""
    return lambda *_: {name: version(name)}


def distributions(run: RunDirectory, manifest: Manifest) -> list[str]:
    """Settings of a family that reads the stored distributions: their files' SHA-256."""
    del manifest
    return [file["sha256"] for file in run.files("logits")]
