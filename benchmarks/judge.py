"""What it takes to judge a million candidates, and to judge them anew.

    python benchmarks/judge.py --run RUN [--rows 1000000] [--library-rows 20000] [--keep DIR]

A run is made of copies of RUN's sources, candidates and distributions, under ids of their own: in
copy k word number k of source and target is turned round, and every odd copy has a number behind
it, another one in the target of every seventh source. Then `seqkd judge` runs as it is, with the
default rules and those on repetition, numbers and letters over the signals measured in SQL; again
with another threshold, so that signals stand; and over a smaller run with the families that
libraries measure. Each command is a process of its own, its peak that of the largest process under
it. A family's seconds are those between its part and the one before it, from the run's lock on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.files import write_json
from factory.query.catalog import Connection, connect, parquet, quoted
from factory.records import RunDirectory
from factory.shards import record_file

IN_SQL = ("text", "repetition", "confidence", "duplicates")
IN_LIBRARIES = ("text", "language", "similarity", "agreement", "near")
RULES = {
    IN_SQL: "error, truncated, empty, copy, duplicate, repetition, numbers, letters, length_ratio",
    IN_LIBRARIES: "error, truncated, empty, copy, length_ratio",
}
MACROS = """
CREATE TEMP MACRO turned(text, k) AS array_to_string(list_transform(
    string_split(text, ' '), lambda word, i: CASE WHEN i = k THEN reverse(word) ELSE word END
), ' ');
CREATE TEMP MACRO numbered(text, k, number) AS
    turned(text, k) || CASE WHEN k % 2 = 1 THEN ' ' || number ELSE '' END;
CREATE TEMP MACRO named(id, k) AS CASE WHEN k = 0 THEN id ELSE left(sha256(id || k), 20) END;
CREATE TEMP MACRO wrong(id) AS (CASE WHEN hash(id) % 7 = 0 THEN 1 ELSE 0 END);
"""


@dataclass(frozen=True)
class Cost:
    """Of a command: seconds in all, of them at work on all cores, by family, and peak MiB."""

    seconds: float
    work: float
    families: dict[str, float]
    peak: float


def main() -> None:
    """Print what the signals, the rules and a changed threshold cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--library-rows", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, help="make the runs here, and leave them")
    options = parser.parse_args()
    source = RunDirectory.existing(options.run)
    with tempfile.TemporaryDirectory() as aside:
        folder = options.keep or Path(aside)
        asked = vars(options)
        for rows, families in ((asked["rows"], IN_SQL), (asked["library_rows"], IN_LIBRARIES)):
            if rows:
                report(*make(source, folder / f"{families[-1]}-{rows}", rows), families)


def report(run: RunDirectory, rows: int, families: tuple[str, ...]) -> None:
    """Judge twice, the second time with another threshold, and print both."""
    first, again = (judge(run, families, other) for other in ("", ": {max: 1.5}"))
    print(f"\n{rows:,} candidates{'seconds':>15}{'candidates/s':>15}{'CPU s':>8}{'peak MiB':>10}")
    for name, seconds in first.families.items():
        print(f"{name:25}{seconds:10.1f}{rows / max(seconds, 1e-3):15,.0f}")
    for name, cost in (("seqkd judge", first), ("another threshold", again)):
        print(f"{name:25}{cost.seconds:10.1f}{rows / cost.seconds:15,.0f}", end="")
        print(f"{cost.work:8.1f}{cost.peak:10,.0f}")


def judge(run: RunDirectory, families: tuple[str, ...], last: str) -> Cost:
    """Run `seqkd judge`, measuring some families; `last` is what the last rule is told."""
    settings = [f"judge.signals=[{', '.join(families)}]", f"judge.rules=[{RULES[families]}{last}]"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "factory.cli", "judge", str(run.root), *arguments]
    began, started = time.time(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    seconds, work = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    return Cost(seconds, work, _families(run, began), usage.ru_maxrss / 1024)


def _families(run: RunDirectory, began: float) -> dict[str, float]:
    """Seconds between what was written since, in the order in which it was."""
    parts = [*run.root.glob("signals/*/*.parquet"), *run.root.glob("verdicts/*/*.parquet")]
    written = sorted((path.stat().st_mtime, path) for path in parts)
    last, seconds = run.path("run.lock").stat().st_mtime, dict[str, float]()
    for at, path in written:
        if at > began:
            name = {"signals": "side by side", "verdicts": "rules, selection"}[path.parts[-3]]
            seconds[path.stem if path.stem != "part-0" else name] = at - last
            last = at
    return seconds


def make(source: RunDirectory, root: Path, rows: int) -> tuple[RunDirectory, int]:
    """A run of at least so many candidates, made of whole shards of copies of another's."""
    run = RunDirectory(root)
    if run.path("run.json").is_file():
        run.forget(("judge",))
        shutil.rmtree(run.path("signals"), ignore_errors=True)
        return run, sum(shard["candidates"] for shard in run.shard_records())
    run.adopt(source.manifest())
    made = copies = 0
    with connect(source) as connection:
        connection.execute(MACROS)
        while made < rows:
            for shard in source.shard_records():
                if made < rows:
                    made += _copy_shard(run, source, connection, shard, copies)
            copies += 1
        record = source.record()
        record["steps"]["samples"]["files"] = _copy_samples(run, source, connection, copies)
    for later in ("score", "judge", "train", "evaluate", "card"):
        record["steps"].pop(later, None)
    write_json(run.path("run.json"), record)
    return run, made


def _copy_shard(
    run: RunDirectory, source: RunDirectory, connection: Connection, shard: dict[str, Any], k: int
) -> int:
    number = k * len(source.shard_records()) + shard["shard"]
    files = []
    for file in shard["files"]:
        path = run.path(file["table"], f"{number:05d}.parquet")
        relation = parquet([source.path(file["path"])])
        _write(connection, path, _changed(relation, file["table"], k))
        files.append(record_file(run, path, file["table"]))
    copied = shard | {"shard": number, "files": files}
    write_json(run.path("shards", f"{number:05d}.json"), copied)
    candidates: int = shard["candidates"]
    return candidates


def _copy_samples(
    run: RunDirectory, source: RunDirectory, connection: Connection, copies: int
) -> list[dict[str, Any]]:
    """The samples of all copies, and held-out ones once; the other files as they are."""
    files = []
    for file in source.step("samples")["files"]:
        path = run.path(file["path"])
        relation = parquet([source.path(file["path"])])
        if file["table"] == "samples":
            learnt = f"FROM ({relation}) WHERE split IN ('train', 'unlabeled')"
            parts = [_changed(learnt, "samples", k) for k in range(1, copies)]
            relation = " UNION ALL ".join([relation, *parts])
        _write(connection, path, relation)
        files.append(record_file(run, path, file["table"]))
    return files


def _changed(relation: str, table: str, k: int) -> str:
    """SQL of copy k of a table's rows."""
    changed = f"named(sample_id, {k}) AS sample_id"
    if k and table == "samples":
        text = f"numbered(source, {k}, {k})"
        changed += f", replace(prompt, source, {text}) AS prompt, {text} AS source"
    if k and table == "candidates":
        changed += f", numbered(text, {k}, {k} + wrong(sample_id)) AS text"
    return f"SELECT * REPLACE ({changed}) FROM ({relation})"


def _write(connection: Connection, path: Path, query: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection.execute(
        f"COPY ({query}) TO {quoted(str(path))} "
        "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 4096)"
    )


if __name__ == "__main__":
    main()
