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


def deliver(
    directory: Run,
    output: Annotated[Path, typer.Argument(help="the folder to write; not there yet, or empty")],
    stage: Annotated[str | None, typer.Option(help="default: the last that is done")] = None,
    format_: Annotated[str, typer.Option("--format", help="hf or ctranslate2")] = "hf",
    dtype: Annotated[
        str | None, typer.Option(help="of hf: float32, bfloat16, float16; default: as trained")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="of ctranslate2: float32, float16, int8 and others")
    ] = None,
    force: Annotated[bool, typer.Option(help="replace what was delivered there before")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the trained student as a folder to load elsewhere, with its card, and check it.

    Example: seqkd deliver runs/demo/student my-student
    """
    from factory.delivery import Order, deliver
    from factory.looking.console import print_pairs

    order = Order(format_, stage, dtype, quantization)
    facts = deliver(existing(directory), output, order, force)
    answer(facts, as_json, lambda: print_pairs(f"{output}: delivered", facts))


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
