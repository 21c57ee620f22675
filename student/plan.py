"""What a run's student is made of, in order: its start and its stages, each under a key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from factory.errors import ManifestError, RunError
from factory.files import digest, read_json, write_json
from factory.manifest import Manifest
from factory.records import RunDirectory
from factory.training import Stage, Student
from student.dataset import DataRecord, read_record

INIT = "init"


@dataclass(frozen=True, slots=True)
class InitRecord:
    """What stands in `student/init`; written after the model itself."""

    key: str
    parameters: int
    copied_layers: list[int]
    tokenizer: str
    same_tokenizer: bool
    context: int | None
    vocabulary: int
    encoder_decoder: bool
    copied_encoder_layers: list[int] = field(default_factory=list)
    copied_parameters: int = 0

    def write(self, folder: Path) -> None:
        """Record that the folder's model is whole."""
        write_json(folder / "init.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> InitRecord | None:
        """The record of a folder, or None where there is none."""
        path = folder / "init.json"
        return cls(**read_json(path)) if path.is_file() else None


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage: where it starts, where it works, and the key it must be done under."""

    stage: Stage
    folder: Path
    start: Path
    key: str
    data: DataRecord
    init: InitRecord

    @property
    def model(self) -> Path:
        """Where the stage's best model stands when it is done."""
        return self.folder / "model"

    def done(self) -> dict[str, Any] | None:
        """The record of this stage under its present key, or None."""
        path = self.folder / "stage.json"
        record: dict[str, Any] = read_json(path) if path.is_file() else {}
        return record if record.get("key") == self.key else None


def student_of(manifest: Manifest) -> Student:
    """The manifest's student section.

    Raises:
        ManifestError: there is none, or a stage has a name that is taken.
    """
    if manifest.student is None:
        raise ManifestError("student", None, "is missing: add it, or leave out training")
    if any(stage.name == INIT for stage in manifest.student.stages):
        raise ManifestError("student.stages", INIT, "is where a student starts: take another name")
    return manifest.student


def init_key(run: RunDirectory, manifest: Manifest) -> str:
    """Digest of all that the student's start depends on."""
    init = student_of(manifest).init
    facts: list[Any] = [init.model_dump(mode="json"), manifest.seed]
    if init.tokenizer and init.tokenizer.train:
        facts += [file["sha256"] for file in run.files("samples")]
    return digest([*facts, run.record().get("teacher")])


def plan(run: RunDirectory, manifest: Manifest) -> Iterator[PlannedStage]:
    """The stages in manifest order, each keyed by its data and by the stage before it.

    Raises:
        RunError: a stage's rows, or the start, are not prepared.
    """
    student = student_of(manifest)
    init = InitRecord.read(run.path("student", INIT))
    if init is None:
        raise RunError(run.root, None, "the student is not prepared: run seqkd train")
    common = {k: v for k, v in student.essence().items() if k not in ("stages", "init")}
    common["processes"] = 1  # as a stage of one process always had it
    start, key = run.path("student", INIT), init.key
    for stage in student.stages:
        folder = run.path("student", stage.name)
        data = read_record(folder / "data")
        if data is None:
            raise RunError(folder, None, "the stage is not prepared: run seqkd train")
        facts = [stage.model_dump(mode="json"), common, manifest.seed, data.key, key]
        key = digest(facts)
        yield PlannedStage(stage, folder, start, key, data, init)
        start = folder / "model"
