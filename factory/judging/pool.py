"""Batches mapped over processes, in order, for families of signals that a library measures.

Little is in flight, so memory does not grow with the run; what a worker raises, its parent raises.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait

import pyarrow as pa

from factory.errors import StepFailed

IN_FLIGHT = 3  # batches for each process: one at work, one to go on with, one done

Function = Callable[[pa.RecordBatch], pa.RecordBatch]

_functions: list[Function] = []  # of a worker: the one it is for


def mapped(
    function: Function, batches: Iterable[pa.RecordBatch], processes: int
) -> Iterator[pa.RecordBatch]:
    """`function` of every batch, in their order; in this process where it is to be one.

    Processes are spawned, not forked: this one has DuckDB's threads. `function` goes to each of
    them once, by pickle.

    Raises:
        StepFailed: a process died, for want of memory perhaps.
    """
    if processes == 1:
        yield from map(function, batches)
        return
    with _pool(function, processes) as pool:
        try:
            yield from _in_order(pool, batches, processes * IN_FLIGHT)
        except BrokenProcessPool as error:
            raise StepFailed("judge: a worker process died: is memory short? Run again") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(function: Function, processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, get_context("spawn"), _begin, (function,))


def _in_order(
    pool: ProcessPoolExecutor, batches: Iterable[pa.RecordBatch], most: int
) -> Iterator[pa.RecordBatch]:
    pending: deque[Future[pa.RecordBatch]] = deque()
    for batch in batches:
        pending.append(pool.submit(_apply, batch))
        if len(pending) == most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _begin(function: Function) -> None:
    """Make a worker ready: Ctrl-C is its parent's to answer, and it ends when its parent ends."""
    _functions.append(function)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    atexit.register(os._exit, 0)  # at once: DuckDB's bindings complain of a thread that waits


def _end_with_parent() -> None:
    if parent := parent_process():
        wait([parent.sentinel])
        os._exit(1)


def _apply(batch: pa.RecordBatch) -> pa.RecordBatch:
    [function] = _functions
    return function(batch)
