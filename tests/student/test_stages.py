"""Every key of a stage's length and data in one run, killed in the middle and gone on with."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import load_file

from factory.records import RunDirectory
from tests.student.test_training import copy, kill_after_checkpoint
from tests.student.tiny import launch, losses, save_teacher, start_prepare, student_run

STAGES: list[dict[str, Any]] = [
    {
        "name": "pseudolabel",
        "data": {"pseudolabels": 0.75, "gold": 0.25},
        "steps": 11,
        "validate_steps": 4,
        "learning_rate": 0.01,
        "batch_tokens": 256,
        "freeze": ["embed"],
    },
    {
        "name": "gold",
        "data": "SELECT sample_id, source, target FROM gold UNION ALL"
        " SELECT sample_id, source, upper(target) FROM gold",
        "targets": "one_each_epoch",
        "tokens": 4000,
        "patience": 1,
        "learning_rate": 1e-9,  # nothing is ever gained
        "batch_tokens": 128,
    },
]
STUDENT = {"init": {"from_teacher": {"layers": 2}}, "checkpoint_steps": 3, "stages": STAGES}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that is ready to train."""
    root = tmp_path_factory.mktemp("stages")
    run = student_run(root / "run", save_teacher(root / "teacher"), STUDENT)
    done = start_prepare(run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def trained(prepared: RunDirectory) -> RunDirectory:
    """The same run, trained by one process without disturbance."""
    run = copy(prepared, "trained")
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def test_a_stage_of_steps_validates_by_steps_and_at_its_end(trained: RunDirectory):
    first = trained.stage_records()[0]
    assert first["steps"] == first["planned_steps"] == len(losses(trained, "pseudolabel")) == 11
    assert first["scored_steps"] == [4, 8, 11]
    assert first["best_step"] == first["scored_steps"][first["best"] - 1]
    assert first["scores"][first["best"] - 1] == max(first["scores"])
    assert first["portions"] == {"pseudolabels": 40, "gold": 20}


def test_what_is_frozen_stays(trained: RunDirectory):
    folder = trained.path("student")
    begun = load_file(folder / "init" / "model.safetensors")
    ended = load_file(folder / "pseudolabel" / "model" / "model.safetensors")
    same = {name for name, weight in begun.items() if weight.equal(ended[name])}
    assert same == {"model.embed_tokens.weight"}


def test_a_stage_without_gain_ends_early(trained: RunDirectory):
    second = trained.stage_records()[1]
    assert (second["best"], second["best_epoch"], len(second["scores"])) == (1, 1, 2)
    assert second["scored_epochs"] == [1.0, 2.0]
    assert second["steps"] < second["planned_steps"]


def test_a_killed_stage_goes_on_as_it_would_have(prepared: RunDirectory, trained: RunDirectory):
    run = copy(prepared, "killed")
    kill_after_checkpoint(run, step=3)
    assert not run.path("student", "pseudolabel", "stage.json").exists()
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("pseudolabel", "gold"):
        assert losses(run, stage) == losses(trained, stage)
    told = ("scores", "scored_steps", "scored_epochs", "best", "best_step", "steps")
    for found, expected in zip(run.stage_records(), trained.stage_records(), strict=True):
        assert [found[name] for name in told] == [expected[name] for name in told]
