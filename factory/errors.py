"""The one tree of errors. A library function raises; only the command line prints."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path


class SeqkdError(Exception):
    """Anything seqkd raises on purpose. Ends a command with `exit_status`, in one line."""

    exit_status = 1


class Told(SeqkdError):
    """An error of a worker process, with the words and the exit status it ended with."""

    def __init__(self, message: str, exit_status: int) -> None:
        self.exit_status = exit_status
        super().__init__(message)


class StepFailed(SeqkdError):
    """A step began and could not finish: an engine died, a disk filled, a process was killed."""


class DamagedFile(SeqkdError):
    """A file does not hold what its record says."""


class UserError(SeqkdError):
    """A mistake the user can mend: where it stands, what stands there, what to do instead."""

    exit_status = 2

    def __init__(self, place: object, value: object, remedy: str) -> None:
        self.place, self.value, self.remedy = str(place), value, remedy
        shown = "" if value is None else f" {_short(value)}:"
        super().__init__(" ".join(f"{place}:{shown} {remedy}".splitlines()))


class ManifestError(UserError):
    """A manifest that cannot be run as it stands."""


class SourceError(UserError):
    """An input row, or a whole input file, that cannot be used."""


class PromptError(UserError):
    """A prompt or tokenizer that does not fit the data or the teacher."""


class EngineError(UserError):
    """An engine that is not installed here, or cannot do what is asked of it."""


class QueryError(UserError):
    """SQL that is not one fenced, reading statement, or that DuckDB refuses."""


class RunError(UserError):
    """A run directory in a state that does not allow what is asked."""


TELL_FAILURE_TO = "SEQKD_FAILURE"


def tell_parent(error: SeqkdError) -> int:
    """Leave an error where the parent process looks for it; returns the status to exit with."""
    told = {"message": str(error), "exit_status": error.exit_status}
    if place := os.environ.get(TELL_FAILURE_TO):
        Path(place).write_text(json.dumps(told), encoding="utf-8")
    else:
        sys.stderr.write(f"seqkd: {error}\n")
    return error.exit_status


def nearest(word: str, known: Iterable[str]) -> str:
    """Name the known word closest to `word`, as the tail of a remedy."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(options)}"


def _short(value: object, width: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"
