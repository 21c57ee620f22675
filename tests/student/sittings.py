"""Sittings of a training, one after another: `python -m tests.student.sittings RUN WORDS…`.

A word `2` is a sitting of two processes, `2:8` one that is killed after its checkpoint of step 8
or later. The processes are forks: what takes long, importing DeepSpeed, is done once. Prints the
steps that each sitting left behind it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from factory.files import read_json
from factory.records import RunDirectory
from student.train import train_run
from tests.student.tiny import free_port, with_processes

STAGE = "pseudolabel"


def sit(run: RunDirectory, processes: int, killed_at: int = 0) -> int:
    """One sitting; returns the step of the newest checkpoint at its end."""
    with_processes(run, processes)
    port = str(free_port())
    children = [_fork(run, processes, rank, port) for rank in range(processes)]
    newest = run.path("student", STAGE, "checkpoints", "newest.json")
    while killed_at and not (newest.is_file() and read_json(newest)["step"] >= killed_at):
        time.sleep(0.002)
    for child in children if killed_at else ():
        os.kill(child, signal.SIGKILL)
    ended = [os.waitpid(child, 0)[1] for child in children]
    if not killed_at and any(ended):
        sys.exit(f"a sitting ended with {ended}")
    return int(read_json(newest)["step"])


def _fork(run: RunDirectory, processes: int, rank: int, port: str) -> int:
    if child := os.fork():
        return child
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}
    train_run(run, "train-key")
    os._exit(0)


if __name__ == "__main__":
    root, *words = sys.argv[1:]
    for word in words:
        processes, _, killed_at = word.partition(":")
        print(sit(RunDirectory(Path(root)), int(processes), int(killed_at or 0)), flush=True)
