"""Where the replicas of a teacher run: accelerators or cores of their own."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from factory.errors import ManifestError
from factory.manifest import Teacher
from factory.records import library_versions


@dataclass(frozen=True)
class Place:
    """What one replica may use. Nothing is said to a replica that is alone."""

    environment: dict[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Processes started in the body run on these cores alone, from their first moment."""
        if not self.cores or not hasattr(os, "sched_setaffinity"):
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def places(teacher: Teacher) -> list[Place]:
    """A place for each replica: the i-th group of visible accelerators, or a range of cores.

    A group is as large as `teacher.options.tensor_parallel_size`.

    Raises:
        ManifestError: there are more replicas than accelerators, or than cores.
    """
    if teacher.replicas == 1:
        return [Place()]
    if devices := visible_devices():
        group = int(teacher.options.get("tensor_parallel_size", 1))
        what = "accelerators" if group == 1 else f"groups of {group} accelerators"
        _require(teacher.replicas, len(devices) // group, what)
        lists = [devices[i * group : (i + 1) * group] for i in range(teacher.replicas)]
        return [Place({"CUDA_VISIBLE_DEVICES": ",".join(own)}) for own in lists]
    cores = available_cores()
    _require(teacher.replicas, len(cores), "cores")
    bounds = [i * len(cores) // teacher.replicas for i in range(teacher.replicas + 1)]
    ranges = [cores[a:b] for a, b in itertools.pairwise(bounds)]
    return [Place({"OMP_NUM_THREADS": str(len(own))}, frozenset(own)) for own in ranges]


def visible_devices() -> list[str]:
    """The accelerators that an engine would see, as CUDA_VISIBLE_DEVICES names them."""
    if library_versions().get("torch", "").endswith("+cpu"):
        return []
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return [] if listed.returncode else listed.stdout.split()


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _require(replicas: int, there: int, what: str) -> None:
    if replicas > there:
        remedy = f"this machine has {there} {what} for them: set it to at most {max(there, 1)}"
        raise ManifestError("teacher.replicas", replicas, remedy)
