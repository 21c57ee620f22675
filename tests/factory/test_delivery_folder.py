"""What `seqkd deliver` refuses before it starts a process: one line, status 2, nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from factory import cli, delivery
from factory.errors import StepFailed
from factory.files import replacing_folder, write_json
from factory.records import RunDirectory
from tests.runs import add_stage, make_run

STAGES = [{"name": "pseudolabel", "data": "pseudolabels"}, {"name": "gold", "data": "gold"}]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose first stage is trained."""
    student = {"init": {"model": "some/student"}, "stages": STAGES}
    made = make_run(tmp_path / "run", student=student)
    add_stage(made, "pseudolabel", [{"step": 1, "stage_step": 1, "loss": 1.0, "tokens": 1}])
    return made


def refused(capsys, monkeypatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["seqkd", "deliver", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--stage", "golden"], "--stage: 'golden': is no stage of this run: did you mean 'gold'?"),
        (["--stage", "gold"], "the stage gold is not trained: seqkd train first"),
        (["--format", "onnx"], "--format: 'onnx': is not known: known: ctranslate2, hf"),
        (["--dtype", "float8"], "--dtype: 'float8': is not known: did you mean"),
    ],
)
def test_what_is_not_there(run: RunDirectory, capsys, monkeypatch, options: list[str], line: str):
    out = run.root.with_name("out")
    assert line in refused(capsys, monkeypatch, str(run.root), str(out), *options)
    assert not out.exists()


def test_a_run_that_trained_nothing(tmp_path: Path, capsys, monkeypatch):
    none = make_run(tmp_path / "none")
    told = refused(capsys, monkeypatch, str(none.root), str(tmp_path / "out"))
    assert told.endswith("trains no student: give its manifest one, then seqkd train\n")
    student = {"init": {"model": "some/student"}, "stages": STAGES}
    untrained = make_run(tmp_path / "untrained", student=student)
    told = refused(capsys, monkeypatch, str(untrained.root), str(tmp_path / "out"))
    assert told.endswith("the student is not trained: seqkd train first\n")


def test_a_place_that_is_taken(run: RunDirectory, tmp_path: Path, capsys, monkeypatch):
    taken, inside = tmp_path / "taken", tmp_path / "taken" / "thesis.tex"
    taken.mkdir()
    inside.write_text("mine")
    for place, line in (
        (taken, "'thesis.tex': stands there, and is not ours"),
        (inside, "stands there, and is no folder: name another"),
    ):
        for force in ([], ["--force"]):
            assert line in refused(capsys, monkeypatch, str(run.root), str(place), *force)
    inside.unlink()
    write_json(taken / "seqkd.json", {"files": ["seqkd.json"]})
    told = refused(capsys, monkeypatch, str(run.root), str(taken))
    assert told.endswith("holds what was delivered before: --force replaces it\n")


def test_a_disk_that_is_too_full_is_told_before_a_byte_is_written(tmp_path: Path):
    with pytest.raises(StepFailed, match="takes up to 1,152,921,504,606,846,976 bytes, and"):
        delivery._require_room(tmp_path / "new" / "out", 1 << 60)
    delivery._require_room(tmp_path / "new" / "out", 1)


def interrupted(place: Path) -> None:
    with replacing_folder(place) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt


def test_a_folder_takes_its_name_whole_or_not_at_all(tmp_path: Path):
    """Ctrl-C in the middle leaves what stood there, and nothing beside it."""
    place = tmp_path / "out"
    with replacing_folder(place) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(KeyboardInterrupt):
        interrupted(place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (place / "a").read_text() == "first"
    with replacing_folder(place) as folder:
        (folder / "b").write_text("second")
    assert [path.name for path in place.iterdir()] == ["b"]
