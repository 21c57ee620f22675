"""What a pilot of N sources says about the whole: time, bytes and cost."""

from __future__ import annotations

from typing import Any

from factory.records import RunDirectory

# Steps whose time grows with the sources; scoring and cards do not.
GROWING = ("generate", "judge", "train")


def extrapolate(run: RunDirectory, price_per_hour: float | None) -> dict[str, Any]:
    """Scale a pilot's measured time and bytes to all sources.

    Loading a model is counted once, not scaled.

    Returns:
        sources and pilot sources, factor, seconds by step and in all, bytes, and cost in the
        currency of `price_per_hour` (None without a price).
    """
    record = run.record()
    done = record["steps"]
    read = done["samples"]["rows"]
    whole = read.get("train", 0) + read.get("unlabeled", 0)
    factor = whole / max(1, min(record["limit"], whole))
    seconds = {step: _scaled(step, done[step], factor) for step in done}
    total = sum(seconds.values())
    return {
        "sources": whole,
        "pilot_sources": min(record["limit"], whole),
        "seconds": {step: round(value, 1) for step, value in seconds.items()},
        "total_seconds": round(total, 1),
        "bytes": round(done.get("generate", {}).get("bytes", 0) * factor),
        "cost": None if price_per_hour is None else round(total / 3600 * price_per_hour, 2),
    }


def _scaled(step: str, figures: dict[str, Any], factor: float) -> float:
    seconds = float(figures.get("wall_seconds", figures["seconds"]))
    if step not in GROWING:
        return seconds
    fixed = min(seconds, float(figures.get("load_seconds", 0.0)))
    return fixed + (seconds - fixed) * factor
