"""Several engines at once: the same rows as one, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from factory.errors import StepFailed, Told
from factory.generation.placement import Place, available_cores
from factory.generation.replicas import run_replicas
from factory.records import RunDirectory
from factory.verify import verify
from tests.factory.generation.test_generate import (
    LOGITS,
    generated,
    manifest,
    rows,
    seqkd,
    undisturbed,
)

__all__ = ["manifest", "undisturbed"]

TWO = "teacher.replicas=2"
needs_two_cores = pytest.mark.skipif(len(available_cores()) < 2, reason="one core")


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def shards(root: Path) -> int:
    return len(list(root.glob("shards/*.json")))


def end_up_as(root: Path, undisturbed: Path) -> None:
    assert rows(root) == rows(undisturbed)
    assert rows(root, LOGITS) == rows(undisturbed, LOGITS)
    assert verify(RunDirectory(root))["problems"] == []
    assert not [p for p in root.glob("shards/*") if not p.name[0].isdigit()]


@needs_two_cores
def test_two_replicas_give_the_rows_of_one(manifest, undisturbed, tmp_path):
    run = generated(tmp_path / "run", manifest, TWO, "generate.shard_size=4")
    end_up_as(run.root, undisturbed)
    assert {path.name for path in run.path("logs").iterdir()} == {
        "generate-0.log",
        "generate-1.log",
    }
    figures = run.step("generate")
    assert (figures["decoded_sources"], figures["shards"]) == (60, 15)
    assert figures["decoded_tokens"] == figures["tokens"]
    assert (figures["check"]["candidates"], figures["check"]["skipped"]) == (60, 0)


@needs_two_cores
def test_a_replica_killed_in_the_middle_is_started_again(manifest, undisturbed, tmp_path):
    root, small = tmp_path / "run", "--set=generate.shard_size=2"
    process = seqkd("generate", manifest, "--run-dir", root, f"--set={TWO}", small)
    while shards(root) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    killed = children(process.pid)[0]
    os.kill(killed, signal.SIGKILL)
    assert process.wait(120) == 0
    end_up_as(root, undisturbed)


@needs_two_cores
def test_all_killed_at_once_the_next_run_goes_on(manifest, undisturbed, tmp_path):
    root, small = tmp_path / "run", "generate.shard_size=2"
    process = seqkd("generate", manifest, "--run-dir", root, f"--set={TWO}", f"--set={small}")
    while shards(root) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    for pid in [process.pid, *children(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    generated(root, manifest, small)
    end_up_as(root, undisturbed)


def test_a_replica_that_always_dies_fails_the_step(undisturbed, tmp_path):
    run = RunDirectory(tmp_path)
    run.path("shards").mkdir()
    with run.locked() as lock, pytest.raises(StepFailed, match=r"dying-\d: .* 3 times .* status 3"):
        run_replicas(run, "tests.dying", "key", lock, [Place(), Place()], run.path("shards"))
    said = [path.read_text().count("gone") for path in run.path("logs").iterdir()]
    assert max(said) == 3


@needs_two_cores
def test_a_user_error_told_by_a_replica_fails_at_once(manifest, tmp_path):
    with pytest.raises(Told, match=r"teacher\.options") as raised:
        generated(tmp_path / "run", manifest, TWO, "teacher.options={bogus: 1}")
    assert raised.value.exit_status == 2


def test_more_replicas_than_this_machine_has_room_for(manifest, tmp_path):
    with pytest.raises(Exception, match=r"teacher\.replicas: 999: .* set it to at most"):
        generated(tmp_path / "run", manifest, "teacher.replicas=999")
