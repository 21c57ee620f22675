"""How far a run is: shards, samples, tokens per second, time left, steps done."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from factory.generation.generate import count_pending
from factory.looking.training import duration, is_training, training, training_rows
from factory.progress import gathered
from factory.records import STEPS, RunDirectory


def status(run: RunDirectory) -> dict[str, Any]:
    """Where a run stands.

    Returns:
        `shards` (done, missing, failed: recorded ones with a file gone), `samples` (done, missing),
        `candidates`, `errors`, `tokens`, `tokens_per_second`, `seconds_left` of generation at the
        pace so far (None where unknown; what was imported has none), `scored` (targets by origin),
        `running` (title, done, total, note and rate of what is at work now, summed over replicas),
        `stages` (of the student's training: see `training`), and `steps` (step, key, finished,
        seconds).
    """
    records = run.shard_records()
    failed = [record["shard"] for record in records if not _whole(run, record)]
    done = {name: _sum(records, name) for name in ("samples", "tokens")}
    decoded = [record for record in records if "imported" not in record]
    seconds = sum(record["seconds"] for record in decoded)
    pending = None if failed or not run.step("samples") else _pending(run)
    size = run.manifest().generate.shard_size
    running = gathered(run.root.glob(".progress-*.json")) if run.held() else []
    return {
        "run": str(run.root),
        "shards": {
            "done": len(records) - len(failed),
            "missing": None if pending is None else math.ceil(pending / size),
            "failed": len(failed),
        },
        "samples": {"done": done["samples"], "missing": pending},
        "candidates": sum(record["candidates"] for record in records),
        "errors": sum(record.get("errors", 0) for record in records),
        "tokens": done["tokens"],
        "tokens_per_second": round(_sum(decoded, "tokens") / seconds, 1) if seconds else None,
        "seconds_left": _left(pending, _sum(decoded, "samples"), seconds),
        "scored": _scored(run),
        "running": running,
        "stages": training(run, running),
        "steps": _steps(run),
    }


def show_status(facts: dict[str, Any]) -> Table:
    """The facts of `status` as a table."""
    table = Table(title=facts["run"], title_justify="left", show_header=False)
    shards = ", ".join(f"{_count(n)} {name}" for name, n in facts["shards"].items())
    samples = ", ".join(f"{_count(n)} {name}" for name, n in facts["samples"].items())
    table.add_row("shards", shards)
    table.add_row("samples", samples)
    table.add_row("candidates", f"{_count(facts['candidates'])}, {facts['errors']:,} with an error")
    table.add_row("tokens", f"{facts['tokens']:,}, {_count(facts['tokens_per_second'])} a second")
    table.add_row("time left", duration(facts["seconds_left"]))
    for origin, count in facts["scored"].items():
        table.add_row(f"scored {origin}", f"{count:,}")
    for work in facts["running"]:
        if not any(is_training(work, stage["stage"]) for stage in facts["stages"]):
            table.add_row(work["title"], f"{work['done']:,} of {_count(work['total'])}")
    for name, told in training_rows(facts["stages"]):
        table.add_row(name, told)
    for step in facts["steps"]:
        table.add_row(step["step"], f"done {step['finished']} in {duration(step['seconds'])}")
    return table


def _sum(records: list[dict[str, Any]], name: str) -> int:
    return sum(record[name] for record in records)


def _whole(run: RunDirectory, record: dict[str, Any]) -> bool:
    return all(run.path(file["path"]).is_file() for file in record["files"])


def _pending(run: RunDirectory) -> int:
    """Sources without a candidate; a run without a teacher waits for none."""
    return count_pending(run) if run.manifest().teacher else 0


def _left(pending: int | None, done: int, seconds: float) -> float | None:
    if pending is None or (pending and not done):
        return None
    return round(pending * seconds / done, 1) if pending else 0.0


def _scored(run: RunDirectory) -> dict[str, int]:
    scored: dict[str, int] = {}
    for record in run.score_records():
        told = record["samples"] - record["errors"]
        scored[record["origin"]] = scored.get(record["origin"], 0) + told
    return scored


def _steps(run: RunDirectory) -> list[dict[str, Any]]:
    steps = run.record()["steps"]
    kept = ("key", "finished", "seconds")
    return [{"step": s} | {k: steps[s][k] for k in kept} for s in STEPS if s in steps]


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:,}"
