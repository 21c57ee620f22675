"""DeepSpeed's engine as the stages use it: the one door to that library."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from pydantic import ValidationError

from factory.errors import ManifestError, RunError, nearest
from factory.training import Stage, Student
from student.schedule import parameter_groups
from student.settings import settings_of

PLACE, NO_SUCH = "student.deepspeed.config", "DeepSpeed has no such setting"


def join_processes(processes: int) -> None:
    """Form the group of the processes that were launched together.

    On a CPU, DeepSpeed would compile an all-reduce of its own for half a minute: gloo has one. The
    processes share the cores, unless the user has said how.

    Raises:
        RunError: other than `processes` were launched.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    if dist.get_world_size() != processes:
        remedy = (
            f"the launcher started {dist.get_world_size()}: make it the number of all hosts' "
            "processes, or mend student.deepspeed.hostfile and launcher"
        )
        raise RunError("student.processes", processes, remedy)
    if "OMP_NUM_THREADS" not in os.environ:
        here = int(os.environ.get("LOCAL_SIZE", processes))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))


class _Asked(dict[str, Any]):
    """Settings that know which of them were asked for: DeepSpeed passes over what it never does."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.keys_asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # to be asked for one, or gone through

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)


def check_settings(student: Student) -> None:
    """See that DeepSpeed takes its settings of every stage.

    Raises:
        ManifestError: it refuses one, or knows none of that name.
    """
    given = student.deepspeed.config
    for stage in student.stages:
        settings = _Asked(settings_of(stage, student))
        try:
            DeepSpeedConfig(settings)
        except ValidationError as error:
            raise _refused(given, error.errors(include_url=False)[0]) from None
        except (AssertionError, DeepSpeedConfigError, TypeError, ValueError) as error:
            raise ManifestError(PLACE, given, f"DeepSpeed says: {error}") from None
        if unknown := sorted(given.keys() - settings.keys_asked):
            remedy = f"{NO_SUCH}: {nearest(unknown[0], settings.keys_asked)}"
            raise ManifestError(f"{PLACE}.{unknown[0]}", None, remedy)


def _refused(given: dict[str, Any], detail: Any) -> ManifestError:
    """What a section of DeepSpeed's settings says of a key, at that key's place in the manifest."""
    key = str(detail["loc"][0]) if detail["loc"] else ""
    holders = [name for name, part in given.items() if isinstance(part, dict) and key in part]
    place = ".".join([PLACE, *holders[:1], *map(str, detail["loc"])])
    if detail["type"] == "extra_forbidden":
        return ManifestError(place, detail["input"], f"{NO_SUCH}: remove it")
    message = str(detail["msg"])
    return ManifestError(place, detail["input"], message[0].lower() + message[1:])


def begin(model: Any, stage: Stage, student: Student, universal: bool) -> tuple[Any, Any]:
    """An engine and its optimiser around a model; `universal` says what it will load.

    An offloaded optimiser is PyTorch's fused AdamW, which needs no compiler: see docs/deepspeed.md.
    """
    groups = parameter_groups(model, stage.weight_decay)
    optimiser = torch.optim.AdamW(
        groups,
        lr=stage.learning_rate,
        betas=stage.betas,
        eps=stage.epsilon,
        fused=student.deepspeed.offload != "none" or None,
    )
    settings = settings_of(stage, student, universal)
    engine, optimiser, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=settings)
    return engine, optimiser


def whole(parameter: torch.nn.Parameter, student: Student) -> AbstractContextManager[Any]:
    """Make one parameter whole while a body runs, where ZeRO has partitioned it."""
    partitioned = student.deepspeed.zero_stage == 3
    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        [parameter], enabled=partitioned
    )
    return gathered


def take_up(engine: Any, folder: Path, tag: str) -> dict[str, Any]:
    """Load a state into an engine; returns what its writer kept with it.

    Of a universal state ZeRO 3 gives every group the first one's settings, and all of them one
    count of steps, which each then counts up (DeepSpeed 0.19.8).
    """
    groups = engine.basic_optimizer.param_groups
    told = [{name: group[name] for name in group if name != "params"} for group in groups]
    _, kept = engine.load_checkpoint(str(folder), tag=tag)
    for group, settings in zip(groups, told, strict=True):
        group.update(settings)
    for state in engine.basic_optimizer.state.values():
        state["step"] = state["step"].clone()
    found: dict[str, Any] = kept
    return found


def make_universal(state: Path, folder: Path) -> None:
    """Rewrite a state of any number of processes, parameter by parameter, as `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    kept = {"keep_temp_folder": False, "strict": True, "inject_missing_state": False}
    ds_to_universal.main(
        Namespace(input_folder=str(state), output_folder=str(folder), **workers, **kept)
    )
