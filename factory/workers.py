"""Heavy steps run in processes of their own: started, watched, and their failures told.

A worker's memory and threads go when it ends, and its libraries' noise goes to `logs/NAME.log`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from factory.errors import TELL_FAILURE_TO, SeqkdError, StepFailed, Told, tell_parent
from factory.files import read_json
from factory.launch import DeepSpeed, host_options
from factory.progress import REPORT_TO, following
from factory.records import RunDirectory

PARENT, PARENT_HOST = "SEQKD_PARENT_PID", "SEQKD_PARENT_HOST"
SECONDS_BETWEEN_LOOKS = 0.1
# Spinning threads are quicker on an idle machine, sleeping ones on a busy one: docs/decisions.md.
DEFAULTS = {"OMP_WAIT_POLICY": "passive"}


class Worker:
    """A process of ours: started with the run's lock; its progress, noise and last words in files.

    Attributes:
        report: where it reports its progress.
        log: where its libraries' noise goes.
    """

    def __init__(
        self,
        run: RunDirectory,
        name: str,
        command: Sequence[str],
        lock: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.report, self.log = report_of(run, name), run.path("logs", f"{name}.log")
        self._name, self._failure = name, run.path(f".failure-{name}.json")
        self.log.parent.mkdir(exist_ok=True)
        told = {REPORT_TO: str(self.report), TELL_FAILURE_TO: str(self._failure)}
        told |= {PARENT: str(os.getpid()), PARENT_HOST: socket.gethostname()}
        variables = {**DEFAULTS, **os.environ, **_import_path(), **(environment or {}), **told}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                pass_fds=(lock,),
            )

    @property
    def status(self) -> int | None:
        """The status it ended with; None while it is at work."""
        return self._process.poll()

    def raise_told(self) -> None:
        """Raise the error that it left for us, if it did.

        Raises:
            Told: it ended with an error of its own.
        """
        if self._failure.is_file():
            told = read_json(self._failure)
            self._failure.unlink()
            raise Told(told["message"], told["exit_status"])

    def end(self) -> None:
        """End the process, if it is still at work, and remove its report."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
        self._process.wait()
        self.report.unlink(missing_ok=True)


def run_worker(
    run: RunDirectory,
    step: str,
    command: Sequence[str],
    lock: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a worker process to its end, showing its progress.

    Raises:
        Told: the worker ended with an error of its own.
        StepFailed: it died without a word.
    """
    forget_workers(run)
    with following([report_of(run, step)]) as bar:
        worker = Worker(run, step, command, lock, environment)
        try:
            while worker.status is None:
                bar.look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            bar.look()
        finally:
            worker.end()
    worker.raise_told()
    if worker.status:
        raise StepFailed(
            f"{step}: its process ended with status {worker.status}: see {worker.log}, "
            "then run again to go on"
        )


def report_of(run: RunDirectory, name: str) -> Path:
    """Where the worker of that name reports its progress."""
    return run.path(f".progress-{name}.json")


def forget_workers(run: RunDirectory) -> None:
    """Remove what workers of a sitting that was killed have reported and told."""
    for kind in ("progress", "failure"):
        for path in run.root.glob(f".{kind}-*.json"):
            path.unlink(missing_ok=True)


def module_command(module: str, run: RunDirectory, *arguments: str) -> list[str]:
    """The command that runs a module's worker entry on a run."""
    return [sys.executable, "-m", module, str(run.root), *arguments]


def launcher_command(
    module: str, run: RunDirectory, processes: int, port: int, settings: DeepSpeed
) -> list[str]:
    """The command that runs a module under the DeepSpeed launcher, `processes` times.

    Raises:
        StepFailed: DeepSpeed's launcher is not installed beside this Python.
    """
    beside = Path(sys.executable).parent / "deepspeed"
    launcher = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if launcher is None:
        raise StepFailed("train: the deepspeed command is missing: pip install 'seqkd[train]'")
    where = ["--master_port", str(port), *host_options(settings, processes)]
    return [launcher, *where, "--module", module, str(run.root)]


def worker_main(step: Callable[..., None]) -> None:
    """Entry of a worker process: `RUN_DIR ARGUMENT…`; an error is left for the parent to tell."""
    root, *arguments = sys.argv[1:]
    try:
        step(RunDirectory(Path(root)), *arguments)
    except SeqkdError as error:
        sys.exit(tell_parent(error))


def stop_if_orphaned() -> None:
    """End a worker whose parent was killed, so that the next run finds the directory free.

    Raises:
        StepFailed: the parent is gone.
    """
    parent = os.environ.get(PARENT)
    if parent and os.getppid() != int(parent):
        raise StepFailed("the process that started this one is gone")


def _import_path() -> dict[str, str]:
    """Workers import what this process imports, wherever they are started from."""
    here = str(Path(__file__).resolve().parent.parent)
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{here}{os.pathsep}{others}" if others else here}
