"""What a pilot of N sources says about the whole: time, bytes and cost."""

from __future__ import annotations

from typing import Any

from factory.query.catalog import connect
from factory.records import RunDirectory


def extrapolate(run: RunDirectory, price_per_hour: float | None) -> dict[str, Any]:
    """Scale a pilot's measured time and bytes to all sources.

    Starting processes and loading models is counted once, not scaled. A small pilot does not fill
    the engine's window, so that the whole is rather faster than told.

    Returns:
        sources and pilot sources, factor, seconds by step and in all, bytes, and cost in the
        currency of `price_per_hour` (None without a price).
    """
    record = run.record()
    done = record["steps"]
    read = done["samples"]["rows"]
    whole = read.get("train", 0) + read.get("unlabeled", 0)
    factor = whole / max(1, min(record["limit"], whole))
    seconds = {
        step: figures.get("wall_seconds", figures["seconds"])
        + (factor - 1) * _growing(run, step, figures)
        for step, figures in done.items()
    }
    total = sum(seconds.values())
    return {
        "sources": whole,
        "pilot_sources": min(record["limit"], whole),
        "seconds": {step: round(value, 1) for step, value in seconds.items()},
        "total_seconds": round(total, 1),
        "bytes": round(done.get("generate", {}).get("bytes", 0) * factor),
        "cost": None if price_per_hour is None else round(total / 3600 * price_per_hour, 2),
    }


def _growing(run: RunDirectory, step: str, figures: dict[str, Any]) -> float:
    """The part of a step's seconds that grows with the sources; scores and cards have none."""
    if step in ("generate", "score"):
        return float(figures.get("decode_seconds", 0.0))
    if step == "train":
        return _optimiser_seconds(run)
    return float(figures["seconds"]) if step == "judge" else 0.0


def _optimiser_seconds(run: RunDirectory) -> float:
    """Seconds spent in optimiser steps; epochs are validated on as many rows in any case."""
    with connect(run) as database:
        query = "SELECT coalesce(sum(tokens / tokens_per_second), 0) FROM train_log"
        [(seconds,)] = database.execute(query).fetchall()
    return float(seconds)
