"""The queue: every planned row in one shard, every shard claimed once, the dead's given back."""

from __future__ import annotations

import multiprocessing

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import ManifestError
from factory.files import write_json
from factory.generation import placement
from factory.generation.placement import available_cores, places
from factory.generation.queue import Queue, clear, finished, freeze, release
from factory.manifest import Teacher

SCHEMA = pa.schema([("row", pa.int64())])


def batches(*portions):
    """Batches of consecutive rows, by portion: lengths of batches in, `freeze`'s input out."""
    first = 0
    for name, lengths in enumerate(portions):
        for length in lengths:
            yield name, pa.record_batch([pa.array(range(first, first + length))], schema=SCHEMA)
            first += length


def rows_of(queue):
    return {number: rows["row"].to_pylist() for number, rows in queue.shards()}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4), st.integers(1, 7))
def test_every_row_is_planned_once_in_order_and_portions_do_not_mix(
    tmp_path_factory, portions, size
):
    folder = tmp_path_factory.mktemp("queue")
    total = sum(map(sum, portions))
    assert freeze(folder, batches(*portions), SCHEMA, size) == total
    queue = Queue(folder, 0)
    shards = rows_of(queue)
    assert queue.rows == total
    assert list(shards) == list(range(len(shards)))
    assert [row for rows in shards.values() for row in rows] == list(range(total))
    bounds = [sum(map(sum, portions[:i])) for i in range(1, len(portions))]
    for rows in shards.values():
        assert 0 < len(rows) <= size
        assert not any(rows[0] < bound <= rows[-1] for bound in bounds)


def claim_all(folder, replica, out):
    out.put(rows_of(Queue(folder, replica)))


def test_a_shard_is_claimed_by_one_of_many(tmp_path):
    freeze(tmp_path, batches([200]), SCHEMA, 1)
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=claim_all, args=(tmp_path, i, out)) for i in range(3)]
    for process in processes:
        process.start()
    claimed = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(number for shards in claimed for number in shards) == list(range(200))


def test_what_a_dead_replica_had_not_finished_is_given_back(tmp_path):
    write_json(tmp_path / "00004.json", {})
    freeze(tmp_path, batches([6]), SCHEMA, 2)
    dead, alive = Queue(tmp_path, 0).shards(), Queue(tmp_path, 1).shards()
    assert [next(dead)[0], next(alive)[0], next(dead)[0]] == [5, 6, 7]
    write_json(tmp_path / "00005.json", {})
    release(tmp_path, 0)
    assert finished(tmp_path, 0) == [5]
    again = Queue(tmp_path, 0)
    assert again.finished_rows() == 2
    assert rows_of(again) == {7: [4, 5]}
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"00004.json", "00005.json"}


def teacher(replicas, **options):
    return Teacher(model="m", replicas=replicas, options=options)


def test_replicas_get_ranges_of_cores_or_groups_of_accelerators(monkeypatch):
    monkeypatch.setattr(placement, "library_versions", lambda: {"torch": "2.13.0"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7")
    groups = [place.environment for place in places(teacher(2, tensor_parallel_size=2))]
    assert groups == [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,GPU-7"}]
    with pytest.raises(ManifestError, match=r"teacher\.replicas: 3: .* 2 groups of 2 accelerators"):
        places(teacher(3, tensor_parallel_size=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = available_cores()
    found = places(teacher(len(cores))) if len(cores) > 1 else []
    assert [sorted(place.cores) for place in found] == [[core] for core in cores][: len(found)]
    assert {place.environment["OMP_NUM_THREADS"] for place in found} <= {"1"}
    with pytest.raises(ManifestError, match=f"has {len(cores)} cores"):
        places(teacher(len(cores) + 1))
    assert places(teacher(1))[0].environment == {}
