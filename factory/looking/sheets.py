"""A comparison of runs as sheets of words and figures: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from factory.cards.markdown import number, score_digits, table
from factory.query.tables import plain
from factory.records import STEPS

Facts = dict[str, Any]
LEGEND = (
    "size: parameters; differences: to {}; intervals and p: bootstrap, 1,000 resamples, p paired"
    " and not corrected for the number of comparisons"
)
LOWER = "↓: lower is better"


@dataclass(frozen=True, slots=True)
class Sheet:
    """A titled table of text as it is shown: columns of words, then of figures."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: int

    def lefts(self) -> list[bool]:
        """Which columns stand to the left: so many of `words`; figures stand to the right."""
        return [i < self.words for i, _ in enumerate(self.columns)]


def show(facts: Facts) -> Group:
    """A comparison, as `comparing.compare` tells it, for the terminal."""
    lines = [Text(plain(line)) for line in _lines(facts)]
    return Group(*(_rich(sheet) for sheet in sheets(facts)), *lines)


def markdown(facts: Facts) -> str:
    """The same in Markdown."""
    parts = [
        f"### {sheet.title}\n\n{table(sheet.columns, sheet.rows, sheet.lefts())}"
        for sheet in sheets(facts)
    ]
    return "\n".join([*parts, *(f"- {plain(line)}" for line in _lines(facts)), ""])


def sheets(facts: Facts) -> Iterator[Sheet]:
    """Scores, what the runs used, what they took; a sheet without rows is left out."""
    found = (_scores(facts["scores"]), _used(facts["runs"]), _stages(facts["runs"]))
    yield from (sheet for sheet in (*found, _seconds(facts["runs"])) if sheet.rows)


def _lines(facts: Facts) -> list[str]:
    against = f"{facts['against'] or 'the same system'} of {facts['baseline']}"
    legend = [LEGEND.format(against)] if any(row["reference"] for row in facts["scores"]) else []
    lower = [LOWER] if any(row["lower_is_better"] for row in facts["scores"]) else []
    return [
        *facts["notes"],
        *legend,
        *lower,
        *sorted({row["signature"] for row in facts["scores"]}),
    ]


def _scores(rows: Iterable[Facts]) -> Sheet:
    columns = ["run", "system", "measure", "score, 95 %", "difference", "p"]
    return Sheet("Scores", columns, [_score(row) for row in rows], words=3)


def _score(row: Facts) -> list[str]:
    system = row["system"] if row["stage"] is None else f"{row['system']} {row['stage']}"
    low, high = row["ci_low"], row["ci_high"]
    digits = score_digits(row["score"])
    spread = "" if low is None or high is None else f" ± {(high - low) / 2:.{digits}f}"
    apart = "–" if row["difference"] is None else f"{row['difference']:+.{digits}f}"
    chance = "–" if row["p_value"] is None else f"{row['p_value']:.3f}"
    measure = f"{row['split']} {row['metric']}{' ↓' if row['lower_is_better'] else ''}"
    return [row["run"], system, measure, number(row["score"], digits) + spread, apart, chance]


def _used(runs: Iterable[Facts]) -> Sheet:
    names = ("student_parameters", "teacher_parameters", "teacher_tokens", "trained_tokens")
    rows = [[run["run"], *(number(run[name]) for name in names)] for run in runs]
    columns = ["run", "student size", "teacher size", "teacher tokens", "trained tokens"]
    return Sheet("Sizes and tokens", columns, rows, words=1)


def _stages(runs: Iterable[Facts]) -> Sheet:
    names = ("rows", "epochs", "tokens")
    rows = [
        [run["run"], stage["stage"], stage["data"] or "–", *(number(stage[n]) for n in names)]
        for run in runs
        for stage in run["stages"]
    ]
    return Sheet("Data by stage", ["run", "stage", "data", *names], rows, words=3)


def _seconds(runs: list[Facts]) -> Sheet:
    steps = [step for step in STEPS if any(step in run["seconds"] for run in runs)]
    rows = [[step, *(number(run["seconds"].get(step), 1) for run in runs)] for step in steps]
    rows.append(["all", *(number(run["total_seconds"], 1) for run in runs)])
    if any(run["cost"] is not None for run in runs):
        rows.append(["cost", *(number(run["cost"], 4) for run in runs)])
    return Sheet("Seconds", ["step", *(run["run"] for run in runs)], rows, words=1)


def _rich(sheet: Sheet) -> Table:
    made = Table(title=sheet.title, title_justify="left")
    for column, left in zip(sheet.columns, sheet.lefts(), strict=True):
        side: JustifyMethod = "left" if left else "right"
        made.add_column(column, justify=side, overflow="fold")
    for row in sheet.rows:
        made.add_row(*(Text(plain(text)) for text in row))
    return made
