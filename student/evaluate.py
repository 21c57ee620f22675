"""Process entry: `python -m student.evaluate RUN_DIR KEY` decodes the systems and scores them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import RunError, StepFailed
from factory.manifest import Manifest
from factory.query.catalog import connect
from factory.records import RunDirectory
from factory.schemas import EVALS
from factory.shards import write_part
from student.decode import decoded
from student.entry import PARENT, run_process
from student.scores import Texts, scores
from student.systems import System, system

TEXTS = """
    SELECT coalesce(p.text, ''), s.gold, s.source, s.sample_id
    FROM texts p JOIN samples s USING (sample_id)
    WHERE s.gold IS NOT NULL
    ORDER BY md5(s.sample_id), s.sample_id
"""
FIGURES = (
    "parameters", "tokens_per_second", "seconds", "tokens", "rows", "failed",
    "engine", "engine_asked", "decoding",
)  # fmt: skip


def evaluate(run: RunDirectory, key: str) -> None:
    """Decode what is not decoded yet, score all of it, and record the step under `key`.

    Raises:
        RunError: a split has no gold, or a system is missing.
        StepFailed: a decoding process died, or a metric's command gave no number.
    """
    began = time.monotonic()
    manifest = run.manifest()
    metrics = manifest.evaluate.named_metrics()
    records = {asked.name: _decoded(run, asked) for asked in _systems(run, manifest)}
    rows = [
        row
        for name, record in records.items()
        for texts in _texts(run, name, record)
        for row in scores(texts, metrics, manifest.evaluate.folds)
    ]
    table = pa.Table.from_pylist(rows, schema=EVALS)
    path = run.path("evals.parquet")
    files = [write_part(run, path, "evals", [table], EVALS, {"evaluate": key})]
    files += [file for record in records.values() for file in record["files"]]
    figures = {name: _figures(record) for name, record in records.items()}
    run.finish("evaluate", key, time.monotonic() - began, files=files, systems=figures)


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    """What the step tells of a system; texts decoded before a figure was kept go without it."""
    return {figure: record[figure] for figure in FIGURES if figure in record}


def _systems(run: RunDirectory, manifest: Manifest) -> list[System]:
    present = {"teacher": manifest.teacher, "student": manifest.student}
    return [system(run, manifest, n) for n in manifest.evaluate.systems if present[n]]


def _decoded(run: RunDirectory, asked: System) -> dict[str, Any]:
    """The record of a system's texts; a process of its own decodes what is not there."""
    if found := decoded(run, asked):
        return found
    command = [sys.executable, "-m", "student.decode", str(run.root), asked.name]
    environment = {**os.environ, PARENT: str(os.getpid())}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status in (1, 2):
        sys.exit(status)  # it has told its error
    made = decoded(run, asked)
    if status or made is None:
        raise StepFailed(f"evaluate: decoding the {asked.name} ended with status {status}")
    return made


def _texts(run: RunDirectory, name: str, record: dict[str, Any]) -> Iterator[Texts]:
    for file in record["files"]:
        path = run.path(file["path"])
        split = path.stem.removeprefix(f"{name}-")
        with connect(run) as connection:
            connection.register("texts", pq.read_table(path))
            rows = connection.execute(TEXTS).fetchall()
        if not rows:
            remedy = f"the {split} split has no gold: give data.{split}.target"
            raise RunError("evaluate.splits", split, remedy)
        yield Texts(name, record["stage"], split, *zip(*rows, strict=True))


if __name__ == "__main__":
    run_process(evaluate)
