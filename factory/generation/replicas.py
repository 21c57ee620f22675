"""The replicas of a step: processes that pull shards from one queue, started again if they die."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from factory.errors import StepFailed
from factory.generation.placement import Place
from factory.generation.queue import finished, release
from factory.progress import following
from factory.records import RunDirectory
from factory.workers import (
    SECONDS_BETWEEN_LOOKS,
    Worker,
    forget_workers,
    module_command,
    report_of,
)

DEATHS = 3  # in a row, without a shard finished between them


def run_replicas(
    run: RunDirectory, module: str, key: str, lock: int, places: Sequence[Place], folder: Path
) -> None:
    """Run `python -m MODULE RUN_DIR KEY REPLICA` in every place until the queue is empty.

    A replica that dies without a word is started again, and its unfinished shards are given back.

    Raises:
        Told: a replica ended with an error of its own; the others are stopped.
        StepFailed: a replica died again and again without finishing a shard.
    """
    forget_workers(run)
    step = module.rpartition(".")[2]
    names = [step if len(places) == 1 else f"{step}-{index}" for index in range(len(places))]

    def starting(index: int) -> Callable[[], Worker]:
        def start() -> Worker:
            command = module_command(module, run, key, str(index))
            with places[index].inherited():
                return Worker(run, names[index], command, lock, places[index].environment)

        return start

    replicas: list[_Replica] = []
    with following([report_of(run, name) for name in names]) as bar:
        try:
            replicas.extend(_Replica(i, folder, starting(i)) for i in range(len(places)))
            while [replica for replica in replicas if not replica.over()]:
                bar.look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            bar.look()
        finally:
            for replica in replicas:
                replica.worker.end()


class _Replica:
    """One place in the queue, whichever process holds it."""

    def __init__(self, index: int, folder: Path, start: Callable[[], Worker]) -> None:
        self._index, self._folder, self._start = index, folder, start
        self._deaths = self._shards = 0
        self.worker = start()

    def over(self) -> bool:
        """Whether it has come to the end of the queue; if it died, it is started again."""
        status = self.worker.status
        if status:
            self.worker.raise_told()
            self._count_death(status)
            release(self._folder, self._index)
            self.worker = self._start()
        return status == 0

    def _count_death(self, status: int) -> None:
        shards = len(finished(self._folder, self._index))
        self._deaths = 1 if shards > self._shards else self._deaths + 1
        self._shards = shards
        if self._deaths == DEATHS:
            raise StepFailed(
                f"{self.worker.log.stem}: its process died {DEATHS} times in a row, the last time "
                f"with status {status}: see {self.worker.log}, then run again to go on"
            )
