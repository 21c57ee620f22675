"""A run from sources to card: each step done once, resumed where it stopped, redone if stale."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory import steps
from factory.cards import card
from factory.errors import ManifestError, RunError, UserError
from factory.exchange import importing
from factory.files import write_text
from factory.generation.generate import count_pending, generate, totals
from factory.generation.score import CANDIDATE, score, score_key, score_targets
from factory.inheritance import take_over
from factory.judging.judge import judge
from factory.manifest import Manifest
from factory.prompting.tokens import keep_tokens
from factory.query import catalog
from factory.records import STEPS, RunDirectory
from factory.samples import build_samples
from factory.staging import require_gold
from factory.steps import Plan, has_cuda, make_plan
from factory.workers import launcher_command, module_command, run_worker

Told = Callable[[str, str], None]  # step, what became of it
DONE, STANDS, TAKEN = "done", "stands", "taken over"


@dataclass(frozen=True)
class Job:
    """A run under the lock of this process."""

    run: RunDirectory
    plan: Plan
    lock: int
    fresh: bool
    tell: Told
    beside: Sequence[RunDirectory] = ()  # what the report compares this run with

    @property
    def manifest(self) -> Manifest:
        """The manifest this job follows."""
        return self.plan.manifest


def run_steps(
    root: Path,
    manifest: Manifest,
    wanted: Sequence[str] = STEPS,
    *,
    limit: int | None = None,
    fresh: bool = False,
    beside: Sequence[RunDirectory] = (),
    tell: Told = lambda *_: None,
) -> RunDirectory:
    """Bring the wanted steps of a run up to date, in order.

    `limit` makes the run a pilot on so many sources; None leaves a run what it is. `fresh` agrees
    to throw away what a changed manifest makes stale: the teacher's generations, or a student
    trained on other verdicts. `beside` are runs for the report to compare with. A run directory
    that this call began and whose manifest or data turn out to be at fault is removed again.

    Raises:
        SeqkdError: a step failed, or a change would throw work away and `fresh` is not set.
    """
    run = RunDirectory(root)
    plan = make_plan(manifest, run.record().get("limit", 0) if limit is None else limit)
    with _clean_start(run), run.locked() as lock, _manifest_kept(run, wanted):
        job = Job(run, plan, lock, fresh, tell, beside)
        _agree(job)
        for step in wanted:
            _require_before(job, step, wanted)
        for step in plan.steps():
            if step == "samples" or step in wanted:
                _do(job, step)
                run.adopt(manifest)
                catalog.refresh(run)
            if step == "samples" and "train" in wanted:
                require_gold(run, manifest)  # before a teacher has decoded for a day
    return run


def import_candidates(
    root: Path,
    manifest: Manifest,
    file: str,
    *,
    fresh: bool = False,
    tell: Told = lambda *_: None,
) -> dict[str, Any]:
    """Take the candidates in a file into a run, its samples read first where need be.

    The step `generate` then counts as done, for what is there: `run` decodes what has no candidate.

    Returns:
        what `importing.bring_in` says, and `without_candidate`: sources that still have none.

    Raises:
        UserError: the manifest or the file is at fault; a run begun by this call is gone again.
    """
    _require_importing(manifest)
    run = RunDirectory(root)
    plan = make_plan(manifest, run.record().get("limit", 0))
    with _clean_start(run, "generate"), run.locked() as lock:
        job = Job(run, plan, lock, fresh, tell)
        _agree(job)
        _do(job, "samples")
        run.adopt(manifest)
        began = time.monotonic()
        figures = importing.bring_in(run, plan, file)
        if figures["outcome"] == DONE:
            done = time.monotonic() - began
            run.finish("generate", steps.generate_key(plan), done, **totals(run))
        catalog.refresh(run)
    tell("import", figures["outcome"])
    return figures | {"without_candidate": count_pending(run)}


def _require_importing(manifest: Manifest) -> None:
    if manifest.teacher is None:
        remedy = (
            "is missing: importing needs one, for its tokenizer; of an API's candidates, name the "
            "model whose tokenizer the student has"
        )
        raise ManifestError("teacher", None, remedy)
    if manifest.candidates_from:
        remedy = "takes another run's candidates: remove it to import some"
        raise ManifestError("candidates_from", manifest.candidates_from, remedy)


def _do(job: Job, step: str) -> None:
    """Do a step, and keep how long it took with its processes' starts and all."""
    began = time.monotonic()
    outcome = DO[step](job)
    if outcome == DONE:
        job.run.amend(step, wall_seconds=round(time.monotonic() - began, 3))
    job.tell(step, outcome)


@contextmanager
def _clean_start(run: RunDirectory, step: str = "samples") -> Iterator[None]:
    """Remove a run that did not get past a step, unless it stood there before."""
    stood = run.root.exists()
    parent_stood = run.root.parent.exists()
    try:
        yield
    except UserError:
        if not stood and not run.step(step):
            shutil.rmtree(run.root, ignore_errors=True)
            if not parent_stood:
                run.root.parent.rmdir()
        raise


@contextmanager
def _manifest_kept(run: RunDirectory, wanted: Sequence[str]) -> Iterator[None]:
    """Let a run go on following its manifest where rules are tried that cannot be judged by."""
    path = run.path("manifest.yaml")
    before = path.read_text("utf-8") if path.is_file() and tuple(wanted) == ("judge",) else None
    try:
        yield
    except UserError:
        if before is not None:
            write_text(path, before)
        raise


def _agree(job: Job) -> None:
    """Ask for `--fresh` before generations are thrown away, and then throw them away."""
    shards = job.run.shard_records()
    if not shards or job.plan.teacher is None or job.manifest.candidates_from:
        return
    stale = [shard for shard in shards if shard["key"] not in steps.candidate_keys(job.plan)]
    if not stale:
        return
    if not job.fresh:
        candidates = sum(shard["candidates"] for shard in stale)
        remedy = (
            f"holds {candidates} candidates made with another teacher, prompt or decoding: "
            "--fresh throws them away, --run-dir DIR keeps them"
        )
        raise RunError(job.run.root, None, remedy)
    for shard in stale:
        job.run.drop("shards", shard)
    for shard in job.run.score_records():
        job.run.drop("scores", shard)
    job.run.forget(("generate", "score"))


def _require_before(job: Job, step: str, wanted: Sequence[str]) -> None:
    """A single step stands on the ones before it, and on its part of the manifest."""
    order = job.plan.steps()
    if step not in order:
        if len(wanted) == 1:
            remedy = f"names nothing for seqkd {step} to do: {ABSENT[step]}"
            raise ManifestError(job.manifest.name, None, remedy)
        return
    for before in order[: order.index(step)]:
        if before in _needs(job, step) and before not in wanted and not job.run.step(before):
            remedy = f"{step} needs {before}: seqkd {before} first, or seqkd run"
            raise RunError(job.run.root, None, remedy)


def _samples(job: Job) -> str:
    key = steps.samples_key(job.plan)
    teacher = job.plan.teacher
    facts = {
        "teacher": teacher.as_record() if teacher else None,
        "tokenizer": {"fingerprint": job.plan.tokenizer},
        "limit": job.plan.limit,
    }
    if _stands(job, "samples", key):
        job.run.note(**facts)
        _keep_tokens(job)
        return STANDS
    build_samples(job.run, job.manifest, job.plan.prompter, key, job.plan.limit)
    job.run.note(**facts)
    _keep_tokens(job)
    _remove_others(job.run.path("samples"), job.run.step("samples")["files"])
    if shared := job.run.step("samples")["overlap"]["validation"]:
        job.tell("warning", f"{shared} training sources stand in the validation split too")
    return DONE


def _keep_tokens(job: Job) -> None:
    if job.plan.prompter.tokenizer and job.plan.tokenizer:
        keep_tokens(job.run, job.plan.prompter.tokenizer, job.plan.tokenizer)


def _generate(job: Job) -> str:
    key = steps.generate_key(job.plan)
    if job.manifest.candidates_from:
        other = RunDirectory.existing(Path(job.manifest.candidates_from))
        take_over(job.run, other, key, steps.candidate_keys(job.plan))
        _require_all_taken(job, job.manifest.candidates_from)
        return TAKEN
    if job.run.step("generate").get("key") == key and count_pending(job.run) == 0:
        return STANDS
    generate(job.run, key, job.lock)
    return DONE


def _require_all_taken(job: Job, other: str) -> None:
    if missing := count_pending(job.run):
        remedy = f"holds no candidate for {missing} of this run's sources: generate them there"
        raise RunError(other, None, remedy)


def _score(job: Job) -> str:
    key = score_key(job.run, job.manifest, steps.generate_key(job.plan))
    if _stands(job, "score", key):
        return STANDS
    score(job.run, key, steps.generate_key(job.plan), job.lock)
    return DONE


def _judge(job: Job) -> str:
    key = steps.judge_key(job.plan, job.run)
    if _stands(job, "judge", key):
        return STANDS
    judge(job.run, key, job.lock)
    return DONE


def _train(job: Job) -> str:
    key = steps.train_key(job.plan, job.run)
    if _stands(job, "train", key):
        return STANDS
    student = job.manifest.student
    if student is None:
        raise ManifestError("student", None, "is missing: training needs one")
    _agree_to_retrain(job)
    environment = {"DS_ACCELERATOR": "cpu"} if not has_cuda() else {}
    run_worker(job.run, "train", module_command("student.prepare", job.run, key), job.lock)
    settings, processes = student.deepspeed, student.processes
    command = launcher_command("student.train", job.run, processes, _free_port(), settings)
    run_worker(job.run, "train", [*command, key], job.lock, environment)
    rules = steps.rules_key(job.manifest)
    job.run.note(trained_with={"rules": rules, "verdicts": job.run.step("judge").get("key")})
    return DONE


def _agree_to_retrain(job: Job) -> None:
    """A changed rule alone does not retrain a student unasked."""
    before = job.run.record().get("trained_with")
    if not before or not job.run.step("train") or job.fresh or job.plan.teacher is None:
        return
    if before["rules"] != steps.rules_key(job.manifest):
        remedy = (
            "the rules now select other targets than the student was trained on: "
            "--fresh trains it anew, or restore the rules"
        )
        raise RunError(job.run.root, None, remedy)


def _evaluate(job: Job) -> str:
    key = steps.evaluate_key(job.plan, job.run)
    if _stands(job, "evaluate", key):
        return STANDS
    run_worker(job.run, "evaluate", module_command("student.evaluate", job.run, key), job.lock)
    return DONE


def _card(job: Job) -> str:
    key = steps.card_key(job.plan, job.run)
    if _stands(job, "card", key) and card.stands(job.run):
        return STANDS
    card.write_card(job.run, key)
    return DONE


def _report(job: Job) -> str:
    from factory.reporting.page import REPORT, write_report  # Altair takes a while to import

    key = steps.report_key(job.plan, job.run, job.beside)
    if _stands(job, "report", key) and job.run.path(REPORT).is_file():
        return STANDS
    write_report(job.run, key, job.beside)
    return DONE


DO: dict[str, Callable[[Job], str]] = {
    "samples": _samples,
    "generate": _generate,
    "score": _score,
    "judge": _judge,
    "train": _train,
    "evaluate": _evaluate,
    "card": _card,
    "report": _report,
}
NEEDS: dict[str, tuple[str, ...]] = {
    "samples": (),
    "generate": (),
    "score": (),
    "judge": ("generate",),
    "train": ("score", "judge"),
    "evaluate": ("train",),
    "card": (),
    "report": (),
}


ABSENT = {
    "generate": "add a teacher",
    "score": "set score.targets to candidate, gold, or a field of the rows",
    "judge": "add a teacher",
    "train": "add a student",
    "evaluate": "give data a split of evaluate.splits",
}


def _needs(job: Job, step: str) -> tuple[str, ...]:
    """The steps that a step stands on; gold is scored without a candidate."""
    if step == "score" and CANDIDATE in score_targets(job.manifest):
        return ("generate",)
    return NEEDS[step]


def _stands(job: Job, step: str, key: str) -> bool:
    """Whether a step is done under its key, and its files are where it left them."""
    record = job.run.step(step)
    files = record.get("files", ())
    return record.get("key") == key and all(job.run.path(f["path"]).is_file() for f in files)


def _remove_others(folder: Path, recorded: Sequence[dict[str, str]]) -> None:
    names = {Path(file["path"]).name for file in recorded}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
