"""How the student's processes start and share their work: `student.deepspeed`, and the hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from factory.errors import ManifestError
from factory.sections import Section

# DeepSpeed's keys that something else decides, and what a user sets instead.
BATCH = "a stage's batch_tokens and micro_batch_tokens decide it"
OPTIMISER = "a stage's learning_rate, weight_decay, betas and epsilon decide it"
TRAINER = "the trainer decides it"
DTYPE = "student.dtype decides it"
OWNED = {
    "train_batch_size": BATCH,
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_accumulation_steps": BATCH,
    "managed_gradient_accumulation": TRAINER,
    "gradient_allreduce_op": TRAINER,
    "gradient_clipping": "a stage's clip decides it",
    "optimizer": OPTIMISER,
    "scheduler": "a stage's schedule and warmup decide it",
    "bf16.enabled": DTYPE,
    "bfloat16": DTYPE,
    "fp16": DTYPE,
    "amp": DTYPE,
    "torch_autocast": DTYPE,
    "zero_optimization.stage": "student.deepspeed.zero_stage decides it",
    "zero_optimization.offload_optimizer.device": "student.deepspeed.offload decides it",
    "zero_optimization.offload_param.device": "student.deepspeed.offload decides it",
    "zero_allow_untested_optimizer": TRAINER,
    "zero_force_ds_cpu_optimizer": TRAINER,
    "checkpoint.load_universal": TRAINER,
    "elasticity": "student.processes decides it",
    "autotuning": TRAINER,
    "data_efficiency": "the stages decide what is trained on",
    "curriculum_learning": "the stages decide what is trained on",
    "pipeline": "every process holds the whole model or its ZeRO part",
    "tensor_parallel": "every process holds the whole model or its ZeRO part",
    "sequence_parallel_size": "every process holds the whole model or its ZeRO part",
}
HOST = re.compile(r"(\S+)\s+slots=([1-9]\d*)\s*(#.*)?")
# Options of the launcher that take some of a hostfile's processes and not others.
PICKING = ("--include", "-i", "--exclude", "-e", "--num_nodes", "--num_gpus", "--num_accelerators")


def _free(config: dict[str, Any]) -> dict[str, Any]:
    for place, remedy in OWNED.items():
        node: Any = config
        *parents, last = place.split(".")
        for part in parents:
            node = node.get(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{part}: is a section: give its keys")  # noqa: TRY004
        if last in node:
            raise ValueError(f"{place}: {remedy}: remove it")
    return config


class DeepSpeed(Section):
    """What DeepSpeed is told beyond what the stages say."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="what lies in the hosts' memory: the optimiser's states, or parameters too",
        exclude_if=lambda value: value == "none",
    )
    config: Annotated[dict[str, Any], AfterValidator(_free)] = Field(
        default_factory=dict,
        description="more of DeepSpeed's settings, but for those that other keys decide",
        exclude_if=lambda value: not value,
    )
    hostfile: str | None = Field(
        None,
        description="a file of hosts and their slots, one process each",
        exclude_if=lambda value: value is None,
    )
    launcher: tuple[str, ...] = Field((), description="more options of the deepspeed command")

    @model_validator(mode="after")
    def _offload_has_its_stage(self) -> Self:
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            more = "zero_stage 3" if needed == 3 else "a zero_stage of 1 or more"
            raise ValueError(f"offload: {self.offload} needs {more}, and it is {self.zero_stage}")
        return self


def check_hosts(settings: DeepSpeed, processes: int) -> None:
    """See that the hosts offer as many processes as the manifest says.

    Raises:
        ManifestError: the hostfile is missing or unreadable, a line of it is no host, or the sum
            of its slots is another number, and no option of the launcher picks some of them.
    """
    if settings.hostfile is None:
        return
    hosts = _read_hosts(Path(settings.hostfile))
    slots = sum(hosts.values())
    if slots != processes and not _picks(settings.launcher):
        place = "student.processes"
        remedy = f"the hostfile has {slots} slots: make it {slots}, or change {settings.hostfile}"
        raise ManifestError(place, processes, remedy)


def host_options(settings: DeepSpeed, processes: int) -> list[str]:
    """What the launcher is told of where the processes run: on a hostfile's hosts, or here."""
    if settings.hostfile is not None:
        return ["--hostfile", settings.hostfile, *settings.launcher]
    return ["--num_gpus", str(processes), *settings.launcher]


def _picks(options: Sequence[str]) -> bool:
    return any(option.split("=")[0] in PICKING for option in options)


def _read_hosts(path: Path) -> dict[str, int]:
    """Processes of each host."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        place, remedy = "student.deepspeed.hostfile", f"cannot be read: {told}"
        raise ManifestError(place, str(path), remedy) from None
    hosts: dict[str, int] = {}
    for place, line, name, slots in _hosts_of(path, lines):
        if name in hosts:
            raise ManifestError(place, line, f"{name} stands twice: give all its slots in one line")
        hosts[name] = slots
    if not hosts:
        raise ManifestError(path, None, "names no host: write a line such as: worker-1 slots=8")
    return hosts


def _hosts_of(path: Path, lines: list[str]) -> Iterator[tuple[str, str, str, int]]:
    """Place, text, host and slots of each line that is no comment."""
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        place = f"{path}:{number}"
        found = HOST.fullmatch(line)
        if found is None:
            raise ManifestError(place, line, "is no host: write it as: worker-1 slots=8")
        yield place, line, found[1], int(found[2])
