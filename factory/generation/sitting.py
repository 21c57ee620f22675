"""A sitting of a step that needs the teacher: plan frozen, replicas run, their figures summed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from factory.errors import ManifestError
from factory.files import read_json, sweep
from factory.generation.placement import places
from factory.generation.queue import Portion, clear, freeze
from factory.generation.replicas import run_replicas
from factory.records import RunDirectory


def freeze_plan(
    run: RunDirectory, folder: str, portions: Iterable[Portion], schema: pa.Schema
) -> int:
    """Remove what a killed sitting left, and freeze the next one's plan; returns its rows."""
    for swept in ("candidates", "logits", folder):
        sweep(run.path(swept))
    clear(run.path(folder))
    return freeze(run.path(folder), portions, schema, run.manifest().generate.shard_size)


def sit(
    run: RunDirectory, module: str, folder: str, key: str, lock: int, rows: int
) -> dict[str, Any]:
    """Have the replicas empty the queue in `folder`, which holds so many rows.

    Returns:
        the sitting's figures: seconds of loading and of decoding (of the slowest replica), rows,
        tokens, tokens per second; none where the queue is empty.

    Raises:
        ManifestError: there are more replicas than accelerators or cores.
        Told: a replica ended with an error of its own.
        StepFailed: a replica died again and again.
    """
    queue = run.path(folder)
    figures = {}
    if rows:
        teacher = run.manifest().teacher
        if teacher is None:
            raise ManifestError("teacher", None, "is missing: this step needs one")
        before = {path.name for path in queue.glob("[0-9]*.json")}
        run_replicas(run, module, key, lock, places(teacher), queue)
        done = [p for p in queue.glob("[0-9]*.json") if p.name not in before]
        figures = _figures(queue, rows, sum(read_json(path)["tokens"] for path in done))
    clear(queue)
    return figures


def _figures(queue: Path, rows: int, tokens: int) -> dict[str, Any]:
    told = [read_json(path) for path in queue.glob("replica-*.json")]
    load, decode = (max(t[name] for t in told) for name in ("load_seconds", "decode_seconds"))
    return {
        "load_seconds": round(load, 3),
        "decode_seconds": round(decode, 3),
        "decoded_sources": rows,
        "decoded_tokens": tokens,
        "tokens_per_second": round(tokens / decode, 1),
    }
