"""The whole path through the command line: real teacher, DeepSpeed, sacreBLEU; tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from factory.errors import ManifestError, RunError
from factory.pilot import extrapolate
from factory.pipeline import run_steps
from factory.query.catalog import VIEWS, connect
from factory.reading import load_manifest
from factory.records import STEPS, RunDirectory
from factory.verify import verify
from tests.models import manifest_tree, write_manifest_file


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, tiny_llama) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tree = manifest_tree(folder, tiny_llama)
    tree["data"]["train"]["gold_fraction"] = 0.25
    return write_manifest_file(folder / "manifest.yaml", tree)


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory) -> RunDirectory:
    return run_steps(tmp_path_factory.mktemp("runs") / "whole", load_manifest(manifest))


def outcomes(root: Path, manifest: Path, *overrides: str, **options: Any) -> dict[str, str]:
    """What became of each step."""
    told: dict[str, str] = {}
    run_steps(root, load_manifest(manifest, overrides), tell=told.__setitem__, **options)
    return told


def query(run: RunDirectory, sql: str) -> list[tuple[Any, ...]]:
    with connect(run) as database:
        return database.execute(sql).fetchall()


def test_one_command_does_every_step(whole):
    assert tuple(whole.record()["steps"]) == tuple(step for step in STEPS if step != "score")
    assert all(query(whole, f"SELECT count(*) >= 0 FROM {view}") == [(True,)] for view in VIEWS)
    assert query(whole, "SELECT count(*) FROM gold") == [(15,)]
    assert query(whole, "SELECT count(*) FROM candidates") == [(60,)]
    spelled = "replace(tokens_text(token_ids), '</s>', '') = text"
    assert query(whole, f"SELECT DISTINCT {spelled} FROM candidates") == [(True,)]
    kept, rejected = (
        query(whole, f"SELECT count(*) FROM {v}")[0][0] for v in ("pseudolabels", "rejects")
    )
    assert kept + rejected == 60
    assert query(whole, "SELECT DISTINCT stage FROM train_log ORDER BY 1") == [
        ("gold",),
        ("pseudolabel",),
    ]
    assert query(
        whole, "SELECT system, metric, count(*), count(fold) FROM evals GROUP BY ALL ORDER BY ALL"
    ) == [
        ("student", "bleu", 3, 2),
        ("student", "chrf", 3, 2),
        ("teacher", "bleu", 3, 2),
        ("teacher", "chrf", 3, 2),
    ]
    assert (whole.path("student", "gold", "model", "model.safetensors")).is_file()
    assert whole.path("card.md").read_text("utf-8").startswith("---\n")
    assert whole.path("catalog.duckdb").is_file()


def test_a_model_whose_weights_changed_is_told_by_verify(whole, tmp_path):
    run = RunDirectory(Path(shutil.copytree(whole.root, tmp_path / "run")))
    assert verify(run)["problems"] == []
    weights = run.path("student", "gold", "model", "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    [problem] = verify(run)["problems"]
    assert "model.safetensors: does not match" in problem


def test_gold_out_of_sight_is_not_in_what_the_student_reads(whole):
    hidden = "SELECT sample_id FROM samples WHERE split = 'train' AND NOT gold_visible"
    assert query(whole, f"SELECT count(*) FROM gold SEMI JOIN ({hidden}) USING (sample_id)") == [
        (0,)
    ]


def test_a_second_run_finds_everything_standing(whole, manifest):
    assert set(outcomes(whole.root, manifest).values()) == {"stands"}


def test_a_changed_rule_asks_before_it_retrains(whole, manifest):
    stricter = "judge.rules=[error, truncated, {length_ratio: {max: 1.0}}]"
    before = query(whole, "SELECT count(*) FROM pseudolabels")
    with pytest.raises(RunError, match="--fresh"):
        outcomes(whole.root, manifest, stricter)
    assert query(whole, "SELECT count(*) FROM pseudolabels") < before
    told = outcomes(whole.root, manifest)
    assert (told["generate"], told["judge"], told["train"]) == ("stands", "done", "stands")
    assert query(whole, "SELECT count(*) FROM pseudolabels") == before


def test_rules_that_keep_nothing_leave_the_run_as_it_was(whole, manifest):
    files = {name: whole.path(name).read_bytes() for name in ("manifest.yaml", "run.json")}
    with pytest.raises(ManifestError, match="'none': keeps none of 60 candidates"):
        outcomes(whole.root, manifest, "judge.rules=[{none: {sql: 'false'}}]", wanted=("judge",))
    assert {name: whole.path(name).read_bytes() for name in files} == files


def test_a_changed_stage_retrains_and_generates_nothing(whole, manifest):
    told = outcomes(whole.root, manifest, "student.stages.gold.learning_rate=1e-4")
    assert told == {
        "samples": "stands",
        "generate": "stands",
        "judge": "stands",
        "train": "done",
        "evaluate": "done",
        "card": "done",
        "report": "done",
    }


def test_a_pilot_says_what_the_whole_takes(manifest, tmp_path):
    run = run_steps(tmp_path / "pilot", load_manifest(manifest), ("samples", "generate"), limit=12)
    assert query(run, "SELECT count(*) FROM candidates") == [(12,)]
    estimate = extrapolate(run, price_per_hour=3600.0)
    figures = run.step("generate")
    assert estimate["sources"] == 60
    assert estimate["bytes"] == figures["bytes"] * 5
    assert estimate["cost"] == pytest.approx(estimate["total_seconds"], abs=0.06)
    grown = figures["wall_seconds"] + 4 * figures["decode_seconds"]
    assert estimate["seconds"]["generate"] == pytest.approx(grown, abs=0.06)


def test_steps_alone_say_what_they_need(manifest, tmp_path):
    with pytest.raises(RunError, match="judge needs generate: seqkd generate first"):
        run_steps(tmp_path / "run", load_manifest(manifest), ("judge",))


def test_a_run_is_held_by_one_writer(whole, manifest, monkeypatch):
    monkeypatch.setattr("factory.records.LOCK_PATIENCE", 0.2)
    with whole.locked(), pytest.raises(RunError, match="another seqkd is at work here"):
        outcomes(whole.root, manifest)


def test_gold_alone_makes_a_model_that_can_teach(manifest, tmp_path):
    """A teacher is made the same way: no teacher section, one stage of gold."""
    tree = json.loads(manifest.read_text("utf-8"))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "max_position_embeddings": 64}
    tree["student"] = {
        "init": {
            "config": {"model_type": "llama", **shape, **heads},
            "tokenizer": {"train": {"vocab_size": 320}},
        },
        "stages": [{"name": "gold", "data": "gold", "learning_rate": 1e-3, "batch_tokens": 512}],
    }
    del tree["teacher"], tree["logits"]
    gold = write_manifest_file(tmp_path / "gold.yaml", tree)
    told = outcomes(tmp_path / "gold", gold)
    assert list(told) == ["samples", "train", "evaluate", "card", "report"]
    model = tmp_path / "gold" / "student" / "gold" / "model"
    teaching = outcomes(
        tmp_path / "taught",
        manifest,
        f"teacher.model={model}",
        "judge.rules=[error]",  # it has learnt next to nothing
        wanted=("generate", "judge"),
    )
    assert teaching["judge"] == "done"
