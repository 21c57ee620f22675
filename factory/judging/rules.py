"""Rules: each shipped file of `sql/rules` holds the condition, over signals, to keep a candidate.

The comment at its head says what it asks for; lines `-- $name = value` declare parameters and their
defaults, as YAML scalars.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from factory.errors import ManifestError, nearest
from factory.files import shipped
from factory.manifest import Manifest

PARAMETER = re.compile(r"^-- \$(\w+) = (.+)$", re.MULTILINE)
ALWAYS = "error"  # a candidate without text is never a target


@dataclass(frozen=True)
class Rule:
    """A shipped rule: its predicate, and its parameters with their defaults."""

    name: str
    predicate: str
    defaults: dict[str, Any]

    def keeps(self, parameters: dict[str, Any]) -> str:
        """The predicate as SQL, with parameters and defaults written in."""
        values = self.defaults | parameters
        return re.sub(r"\$(\w+)", lambda match: _literal(values[match[1]]), self.predicate)


def check_rules(manifest: Manifest) -> None:
    """Hold the manifest's rules against the shipped ones, without any data.

    Raises:
        ManifestError: a rule or parameter is unknown, stands twice, or is of the wrong type.
    """
    named = [
        name
        for rule in manifest.judge.rules
        for name in ([rule] if isinstance(rule, str) else rule)
    ]
    known = shipped_rules()
    for name in named:
        if name not in known:
            raise ManifestError("judge.rules", name, f"is no rule: {nearest(name, known)}")
        if named.count(name) > 1:
            raise ManifestError("judge.rules", name, "stands twice: keep one")
    for name, parameters in manifest.judge.named_rules().items():
        _check_parameters(known[name], parameters)


def predicates(manifest: Manifest) -> dict[str, str]:
    """The condition of every rule to keep a candidate, by name, in manifest order."""
    known = shipped_rules()
    named = manifest.judge.named_rules()
    if ALWAYS not in named:
        named = {ALWAYS: {}} | named
    return {name: known[name].keeps(parameters) for name, parameters in named.items()}


def shipped_rules() -> dict[str, Rule]:
    """Every rule of `sql/rules`, by name."""
    files = sorted(shipped("sql").glob("rules/*.sql"))
    return {path.stem: _read(path) for path in files}


def _read(path: Path) -> Rule:
    text = path.read_text(encoding="utf-8")
    yaml = YAML(typ="safe", pure=True)
    defaults = {name: yaml.load(value) for name, value in PARAMETER.findall(text)}
    predicate = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return Rule(path.stem, predicate.strip(), defaults)


def _check_parameters(rule: Rule, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        place = f"judge.rules.{rule.name}.{name}"
        if name not in rule.defaults:
            offered = nearest(name, rule.defaults) if rule.defaults else "the rule takes none"
            raise ManifestError(place, value, f"is no parameter: {offered}")
        if (wanted := _kind(rule.defaults[name])) != _kind(value):
            raise ManifestError(place, value, f"must be a {wanted}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float) and math.isfinite(value):
        return "finite number"
    return "string" if isinstance(value, str) else type(value).__name__


def _literal(value: Any) -> str:
    """A checked parameter in SQL."""
    text = "'" + str(value).replace("'", "''") + "'"
    casts = {"finite number": "DOUBLE", "boolean": "BOOLEAN", "string": "VARCHAR"}
    return f"CAST({text} AS {casts[_kind(value)]})"
