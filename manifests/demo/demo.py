"""The demo: a corpus, a teacher, a factory, a student, and what the student would be without it.

Three runs of `seqkd`, as anybody would call them, then what their records say. Run it again and
every step stands: only the tables are printed.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus import write_corpus
from rich.console import Console
from rich.table import Table

from factory.query.catalog import connect
from factory.records import STEPS, RunDirectory

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("runs/demo")
MANIFESTS = Path("manifests/demo")

WORK = (
    ("teacher", "train", "a teacher, on 4,000 gold pairs"),
    ("student", "run", "the factory and its student: pseudolabels, then 400 gold pairs"),
    ("baseline", "run", "the same student on the 400 gold pairs alone"),
)
SYSTEMS = (  # what it is called, the run that measured it, as which system, what it learnt from
    ("teacher", "student", "teacher", "4,000 gold"),
    ("student", "student", "student", "pseudolabels, 400 gold"),
    ("baseline", "baseline", "student", "400 gold"),
)
SCORES = """
    SELECT metric, score, (ci_high - ci_low) / 2
    FROM evals WHERE fold IS NULL AND split = 'test' AND system = ?
"""
NEXT = """\
seqkd inspect runs/demo/student          the run in one page; with a sample_id, one sample
cat runs/demo/student/card.md            its data card
seqkd sql runs/demo/student "SELECT text, reasons FROM rejects"
seqkd sql runs/demo/student "SELECT position, avg(tail_mass) FROM logits_by_position GROUP BY ALL"
seqkd judge runs/demo/student --set 'judge.rules=[error, truncated]'      no new generation
seqkd verify runs/demo/student           every file against its checksum
seqkd init my-run                        a manifest and two files of your own to start from
"""


def main() -> None:
    """Write the corpus, do the three runs, and show what came out.

    A path as the only argument takes a picture of the tables, in SVG.
    """
    console, began = Console(), time.monotonic()
    write_corpus(ROOT / RUNS / "corpus")
    for number, (name, command, told) in enumerate(WORK, 1):
        console.rule(f"[bold]{number} of {len(WORK)}[/bold]  {told}", align="left")
        _seqkd(command, name)
    runs = {name: RunDirectory(ROOT / RUNS / name) for name, *_ in WORK}
    console.rule("[bold]what came out[/bold]", align="left")
    console.print(_scores(runs), _times(runs), _rejects(runs["student"]))
    console.print(f"{time.monotonic() - began:.0f} seconds in all. What to try next, in .venv/bin:")
    console.print(NEXT, markup=False, highlight=False, soft_wrap=True)
    if len(sys.argv) > 1:
        _picture(runs, Path(sys.argv[1]))


def _picture(runs: dict[str, RunDirectory], path: Path) -> None:
    paper = Console(record=True, width=82, file=io.StringIO())
    paper.print(_scores(runs), _times(runs), _rejects(runs["student"]))
    drawing = paper.export_svg(title="make demo")
    # Rich asks a server for its font; any monospaced one will do.
    path.write_text(re.sub(r"@font-face \{.*?\n    \}\n", "", drawing, flags=re.DOTALL), "utf-8")


def _seqkd(command: str, name: str) -> None:
    """Call `seqkd` as a user would; end with its status if it fails."""
    manifest, run = MANIFESTS / f"{name}.yaml", RUNS / name
    arguments = [command, str(manifest), "--run-dir", str(run)]
    print(f"$ seqkd {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "factory.cli", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _scores(runs: dict[str, RunDirectory]) -> Table:
    columns = ("system", "trained on", "params", "BLEU", "chrF", "tokens/s")
    rows = [[told, learnt, *_measured(runs[run], system)] for told, run, system, learnt in SYSTEMS]
    return _table("500 test sentences; BLEU with its 95 % interval", columns, rows, text_columns=2)


def _measured(run: RunDirectory, system: str) -> list[str]:
    figures = run.step("evaluate")["systems"][system]
    scores = {metric: (score, half) for metric, score, half in _ask(run, SCORES, system)}
    (bleu, margin), (chrf, _) = scores["bleu"], scores["chrf"]
    speed = f"{figures['tokens_per_second']:,.0f}"
    return [f"{figures['parameters']:,}", f"{bleu:.1f} ± {margin:.1f}", f"{chrf:.1f}", speed]


def _times(runs: dict[str, RunDirectory]) -> Table:
    records = {name: run.record()["steps"] for name, run in runs.items()}
    done = [step for step in STEPS if any(step in steps for steps in records.values())]
    rows = [
        [name, *(f"{steps[s]['wall_seconds']:.1f}" if s in steps else "" for s in done)]
        for name, steps in records.items()
    ]
    return _table("seconds of each step, start-up included", ("run", *done), rows)


def _rejects(run: RunDirectory) -> Table:
    judged = run.step("judge")
    rejected = judged["candidates"] - judged["kept"]
    rows = [[rule, f"{count:,}"] for rule, count in judged["reasons"].items()]
    title = f"rejected: {rejected:,} of {judged['candidates']:,}"
    return _table(title, ("rule", "candidates"), rows)


def _ask(run: RunDirectory, query: str, *values: str) -> list[tuple[Any, ...]]:
    with connect(run) as connection:
        return connection.execute(query, list(values)).fetchall()


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1
) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < text_columns else "right")
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    main()
