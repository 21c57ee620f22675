"""Batches over processes: in order, few at a time, and no failure unheard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from factory.errors import StepFailed
from factory.judging.language import identify
from factory.judging.pool import IN_FLIGHT, mapped
from factory.judging.texts import by_sample, whole_samples


def numbered(n: int) -> pa.RecordBatch:
    return pa.record_batch({"number": [n]})


def slow_when_even(batch: pa.RecordBatch) -> pa.RecordBatch:
    number = batch["number"][0].as_py()
    time.sleep(0.02 * (number % 2 == 0))
    return pa.record_batch({"number": [number], "process": [os.getpid()]})


def fails_at_three(batch: pa.RecordBatch) -> pa.RecordBatch:
    if batch["number"][0].as_py() == 3:
        raise ZeroDivisionError("three")
    return batch


def dies_at_three(batch: pa.RecordBatch) -> pa.RecordBatch:
    if batch["number"][0].as_py() == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def test_answers_come_in_order_from_several_processes_and_few_are_in_flight():
    read = list[int]()

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(40):
            read.append(number)
            yield numbered(number)

    answers = mapped(slow_when_even, batches(), 2)
    found = [next(answers).to_pylist()[0]]
    assert len(read) == 2 * IN_FLIGHT
    found += [batch.to_pylist()[0] for batch in answers]
    assert [row["number"] for row in found] == list(range(40))
    assert os.getpid() not in {row["process"] for row in found}
    assert len({row["process"] for row in found}) == 2


def test_one_process_is_this_one():
    [found] = mapped(slow_when_even, [numbered(1)], 1)
    assert found["process"].to_pylist() == [os.getpid()]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_worker_raises_its_parent_raises(processes):
    answers = mapped(fails_at_three, map(numbered, range(100)), processes)
    with pytest.raises(ZeroDivisionError, match="three"):
        list(answers)


def test_a_worker_that_dies_is_told():
    with pytest.raises(StepFailed, match="a worker process died"):
        list(mapped(dies_at_three, map(numbered, range(100)), 2))


def test_an_error_of_the_batches_ends_the_workers():
    def batches() -> Iterator[pa.RecordBatch]:
        yield numbered(1)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(mapped(slow_when_even, batches(), 2))


PARENT = """
from itertools import repeat
from factory.judging.pool import mapped
from tests.factory.judging.test_pool import numbered, slow_when_even

if __name__ == "__main__":
    # One batch for all: pyarrow loses a KeyboardInterrupt that meets it as it makes one of lists.
    answers = mapped(slow_when_even, repeat(numbered(0)), 2)
    for answer in answers:
        print(answer["process"][0], flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_say_nothing(tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        start_new_session=True,
    )
    assert parent.stdout is not None
    workers = {int(parent.stdout.readline()) for _ in range(20)}
    said = interrupted(parent) if how == signal.SIGINT else killed(parent)
    assert said.count("Traceback") == (how == signal.SIGINT)
    assert "nanobind" not in said
    for _ in range(600):
        if not any(map(is_there, workers)):
            return
        time.sleep(0.1)
    raise AssertionError(f"{workers} outlive their parent")


def interrupted(parent: subprocess.Popen[str]) -> str:
    """What is said at Ctrl-C, which a terminal sends to all of them.

    Callbacks lose a KeyboardInterrupt that meets them, pyarrow's and importlib's among them:
    whoever sees nothing happen presses again.
    """
    for _ in range(5):
        os.killpg(parent.pid, signal.SIGINT)
        try:
            return parent.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("does not end")


def killed(parent: subprocess.Popen[str]) -> str:
    parent.kill()
    return parent.communicate(timeout=60)[1]


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_that_loaded_a_library_say_nothing_at_their_end(capfd):
    keys = {"sample_id": ["a"], "rank": pa.array([0], pa.int32())}
    batch = pa.record_batch(keys | {"source": ["un chat"], "text": ["a cat"]})
    assert list(mapped(identify, [batch] * 4, 2)) == [identify(batch)] * 4
    assert capfd.readouterr() == ("", "")


def keyed(ids: str) -> list[pa.RecordBatch]:
    """Batches of samples of one letter each; a blank ends a batch."""
    return [pa.record_batch({"sample_id": list(part)}) for part in ids.split()]


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        ("", ""),
        ("a", "a"),
        ("ab", "a b"),
        ("aab bbc", "aa bbb c"),
        ("aa aa a", "aaaaa"),
        ("aa bb", "aa bb"),
        ("abc cd", "ab cc d"),
    ],
)
def test_no_sample_is_cut(given, cut):
    found = ["".join(batch["sample_id"].to_pylist()) for batch in whole_samples(keyed(given))]
    assert found == cut.split()


def test_samples_of_a_batch():
    [batch] = keyed("aabccc")
    assert by_sample(batch, "sample_id") == [["a", "a"], ["b"], ["c", "c", "c"]]
