"""Commands that show a run to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.commands.answers import answer, print_done, teller
from factory.commands.options import AsJson, RunDir, Settings, Target, existing, resolve
from factory.errors import ManifestError


def report(
    target: Target,
    settings: Settings = None,
    run_dir: RunDir = None,
    output: Annotated[Path | None, typer.Option(help="a file, and leave the run alone")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="a run to compare scores with; may be repeated")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report: charts, their numbers and samples in one HTML file, for any browser.

    Example: seqkd report runs/demo/student --beside runs/demo/baseline
    """
    from factory.pipeline import run_steps

    others = [existing(directory) for directory in beside or ()]
    manifest, root = resolve(target, settings, run_dir)
    if output is None:
        done = run_steps(root, manifest, ("report",), beside=others, tell=teller(as_json))
        print_done(done, as_json, scores=False)
        return
    if settings:
        remedy = "changes the run, and --output leaves it alone: give one of the two"
        raise ManifestError("--set", settings[0], remedy)
    from factory.reporting.page import write_page

    write_page(existing(root), output, others)
    facts = {"run": str(root), "output": str(output)}
    answer(facts, as_json, lambda: typer.echo(str(output)))
