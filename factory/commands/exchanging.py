"""Commands that take data out of a run and bring it in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.commands.answers import answer, teller
from factory.commands.options import AsJson, Fresh, Run, RunDir, Settings, Target, existing, resolve


def export(
    directory: Run,
    to: Annotated[str | None, typer.Option(help="jsonl, tsv, parquet or datasets")] = None,
    output: Annotated[Path | None, typer.Option(help="a file; of datasets, a folder")] = None,
    force: Annotated[bool, typer.Option(help="replace an export that stands there")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the pseudolabels out: as a file, or as a folder that `datasets` loads.

    Example: seqkd export runs/demo --output pseudolabels.jsonl.gz
    """
    from factory.exchange.exporting import export

    done = export(existing(directory), to, output, force)
    answer(done, as_json, lambda: typer.echo(f"{done['rows']:,} pseudolabels: {done['output']}"))


def import_(
    target: Target,
    file: Annotated[str, typer.Argument(help="JSONL, plain, .gz or .zst, or Parquet")],
    settings: Settings = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Take candidates made elsewhere into a run, with their distributions where they have any.

    Example: seqkd import manifest.yaml candidates.jsonl.gz
    """
    from factory.looking.console import print_pairs
    from factory.pipeline import import_candidates

    manifest, root = resolve(target, settings, run_dir)
    figures = import_candidates(root, manifest, file, fresh=fresh, tell=teller(as_json))
    answer(figures, as_json, lambda: print_pairs(f"{root}: imported", figures))
