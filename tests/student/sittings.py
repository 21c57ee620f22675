"""Sittings of trainings: `python -m tests.student.sittings RUN WORDS… [-- RUN WORDS…]…`.

A word `2` is a sitting of two processes, `2:8` one that is killed after its checkpoint of step 8
or later; `key=value` sets a key of the stage; `damage` cuts a file of the newest checkpoint short.
The processes are forks: what takes long, importing DeepSpeed, is done once. Prints, for each run,
the steps of the checkpoints that its sittings left, and -1 for a sitting that failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from factory.files import read_json
from factory.reading import load_manifest
from factory.records import RunDirectory
from student.entry import run_process
from student.train import train_run
from tests.student.tiny import free_port, with_processes

STAGE = "pseudolabel"


def sit(run: RunDirectory, processes: int, killed_at: int = 0) -> int:
    """One sitting; returns the step of the newest checkpoint at its end, or -1."""
    with_processes(run, processes)
    port = str(free_port())
    children = [_fork(run, processes, rank, port) for rank in range(processes)]
    newest = run.path("student", STAGE, "checkpoints", "newest.json")
    while killed_at and not (newest.is_file() and read_json(newest)["step"] >= killed_at):
        time.sleep(0.002)
    for child in children if killed_at else ():
        os.kill(child, signal.SIGKILL)
    failed = [os.waitpid(child, 0)[1] for child in children]
    return -1 if any(failed) and not killed_at else int(read_json(newest)["step"])


def _fork(run: RunDirectory, processes: int, rank: int, port: str) -> int:
    if child := os.fork():
        return child
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}
    sys.argv = ["", str(run.root), "train-key"]
    try:
        run_process(train_run)
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    finally:
        os._exit(1)


def damage(run: RunDirectory) -> None:
    """Cut the last file of the newest checkpoint in half."""
    folder = run.path("student", STAGE, "checkpoints")
    newest = read_json(folder / "newest.json")
    state = folder / newest["tag"] / newest["files"][-1]
    os.truncate(state, state.stat().st_size // 2)


def work(run: RunDirectory, words: list[str]) -> list[int]:
    """Do what the words say, in order; returns what the sittings returned."""
    steps = []
    for word in words:
        if word == "damage":
            damage(run)
        elif "=" in word:
            override = f"student.stages.{STAGE}.{word}"
            run.adopt(load_manifest(run.path("manifest.yaml"), [override]))
        else:
            processes, _, killed_at = word.partition(":")
            steps.append(sit(run, int(processes), int(killed_at or 0)))
    return steps


if __name__ == "__main__":
    told, given = {}, list(sys.argv[1:])
    while given:
        end = given.index("--") if "--" in given else len(given)
        root, *words = given[:end]
        told[Path(root).name] = work(RunDirectory(Path(root)), words)
        given = given[end + 1 :]
    print(json.dumps(told))
