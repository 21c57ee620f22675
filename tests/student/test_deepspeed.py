"""What DeepSpeed is told, what it refuses, and an engine of one process against plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.errors import ManifestError, RunError, StepFailed
from factory.files import write_json
from factory.training import Stage, Student
from student.alarm import Alarm
from student.checkpoints import Checkpoints
from student.engine import begin, check_settings, join_processes
from student.settings import settings_of
from tests.engines import one_world
from tests.student.tiny import free_port

STAGE: dict[str, Any] = {"name": "gold", "data": "gold", "clip": 0.5}


def student(stage: dict[str, Any] | None = None, **keys: Any) -> Student:
    """A student section with one stage."""
    stages = [STAGE | (stage or {})]
    return Student.model_validate({"init": {"model": "m"}, "stages": stages} | keys)


def told(**deepspeed: Any) -> dict[str, Any]:
    """DeepSpeed's settings of a student."""
    one = student(deepspeed=deepspeed)
    return settings_of(one.stages[0], one)


def test_what_deepspeed_is_told():
    assert told() == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": False},
        "steps_per_print": 1 << 30,
    }
    host = {"device": "cpu"}
    assert told(offload="optimizer", zero_stage=2)["zero_optimization"] == {
        "stage": 2,
        "offload_optimizer": host,
    }
    more = {"zero_optimization": {"offload_param": {"pin_memory": False}}, "steps_per_print": 7}
    merged = told(offload="parameters", zero_stage=3, config=more)
    assert merged["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": host,
        "offload_param": host | {"pin_memory": False},
    }
    assert merged["steps_per_print"] == 7


TAKEN: list[dict[str, Any]] = [
    {"zero_optimization": {"overlap_comm": True, "offload_optimizer": {"pin_memory": False}}},
    {"bf16": {"check_grad_overflow": False}, "data_types": {"grad_accum_dtype": "fp32"}},
    {"flops_profiler": {"enabled": True}, "wall_clock_breakdown": True},
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"zero_optimization": {"overlap_com": True}},
        "student.deepspeed.config.zero_optimization.overlap_com: True: "
        "DeepSpeed has no such setting: remove it",
    ),
    (
        {"zero_optimization": {"reduce_bucket_size": "many"}},
        "student.deepspeed.config.zero_optimization.reduce_bucket_size: 'many': input should be",
    ),
    (
        {"zero_optimisation": {"overlap_comm": True}},
        "student.deepspeed.config.zero_optimisation: DeepSpeed has no such setting: "
        "did you mean 'zero_optimization'?",
    ),
    (
        {"communication_data_type": "fp7"},
        "student.deepspeed.config: {'communication_data_type': 'fp7'}: DeepSpeed says: Invalid",
    ),
]


@pytest.mark.parametrize("config", TAKEN)
def test_what_deepspeed_takes(config: dict[str, Any]):
    check_settings(student(deepspeed={"config": config}))


@pytest.mark.parametrize(("config", "words"), REFUSED)
def test_what_deepspeed_refuses_is_one_line(config: dict[str, Any], words: str):
    with pytest.raises(ManifestError) as refused:
        check_settings(student(deepspeed={"config": config}))
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A group of this process alone."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (alone | place).items():
            patch.setenv(name, value)
        one_world()
        join_processes(1)
        yield


def test_another_number_of_processes_than_the_manifest_says(group: None):
    with pytest.raises(RunError, match=r"student.processes: 4: the launcher started 1: make it"):
        join_processes(4)


def problem() -> tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small network with matrices and vectors, and batches for it."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)]
    return torch.nn.Sequential(*layers), [(torch.randn(8, 6), torch.randn(8, 2)) for _ in range(6)]


def expected(stage: Stage) -> list[torch.Tensor]:
    """The same steps by PyTorch alone, each batch in one."""
    model, batches = problem()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    made = {"lr": stage.learning_rate, "betas": stage.betas, "eps": stage.epsilon}
    optimiser = torch.optim.AdamW(groups, **made)
    for inputs, targets in batches:
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets, reduction="sum").backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), stage.clip)
        assert norm > 10 * stage.clip  # it is clipping that is looked at
        optimiser.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "deepspeed",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "parameters"},
    ],
)
def test_clipped_and_accumulated_steps_are_pytorch_s(group: None, deepspeed: dict[str, Any]):
    """With an epsilon this large AdamW's steps are as long as its gradients let them be."""
    shape = {"learning_rate": 0.05, "betas": [0.8, 0.9], "epsilon": 0.1, "weight_decay": 0.1}
    one = student(shape | {"clip": 0.05}, deepspeed=deepspeed)
    model, batches = problem()
    engine, _ = begin(model, one.stages[0], one, universal=False)
    for inputs, targets in batches:
        pieces = list(zip(inputs.split(3), targets.split(3), strict=True))
        for number, (part, wanted) in enumerate(pieces, 1):
            engine.set_gradient_accumulation_boundary(number == len(pieces))
            loss = torch.nn.functional.mse_loss(engine(part), wanted, reduction="sum")
            engine.backward(loss)
        engine.step()
    state = [p.ds_tensor if hasattr(p, "ds_tensor") else p for p in engine.module.parameters()]
    for found, wanted in zip(state, expected(one.stages[0]), strict=True):
        torch.testing.assert_close(found.detach().flatten(), wanted.flatten(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_that_are_not_finite_stop_the_stage(
    group: None, tmp_path: Path, zero_stage: int, dtype: str
):
    """√0 is 0, and its slope is not."""
    one = student(dtype=dtype, deepspeed={"zero_stage": zero_stage})
    model, [(inputs, _), *_] = problem()
    engine, _ = begin(model, one.stages[0], one, universal=False)
    write_json(tmp_path / "newest.json", {"key": "key", "tag": "step-3"})
    alarm = Alarm("gold", [], Checkpoints(tmp_path, "key", one))  # type: ignore[arg-type]
    alarm.begin(1)
    for power in (2.0, 0.5):
        engine.set_gradient_accumulation_boundary(True)
        loss = (engine(inputs.to(next(model.parameters()).dtype)) * 0.0).abs().pow(power).sum()
        assert loss.isfinite()
        engine.backward(loss)
        engine.step()
        if power > 1:
            alarm.check_gradients(engine)
    with pytest.raises(StepFailed) as stopped:
        alarm.check_gradients(engine)
    assert str(stopped.value).startswith("stage gold, step 1: the ")
    assert "not finite, though the loss" in str(stopped.value)
    good = f"the last good checkpoint is {tmp_path}/step-3"
    assert str(stopped.value).endswith(f"; {good}: lower learning_rate or clip, run again")
