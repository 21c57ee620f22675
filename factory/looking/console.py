"""What commands print for people: small tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from factory.looking.viewing import digest_run, show_scores
from factory.records import STEPS, RunDirectory

# The figures of a step that are worth a line, and what they are called.
SHOWN = {
    "rows": "rows",
    "refused": "refused",
    "shards": "shards",
    "candidates": "candidates",
    "tokens": "tokens",
    "errors": "errors",
    "kept": "kept",
    "selected": "selected",
    "steps": "optimiser steps",
    "tokens_per_second": "tok/s",
}


def print_pairs(title: str, facts: dict[str, Any]) -> None:
    """A two-column table of facts."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _worded(value))
    Console().print(table)


def print_run(run: RunDirectory, estimate: dict[str, Any] | None, scores: bool) -> None:
    """Every step of a run, then its scores if they are wanted, then what a pilot extrapolates."""
    print_steps(run)
    if run.step("evaluate") and scores:
        Console().print(show_scores(digest_run(run)["scores"]))
    if estimate:
        print_estimate(estimate)


def print_steps(run: RunDirectory) -> None:
    """What every step of a run did, and how long it took."""
    table = Table(title=str(run.root), title_justify="left")
    for column in ("step", "seconds", "figures"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    steps = run.record()["steps"]
    for step in (step for step in STEPS if step in steps):
        figures = ", ".join(
            f"{_worded(steps[step][key])} {label}"
            for key, label in SHOWN.items()
            if key in steps[step]
        )
        seconds = steps[step].get("wall_seconds", steps[step]["seconds"])
        table.add_row(step, f"{seconds:,.1f}", figures)
    Console().print(table)


def print_estimate(estimate: dict[str, Any]) -> None:
    """What a pilot says about the whole."""
    hours = estimate["total_seconds"] / 3600
    facts = {
        "sources": estimate["sources"],
        "hours": f"{hours:,.2f}",
        "candidate and logits bytes": estimate["bytes"],
    }
    if estimate["cost"] is not None:
        facts["cost"] = f"{estimate['cost']:,.2f}"
    steps = {f"{step} seconds": value for step, value in estimate["seconds"].items()}
    print_pairs(f"from {estimate['pilot_sources']} sources to all", facts | steps)


def _worded(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_worded(inner)} {name}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_worded, value))
    return f"{value:,}" if isinstance(value, int | float) else str(value)
