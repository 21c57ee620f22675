"""The systems of a run that can be measured: what each is, and the key of its texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pyarrow.dataset import dataset, field

from factory.decoding import Generate
from factory.engines import ABILITIES, EngineOptions
from factory.engines.choice import Kind, choose
from factory.errors import ManifestError, RunError
from factory.files import digest
from factory.manifest import Manifest
from factory.models import model_facts
from factory.records import RunDirectory
from student.held_out import of_tokenizer
from student.plan import plan


@dataclass(frozen=True, slots=True)
class System:
    """A model that decodes held-out sources. `stage` is None for the teacher.

    `engine_asked` says how it came to its engine: by name, by `auto`, or as the teacher's own.
    """

    name: str
    stage: str | None
    engine: str
    options: EngineOptions
    key: str
    engine_asked: str = "name"


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
    return replace(found, key=digest(rest))


def held_out_decoding(manifest: Manifest) -> dict[str, Any]:
    """How held-out sources are decoded, where it differs from the defaults."""
    storing = {"shard_size", "window", "check"}
    return manifest.evaluate.searched(manifest.generate).model_dump(
        mode="json", exclude_defaults=True, exclude=storing
    )


def _teacher(run: RunDirectory, manifest: Manifest) -> System:
    teacher = manifest.teacher
    if teacher is None:
        raise ManifestError("evaluate.systems", "teacher", "the run has none: take it out")
    named = _named(manifest)
    options = EngineOptions(
        teacher.model,
        teacher.revision,
        teacher.dtype,
        generate=manifest.evaluate.searched(manifest.generate),
        options=_engine_options(manifest, named or teacher.engine),
        cache=str(run.path("engine")),
        logprobs=False,
    )
    key = digest([teacher.model_dump(mode="json"), run.record().get("teacher")])
    told = "name" if named else "teacher's own"
    return System("teacher", None, named or teacher.engine, options, key, told)


def _student(run: RunDirectory, manifest: Manifest) -> System:
    if manifest.student is None:
        raise ManifestError("evaluate.systems", "student", "the run has none: take it out")
    last = list(plan(run, manifest))[-1]
    if not last.done():
        raise RunError(run.root, None, "the student is not trained: seqkd train first")
    search = manifest.evaluate.searched(manifest.generate)
    generate = of_tokenizer(search, same=last.init.same_tokenizer)
    named, dtype = _named(manifest), manifest.student.dtype
    engine = named or _chosen(run, manifest, str(last.model), dtype, generate)
    options = EngineOptions(
        str(last.model),
        dtype=dtype,
        generate=generate,
        options=_engine_options(manifest, engine),
        cache=str(run.path("engine")),
        logprobs=False,
    )
    told = "name" if named else "auto"
    return System("student", last.stage.name, engine, options, last.key, told)


def _named(manifest: Manifest) -> str | None:
    """The engine that the manifest names, or None where it is left to us."""
    asked = manifest.evaluate.engine
    return asked if asked in ABILITIES else None


def _chosen(
    run: RunDirectory, manifest: Manifest, model: str, dtype: str, generate: Generate
) -> str:
    import torch

    kind = Kind.of_facts(model_facts(model, None, "student"))
    sources = sum(count_split(run, split) for split in manifest.evaluate.splits)
    return choose(kind, dtype, generate, sources, cuda=torch.cuda.is_available())


def count_split(run: RunDirectory, split: str) -> int:
    """How many sources a split has."""
    paths = [run.path(file["path"]) for file in run.files("samples")]
    return int(dataset(paths).count_rows(filter=field("split") == split))


def _engine_options(manifest: Manifest, engine: str) -> dict[str, Any]:
    """The teacher's engine options hold for the same engine alone."""
    same = manifest.teacher is not None and manifest.teacher.engine == engine
    return dict(manifest.teacher.options) if same and manifest.teacher else {}
