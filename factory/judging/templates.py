"""Files of rules: a condition over signals to keep a candidate, with parameters.

The comment at the head says what the rule asks for. Lines `-- $name = value` declare parameters and
their defaults: YAML scalars, or `manifest.KEY`, which stands for what the manifest says there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from factory.errors import ManifestError, nearest
from factory.files import shipped
from factory.manifest import Manifest

PARAMETER = re.compile(r"^-- \$(\w+) = (.+)$", re.MULTILINE)
USED = re.compile(r"\$([A-Za-z_]\w*)")
FROM_MANIFEST = "manifest."
CASTS = {"finite number": "DOUBLE", "boolean": "BOOLEAN", "string": "VARCHAR"}


@dataclass(frozen=True, slots=True)
class Template:
    """A rule's condition, and its parameters with their defaults."""

    condition: str
    defaults: dict[str, Any]

    def filled(self, parameters: dict[str, Any], manifest: Manifest, place: str) -> str:
        """The condition as SQL, with parameters and defaults written in.

        Raises:
            ManifestError: a parameter is unknown or of the wrong type, or the manifest does not
                say what a default stands for.
        """
        for name, value in parameters.items():
            self._check(f"{place}.{name}", name, value)
        values = {
            name: parameters[name] if name in parameters else _default(value, manifest, place)
            for name, value in self.defaults.items()
        }
        return USED.sub(lambda match: _literal(values[match[1]]), self.condition)

    def _check(self, place: str, name: str, value: Any) -> None:
        if name not in self.defaults:
            offered = nearest(name, self.defaults) if self.defaults else "the rule takes none"
            raise ManifestError(place, value, f"is no parameter: {offered}")
        if (wanted := _kind(self.defaults[name])) != _kind(value):
            raise ManifestError(place, value, f"must be a {wanted}")


@cache
def shipped_rules() -> dict[str, Template]:
    """Every rule of `sql/rules`, by name."""
    files = sorted(shipped("sql").glob("rules/*.sql"))
    return {path.stem: _template(path.read_text("utf-8"), path.name) for path in files}


def read_rule(file: str, place: str) -> Template:
    """The rule in a user's file.

    Raises:
        ManifestError: it cannot be read, or uses a parameter that it does not declare.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ManifestError(place, file, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ManifestError(place, file, "is not UTF-8 text: save it as UTF-8") from None
    return _template(text, place)


def _template(text: str, place: str) -> Template:
    defaults = {name: _scalar(value, f"{place} ${name}") for name, value in PARAMETER.findall(text)}
    condition = "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip()
    for name in USED.findall(condition):
        if name not in defaults:
            raise ManifestError(place, f"${name}", f"add a line to its head: -- ${name} = value")
    return Template(condition, defaults)


def _scalar(text: str, place: str) -> Any:
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        value = None
    if _kind(value) not in CASTS:
        raise ManifestError(place, text, "must be a number, a word, true or false")
    return value


def _default(value: Any, manifest: Manifest, place: str) -> Any:
    """A default, looked up in the manifest where it stands for something there."""
    if not isinstance(value, str) or not value.startswith(FROM_MANIFEST):
        return value
    found: Any = manifest
    key = value.removeprefix(FROM_MANIFEST)
    for part in key.split("."):
        if part.isdigit():
            found = found[int(part)] if found and int(part) < len(found) else None
        else:
            found = getattr(found, part)
    if found is None:
        section = key.split(".")[0]
        raise ManifestError(place, None, f"goes by {key} of the manifest: add {section} to it")
    return found


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float) and math.isfinite(value):
        return "finite number"
    return "string" if isinstance(value, str) else type(value).__name__


def _literal(value: Any) -> str:
    """A checked parameter in SQL."""
    text = "'" + str(value).replace("'", "''") + "'"
    return f"CAST({text} AS {CASTS[_kind(value)]})"
