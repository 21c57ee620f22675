"""What a card says of a student's start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.cards import card
from factory.cards.start import start_of
from factory.files import read_json, write_json
from tests.runs import make_run

COPIED = {
    "layers": [0, 5],
    "encoder_layers": [],
    "tensors": {"embed": {"rows": True}, "layers.0.up": {"rows": False}},
    "new": ["qkv"],
}
RECORD = {"parameters": 2000, "copied_layers": [0, 5], "copied_parameters": 1500}
TAKEN = "1,500 of its 2,000 parameters (75.0 %) are the teacher's; 2 tensors were copied, "
ROWS = "1 of them the rows of shared tokens alone, 1 are new."


@pytest.mark.parametrize(
    ("init", "record", "told"),
    [
        (
            {"from_teacher": {"layers": 2}},
            RECORD,
            f"It started from layers 0, 5 (counted from 0) of some/teacher: {TAKEN}{ROWS}",
        ),
        (
            {"from_teacher": {"layers": 1}},
            RECORD | {"copied_layers": [0], "copied_encoder_layers": [0, 1]},
            "It started from decoder layer 0 and encoder layers 0, 1 (counted from 0) of "
            f"some/teacher: {TAKEN}{ROWS}",
        ),
        ({"model": "/models/small/"}, RECORD, "It started as the checkpoint small."),
        (
            {"config": {"model_type": "llama"}},
            RECORD,
            "It started as a new llama, its weights drawn with seed 17.",
        ),
    ],
)
def test_a_start_in_words(tmp_path: Path, init: Any, record: Any, told: str):
    run = make_run(tmp_path / "run", student={"init": init})
    assert start_of(run) is None
    folder = run.path("student", "init")
    folder.mkdir(parents=True)
    write_json(folder / "copied.json", COPIED)
    write_json(folder / "init.json", record)
    assert start_of(run) == told


def test_a_run_without_a_student_starts_none(tmp_path: Path):
    assert start_of(make_run(tmp_path / "run")) is None


def test_the_data_card_tells_it_beside_the_parameters(finished):
    stage = finished.path("student", "gold", "stage.json")
    write_json(stage, read_json(stage) | {"parameters": 2000})
    folder = finished.path("student", "init")
    folder.mkdir()
    write_json(folder / "init.json", RECORD)
    assert "2,000 parameters. It started as the checkpoint some/student." in card.render(finished)
