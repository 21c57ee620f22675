"""What users get wrong: one line with place, value and remedy; status 2; nothing written."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory import cli
from tests.mistakes import MANIFESTS, REMOVED, SETTINGS, SOURCES, TEXTS, Edits
from tests.mistakes_of_decoding import DECODINGS
from tests.mistakes_of_evaluating import EVALUATIONS
from tests.mistakes_of_judging import JUDGINGS
from tests.mistakes_of_training import STAGINGS
from tests.models import manifest_tree, write_corpus, write_manifest_file

SIZES = {"train": 6, "validation": 2, "test": 2}


# name: (the command, what the line begins with, words it holds)
COMMANDS: dict[str, tuple[list[str], str, list[str]]] = {
    "no manifest": (["run", "no.yaml"], "no.yaml:", ["cannot be read: No such file"]),
    "a folder that is no run": (["judge", "corpus"], "corpus:", ["is not a run directory"]),
    "status of no run": (["status", "corpus"], "corpus:", ["start one with seqkd run MANIFEST"]),
    "verify of no run": (["verify", "nowhere"], "nowhere:", ["is not a run directory"]),
    "sql of no run": (["sql", "corpus", "SELECT 1"], "corpus:", ["is not a run directory"]),
    "inspect of no run": (["inspect", "corpus"], "corpus:", ["is not a run directory"]),
    "judge before generate": (
        ["judge", "manifest.yaml"],
        "{cwd}/runs/tiny:",
        ["judge needs generate: seqkd generate first, or seqkd run"],
    ),
    "init into a full folder": (["init", "corpus"], "corpus:", ["is not empty: name a new folder"]),
}


@pytest.fixture
def cwd(tmp_path: Path, tiny_llama: Path, monkeypatch) -> Path:
    """A working folder with a corpus, a manifest that is right, and teachers that are not."""
    right = manifest_tree(
        tmp_path / "corpus", tiny_llama, data=write_corpus(tmp_path / "corpus", **SIZES)
    )
    write_manifest_file(tmp_path / "manifest.yaml", right)
    config = (tiny_llama / "config.json").read_text()
    narrow = json.dumps(json.loads(config) | {"head_dim": 16})
    wrong = {"no-vocabulary": "{}", "no-json": "[1", "narrow-heads": narrow}
    for name, text in {"no-tokenizer": config, **wrong}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(manifest: Path, edits: Edits, t5: Path) -> None:
    tree = json.loads(manifest.read_text())
    for key, value in copy.deepcopy(edits).items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
        if value is REMOVED:
            del node[last]
    manifest.write_text(json.dumps(tree).replace("{t5}", str(t5)))


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refuse(cwd: Path, command: list[str], place: str, words: list[str], capsys, monkeypatch):
    """Run a command that must fail as a user's mistake does."""
    before = files(cwd)
    monkeypatch.setattr(sys, "argv", ["seqkd", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert ended.value.code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("seqkd: " + place.replace("{cwd}", str(cwd))), err
    for word in words:
        assert word in lines[0]
    assert out == ""
    assert files(cwd) == before


@pytest.fixture(scope="module", autouse=True)
def without_an_accelerator() -> Iterator[None]:
    """Some mistakes are mistakes on a CPU alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("factory.steps.has_cuda", lambda: False)
        yield


EDITED = MANIFESTS | DECODINGS | JUDGINGS | EVALUATIONS | STAGINGS


@pytest.mark.parametrize("name", EDITED)
def test_manifests(name: str, cwd: Path, tiny_t5: Path, capsys, monkeypatch) -> None:
    edits, place, words = EDITED[name]
    edit(cwd / "manifest.yaml", edits, tiny_t5)
    refuse(cwd, ["run", "manifest.yaml"], place, words, capsys, monkeypatch)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, cwd: Path, capsys, monkeypatch) -> None:
    setting, place, words = SETTINGS[name]
    refuse(cwd, ["run", "manifest.yaml", "--set", setting], place, words, capsys, monkeypatch)


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name: str, cwd: Path, tiny_t5: Path, capsys, monkeypatch) -> None:
    contents, edits, place, words = SOURCES[name]
    for file, content in contents.items():
        (cwd / "corpus" / file).write_bytes(content)
    edit(cwd / "manifest.yaml", edits, tiny_t5)
    refuse(cwd, ["run", "manifest.yaml"], place, words, capsys, monkeypatch)
    refuse(cwd, ["check", "manifest.yaml"], place, words, capsys, monkeypatch)


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, cwd: Path, capsys, monkeypatch) -> None:
    text, place, words = TEXTS[name]
    (cwd / "manifest.yaml").write_bytes(text)
    refuse(cwd, ["check", "manifest.yaml"], place, words, capsys, monkeypatch)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, cwd: Path, capsys, monkeypatch) -> None:
    command, place, words = COMMANDS[name]
    refuse(cwd, command, place, words, capsys, monkeypatch)


def test_the_command_itself_ends_with_status_2(cwd: Path, tiny_t5: Path) -> None:
    edit(cwd / "manifest.yaml", {"logits.k": 5000}, tiny_t5)
    before = files(cwd)
    command = [sys.executable, "-m", "factory.cli", "run", "manifest.yaml"]
    path = {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    told = "seqkd: logits.k: 5000: is more than the teacher's vocabulary of 400: lower it\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", told)
    assert files(cwd) == before


def test_the_manifest_that_is_edited_is_right(cwd: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["seqkd", "check", "manifest.yaml", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["rows"] == SIZES
