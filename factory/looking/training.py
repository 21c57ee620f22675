"""How far the training of a student is: stages done, the one at work, and what its log tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.files import read_json
from factory.progress import STEPS_OF_PACE, told_loss
from factory.records import LIVE_LOG, RunDirectory

Facts = dict[str, Any]
METRIC = "chrF"


def training(run: RunDirectory, running: Sequence[Facts]) -> list[Facts]:
    """Where each stage of a run's student stands, in manifest order; `running` is what is at work.

    Returns:
        for each stage its name (`stage`), `state` (done, training, stopped, waiting), `step` of
        `steps`, `checkpoint` (the step it would go on from), `loss` and `terms` of the last step
        logged, `tokens_per_second` over the last `STEPS_OF_PACE` steps, `seconds_left` of the stage
        at the pace so far, `logged_ago` in seconds, `note` (what it is at), and `validations`
        (step, epoch and score); None where there is nothing to tell.
    """
    student = run.manifest().student
    stages: list[Facts] = []
    for stage in student.stages if student else ():
        worked = any(known["state"] in ("training", "stopped") for known in stages)
        stages.append(_waiting(stage.name) if worked else _stage(run, stage.name, running))
    return stages


def training_rows(stages: Sequence[Facts]) -> Iterator[tuple[str, str]]:
    """Those stages that were begun, and what comes after them, in words."""
    if all(stage["state"] == "waiting" for stage in stages):
        return
    for number, stage in enumerate(stages, 1):
        place = f" ({number} of {len(stages)})" if len(stages) > 1 else ""
        told = ", ".join(TELL[stage["state"]](stage))
        scores = ", ".join(_validation(validation) for validation in stage["validations"])
        yield f"stage {stage['stage']}{place}", f"{told}\n{METRIC} {scores}" if scores else told


def is_training(work: Facts, stage: str) -> bool:
    """Whether a report of progress is of that stage's training."""
    title = f"training {stage}"
    return work["title"] == title or str(work["title"]).startswith(f"{title} (")


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if whole >= 60 else f"{seconds:.1f} s"


def _stage(run: RunDirectory, name: str, running: Sequence[Facts]) -> Facts:
    path = run.path("student", name, "stage.json")
    if path.is_file():
        record = read_json(path)
        done = sum(file["rows"] for file in record["files"] if file["table"] == "train_log")
        steps = {"step": done, "steps": record.get("planned_steps", done)}
        return _waiting(name) | steps | {"state": "done", "validations": _validations(record)}
    live = run.live_log(name)
    if live is None:
        return _waiting(name)
    works = [work for work in running if is_training(work, name)]
    last = _last_steps(run, live)
    done = sum(file["rows"] for file in live["files"])
    facts = {
        "state": "training" if works else "stopped",
        "step": max([done, *(work["done"] for work in works)]),
        "steps": live["planned_steps"],
        "checkpoint": _checkpoint(run, live),
        "seconds_left": _left(live, done) if works else None,
        "logged_ago": _age(run.path("student", name, LIVE_LOG)),
        "note": works[0]["note"] if works else None,
        "validations": _validations(live),
    }
    return _waiting(name) | facts | (_told(last) if last else {})


def _age(path: Path) -> float | None:
    return round(time.time() - path.stat().st_mtime, 1) if path.is_file() else None


def _waiting(name: str) -> Facts:
    numbers = ("step", "steps", "checkpoint", "loss", "terms", "tokens_per_second", "seconds_left")
    unknown: Facts = dict.fromkeys((*numbers, "logged_ago", "note"))
    return {"stage": name, "state": "waiting", **unknown, "validations": []}


def _validations(record: Facts) -> list[Facts]:
    told = [record.get(name, ()) for name in ("scored_steps", "scored_epochs", "scores")]
    return [{"step": s, "epoch": e, "score": score} for s, e, score in zip(*told, strict=False)]


def _last_steps(run: RunDirectory, live: Facts) -> list[Facts]:
    """The last steps of a log, at least `STEPS_OF_PACE` of them where it has as many."""
    tables: list[pa.Table] = []
    with suppress(FileNotFoundError):  # the stage has just ended: its parts are one file now
        for file in reversed(live["files"]):
            if sum(map(len, tables)) < STEPS_OF_PACE:
                tables.insert(0, pq.read_table(run.path(file["path"])))
    rows: list[Facts] = [row for table in tables for row in table.to_pylist()]
    return rows[-STEPS_OF_PACE:]


def _told(last: list[Facts]) -> Facts:
    tokens = sum(row["tokens"] for row in last)
    seconds = sum(row["tokens"] / row["tokens_per_second"] for row in last)
    pace = round(tokens / seconds, 1) if seconds else None
    return {
        "loss": last[-1]["loss"],
        "terms": dict(last[-1]["terms"]),
        "tokens_per_second": pace,
    }


def _checkpoint(run: RunDirectory, live: Facts) -> int:
    path = run.path("student", live["stage"], "checkpoints", "newest.json")
    newest = read_json(path) if path.is_file() else {}
    return int(newest["step"]) if newest.get("key") == live["key"] else 0


def _left(live: Facts, done: int) -> float | None:
    pace: float | None = live["seconds_per_step"]
    return None if pace is None else round(pace * (live["planned_steps"] - done), 1)


def _tell_done(stage: Facts) -> list[str]:
    early = f" of {stage['steps']:,}" if stage["step"] < stage["steps"] else ""
    return [f"done: {stage['step']:,}{early} steps"]


def _tell_training(stage: Facts) -> list[str]:
    told = [f"step {stage['step']:,} of {stage['steps']:,}"]
    if stage["note"]:
        told.append(stage["note"])
    if stage["tokens_per_second"]:
        told.append(f"{stage['tokens_per_second']:,.0f} tok/s")
    told.append(f"time left {duration(stage['seconds_left'])}")
    return [*told, f"logged {duration(stage['logged_ago'])} ago"]


def _tell_stopped(stage: Facts) -> list[str]:
    told = [f"stopped at step {stage['step']:,} of {stage['steps']:,}"]
    if stage["loss"] is not None:
        told.append(told_loss(stage["loss"], stage["terms"]))
    told.append(f"logged {duration(stage['logged_ago'])} ago")
    onward = f"goes on from step {stage['checkpoint']:,}" if stage["checkpoint"] else "begins anew"
    return [*told, f"seqkd run {onward}"]


def _validation(validation: Facts) -> str:
    return f"{validation['score']:.1f} at step {validation['step']:,}"


TELL: dict[str, Callable[[Facts], list[str]]] = {
    "done": _tell_done,
    "training": _tell_training,
    "stopped": _tell_stopped,
    "waiting": lambda _: ["waiting"],
}
