"""Real DeepSpeed on a tiny Llama: two stages, two processes, and a SIGKILL in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from factory.evaluation import Evaluate
from factory.files import read_json
from factory.prompting.tokenizing import load_tokenizer
from factory.query.catalog import connect
from factory.reading import write_manifest
from factory.records import RunDirectory
from factory.shards import SIGNATURE
from factory.training import OVER_DISTRIBUTIONS
from student.decode import decode_system, record_path
from tests.student.tiny import (
    SAMPLED,
    TOP_P,
    environment,
    launch,
    launch_command,
    losses,
    pairs,
    save_teacher,
    start_prepare,
    student_run,
)

STUDENT: dict[str, Any] = {
    "init": {"from_teacher": {"layers": 2}},
    "checkpoint_steps": 4,
    "stages": [
        {
            "name": "pseudolabel",
            "data": "pseudolabels",
            "objective": {"ce": 0.5, "forward_kl": 0.5},
            "epochs": 8,
            "learning_rate": 0.01,
            "batch_tokens": 128,
            "micro_batch_tokens": 64,
        },
        {"name": "gold", "data": "gold", "epochs": 2, "learning_rate": 2e-3, "batch_tokens": 128},
    ],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that is ready to train."""
    root = tmp_path_factory.mktemp("training")
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


def copy(run: RunDirectory, name: str) -> RunDirectory:
    """A run as it stands, beside the first."""
    root = run.root.with_name(name)
    shutil.copytree(run.root, root)
    return RunDirectory(root)


def curve(run: RunDirectory) -> list[float]:
    """The losses of all stages."""
    return losses(run, "pseudolabel") + losses(run, "gold")


def test_stages_run_in_order_and_learn(trained: RunDirectory):
    first, second = trained.stage_records()
    assert (first["stage"], second["stage"]) == ("pseudolabel", "gold")
    assert (first["rows"], second["rows"]) == (40, 20)
    assert first["copied_layers"] == [0, 2]
    assert first["verdicts"] == "judge-key"
    assert trained.step("train")["key"] == "train-key"
    for record in (first, second):
        values = losses(trained, record["stage"])
        assert len(values) == record["steps"] == record["files"][0]["rows"]
    assert losses(trained, "pseudolabel")[-1] < 0.4 * losses(trained, "pseudolabel")[0]


def test_the_curve_is_the_one_it_always_was(trained: RunDirectory):
    """Golden: a change of the training that is meant to change nothing keeps it.

    Taken before the loss gathered its columns in one function of its own; then 1e-6 apart.
    """
    first, second = losses(trained, "pseudolabel"), losses(trained, "gold")
    assert first[:3] == pytest.approx([3.26896, 2.80431, 2.26117], abs=2e-4)
    assert first[-2:] == pytest.approx([0.33748, 0.39848], abs=5e-3)
    assert second[:2] == pytest.approx([0.60267, 0.56276], abs=5e-3)


def test_the_best_epoch_is_the_one_that_writes_best(trained: RunDirectory):
    for record in trained.stage_records():
        assert len(record["scores"]) == record["epochs"]
        assert record["best_epoch"] == 1 + record["scores"].index(max(record["scores"]))


def test_each_stage_leaves_a_model_and_its_newest_state_alone(trained: RunDirectory):
    for stage in ("pseudolabel", "gold"):
        folder = trained.path("student", stage)
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        assert model.config.num_hidden_layers == 2
        assert {"model.safetensors", "tokenizer.json", "generation_config.json"} <= {
            path.name for path in (folder / "model").iterdir()
        }
        states = [path for path in (folder / "checkpoints").iterdir() if path.is_dir()]
        assert [path.name for path in states] == [
            read_json(states[0].parent / "newest.json")["tag"]
        ]


def test_the_log_counts_target_tokens_and_tells_each_term(trained: RunDirectory):
    with connect(trained) as catalog:
        rows = catalog.sql("SELECT * FROM train_log ORDER BY step").fetchall()
        names = catalog.sql("SELECT * FROM train_log LIMIT 0").columns
    log = [dict(zip(names, row, strict=True)) for row in rows]
    first, second = trained.stage_records()
    assert [row["step"] for row in log] == list(range(1, first["steps"] + second["steps"] + 1))
    assert log[first["steps"]]["stage_step"] == 1
    assert sum(row["tokens"] for row in log[: first["steps"]]) == first["target_tokens"]
    for row in log:
        weights = {"ce": 0.5, "forward_kl": 0.5} if row["stage"] == "pseudolabel" else {"ce": 1.0}
        assert row["terms"].keys() == weights.keys()
        total = sum(weights[name] * value for name, value in row["terms"].items())
        assert row["loss"] == pytest.approx(total)
    assert log[0]["lr"] < log[1]["lr"] > log[first["steps"] - 1]["lr"]
    assert log[first["steps"]]["lr"] == pytest.approx(2e-3)


def test_the_student_is_decoded_by_the_engine_of_the_rule_and_the_record_tells(
    trained: RunDirectory,
):
    assert [record["validated_by"] for record in trained.stage_records()] == ["transformers"] * 2
    run = copy(trained, "decoded")
    beam = Evaluate(decoding="beam", beam_width=3, early_stopping=True)
    told = []
    for engine, wanted in ((None, beam), ("transformers", beam), ("transformers", Evaluate())):
        asked = wanted.model_copy(update={"engine": engine})
        manifest = run.manifest().model_copy(update={"evaluate": asked})
        write_manifest(manifest, run.path("manifest.yaml"))
        decode_system(run, "student")
        told.append(read_json(record_path(run, "student")))
    assert [(t["engine"], t["engine_asked"], t["decoding"]) for t in told] == [
        ("transformers", "auto", "beam"),
        ("transformers", "name", "beam"),
        ("transformers", "name", "greedy"),
    ]
    assert told[0]["key"] == told[1]["key"] != told[2]["key"]
    written = pq.read_metadata(run.path(told[2]["files"][0]["path"])).metadata
    assert b"transformers" in written[SIGNATURE]


def test_two_processes_train_as_one(prepared: RunDirectory, trained: RunDirectory):
    run = copy(prepared, "two")
    done = launch(run, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert curve(run) == pytest.approx(curve(trained), abs=1e-4)


def test_a_killed_stage_goes_on_from_its_newest_checkpoint(
    prepared: RunDirectory, trained: RunDirectory
):
    run = copy(prepared, "killed")
    kill_after_checkpoint(run, step=4)
    folder = run.path("student", "pseudolabel")
    reached = read_json(folder / "checkpoints" / "newest.json")["step"]
    assert not (folder / "stage.json").exists()
    assert 4 <= reached < len(losses(trained, "pseudolabel"))
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert curve(run) == curve(trained)
    assert [r["scores"] for r in run.stage_records()] == [
        r["scores"] for r in trained.stage_records()
    ]
    rates = pq.read_table(folder / "train_log.parquet")["tokens_per_second"].to_pylist()
    assert len(rates) == len(losses(trained, "pseudolabel"))


def kill_after_checkpoint(run: RunDirectory, step: int) -> None:
    """Launch, wait for a checkpoint of at least that step, and SIGKILL all of it."""
    newest = run.path("student", "pseudolabel", "checkpoints", "newest.json")
    with subprocess.Popen(
        launch_command(run),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while process.poll() is None:
            if newest.is_file() and read_json(newest)["step"] >= step:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)


def test_a_student_cut_from_its_teacher_may_speak_another_tokenizer(tmp_path: Path):
    """From text alone, with chosen layers, narrower, and the tokens that both have."""
    teacher = save_teacher(tmp_path / "teacher")
    part = {"layers": [0, 2], "config": {"hidden_size": 16, "intermediate_size": 32}}
    part["config"] |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    tokenizer = {"train": {"vocab_size": 300}}
    stages = [{**stage, "objective": {"ce": 1.0}, "epochs": 2} for stage in STUDENT["stages"]]
    init = {"from_teacher": part, "tokenizer": tokenizer}
    run = student_run(tmp_path / "run", teacher, {"init": init, "stages": stages})
    prepared = start_prepare(run)
    assert prepared.returncode == 0, prepared.stderr
    assert "warning" not in prepared.stderr
    copied = read_json(run.path("student", "init", "copied.json"))
    assert copied["layers"] == [0, 2]
    assert copied["tensors"]["model.embed_tokens.weight"]["rows"]
    assert copied["tensors"]["model.layers.1.mlp.up_proj.weight"] == {
        "teacher": "model.layers.2.mlp.up_proj.weight",
        "shape": [32, 16],
        "rows": False,
        "parts": 1,
    }
    record = read_json(run.path("student", "init", "init.json"))
    assert not record["same_tokenizer"]
    assert 0 < record["copied_parameters"] <= record["parameters"]
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [stage["copied_layers"] for stage in run.stage_records()] == [[0, 2]] * 2
    assert losses(run, "gold")[-1] < losses(run, "pseudolabel")[0]


@pytest.mark.slow
def test_finished_stages_are_not_done_again(trained: RunDirectory):
    run = copy(trained, "again")
    before = {p: p.stat().st_mtime_ns for p in sorted(run.path("student").rglob("*.safetensors"))}
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "dtype", "processes", "tolerance"),
    [
        (0, "float32", 2, 1e-4),
        (2, "float32", 2, 1e-4),
        (3, "float32", 2, 1e-4),
        (0, "bfloat16", 1, 0.3),
        (1, "bfloat16", 2, 0.3),
        (3, "bfloat16", 2, 0.3),
    ],
)
def test_every_zero_stage_gives_the_same_curve(
    tmp_path: Path,
    trained: RunDirectory,
    zero_stage: int,
    dtype: str,
    processes: int,
    tolerance: float,
):
    student = {**STUDENT, "dtype": dtype, "deepspeed": {"zero_stage": zero_stage}}
    run = student_run(tmp_path / "run", save_teacher(tmp_path / "teacher"), student)
    assert start_prepare(run).returncode == 0
    done = launch(run, processes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert curve(run) == pytest.approx(curve(trained), abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capture", "falls_to"),
    [(TOP_P, 0.8), (SAMPLED, 0.95)],  # draws: above the untrained teacher's entropy, some 5 nats
    ids=["top_p", "sampled"],
)
def test_ragged_and_sampled_distributions_train(
    tmp_path: Path, capture: dict[str, Any], falls_to: float
):
    stages = [{**STUDENT["stages"][0], "objective": {"forward_kl": 1.0}}]
    student = {**STUDENT, "stages": stages}
    run = student_run(tmp_path / "run", save_teacher(tmp_path / "teacher"), student, capture)
    assert start_prepare(run).returncode == 0
    done = launch(run)
    assert done.returncode == 0, done.stdout + done.stderr
    values = losses(run, "pseudolabel")
    assert 0 < values[-1] < falls_to * values[0]


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path: Path):
    """One line, from processes that a hostfile names: the rows are those with a broken token."""
    teacher = save_teacher(tmp_path / "teacher")
    shutil.copytree(teacher, tmp_path / "broken")
    broken = AutoModelForCausalLM.from_pretrained(teacher)
    [*_, bird] = load_tokenizer(str(teacher))(" bird")["input_ids"]
    broken.model.embed_tokens.weight.data[bird] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    here = ("--no_ssh_check", "--master_addr", "127.0.0.1")
    run = student_run(
        tmp_path / "run",
        teacher,
        {
            "init": {"model": str(tmp_path / "broken")},
            "stages": [{"name": "wild", "data": "gold", "batch_tokens": 8192}],
            "deepspeed": {"hostfile": str(hosts), "launcher": here},
        },
    )
    assert start_prepare(run).returncode == 0
    done = launch(run, processes=2)
    assert done.returncode == 1
    wild = [f"s{i:02d}" for i, (source, _) in enumerate(pairs()[:40]) if "bird" in source]
    wild = [name for name in wild if int(name[1:]) % 2 == 0]
    assert 3 < len(wild) < 20
    assert (
        f"seqkd: stage wild, step 1: the loss is nan, in {len(wild)} of 20 rows "
        f"({', '.join(wild[:3])}, …); there is no checkpoint yet: "
        "lower learning_rate or clip, run again\n" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not run.path("student", "wild", "stage.json").exists()
    assert not run.path("student", "wild", "checkpoints").exists()


def test_every_objective_trains_alike_over_processes(tmp_path: Path):
    """However a step is cut, the same tokens and rows are hard in it, and the loss is the same."""
    terms = ["ce", *OVER_DISTRIBUTIONS]
    objective = dict.fromkeys(terms, 0.1) | {"temperature": 2.0, "instance_weights": "easy_first"}
    stage = STUDENT["stages"][0] | {"objective": objective, "epochs": 2}
    student = STUDENT | {"stages": [stage]}
    run = student_run(tmp_path / "run", save_teacher(tmp_path / "teacher"), student)
    assert start_prepare(run).returncode == 0
    curves = []
    for processes in (1, 2):
        made = copy(run, f"of-{processes}")
        done = launch(made, processes)
        assert done.returncode == 0, done.stdout + done.stderr
        log = pq.read_table(made.path("student", "pseudolabel", "train_log.parquet")).to_pylist()
        assert all([name for name, _ in row["terms"]] == terms for row in log)
        assert all(value > 0 for row in log for _, value in row["terms"])
        for row in log:
            assert row["loss"] == pytest.approx(sum(0.1 * value for _, value in row["terms"]))
        assert log[-1]["terms"][0][1] < log[0]["terms"][0][1]
        curves.append([value for row in log for _, value in row["terms"]])
    assert curves[0] == pytest.approx(curves[1], rel=2e-3, abs=1e-4)
