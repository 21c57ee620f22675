"""Commands that make a run: all its steps, or one of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from factory.commands.answers import answer, display, print_done, teller
from factory.commands.options import AsJson, Fresh, RunDir, Settings, Target, existing, resolve
from factory.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from factory.manifest import Manifest
    from factory.records import RunDirectory


def run(
    target: Target,
    settings: Settings = None,
    run_dir: RunDir = None,
    limit: Annotated[int, typer.Option(min=0, help="a pilot on so many sources")] = 0,
    fresh: Fresh = False,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="of this machine, to tell what the whole costs")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Do every step, resuming where the last run stopped.

    Example: seqkd run manifest.yaml --limit 200 --price-per-hour 2.50
    """
    from factory.pilot import extrapolate

    manifest, root = resolve(target, settings, run_dir)
    if limit and run_dir is None:
        root = root.with_name(f"{root.name}-pilot-{limit}")
    done = _steps_done(root, manifest, None, as_json, limit=limit or None, fresh=fresh)
    estimate = extrapolate(done, price_per_hour) if limit else None
    print_done(done, as_json, estimate)


def generate(
    target: Target,
    settings: Settings = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Have the teacher decode every source that has no candidate yet.

    Example: seqkd generate manifest.yaml --set generate.max_new_tokens=128
    """
    _one_step("generate", target, settings, run_dir, as_json, fresh)


def score(
    target: Target,
    settings: Settings = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Have the teacher tell its distributions of targets that exist: candidates, gold, a field.

    Example: seqkd score runs/demo --set 'score.targets=[gold]'
    """
    _one_step("score", target, settings, run_dir, as_json, fresh)


def judge(
    target: Target,
    settings: Settings = None,
    run_dir: RunDir = None,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="show what these rules would do, and write nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the candidates, apply the rules, and select a target for each source.

    Example: seqkd judge runs/demo --set judge.rules='[{length_ratio: {max: 1.5}}]' --what-if
    """
    if not what_if:
        return _one_step("judge", target, settings, run_dir, as_json)
    from factory.judging import whatif

    manifest, root = resolve(target, settings, run_dir)
    facts = whatif.what_if(existing(root), manifest)
    return answer(facts, as_json, lambda: display(whatif.show(facts)))


def train(
    target: Target,
    settings: Settings = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Train the student through its stages, from the last checkpoint if there is one.

    Example: seqkd train runs/demo --set student.processes=2
    """
    _one_step("train", target, settings, run_dir, as_json, fresh)


def evaluate(
    target: Target, settings: Settings = None, run_dir: RunDir = None, as_json: AsJson = False
) -> None:
    """Decode the held-out splits with teacher and student, and score them with sacreBLEU.

    Example: seqkd evaluate runs/demo --set 'evaluate.splits=[validation, test]'
    """
    _one_step("evaluate", target, settings, run_dir, as_json)


def card(
    target: Target,
    settings: Settings = None,
    run_dir: RunDir = None,
    checked: Annotated[
        bool, typer.Option("--check", help="change nothing; say where the card and the run differ")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the data card: provenance, counts, reasons, figures, scores, samples; or check it.

    Example: seqkd card runs/demo --check
    """
    if checked:
        _check_card(target, settings, run_dir, as_json)
    else:
        _one_step("card", target, settings, run_dir, as_json)


def _check_card(
    target: Path, settings: Sequence[str] | None, run_dir: Path | None, as_json: bool
) -> None:
    from factory.cards import card
    from factory.records import RunDirectory

    if settings:
        raise RunError("--set", settings[0], "is nothing for --check: it reads the run as it is")
    _, root = resolve(target, None, run_dir)
    found = card.check(RunDirectory.existing(root))
    facts = {"card": str(root / card.CARD), "mismatches": [asdict(one) for one in found]}
    answer(facts, as_json, lambda: typer.echo("\n".join(map(str, found)), nl=bool(found)))
    if found:
        raise typer.Exit(1)
    if not as_json:
        typer.echo("the card says what the run does")


def _one_step(
    step: str,
    target: Path,
    settings: Sequence[str] | None,
    run_dir: Path | None,
    as_json: bool,
    fresh: bool = False,
) -> None:
    manifest, root = resolve(target, settings, run_dir)
    done = _steps_done(root, manifest, (step,), as_json, fresh=fresh)
    print_done(done, as_json, scores=step == "evaluate")


def _steps_done(
    root: Path,
    manifest: Manifest,
    wanted: Sequence[str] | None,
    as_json: bool,
    *,
    limit: int | None = None,
    fresh: bool = False,
) -> RunDirectory:
    from factory.pipeline import run_steps
    from factory.records import STEPS

    tell = teller(as_json)
    return run_steps(root, manifest, wanted or STEPS, limit=limit, fresh=fresh, tell=tell)
