"""The command line: one command, one verb. It parses, calls the library, and prints.

Libraries that take time to import are imported by the command that needs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.errors import SeqkdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from factory.manifest import Manifest
    from factory.records import RunDirectory

app = typer.Typer(
    name="seqkd",
    help="Offline sequence-level knowledge distillation: one manifest, one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Target = Annotated[Path, typer.Argument(help="a manifest, or the directory of a run")]
Run = Annotated[Path, typer.Argument(help="the directory of a run")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="override the manifest: section.key=value")
]
RunDir = Annotated[Path | None, typer.Option(help="the run's directory, instead of runs/NAME")]
Fresh = Annotated[
    bool, typer.Option(help="agree to throw away what the changed manifest makes stale")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
def init(directory: Annotated[Path, typer.Argument(help="a new or empty folder")]) -> None:
    """Write a commented manifest and two sample files to start from.

    Example: seqkd init my-distillation
    """
    from factory.starting import start

    for path in start(directory):
        typer.echo(path)


@app.command()
def check(
    target: Target, settings: Settings = None, run_dir: RunDir = None, as_json: AsJson = False
) -> None:
    """Validate everything without loading a model, and say what the run will be.

    Example: seqkd check manifests/multi30k.yaml --set data.root=corpora/multi30k
    """
    from factory.checking import check_manifest
    from factory.console import print_pairs

    manifest, _ = _resolve(target, settings, run_dir)
    figures = check_manifest(manifest)
    _report(figures, as_json, lambda: print_pairs(f"{manifest.name}: ready to run", figures))


@app.command()
def schema() -> None:
    """Print the manifest's JSON Schema, for editors.

    Example: seqkd schema > manifest.schema.json
    """
    from factory.manifest import Manifest

    typer.echo(json.dumps(Manifest.model_json_schema(), indent=2))


@app.command()
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

    manifest, root = _resolve(target, settings, run_dir)
    if limit and run_dir is None:
        root = root.with_name(f"{root.name}-pilot-{limit}")
    done = _run_steps(root, manifest, None, as_json, limit=limit or None, fresh=fresh)
    estimate = extrapolate(done, price_per_hour) if limit else None
    _print_run(done, as_json, estimate)


@app.command()
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


@app.command()
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


@app.command()
def judge(
    target: Target, settings: Settings = None, run_dir: RunDir = None, as_json: AsJson = False
) -> None:
    """Measure the candidates, apply the rules, and select a target for each source.

    Example: seqkd judge runs/demo --set judge.rules='[error, {length_ratio: {max: 1.5}}]'
    """
    _one_step("judge", target, settings, run_dir, as_json)


@app.command()
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


@app.command()
def evaluate(
    target: Target, settings: Settings = None, run_dir: RunDir = None, as_json: AsJson = False
) -> None:
    """Decode the held-out splits with teacher and student, and score them with sacreBLEU.

    Example: seqkd evaluate runs/demo --set 'evaluate.splits=[validation, test]'
    """
    _one_step("evaluate", target, settings, run_dir, as_json)


@app.command()
def card(
    target: Target, settings: Settings = None, run_dir: RunDir = None, as_json: AsJson = False
) -> None:
    """Write the data card: provenance, counts, reasons, figures, scores, samples.

    Example: seqkd card runs/demo
    """
    _one_step("card", target, settings, run_dir, as_json)


@app.command("import")
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
    from factory.console import print_pairs
    from factory.pipeline import import_candidates

    manifest, root = _resolve(target, settings, run_dir)
    figures = import_candidates(root, manifest, file, fresh=fresh, tell=_teller(as_json))
    _report(figures, as_json, lambda: print_pairs(f"{root}: imported", figures))


@app.command()
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
    from factory.exporting import export

    done = export(_existing(directory), to, output, force)
    _report(done, as_json, lambda: typer.echo(f"{done['rows']:,} pseudolabels: {done['output']}"))


@app.command()
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
    from factory.looks import ask
    from factory.tables import write_rows

    other = _existing(beside) if beside else None
    write_rows(ask(_existing(directory), query, values or (), other), form, output)


@app.command()
def inspect(
    directory: Run,
    sample_id: Annotated[str | None, typer.Argument(help="a sample; without it, a digest")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one sample with all its candidates, scores and verdicts, or a digest of the run.

    Example: seqkd inspect runs/demo 1998c3aede6d8d5b5d0b
    """
    from factory import viewing

    found = _existing(directory)
    facts = viewing.inspect_sample(found, sample_id) if sample_id else viewing.digest_run(found)
    show = viewing.show_sample if sample_id else viewing.show_digest
    _report(facts, as_json, lambda: _print(show(facts)))


@app.command()
def status(directory: Run, as_json: AsJson = False) -> None:
    """Say how far the run is: shards done, missing and failed, tokens per second, time left.

    Example: seqkd status runs/demo
    """
    from factory.status import show_status, status

    facts = status(_existing(directory))
    _report(facts, as_json, lambda: _print(show_status(facts)))


@app.command()
def verify(directory: Run, as_json: AsJson = False) -> None:
    """Re-read every file against its checksum and row count.

    Example: seqkd verify runs/demo
    """
    from factory.verify import verify

    facts = verify(_existing(directory))
    _report(facts, as_json, lambda: typer.echo("\n".join(facts["problems"]), nl=False))
    if facts["problems"]:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{facts['files']} files as recorded")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: versions, accelerators, and the engines that can run here.

    Example: seqkd doctor
    """
    from factory.doctor import examine, show

    facts = examine()
    _report(facts, as_json, lambda: _print(show(facts)))


def main() -> None:
    """Entry of the `seqkd` command. An error of ours is one line on standard error."""
    try:
        app()
    except SeqkdError as error:
        _fail(str(error), error.exit_status)
    except OSError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped: the same command goes on from here", 130)


def _resolve(
    target: Path, settings: Sequence[str] | None, run_dir: Path | None
) -> tuple[Manifest, Path]:
    """The manifest and the run directory that a command's arguments mean."""
    from factory.reading import load_manifest

    if target.is_dir():
        existing = _existing(target)
        manifest = load_manifest(existing.path("manifest.yaml"), settings or ())
        return manifest, run_dir or existing.root
    manifest = load_manifest(target, settings or ())
    return manifest, run_dir or Path("runs") / manifest.name


def _existing(directory: Path) -> RunDirectory:
    from factory.records import RunDirectory

    return RunDirectory.existing(directory)


def _one_step(
    step: str,
    target: Path,
    settings: Sequence[str] | None,
    run_dir: Path | None,
    as_json: bool,
    fresh: bool = False,
) -> None:
    manifest, root = _resolve(target, settings, run_dir)
    done = _run_steps(root, manifest, (step,), as_json, fresh=fresh)
    _print_run(done, as_json, scores=step == "evaluate")


def _run_steps(
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

    tell = _teller(as_json)
    return run_steps(root, manifest, wanted or STEPS, limit=limit, fresh=fresh, tell=tell)


def _teller(as_json: bool) -> Callable[[str, str], None]:
    return lambda step, outcome: None if as_json else typer.echo(f"{step}: {outcome}", err=True)


def _print_run(
    run: RunDirectory, as_json: bool, estimate: dict[str, Any] | None = None, scores: bool = True
) -> None:
    from factory.console import print_run

    record = {"run": str(run.root), **run.record()}
    if estimate:
        record["estimate"] = estimate
    _report(record, as_json, lambda: print_run(run, estimate, scores))


def _report(facts: Any, as_json: bool, show: Any) -> None:
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, default=str))
    else:
        show()


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _fail(message: str, status: int) -> None:
    sys.stderr.write(f"seqkd: {message}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
