"""Commands before a run: a first manifest, its check, its schema, this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from factory.commands.answers import answer, display
from factory.commands.options import AsJson, RunDir, Settings, Target, resolve


def init(directory: Annotated[Path, typer.Argument(help="a new or empty folder")]) -> None:
    """Write a commented manifest and two sample files to start from.

    Example: seqkd init my-distillation
    """
    from factory.starting import start

    for path in start(directory):
        typer.echo(path)


def check(
    target: Target, settings: Settings = None, run_dir: RunDir = None, as_json: AsJson = False
) -> None:
    """Validate everything without loading a model, and say what the run will be.

    Example: seqkd check manifests/multi30k.yaml --set data.root=corpora/multi30k
    """
    from factory.checking import check_manifest
    from factory.looking.console import print_pairs

    manifest, _ = resolve(target, settings, run_dir)
    figures = check_manifest(manifest)
    answer(figures, as_json, lambda: print_pairs(f"{manifest.name}: ready to run", figures))


def schema() -> None:
    """Print the manifest's JSON Schema, for editors.

    Example: seqkd schema > manifest.schema.json
    """
    from factory.manifest import Manifest

    typer.echo(json.dumps(Manifest.model_json_schema(), indent=2))


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: versions, accelerators, and the engines that can run here.

    Example: seqkd doctor
    """
    from factory.doctor import examine, show

    facts = examine()
    answer(facts, as_json, lambda: display(show(facts)))
