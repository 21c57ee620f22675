"""Commands that read a run and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.commands.answers import answer, display
from factory.commands.options import AsJson, Run, existing


def sql(
    directory: Run,
    query: Annotated[str, typer.Argument(help="one SELECT, or @NAME; @ lists the names")],
    form: Annotated[str, typer.Option("--format", help="table, csv, json or parquet")] = "table",
    output: Annotated[Path | None, typer.Option(help="a file, instead of the terminal")] = None,
    values: Annotated[list[str] | None, typer.Option("--param", help="of @NAME: key=value")] = None,
    beside: Annotated[Path | None, typer.Option("--with", help="a run, as other.VIEW")] = None,
) -> None:
    """Ask the run anything, in read-only SQL over its views, or by the name of a query.

    Example: seqkd sql runs/demo "SELECT unnest(reasons) AS why, count(*) FROM rejects GROUP BY 1"
    """
    from factory.query.looks import ask
    from factory.query.tables import write_rows

    other = existing(beside) if beside else None
    write_rows(ask(existing(directory), query, values or (), other), form, output)


def inspect(
    directory: Run,
    sample_id: Annotated[str | None, typer.Argument(help="a sample; without it, a digest")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one sample with all its candidates, scores and verdicts, or a digest of the run.

    Example: seqkd inspect runs/demo 1998c3aede6d8d5b5d0b
    """
    from factory.looking import sample, viewing

    found = existing(directory)
    facts = sample.inspect_sample(found, sample_id) if sample_id else viewing.digest_run(found)
    show = sample.show_sample if sample_id else viewing.show_digest
    answer(facts, as_json, lambda: display(show(facts)))


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN...", help="runs to compare")],
    baseline: Annotated[
        Path | None, typer.Option(help="the run to compare with, instead of the first")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="its student or teacher, instead of the same system")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="of the machine, to tell what each run cost")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: scores with intervals and significance, sizes, tokens, time.

    Example: seqkd compare runs/demo/baseline runs/demo/student
    """
    from factory.looking import sheets
    from factory.looking.comparing import compare

    runs = [existing(directory) for directory in directories]
    beside = existing(baseline) if baseline else None
    facts = compare(runs, beside, against, price_per_hour)
    told = (lambda: typer.echo(sheets.markdown(facts), nl=False)) if as_markdown else None
    answer(facts, as_json, told or (lambda: display(sheets.show(facts))))


def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="the directory of a run")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="that of another")],
    examples: Annotated[int, typer.Option(min=0, help="targets to show, of the most changed")] = 5,
    as_json: AsJson = False,
) -> None:
    """Say what two runs made of the same sources: targets and verdicts that changed, and how much.

    Example: seqkd diff runs/demo/student runs/demo/nbest
    """
    from factory.looking.diff import diff, show_diff

    facts = diff(existing(first), existing(second), examples)
    answer(facts, as_json, lambda: display(show_diff(facts)))


def status(directory: Run, as_json: AsJson = False) -> None:
    """Say how far the run is: shards done, missing and failed, tokens per second, time left.

    Example: seqkd status runs/demo
    """
    from factory.looking.status import show_status, status

    facts = status(existing(directory))
    answer(facts, as_json, lambda: display(show_status(facts)))


def verify(directory: Run, as_json: AsJson = False) -> None:
    """Re-read every file against its checksum and row count.

    Example: seqkd verify runs/demo
    """
    from factory.verify import verify

    facts = verify(existing(directory))
    answer(facts, as_json, lambda: typer.echo("\n".join(facts["problems"]), nl=False))
    if facts["problems"]:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{facts['files']} files as recorded")
