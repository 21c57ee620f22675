"""Heavy steps run in processes of their own: started, watched, and their failures told.

A worker's memory and threads go when it ends, and its libraries' noise goes to `logs/STEP.log`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from factory.errors import TELL_FAILURE_TO, SeqkdError, StepFailed, Told, tell_parent
from factory.files import read_json
from factory.progress import REPORT_TO, following
from factory.records import RunDirectory

PARENT = "SEQKD_PARENT_PID"
SECONDS_BETWEEN_LOOKS = 0.1
# Spinning threads are quicker on an idle machine, sleeping ones on a busy one: docs/decisions.md.
DEFAULTS = {"OMP_WAIT_POLICY": "passive"}


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
    report, failure = run.path(".progress.json"), run.path(".failure.json")
    log = run.path("logs", f"{step}.log")
    log.parent.mkdir(exist_ok=True)
    _forget(report, failure)
    told = {REPORT_TO: str(report), TELL_FAILURE_TO: str(failure), PARENT: str(os.getpid())}
    variables = {**DEFAULTS, **os.environ, **_import_path(), **(environment or {}), **told}
    with log.open("ab") as output, following(report) as bar:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            pass_fds=(lock,),
        )
        try:
            while process.poll() is None:
                bar.look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            bar.look()
        finally:
            _end(process)
    _raise_failure(run, step, process.returncode, failure)
    _forget(report, failure)


def module_command(module: str, run: RunDirectory, *arguments: str) -> list[str]:
    """The command that runs a module's worker entry on a run."""
    return [sys.executable, "-m", module, str(run.root), *arguments]


def launcher_command(
    module: str, run: RunDirectory, processes: int, port: int, options: Sequence[str]
) -> list[str]:
    """The command that runs a module under the DeepSpeed launcher, `processes` times.

    Raises:
        StepFailed: DeepSpeed's launcher is not installed beside this Python.
    """
    beside = Path(sys.executable).parent / "deepspeed"
    launcher = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if launcher is None:
        raise StepFailed("train: the deepspeed command is missing: pip install 'seqkd[train]'")
    ranks = ["--num_gpus", str(processes), "--master_port", str(port)]
    return [launcher, *ranks, *options, "--module", module, str(run.root)]


def worker_main(step: Callable[[RunDirectory, str], None]) -> None:
    """Entry of a worker process: `RUN_DIR KEY`; an error is left for the parent to tell."""
    root, key = sys.argv[1:3]
    try:
        step(RunDirectory(Path(root)), key)
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


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def _raise_failure(run: RunDirectory, step: str, status: int, failure: Path) -> None:
    if failure.is_file():
        told = read_json(failure)
        _forget(failure)
        raise Told(told["message"], told["exit_status"])
    if status:
        log = run.path("logs", f"{step}.log")
        raise StepFailed(
            f"{step}: its process ended with status {status}: see {log}, then run again to go on"
        )


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
