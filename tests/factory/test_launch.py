"""The launcher's command, and the hosts that it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.errors import ManifestError
from factory.launch import DeepSpeed, check_hosts
from factory.records import RunDirectory
from factory.training import Student
from factory.workers import launcher_command

STUDENT: dict[str, Any] = {"init": {"model": "m"}, "stages": [{"name": "a", "data": "gold"}]}


def command(processes: int, **keys: Any) -> list[str]:
    """The launcher's command without the launcher's own place."""
    settings = DeepSpeed.model_validate(keys)
    run = RunDirectory(Path("/runs/one"))
    return launcher_command("student.train", run, processes, 29501, settings)[1:]


def test_the_command_of_one_host():
    port = ["--master_port", "29501"]
    module = ["--module", "student.train", "/runs/one"]
    assert command(4) == [*port, "--num_gpus", "4", *module]
    bound = command(4, launcher=["--bind_cores_to_rank"])
    assert bound == [*port, "--num_gpus", "4", "--bind_cores_to_rank", *module]


def test_the_command_of_many_hosts():
    """Every slot of the hosts; DeepSpeed's --num_gpus would be so many on each of them."""
    options = ["--num_nodes", "2", "--master_addr", "10.0.0.1"]
    assert command(16, hostfile="/etc/hosts.ds", launcher=options) == [
        "--master_port", "29501", "--hostfile", "/etc/hosts.ds", "--num_nodes", "2",
        "--master_addr", "10.0.0.1", "--module", "student.train", "/runs/one",
    ]  # fmt: skip


HOSTS: list[tuple[str, int, list[str], str | None]] = [
    ("a slots=4\nb slots=4\n", 8, [], None),
    ("# two\n\n  a   slots=1 # old\nb\tslots=7", 8, [], None),
    ("a slots=4\nb slots=4\n", 2, ["--include", "a:0@b:1"], None),
    ("a slots=4\nb slots=4\n", 4, ["--num_nodes=1"], None),
    (
        "a slots=4\nb slots=4\n", 4, [],
        "student.processes: 4: the hostfile has 8 slots: make it 8, or change {path}",
    ),
    (
        "a slots=4\nb slots=4\n", 4, ["--master_addr", "a"],
        "student.processes: 4: the hostfile has 8 slots: make it 8, or change {path}",
    ),
    ("a slots=4\nb 4\n", 8, [], "{path}:2: 'b 4': is no host: write it as: worker-1 slots=8"),
    ("a slots=0\n", 1, [], "{path}:1: 'a slots=0': is no host: write it as: worker-1 slots=8"),
    (
        "a slots=1\na slots=1\n", 2, [],
        "{path}:2: 'a slots=1': a stands twice: give all its slots in one line",
    ),
    ("# none\n", 1, [], "{path}: names no host: write a line such as: worker-1 slots=8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "processes", "launcher", "mistake"), HOSTS)
def test_hosts(tmp_path: Path, text: str, processes: int, launcher: list[str], mistake: str | None):
    path = tmp_path / "hosts"
    path.write_text(text)
    settings = DeepSpeed.model_validate({"hostfile": str(path), "launcher": launcher})
    if mistake is None:
        check_hosts(settings, processes)
        return
    with pytest.raises(ManifestError) as refused:
        check_hosts(settings, processes)
    assert str(refused.value) == mistake.format(path=path)


def test_later_keys_are_left_out_where_they_say_nothing():
    """What was trained before they were there goes on standing: the dump is digested."""
    told = Student.model_validate(STUDENT).model_dump(mode="json")
    assert told["deepspeed"] == {"zero_stage": 1, "launcher": []}
    assert not told["stages"][0].keys() & {"betas", "epsilon"}


def test_where_it_is_trained_is_no_part_of_what_it_is():
    hosts = {"hostfile": "/hosts", "launcher": ["--launcher", "slurm"]}
    plain = Student.model_validate(STUDENT)
    spread = Student.model_validate(STUDENT | {"processes": 8, "deepspeed": hosts})
    assert spread.essence() == plain.essence()
    assert plain.essence().items() < plain.model_dump(mode="json").items()
    assert spread.model_copy(update={"dtype": "bfloat16"}).essence() != plain.essence()
