"""The systems of a run that can be measured: what each is, and the key of its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from factory.engines import EngineOptions
from factory.errors import ManifestError, RunError
from factory.files import digest
from factory.manifest import Manifest
from factory.records import RunDirectory
from student.plan import plan


@dataclass(frozen=True, slots=True)
class System:
    """A model that decodes held-out sources. `stage` is None for the teacher."""

    name: str
    stage: str | None
    engine: str
    options: EngineOptions
    key: str


def system(run: RunDirectory, manifest: Manifest, name: str) -> System:
    """Describe the teacher or the student of a run.

    Raises:
        ManifestError: the manifest has no such system.
        RunError: the student is not trained.
    """
    found = _teacher(run, manifest) if name == "teacher" else _student(run, manifest)
    facts = [manifest.prompt, held_out_decoding(manifest), manifest.evaluate.splits]
    samples = [file["sha256"] for file in run.files("samples")]
    rest = [found.key, found.engine, found.options.options, [str(fact) for fact in facts], samples]
    return System(name, found.stage, found.engine, found.options, digest(rest))


def held_out_decoding(manifest: Manifest) -> dict[str, Any]:
    """How held-out sources are decoded, where it differs from the defaults."""
    storing = {"shard_size", "window", "check"}
    return manifest.generate.greedily().model_dump(
        mode="json", exclude_defaults=True, exclude=storing
    )


def _teacher(run: RunDirectory, manifest: Manifest) -> System:
    teacher = manifest.teacher
    if teacher is None:
        raise ManifestError("evaluate.systems", "teacher", "the run has none: take it out")
    options = EngineOptions(
        teacher.model,
        teacher.revision,
        teacher.dtype,
        generate=manifest.generate.greedily(),
        options=_engine_options(manifest),
        cache=str(run.path("engine")),
    )
    key = digest([teacher.model_dump(mode="json"), run.record().get("teacher")])
    return System("teacher", None, _engine(manifest), options, key)


def _student(run: RunDirectory, manifest: Manifest) -> System:
    if manifest.student is None:
        raise ManifestError("evaluate.systems", "student", "the run has none: take it out")
    last = list(plan(run, manifest))[-1]
    if not last.done():
        raise RunError(run.root, None, "the student is not trained: seqkd train first")
    options = EngineOptions(
        str(last.model),
        dtype=manifest.student.dtype,
        generate=manifest.generate.greedily(),
        options=_engine_options(manifest),
        cache=str(run.path("engine")),
    )
    return System("student", last.stage.name, _engine(manifest), options, last.key)


def _engine(manifest: Manifest) -> str:
    teachers = manifest.teacher.engine if manifest.teacher else "transformers"
    return manifest.evaluate.engine or teachers


def _engine_options(manifest: Manifest) -> dict[str, Any]:
    """The teacher's engine options hold for the same engine alone."""
    same = manifest.teacher is not None and manifest.teacher.engine == _engine(manifest)
    return dict(manifest.teacher.options) if same and manifest.teacher else {}
