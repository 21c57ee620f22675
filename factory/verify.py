"""Re-reading every recorded file of a run against its checksum and row count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from factory.errors import DamagedFile
from factory.progress import progress
from factory.records import FileRecord, RunDirectory
from factory.shards import check_file


def verify(run: RunDirectory) -> dict[str, Any]:
    """Check every file that a record of the run names.

    Returns:
        `files`, `rows` and `bytes` that are as recorded, and `problems`: one line for each file
        that is missing, changed, or does not hold its rows, and for each shard miscounted.
    """
    recorded = list(_recorded(run))
    sound = {"files": 0, "rows": 0, "bytes": 0}
    problems = list(_miscounted(run))
    with progress("verifying", len(recorded)) as advance:
        for file in recorded:
            try:
                check_file(run, file)
            except DamagedFile as damage:
                problems.append(str(damage))
            else:
                sound["files"] += 1
                sound["rows"] += file["rows"] or 0
                sound["bytes"] += run.path(file["path"]).stat().st_size
            advance(1)
    return {**sound, "problems": problems}


def _recorded(run: RunDirectory) -> Iterator[FileRecord]:
    yield from run.files("train_log")  # first, for parts of it are taken up while a stage trains
    shards = [*run.shard_records(), *run.score_records()]
    records = [*shards, *run.stage_records(), *run.record()["steps"].values()]
    for record in records:
        yield from (f for f in record.get("files", ()) if f["table"] != "train_log")


def _miscounted(run: RunDirectory) -> Iterator[str]:
    for record in run.shard_records():
        rows = sum(file["rows"] for file in record["files"] if file["table"] == "candidates")
        if rows != record["candidates"]:
            path = run.path("shards", f"{record['shard']:05d}.json")
            yield f"{path}: counts {record['candidates']} candidates, its files hold {rows}"
