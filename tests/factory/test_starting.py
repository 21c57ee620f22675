"""`seqkd init`: what it writes can be checked as it stands, and nothing is overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from factory.checking import check_manifest
from factory.errors import RunError
from factory.reading import load_manifest
from factory.starting import start
from tests.models import manifest_tree, write_manifest_file


def test_what_it_writes_is_right(tmp_path: Path) -> None:
    written = start(tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["manifest.yaml", "train.jsonl", "test.jsonl"]
    assert sorted(written) == sorted((tmp_path / "new" / "folder").iterdir())
    figures = check_manifest(load_manifest(written[0]))
    assert figures["rows"] == {"train": 90, "test": 10}
    assert (figures["refused"], figures["in_test_too"]) == (0, 0)
    for path in written[1:]:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert json.loads(line).keys() == {"en", "fr"}


def test_the_commented_lines_are_right_too(tmp_path: Path, tiny_llama: Path) -> None:
    """Whoever names a teacher and takes the `#` away has a manifest that holds."""
    [manifest, *_] = start(tmp_path)
    text = manifest.read_text(encoding="utf-8").replace("path/or/hub-id", str(tiny_llama))
    body = text[text.index("\nname:") :]
    named = re.sub(r"^( *)# (?=\w+:|  \w+:|- \{)(?!unlabeled)", r"\1", body, flags=re.MULTILINE)
    manifest.write_text(named, encoding="utf-8")
    loaded = load_manifest(manifest, ["teacher.engine=transformers", "teacher.dtype=float32"])
    assert loaded.data.bad_rows == "set_aside"
    assert loaded.student is not None
    assert [stage.name for stage in loaded.student.stages] == ["pseudolabel", "gold"]
    assert loaded.judge.named_rules()["length_ratio"] == {"min": 0.5, "max": 2.0}
    assert check_manifest(loaded)["rows"] == {"train": 90, "test": 10}


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty: name a new folder"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty: name a new folder"):
        start(tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_student_larger_than_its_teacher_is_a_warning(tmp_path: Path, tiny_llama: Path) -> None:
    init: dict[str, Any] = {"from_teacher": {"layers": 2, "config": {"intermediate_size": 65}}}
    tree = manifest_tree(tmp_path, tiny_llama)
    tree["student"]["init"] = init
    manifest = write_manifest_file(tmp_path / "manifest.yaml", tree)
    figures = check_manifest(load_manifest(manifest))
    wider = 2 * 3 * 32  # two layers, three matrices, a row of the hidden width more
    sizes = re.findall(r"[\d,]+", figures["warning"])
    student, teacher = (int(size.replace(",", "")) for size in sizes if size != ",")
    assert student - teacher == wider
    init["from_teacher"]["config"] = {"intermediate_size": 64}
    write_manifest_file(manifest, tree)
    assert "warning" not in check_manifest(load_manifest(manifest))
