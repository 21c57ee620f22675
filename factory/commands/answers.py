"""What commands print: for people, or one JSON object for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from factory.records import RunDirectory


def answer(facts: Any, as_json: bool, show: Callable[[], Any]) -> None:
    """Print the facts as one JSON object, or show them to people."""
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, default=str))
    else:
        show()


def display(renderable: Any) -> None:
    """Print what Rich can draw."""
    from rich.console import Console

    Console().print(renderable)


def print_done(
    run: RunDirectory, as_json: bool, estimate: dict[str, Any] | None = None, scores: bool = True
) -> None:
    """Say what the steps of a run did."""
    from factory.looking.console import print_run

    record = {"run": str(run.root), **run.record()}
    if estimate:
        record["estimate"] = estimate
    answer(record, as_json, lambda: print_run(run, estimate, scores))


def teller(as_json: bool) -> Callable[[str, str], None]:
    """What tells on standard error what became of a step."""
    return lambda step, outcome: None if as_json else typer.echo(f"{step}: {outcome}", err=True)
