"""The steps of a run and their keys: the digest of all that a step's outcome depends on."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.architecture import check_start
from factory.decoding import Generate
from factory.engines import ABILITIES
from factory.engines.choice import NARROWEST_HEAD, Kind, obstacle
from factory.errors import ManifestError
from factory.evaluation import BEAM
from factory.files import digest, shipped
from factory.generation.score import GOLD, score_targets
from factory.judging.signals import check_signals, signal_keys
from factory.judging.verdicts import Ruling
from factory.launch import check_hosts
from factory.manifest import Manifest
from factory.matching import check_matching
from factory.models import ModelFacts, model_facts
from factory.programs import check_programs, program_files
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import first_token_id, load_tokenizer, tokenizer_fingerprint
from factory.records import RunDirectory
from factory.sections import Section
from factory.sources import content_digest, split_files
from factory.staging import check_stages
from factory.training import NO_TENSORBOARD

TELLING = ("card", "report")


@dataclass(frozen=True)
class Plan:
    """A manifest that was looked at as far as it can be without loading a model."""

    manifest: Manifest
    teacher: ModelFacts | None
    prompter: Prompter
    tokenizer: str | None
    limit: int = 0

    def steps(self) -> tuple[str, ...]:
        """The steps that this manifest has, in order."""
        manifest = self.manifest
        present = {
            "samples": True,
            "generate": manifest.teacher is not None,
            "score": bool(score_targets(manifest)),
            "judge": manifest.teacher is not None,
            "train": manifest.student is not None,
            "evaluate": bool(systems(manifest) and splits(manifest)),
            "card": True,
            "report": True,
        }
        return tuple(step for step, there in present.items() if there)


def systems(manifest: Manifest) -> tuple[str, ...]:
    """The systems that this run can evaluate: those asked for that it has."""
    has = {"teacher": manifest.teacher, "student": manifest.student}
    return tuple(system for system in manifest.evaluate.systems if has[system])


def splits(manifest: Manifest) -> tuple[str, ...]:
    """The splits that this run can evaluate: those asked for that it has."""
    return tuple(split for split in manifest.evaluate.splits if split in manifest.data.splits())


def make_plan(manifest: Manifest, limit: int = 0) -> Plan:
    """Check a manifest against its models and rules.

    Raises:
        UserError: a part of the manifest cannot work, whatever the data.
    """
    Ruling.of(manifest)
    check_signals(manifest)
    check_programs(manifest.evaluate.programs())
    if manifest.student:
        check_hosts(manifest.student.deepspeed, manifest.student.processes)
    _check_targets(manifest)
    _check_tensorboard(manifest)
    if manifest.candidates_from:
        RunDirectory.existing(Path(manifest.candidates_from))
    teacher = manifest.teacher
    if teacher is None:
        _check_held_out(manifest, None, check_start(manifest, None))
        check_stages(manifest, None)
        return Plan(manifest, None, Prompter(None, manifest.prompt), None, limit)
    facts = model_facts(teacher.model, teacher.revision, "teacher.model")
    _check_engine(manifest, facts)
    tokenizer = load_tokenizer(teacher.model, teacher.revision)
    if manifest.generate.first_token is not None:
        first_token_id(tokenizer, manifest.generate.first_token)
    prompter = Prompter(tokenizer, manifest.prompt)
    start = check_start(manifest, tokenizer)
    check_stages(manifest, tokenizer)
    check_matching(manifest, start, tokenizer)
    _check_held_out(manifest, facts, start)
    return Plan(manifest, facts, prompter, tokenizer_fingerprint(tokenizer), limit)


def _check_targets(manifest: Manifest) -> None:
    targets = manifest.score.targets
    if targets and manifest.teacher is None:
        raise ManifestError("score.targets", list(targets), "needs a teacher: add one")
    if targets and manifest.logits.capture == "none":
        remedy = "gives distributions, and logits.capture keeps none: set it to top_k"
        raise ManifestError("score.targets", list(targets), remedy)
    train = manifest.data.train
    if GOLD in targets and not (train and train.target):
        raise ManifestError("score.targets", GOLD, "there is none: give data.train.target")


def _check_tensorboard(manifest: Manifest) -> None:
    if manifest.student and manifest.student.tensorboard:
        found = importlib.util.find_spec("tensorboard")
        if found is None or found.origin is None:  # a folder of that name is not the library
            raise ManifestError("student.tensorboard", True, NO_TENSORBOARD)


def _check_engine(manifest: Manifest, facts: ModelFacts) -> None:
    if manifest.teacher is None:
        return
    engine = manifest.teacher.engine
    if facts.encoder_decoder and not ABILITIES[engine].encoder_decoder:
        able = " or ".join(name for name, other in ABILITIES.items() if other.encoder_decoder)
        remedy = f"{facts.model_type} is an encoder–decoder: set engine to {able}"
        raise ManifestError("teacher.engine", engine, remedy)
    if engine == "vllm" and (facts.head_size or NARROWEST_HEAD) < NARROWEST_HEAD and not has_cuda():
        remedy = (
            f"takes no attention head narrower than {NARROWEST_HEAD} on a CPU, and this model's "
            f"have {facts.head_size}: set engine to transformers"
        )
        raise ManifestError("teacher.engine", engine, remedy)
    _check_decoding(manifest.generate, engine, facts)
    if manifest.logits.drawn and not ABILITIES[ABILITIES[engine].scorer].draws:
        able = " or ".join(n for n, other in ABILITIES.items() if ABILITIES[other.scorer].draws)
        remedy = (
            f"engine {engine} tells the most probable tokens alone, and draws from those would be "
            f"biased: set teacher.engine to {able}, or capture to top_k"
        )
        raise ManifestError("logits.capture", manifest.logits.capture, remedy)
    if manifest.logits.width > facts.vocab_size:
        remedy = f"is more than the teacher's vocabulary of {facts.vocab_size}: lower it"
        raise ManifestError("logits.k", manifest.logits.k, remedy)


def _check_held_out(manifest: Manifest, teacher: ModelFacts | None, student: Any) -> None:
    """Refuse an engine that cannot decode the held-out sources, before anything runs.

    `student` is the configuration it will have, or None where there is no student.
    """
    asked, key = manifest.evaluate, "evaluate.engine"
    search, greedy = asked.searched(manifest.generate), manifest.generate.greedily()
    named = asked.engine if asked.engine in ABILITIES else None
    if teacher and manifest.teacher and "teacher" in asked.systems:
        engine = named or manifest.teacher.engine
        _require_able(key, engine, "teacher", Kind.of_facts(teacher), search)
    if student is None or manifest.student is None:
        return
    kind, validates = Kind.of_config(student), manifest.student.validate_engine
    if named and "student" in asked.systems:
        _require_able(key, named, "student", kind, search)
    if validates in ABILITIES:
        _require_able("student.validate_engine", str(validates), "student", kind, greedy)


def _require_able(key: str, engine: str, system: str, kind: Kind, search: Generate) -> None:
    cuda = has_cuda()
    if why := obstacle(engine, kind, search, cuda=cuda):
        able = [name for name in ABILITIES if not obstacle(name, kind, search, cuda=cuda)]
        remedy = f"cannot decode the {system}: it {why}: set {key} to {' or '.join(able)}"
        raise ManifestError(key, engine, remedy)


def has_cuda() -> bool:
    """Whether there is an NVIDIA accelerator here, asked without loading a library."""
    return shutil.which("nvidia-smi") is not None


def _check_decoding(generate: Generate, engine: str, facts: ModelFacts) -> None:
    """Refuse what the engine does not do, rather than leave it out in silence."""
    ability, decoding = ABILITIES[engine], generate.decoding
    if decoding not in ability.decodings:
        remedy = f"engine {engine} offers {', '.join(ability.decodings)}"
        raise ManifestError("generate.decoding", decoding, remedy)
    kind = decoding, facts.encoder_decoder
    for key in sorted(ability.lacking(*kind) & generate.model_fields_set):
        able = [
            name
            for name, other in ABILITIES.items()
            if decoding in other.decodings and key not in other.lacking(*kind)
        ]
        remedy = (
            f"engine {engine} has none in {decoding} decoding: "
            f"remove it, or try {' or '.join(able)}"
        )
        raise ManifestError(f"generate.{key}", generate.model_dump(mode="json")[key], remedy)
    if decoding == "beam" and 2 * generate.beam_width > facts.vocab_size:
        remedy = f"needs twice as many tokens; the vocabulary has {facts.vocab_size}: lower it"
        raise ManifestError("generate.beam_width", generate.beam_width, remedy)


def samples_key(plan: Plan) -> str:
    """Key of the rows: their files' contents, and all that shapes and encodes them."""
    data = plan.manifest.data
    files = {
        name: [content_digest(file) for file in split_files(split)]
        for name, split in data.splits().items()
    }
    settings = data.model_dump(mode="json", exclude={"root"})
    return digest(
        [
            files,
            _without_paths(settings),
            _told(plan.manifest.prompt),
            plan.manifest.seed,
            plan.tokenizer,
            plan.limit,
            *_chat_facts(plan),
        ]
    )


def _chat_facts(plan: Plan) -> list[Any]:
    """What shapes chat prompts beyond the manifest: the template, and where a source is read."""
    if plan.prompter.chat is None:
        return []
    named = [name for name, split in plan.manifest.data.splits().items() if split.names_source]
    return [plan.prompter.chat.template, named if plan.manifest.prompt.messages else None]


def generate_key(plan: Plan) -> str:
    """Key of a candidate: teacher, prompt and decoding; rows are checked one by one."""
    manifest = plan.manifest
    teacher = _told(manifest.teacher) if manifest.teacher else {}
    for placing in ("model", "revision", "replicas"):
        teacher.pop(placing, None)
    decoding = _told(manifest.generate)
    for storing in ("shard_size", "window", "check"):
        decoding.pop(storing, None)
    if manifest.generate.decoding == "sample":
        decoding["seed"] = manifest.seed
    fingerprint = plan.teacher.fingerprint if plan.teacher else None
    return digest(
        [
            fingerprint,
            plan.tokenizer,
            teacher,
            decoding,
            _told(manifest.prompt),
            _told(manifest.logits),
        ]
    )


def import_key(plan: Plan) -> str:
    """Key of an imported candidate: what its ids and its prompt's hang on, and no decoding."""
    return digest(["imported", plan.tokenizer, _told(plan.manifest.prompt)])


def candidate_keys(plan: Plan) -> frozenset[str]:
    """Keys of the candidates that stand under this plan: decoded, or imported."""
    return frozenset((generate_key(plan), import_key(plan)))


def rules_key(manifest: Manifest) -> str:
    """Key of the judgement itself: every rule's condition, and the selection's order."""
    return digest(Ruling.of(manifest).told())


def judge_key(plan: Plan, run: RunDirectory) -> str:
    """Key of the verdicts: what is measured of which candidates, and the rules."""
    return digest([signal_keys(run, plan.manifest), rules_key(plan.manifest)])


def train_key(plan: Plan, run: RunDirectory) -> str:
    """Key of the student: its section, the gold, the selected targets and their distributions."""
    manifest = plan.manifest
    student = manifest.student.essence() if manifest.student else {}
    targets = run.step("judge").get("verdicts_digest")
    generated = run.step("generate").get("key")
    told = [run.step("score").get("key")] if "score" in plan.steps() else []
    samples = run.step("samples").get("key")
    return digest([student, manifest.seed, samples, targets, generated, *told])


def evaluate_key(plan: Plan, run: RunDirectory) -> str:
    """Key of the scores: the systems, the rows they decode, and how."""
    manifest = plan.manifest
    decoding = manifest.generate.model_dump(mode="json", include={"max_new_tokens"})
    decoding |= _told(manifest.evaluate.searched(manifest.generate))
    for storing in ("shard_size", "window", "check"):
        decoding.pop(storing, None)
    fingerprint = plan.teacher.fingerprint if plan.teacher else None
    trained = run.step("train").get("key")
    settings = manifest.evaluate.model_dump(mode="json", exclude=set(BEAM))
    samples = run.step("samples").get("key")
    programs = manifest.evaluate.programs().values()
    files = [program_files(program) for program in programs]
    return digest([settings, decoding, fingerprint, trained, samples, *files])


def card_key(plan: Plan, run: RunDirectory) -> str:
    """Key of the card: every step it tells of, and its template."""
    template = [p.read_text("utf-8") for p in sorted(shipped("data_cards").glob("*.j2"))]
    return digest([_keys(run), template, plan.manifest.model_dump(mode="json")])


def report_key(plan: Plan, run: RunDirectory, beside: Sequence[RunDirectory] = ()) -> str:
    """Key of the report: what it shows of this run and others, its queries, and its page."""
    page = Path(__file__).parent.glob("reporting/page/*")
    texts = sorted([*shipped("sql").glob("report/*.sql"), *page])
    shown = [path.read_text("utf-8") for path in texts]
    made = [run.shard_records(), run.score_records(), run.stage_records()]
    others = [(str(other.root), _keys(other)) for other in beside]
    return digest([_keys(run), made, others, shown, plan.manifest.model_dump(mode="json")])


def _keys(run: RunDirectory) -> dict[str, str]:
    """Keys of the steps that are done, less those that only tell of the others."""
    steps = run.record()["steps"].items()
    return {name: step["key"] for name, step in steps if name not in TELLING}


def _told(section: Section) -> dict[str, Any]:
    """What a section says beyond its defaults: a key that comes later leaves old work standing."""
    return section.model_dump(mode="json", exclude_defaults=True)


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """A split's columns matter, where its files lie does not."""
    for split in settings.values():
        if isinstance(split, dict):
            if split["path"] is None:
                split |= {"source": None, "target": split["target"] is not None}
            split["path"] = None
    return settings
