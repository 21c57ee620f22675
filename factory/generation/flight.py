"""The shards in flight: rows stream from the queue through an engine, complete shards to disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from factory.engines import Engine, EngineOptions, Request, Result, decode, open_engine
from factory.engines.base import does_not_fit
from factory.files import write_json
from factory.generation.queue import Queue
from factory.progress import progress
from factory.records import FileRecord, RunDirectory
from factory.workers import stop_if_orphaned

WAITING_WRITES = 2


@dataclass
class Shard:
    """A unit of work: its rows as planned, and the results that have come back so far.

    Attributes:
        results: by the row's place in the shard.
        checks: results of the requests that the shard's own results gave rise to, by key.
        awaited: results still to come.
    """

    number: int
    rows: pa.Table
    results: dict[int, Result] = field(default_factory=dict)
    checks: dict[str, Result] = field(default_factory=dict)
    awaited: int = 0

    def ordered(self) -> list[Result]:
        """The results in the order of the rows."""
        return [self.results[index] for index in range(len(self.rows))]


class Task(Protocol):
    """What a step asks of the engine row by row, and what it keeps of a shard.

    A shard N is asked for as `N:PLACE` row by row, and as `N:PLACE:NAME` when it is checked.
    """

    title: str
    replicas: int

    def request(self, key: str, row: dict[str, Any]) -> Request:
        """The request of one planned row."""

    def checks(self, shard: Shard) -> Iterator[Request]:
        """Requests that a shard's results give rise to; it is written once they are in too."""

    def write(self, shard: Shard) -> tuple[list[FileRecord], dict[str, Any]]:
        """Write a complete shard's parts; returns their records, and figures for the shard's."""


def fly(engine: Engine, queue: Queue, task: Task, run: RunDirectory, key: str, window: int) -> int:
    """Take shards from the queue until it is empty, and write them; returns tokens.

    The next shard is claimed as soon as the engine has room, and a complete one is written while
    the engine goes on: there is no barrier between shards.
    """
    flight = Flight(engine, queue, task, run, key)
    with flight, progress(task.title, queue.rows, queue.finished_rows()) as advance:
        for result in decode(engine, flight.requests(), window):
            stop_if_orphaned()
            advance(flight.take(result), rate=flight.rate())
    return flight.tokens


def fly_replica(
    run: RunDirectory,
    folder: str,
    key: str,
    replica: int,
    engine: tuple[str, EngineOptions],
    make_task: Callable[[], Task],
) -> None:
    """The whole life of a replica: load its engine, fly, leave its figures in its folder.

    Raises:
        EngineError: the engine cannot be opened.
    """
    began = time.monotonic()
    name, options = engine
    opened = open_engine(name, options)
    loaded = time.monotonic()
    with ExitStack() as stack:
        stack.callback(opened.close)
        queue = Queue(run.path(folder), replica)
        fly(opened, queue, make_task(), run, key, options.window)
    figures = {"load_seconds": loaded - began, "decode_seconds": time.monotonic() - loaded}
    write_json(run.path(folder, f"replica-{replica}.json"), figures)


class Flight:
    """Shards that are claimed and not yet written."""

    def __init__(
        self, engine: Engine, queue: Queue, task: Task, run: RunDirectory, key: str
    ) -> None:
        self._engine, self._queue, self._task = engine, queue, task
        self._run, self._key = run, key
        self._open: dict[int, Shard] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._writes: list[Future[None]] = []
        self._began = self._last = time.monotonic()
        self.tokens = 0

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, *failure: object) -> None:
        """Finish the writes under way; a write that failed fails the job."""
        self._writer.shutdown(wait=True)
        if failure[0] is None:
            self._settle(0)

    def requests(self) -> Iterator[Request]:
        """The rows of the queue as requests, shards claimed as the engine comes to them."""
        for number, rows in self._queue.shards():
            self._open[number] = Shard(number, rows, awaited=len(rows))
            for index, row in enumerate(rows.to_pylist()):
                yield self._task.request(f"{number}:{index}", row)

    def take(self, result: Result) -> int:
        """File a result with its shard, and have the shard written when it is complete.

        Returns:
            how many rows this is: none for a check.
        """
        number, place, *check = result.key.split(":")
        shard = self._open[int(number)]
        shard.awaited -= 1
        if check:
            shard.checks[result.key] = result
        else:
            shard.results[int(place)] = result
            self.tokens += tokens_of(result)
            if not shard.awaited:
                self._submit_checks(shard)
        if not shard.awaited:
            self._write(shard)
        self._settle(WAITING_WRITES)
        return int(not check)

    def rate(self) -> float:
        """Tokens per second so far."""
        return self.tokens / max(1e-9, time.monotonic() - self._began)

    def _submit_checks(self, shard: Shard) -> None:
        """The engine that made a shard's results has room: it is asked again at once."""
        for request in self._task.checks(shard):
            if unfit := does_not_fit(self._engine, request):
                shard.checks[request.key] = Result(request.key, [], unfit)
            else:
                self._engine.submit(request)
                shard.awaited += 1

    def _write(self, shard: Shard) -> None:
        del self._open[shard.number]
        now = time.monotonic()
        # Replicas work side by side: so the seconds of all shards add up to the step's.
        seconds, self._last = (now - self._last) / self._task.replicas, now
        self._writes.append(self._writer.submit(self._keep, shard, seconds))

    def _settle(self, allowed: int) -> None:
        """Wait until at most `allowed` writes are under way; raise what a write raised."""
        while self._writes and (len(self._writes) > allowed or self._writes[0].done()):
            self._writes.pop(0).result()

    def _keep(self, shard: Shard, seconds: float) -> None:
        """Write a shard: its parts first, its record last."""
        files, figures = self._task.write(shard)
        results = shard.ordered()
        record = {
            "shard": shard.number,
            "key": self._key,
            "samples": len(results),
            "tokens": sum(map(tokens_of, results)),
            "errors": sum(result.error is not None for result in results),
            "seconds": round(seconds, 3),
            "bytes": sum(self._run.path(file["path"]).stat().st_size for file in files),
            **figures,
            "files": files,
        }
        write_json(self._queue.record(shard.number), record)


def tokens_of(result: Result) -> int:
    """Target tokens of all hypotheses of a result."""
    return sum(len(h.token_ids) for h in result.hypotheses)
