"""How a process of the student begins and ends: quiet libraries, and an error told once."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from factory.errors import SeqkdError, StepFailed, tell_parent
from factory.records import RunDirectory

PARENT, PARENT_HOST = "SEQKD_PARENT_PID", "SEQKD_PARENT_HOST"
HERE = socket.gethostname()
SECONDS_TO_TELL = 1.0  # where one process ends, the launcher ends the others


def run_process(work: Callable[[RunDirectory, str], None]) -> NoReturn:
    """Do the work of a process, given `RUN_DIR KEY`; exit 0 done, 1 failed, 2 bad input.

    The launcher puts options of its own before them. An error of ours is one line, told by one
    process of those launched together; anything else keeps its traceback.
    """
    quieten()
    root, key = sys.argv[-2:]
    try:
        work(RunDirectory.existing(Path(root)), key)
    except SeqkdError as error:
        status = tell_parent(error) if first_rank() else error.exit_status
        time.sleep(0 if first_rank() else SECONDS_TO_TELL)
        sys.stderr.flush()
        os._exit(status)  # peers may wait for us: no orderly end of a process group
    sys.exit(0)


def first_rank() -> bool:
    """Whether this process is alone, or the first of those launched together."""
    return os.environ.get("RANK", "0") == "0"


def stop_if_abandoned() -> None:
    """End a process whose run was killed; a launcher stands between, so parents do not tell.

    Other hosts than the run's know nothing of its processes: there the launcher sees to it.

    Raises:
        StepFailed: the process named by SEQKD_PARENT_PID is gone.
    """
    parent = os.environ.get(PARENT)
    if parent is None or os.environ.get(PARENT_HOST, HERE) != HERE:
        return
    try:
        os.kill(int(parent), 0)
    except PermissionError:
        return
    except ProcessLookupError:
        raise StepFailed("the process that started this one is gone") from None


def quieten() -> None:
    """Keep libraries from telling what nobody asked."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch\..*")
