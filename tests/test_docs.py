"""README, `docs/` and `--help` say the same as the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from factory.cli import app
from factory.manifest import Manifest
from factory.query.catalog import VIEWS
from factory.schemas import SIGNALS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MAKE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def told(pattern: str) -> list[Any]:
    """Every match of a pattern in the pages, as a test case named by its page."""
    return [
        pytest.param(match, id=f"{page.name}-{match}"[:80])
        for page in PAGES
        for match in dict.fromkeys(re.findall(pattern, page.read_text("utf-8"), re.MULTILINE))
    ]


@pytest.mark.parametrize("line", told(r"^(?:\$ |    )(seqkd .+?)(?:  +#.*)?$"))
def test_every_command_line_shown_would_parse(line):
    _, name, *words = shlex.split(line)
    assert name in COMMANDS, f"no such command: {name}"
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in options | {"--help"}, f"{name} has no option {word}"


@pytest.mark.parametrize("name", told(r"`seqkd ([a-z]+)"))
def test_every_command_named_exists(name):
    assert name in COMMANDS


@pytest.mark.parametrize("target", told(r"`make ([a-z-]+)`"))
def test_every_make_target_named_exists(target):
    assert target in MAKE


@pytest.mark.parametrize("link", told(r"\]\(((?!http)[^)#]+)"))
def test_every_link_leads_somewhere(link):
    assert any((page.parent / link).exists() for page in PAGES)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_gives_an_example_and_the_readme_names_the_command(name):
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: seqkd {name}" in result.output
    assert f"`{name}`" in PAGES[0].read_text("utf-8")


def test_the_page_on_views_lists_the_views():
    page = (ROOT / "docs" / "look.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(VIEWS)


def test_the_page_on_signals_lists_the_signals():
    page = (ROOT / "docs" / "signals.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == SIGNALS.names[2:]


def test_the_page_on_manifests_lists_every_key():
    page = (ROOT / "docs" / "manifest.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(_keys(Manifest))


def _keys(model: type[BaseModel]) -> set[str]:
    found = set(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            found |= _keys(inner)
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, UnionType):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in get_args(annotation) for model in _models(inner)]
