"""A live teacher beside its student: what it tells, whom it trains, and what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from factory.files import read_json
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer
from factory.records import RunDirectory
from student.batches import Batch
from student.initialise import load
from student.lesson import Lesson, lesson_of
from tests.student.test_training import copy, kill_after_checkpoint
from tests.student.tiny import launch, losses, save_teacher, start_prepare, student_run

NARROW = {"hidden_size": 16, "intermediate_size": 24}
NARROW |= {"num_attention_heads": 1, "num_key_value_heads": 1}
STAGE: dict[str, Any] = {
    "name": "pseudolabel",
    "data": "pseudolabels",
    "objective": {"ce": 0.5, "forward_kl": 0.5, "hidden": 3.0},
    "steps": 24,
    "learning_rate": 0.01,
    "batch_tokens": 128,
    "micro_batch_tokens": 64,
}
STUDENT = {
    "init": {"from_teacher": {"layers": 2, "config": NARROW}},
    "checkpoint_steps": 4,
    "stages": [STAGE, {"name": "gold", "data": "gold", "steps": 2, "batch_tokens": 128}],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three untrained Llama layers, 32 wide."""
    return save_teacher(tmp_path_factory.mktemp("lesson") / "teacher")


@pytest.fixture(scope="module")
def t5(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained T5 of one encoder and three decoder layers, with the Llama's tokenizer."""
    tokenizer = load_tokenizer(str(teacher))
    folder = tmp_path_factory.mktemp("lesson") / "t5"
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=1,
        num_decoder_layers=3,  # as many as the parts of each, which are lists of modules too
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def manifest(teacher: Path, dtype: str = "float32", **objective: Any) -> Manifest:
    stage = {"name": "s", "data": "pseudolabels", "objective": {"hidden": 1.0} | objective}
    student = {"init": {"model": str(teacher)}, "dtype": dtype, "stages": [stage]}
    tree = {"name": "lesson", "data": {"train": {"path": "rows.tsv"}}, "student": student}
    return Manifest.model_validate(tree | {"teacher": {"model": str(teacher)}})


def begun(student: Any, told: Manifest) -> Lesson:
    lesson = lesson_of(told, told.student.stages[0], student)
    assert lesson is not None
    lesson.begin(torch.device("cpu"))
    return lesson


def batch(encoder_decoder: bool = False, masked: bool = False) -> Batch:
    ids = torch.tensor([[1, 40, 41, 3, 50, 51], [1, 42, 3, 60, 2, 0]])
    inputs = {"input_ids": ids}
    predicts = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    if encoder_decoder:
        inputs |= {"attention_mask": (ids > 0).long(), "decoder_input_ids": ids.flip(0)}
    targets = torch.tensor([50, 51, 60, 2])
    return Batch(inputs, predicts, targets, torch.full((4,), not masked), None)


def test_no_teacher_is_loaded_where_no_stage_asks_for_hidden_states(teacher: Path):
    told = manifest(teacher, hidden=0.0, ce=1.0)
    assert lesson_of(told, told.student.stages[0], load(str(teacher))) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_whole_copy_of_the_teacher_is_at_no_distance(
    teacher: Path, t5: Path, kind: str, dtype: str
):
    model = t5 if kind == "t5" else teacher
    student = load(str(model), dtype=getattr(torch, dtype))
    lesson, read = begun(student, manifest(model, dtype)), batch(kind == "t5")
    assert lesson.layers == {0: 0, 1: 1, 2: 2}
    lesson.read(read)
    # Attention whose bias wants a gradient, as T5's, is computed by another kernel, which rounds.
    with torch.set_grad_enabled(kind == "llama"):
        lesson.taught(**read.inputs, use_cache=False)
    assert lesson.distance(read).tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_distance_is_that_of_transformers_own_hidden_states(teacher: Path, t5: Path, kind: str):
    """Without the last, which transformers tells behind the final norm."""
    model = t5 if kind == "t5" else teacher
    student, other = load(str(model)), load(str(model))
    for parameter in student.parameters():
        parameter.data *= 1.05
    read, pairs = batch(kind == "t5"), {0: 1, 1: 0}
    lesson = begun(student, manifest(model, hidden_layers=pairs))
    lesson.read(read)
    lesson.taught(**read.inputs, use_cache=False)
    got = lesson.distance(read)
    states = "decoder_hidden_states" if kind == "t5" else "hidden_states"
    with torch.no_grad():
        ours, theirs = (
            [s[read.predicts] for s in m(**read.inputs, output_hidden_states=True)[states][1:]]
            for m in (student, other)
        )
    wanted = sum((ours[a] - theirs[b]).square().mean(-1) for a, b in pairs.items())
    torch.testing.assert_close(got.detach(), wanted)
    assert got.min() > 0


def test_student_and_projections_learn_and_the_teacher_does_not(teacher: Path, tmp_path: Path):
    config = AutoModelForCausalLM.from_pretrained(teacher).config
    for key, value in (NARROW | {"num_hidden_layers": 2}).items():
        setattr(config, key, value)
    config.head_dim = 16
    torch.manual_seed(3)
    student = AutoModelForCausalLM.from_config(config)
    lesson, read = begun(student, manifest(teacher)), batch()
    optimiser = torch.optim.AdamW(lesson.taught.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in lesson.taught.named_parameters()}
    theirs = list(lesson._teacher.parameters())
    untouched = [p.clone() for p in theirs]
    values = []
    for _ in range(20):
        lesson.read(read)
        lesson.taught(**read.inputs, use_cache=False)
        told = lesson.distance(read)
        told.sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        values.append(float(told.detach().mean()))
    assert values[-1] < 0.5 * values[0]
    changed = {n for n, p in lesson.taught.named_parameters() if not torch.equal(p, before[n])}
    beyond = {"student.model.norm.weight", "student.lm_head.weight"}  # behind the states
    assert changed == before.keys() - beyond
    assert all(torch.equal(a, b) for a, b in zip(untouched, theirs, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in theirs)


def test_a_process_without_rows_trains_nothing(teacher: Path):
    lesson, read = begun(load(str(teacher)), manifest(teacher)), batch(masked=True)
    for parameter in lesson.taught.parameters():
        parameter.data *= 1.05
    lesson.read(read)
    lesson.taught(**read.inputs, use_cache=False)
    told = lesson.distance(read)
    told.sum().backward()
    assert told.tolist() == [0.0] * 4
    grads = [p.grad for p in lesson.taught.parameters() if p.grad is not None]
    assert grads
    assert all((grad == 0).all() for grad in grads)


@pytest.fixture(scope="module")
def prepared(teacher: Path) -> RunDirectory:
    """A run that is ready to train a narrower student of two of the three layers."""
    run = student_run(teacher.with_name("run"), teacher, STUDENT)
    done = start_prepare(run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def trained(prepared: RunDirectory) -> RunDirectory:
    """The same run, trained by one process without disturbance."""
    return launched(copy(prepared, "trained"))


def launched(run: RunDirectory, processes: int = 1) -> RunDirectory:
    done = launch(run, processes)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def curves(run: RunDirectory) -> dict[str, list[float]]:
    """Each term of the stage with a teacher, step by step."""
    table = pq.read_table(run.path("student", "pseudolabel", "train_log.parquet"))
    log = [dict(terms) for terms in table["terms"].to_pylist()]
    return {name: [terms[name] for terms in log] for name in log[0]}


def test_hidden_states_are_a_term_of_their_own_and_come_together(trained: RunDirectory):
    told = curves(trained)
    weights = {"ce": 0.5, "forward_kl": 0.5, "hidden": 3.0}
    assert list(told) == list(weights)
    assert told["hidden"][-1] < 0.6 * told["hidden"][0]
    total = [sum(weights[n] * values[i] for n, values in told.items()) for i in range(24)]
    assert losses(trained, "pseudolabel") == pytest.approx(total)
    first, second = trained.stage_records()
    assert first["hidden_layers"] == {"0": 0, "1": 2}
    assert "hidden_layers" not in second


def test_what_is_exported_is_the_student_alone(trained: RunDirectory):
    names = []
    for stage in ("init", "pseudolabel/model", "gold/model"):
        path = trained.path("student", stage, "model.safetensors")
        with safe_open(path, "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1] == names[2]
    model = AutoModelForCausalLM.from_pretrained(trained.path("student", "gold", "model"))
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 16)


def test_a_killed_stage_goes_on_to_the_last_bit(prepared: RunDirectory, trained: RunDirectory):
    run = copy(prepared, "killed")
    kill_after_checkpoint(run, step=4)
    folder = run.path("student", "pseudolabel")
    assert not (folder / "stage.json").exists()
    assert 4 <= read_json(folder / "checkpoints" / "newest.json")["step"] < 24
    launched(run)
    assert curves(run) == curves(trained)
    assert losses(run, "gold") == losses(trained, "gold")


@pytest.mark.slow
def test_two_processes_train_as_one(prepared: RunDirectory, trained: RunDirectory):
    run = launched(copy(prepared, "two"), processes=2)
    for name, values in curves(run).items():
        assert values == pytest.approx(curves(trained)[name], abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "dtype", "processes", "tolerance"),
    [
        (0, "float32", 1, 1e-4),
        (2, "float32", 2, 1e-4),
        (3, "float32", 2, 1e-4),
        (0, "bfloat16", 1, 0.3),
        (3, "bfloat16", 2, 0.3),
    ],
)
def test_every_zero_stage_gives_the_same_curves(
    teacher: Path,
    tmp_path: Path,
    trained: RunDirectory,
    zero_stage: int,
    dtype: str,
    processes: int,
    tolerance: float,
):
    student = STUDENT | {"dtype": dtype, "deepspeed": {"zero_stage": zero_stage}}
    run = student_run(tmp_path / "run", teacher, student)
    assert start_prepare(run).returncode == 0
    for name, values in curves(launched(run, processes)).items():
        assert values == pytest.approx(curves(trained)[name], abs=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_hidden_states_may_be_all_there_is_to_learn(teacher: Path, tmp_path: Path, zero_stage: int):
    """TinyBERT's first phase; what lies behind the states gets no gradient at all."""
    stage = STAGE | {"objective": {"hidden": 1.0, "hidden_layers": {0: 1}}}
    student = STUDENT | {"stages": [stage], "deepspeed": {"zero_stage": zero_stage}}
    run = student_run(tmp_path / "run", teacher, student)
    assert start_prepare(run).returncode == 0
    told = curves(launched(run))
    assert list(told) == ["hidden"]
    assert told["hidden"][-1] < 0.6 * told["hidden"][0]
    assert run.stage_records()[0]["hidden_layers"] == {"0": 1}
