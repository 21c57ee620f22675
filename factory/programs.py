"""A user's command as a metric: predictions in as JSON lines, a number out."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from factory.errors import ManifestError, StepFailed
from factory.evaluation import Program
from factory.files import file_digest

DIGITS = 12


def check_programs(programs: Mapping[str, Program]) -> None:
    """See that every command can be started; none is.

    Raises:
        ManifestError: a command is empty or badly quoted, its folder is none, or its program is
            not to be found.
    """
    for name, program in programs.items():
        place = f"evaluate.metrics.{name}"
        words = _words(program, place)
        if not _folder(program).is_dir():
            raise ManifestError(f"{place}.folder", program.folder, "is no folder")
        if not program.shell and not _found(program, words[0]):
            remedy = f"there is no program {words[0]!r}: install it, or give its path"
            raise ManifestError(f"{place}.command", program.command, remedy)


def program_files(program: Program) -> dict[str, str]:
    """The files that a command names, and the SHA-256 of each, cut to 12 digits.

    An interpreter or another installed program is none of them.
    """
    first, *words = shlex.split(program.command)
    if "/" in first and not os.path.isabs(first):
        words.append(first)
    paths = {word: _folder(program) / word for word in words}
    # A word may be longer than a path can be: Path.is_file would raise.
    found = {word: path for word, path in paths.items() if os.path.isfile(path)}
    return {word: file_digest(path)[:DIGITS] for word, path in found.items()}


def program_signature(program: Program) -> str:
    """A command's words, and the digests of the files that they name."""
    shell = ["shell:yes"] if program.shell else []
    files = [f"{word}:{found}" for word, found in program_files(program).items()]
    return "|".join([f"command:{program.command}", *shell, *files])


def run_program(name: str, program: Program, rows: Iterable[Mapping[str, Any]]) -> float:
    """The number that a command prints of these rows: the last line of its standard output.

    Args:
        name: of the metric, for errors.
        program: the command and how it is started.
        rows: `sample_id`, `source`, `prediction`, `reference`, one JSON object a line.

    Raises:
        StepFailed: it cannot be started, fails, prints no finite number, or takes too long.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    process = _start(name, program)
    try:
        out, err = process.communicate(lines.encode(), timeout=program.timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise _failed(name, program, f"took more than {program.timeout:g} s", b"") from None
    finally:
        _end(process)
    if process.returncode:
        raise _failed(name, program, f"ended with status {process.returncode}", err)
    number = _number(_last_line(out))
    if number is None:
        printed = f"printed {_last_line(out)!r}, and no number" if out else "printed no number"
        raise _failed(name, program, printed, err)
    return number


def _start(name: str, program: Program) -> subprocess.Popen[bytes]:
    words = ["sh", "-c", program.command] if program.shell else shlex.split(program.command)
    try:
        return subprocess.Popen(
            words,
            cwd=_folder(program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
    except OSError as error:
        raise _failed(name, program, f"cannot be started: {error.strerror}", b"") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that is still at work, and close its pipes."""
    if process.poll() is None:
        _kill(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it started: something may hold its output when it is gone itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failed(name: str, program: Program, what: str, err: bytes) -> StepFailed:
    told = f": {line}" if (line := _last_line(err)) else ""
    return StepFailed(f"evaluate.metrics.{name}: {program.command!r} {what}{told}")


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _words(program: Program, place: str) -> list[str]:
    try:
        words = shlex.split(program.command)
    except ValueError as error:
        remedy = f"{str(error).lower()}: mend the quotes"
        raise ManifestError(f"{place}.command", program.command, remedy) from None
    if not words:
        raise ManifestError(f"{place}.command", program.command, "is empty: name a program")
    return words


def _found(program: Program, word: str) -> bool:
    """A program with a slash is looked for from where the command starts, any other on PATH."""
    return shutil.which(_folder(program) / word if "/" in word else word) is not None


def _folder(program: Program) -> Path:
    return Path(program.folder or ".")
