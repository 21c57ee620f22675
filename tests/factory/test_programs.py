"""A user's command: what it is given, the number it prints, and one line where it gives none."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from factory.errors import ManifestError, StepFailed
from factory.evaluation import Program
from factory.manifest import Prompt
from factory.programs import check_programs, program_files, program_signature, run_program
from factory.prompting.prompts import Prompter
from factory.steps import Plan, evaluate_key
from tests.runs import make_run

ROWS = [
    {"sample_id": "a", "source": "x", "prediction": "été\u2028", "reference": "y z"},
    {"sample_id": "b", "source": "x", "prediction": "", "reference": "y"},
]


def python(code: str, **settings) -> Program:
    return Program(command=shlex.join([sys.executable, "-c", code]), **settings)


@pytest.mark.parametrize(
    ("printed", "number"),
    [("0.25", 0.25), ("loading\n\n-3e2\n\n", -300.0), (" 7 ", 7.0)],
)
def test_the_last_line_is_the_number(printed, number):
    assert run_program("own", python(f"print({printed!r})"), ROWS) == number


def test_a_command_reads_json_lines():
    code = (
        "import sys, json; rows = [json.loads(line) for line in sys.stdin.buffer];"
        f"print(float(rows == {ROWS!r}))"
    )
    assert run_program("own", python(code), ROWS) == 1.0


def test_a_command_need_not_read_and_may_say_much():
    code = "import sys; sys.stderr.write('noise ' * 100_000); print(5)"
    assert run_program("own", python(code), ROWS * 20_000) == 5.0


FAILING = {
    "import sys; sys.stderr.write('first\\nno GPU\\n'); sys.exit(3)": "ended with status 3: no GPU",
    "print('good')": "printed 'good', and no number",
    "print('nan')": "printed 'nan', and no number",
    "print(float('inf'))": "printed 'inf', and no number",
    "import sys; sys.stderr.write('hm')": "printed no number: hm",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "ended with status -9",
}


@pytest.mark.parametrize(("code", "what"), FAILING.items())
def test_a_command_that_gives_no_number_is_one_line(code, what):
    with pytest.raises(StepFailed) as failed:
        run_program("own", python(code), ROWS)
    told = str(failed.value)
    assert told.startswith("evaluate.metrics.own: ")
    assert told.endswith(what)
    assert "\n" not in told


def state_of(process: int) -> str:
    """The letter that the kernel has for it."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"


@pytest.mark.timeout(60)  # what it started would sleep for ten minutes
@pytest.mark.parametrize("then", ["wait", "echo 1"])
def test_a_command_that_hangs_is_ended_with_all_that_it_started(then: str, tmp_path: Path):
    """It waits itself, or has gone and left something that holds its output."""
    started = tmp_path / "started"
    command = f"sleep 600 & echo $! > {shlex.quote(str(started))}; {then}"
    with pytest.raises(StepFailed, match=r"took more than 2 s$"):
        run_program("own", Program(command=command, shell=True, timeout=2), ROWS)
    child = int(started.read_text())
    while state_of(child) not in ("gone", "Z"):  # killed, and the kernel may take its time
        time.sleep(0.01)


def test_no_shell_stands_between_unless_asked_for(tmp_path: Path):
    plain = Program(command="echo 1; touch made", folder=str(tmp_path))
    with pytest.raises(StepFailed, match="printed '1; touch made', and no number"):
        run_program("own", plain, ROWS)
    assert os.listdir(tmp_path) == []
    asked = Program(command="cat | wc -l", folder=str(tmp_path), shell=True)
    assert run_program("own", asked, ROWS) == 2.0


def test_a_command_starts_in_its_folder_and_its_files_are_in_its_signature(tmp_path: Path):
    script = tmp_path / "score.py"
    script.write_text("print(42)\n")
    program = Program(command=f"{sys.executable} score.py --fast", folder=str(tmp_path))
    assert run_program("own", program, ROWS) == 42.0
    digest = hashlib.sha256(b"print(42)\n").hexdigest()[:12]
    assert program_signature(program) == f"command:{program.command}|score.py:{digest}"
    script.write_text("print(43)\n")
    assert digest not in program_signature(program)


def test_a_script_is_a_file_of_the_command_and_an_interpreter_is_none(tmp_path: Path):
    (tmp_path / "score").write_text("#!/bin/sh\necho 1\n")
    (tmp_path / "python").write_text("a name like a program's")
    named = {
        "./score": {"./score"},
        "python score": {"score"},
        f"{sys.executable} -c {'1;' * 400}": set(),
        "cat score ./python": {"score", "./python"},
    }
    for command, files in named.items():
        assert set(program_files(Program(command=command, folder=str(tmp_path)))) == files


def test_a_script_that_changes_is_asked_anew(tmp_path: Path):
    script = tmp_path / "score.py"
    script.write_text("print(1)")
    own = {"own": {"command": "python score.py", "folder": str(tmp_path)}}
    run = make_run(tmp_path / "run", evaluate={"metrics": [own]})
    plan = Plan(run.manifest(), None, Prompter(None, Prompt(template="{source}")), None)
    before = evaluate_key(plan, run)
    assert evaluate_key(plan, run) == before
    script.write_text("print(2)")
    assert evaluate_key(plan, run) != before


WRONG = {
    "": "is empty: name a program",
    "python 'x": "no closing quotation: mend the quotes",
    "no-such-program --x": "there is no program 'no-such-program': install it, or give its path",
    "./score.py": "there is no program './score.py': install it, or give its path",
}


@pytest.mark.parametrize(("command", "remedy"), WRONG.items())
def test_what_cannot_start_is_known_before(command, remedy, tmp_path: Path):
    program = Program(command=command, folder=str(tmp_path))
    with pytest.raises(ManifestError) as refused:
        check_programs({"own": program})
    assert str(refused.value) == f"evaluate.metrics.own.command: {command!r}: {remedy}"


def test_a_folder_that_is_none_is_known_before(tmp_path: Path):
    program = Program(command="echo 1", folder=str(tmp_path / "none"))
    with pytest.raises(ManifestError, match=r"evaluate\.metrics\.own\.folder: .* is no folder"):
        check_programs({"own": program})
