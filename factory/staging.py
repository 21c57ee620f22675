"""What stages ask of data and teacher, known before a teacher has written a word."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import ManifestError, QueryError, RunError
from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer, tokenizer_fingerprint
from factory.query.fence import select
from factory.records import RunDirectory
from factory.training import Init, Objective, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GOLD = "gold"
BUILT_IN = ("pseudolabels", GOLD)


def check_stages(manifest: Manifest, teachers: PreTrainedTokenizerFast | None) -> None:
    """Refuse stages that no data can serve. `teachers` is the teacher's tokenizer.

    Raises:
        ManifestError: distributions that nothing tells.
        RunError: a stage's SQL lacks a column.
        QueryError: it is not one reading statement, or DuckDB refuses it.
    """
    if manifest.student is None:
        return
    stages = manifest.student.stages
    for stage in stages:
        if stage.objective.distributions:
            _require_distributions(manifest, stage, teachers)
    asked = [(stage, sql) for stage in stages for sql in stage.shares if sql not in BUILT_IN]
    if asked:
        _require_columns(manifest, asked)


def require_gold(run: RunDirectory, manifest: Manifest) -> None:
    """Refuse stages of gold where the samples that were read hold none that may be seen.

    Raises:
        RunError: there is none.
    """
    stages = manifest.student.stages if manifest.student else ()
    stage = next((stage for stage in stages if GOLD in stage.shares), None)
    if stage and not run.step("samples").get("visible_gold"):
        remedy = "no gold may be seen: give data.train.target, or raise data.train.gold_fraction"
        raise RunError(f"student.stages.{stage.name}.data", GOLD, remedy)


def columns_of(run: RunDirectory, sql: str, place: str, objective: Objective) -> set[str]:
    """The columns of a stage's SQL, which may hold nothing yet.

    Raises:
        RunError: one that training needs is missing.
        QueryError: it is not one reading statement, or DuckDB refuses it.
    """
    select(run, sql)  # alone first: a mistake is told with its place in it
    columns = set(select(run, f"SELECT * FROM (\n{sql}\n) LIMIT 0").columns)
    missing, told = {"sample_id", "source"} - columns, objective.distributions
    if not columns & {"target", "token_ids"}:
        missing.add("target")
    if told and "token_ids" not in columns:
        missing.add("token_ids")
    if missing:
        remedy = f"lacks the column {sorted(missing)[0]}: select sample_id, source and target"
        remedy += f", and token_ids for {told[0]}" if told else ""
        raise RunError(place, sql, remedy)
    return columns


def _require_distributions(
    manifest: Manifest, stage: Stage, teachers: PreTrainedTokenizerFast | None
) -> None:
    place, told = f"student.stages.{stage.name}.objective", stage.objective.distributions[0]
    if teachers is None or manifest.student is None:
        remedy = "needs the distributions of a teacher: name one, or use ce alone"
        raise ManifestError(place, told, remedy)
    if _another(manifest.student.init, teachers):
        remedy = "needs the teacher's tokenizer, and the student has another: use ce alone"
        raise ManifestError(place, told, remedy)
    if GOLD in stage.shares and GOLD not in manifest.score.targets:
        remedy = "gold has no distributions until it is scored: set score.targets to [gold]"
        raise ManifestError(place, told, f"{remedy}, or use ce alone")


def _another(init: Init, teachers: PreTrainedTokenizerFast) -> bool:
    """Whether a student's tokenizer gives other ids than its teacher's."""
    if init.tokenizer and init.tokenizer.train:
        return True
    named = (init.tokenizer.model if init.tokenizer else None) or init.model
    if named is None:
        return False
    return tokenizer_fingerprint(load_tokenizer(named)) != tokenizer_fingerprint(teachers)


def _require_columns(manifest: Manifest, asked: list[tuple[Stage, str]]) -> None:
    """Bind SQL to the views of a run that holds nothing yet."""
    with tempfile.TemporaryDirectory(prefix="seqkd-stages-") as folder:
        run = RunDirectory(Path(folder) / "run")
        run.adopt(manifest)
        for stage, sql in asked:
            place = f"student.stages.{stage.name}.data"
            try:
                columns_of(run, sql.rstrip().rstrip(";"), place, stage.objective)
            except QueryError as error:
                raise QueryError(place, sql, f"{error.place}: {error.remedy}") from None
