"""Stages that no data can serve, told before a teacher decodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.checking import check_manifest
from factory.errors import RunError
from factory.manifest import Manifest
from factory.pipeline import run_steps
from tests.models import manifest_tree


def manifest(folder: Path, teacher: Path, fraction: float) -> Manifest:
    tree = manifest_tree(folder, teacher)
    tree["data"]["train"]["gold_fraction"] = fraction
    return Manifest.model_validate(tree)


def test_gold_that_may_not_be_seen_is_told_before_generation(tmp_path: Path, tiny_llama: Path):
    """A fraction of 0, and one that rounds to no row."""
    told = r"^student.stages.gold.data: 'gold': no gold may be seen: give data.train.target"
    for fraction in (0.0, 0.001):
        hidden = manifest(tmp_path / "corpus", tiny_llama, fraction)
        with pytest.raises(RunError, match=told):
            check_manifest(hidden)
    with pytest.raises(RunError, match=told):
        run_steps(tmp_path / "run", hidden)
    assert not (tmp_path / "run" / "shards").exists()
    assert run_steps(tmp_path / "read", hidden, ("samples",)).step("samples")
