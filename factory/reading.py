"""Reading a manifest: YAML 1.2, `${VAR}`, `--set`, paths, and mistakes told in one line."""

from __future__ import annotations

import io
import os
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.representer import SafeRepresenter

from factory.errors import ManifestError, nearest
from factory.files import write_text
from factory.manifest import Manifest

VARIABLE = re.compile(r"\$(\$?)\{(\w+)\}")
FILE_KEYS = ("candidates_from", "judge.glossary", "student.deepspeed.hostfile")
MODEL_KEYS = (
    "teacher.model",
    "judge.reverse.model",
    "student.init.model",
    "student.init.tokenizer.model",
)
SPLITS = ("train", "unlabeled", "validation", "test")


def load_manifest(path: Path, overrides: Sequence[str] = ()) -> Manifest:
    """Read, override and validate a manifest; every path in the result is absolute.

    `${VAR}` reads the environment, `$${VAR}` stands for the text `${VAR}`.

    Raises:
        ManifestError: naming the key, the value and the remedy.
    """
    tree = _parse(path)
    base = path.resolve().parent
    _expand_variables(tree, path.name, "")
    for override in overrides:
        _override(tree, override)
    _make_absolute(tree, base)
    return validate(tree, path.name)


def validate(tree: Any, place: str) -> Manifest:
    """Turn a parsed tree into a manifest, or its first mistake into a `ManifestError`."""
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        raise _first_mistake(error, place) from None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the resolved manifest as YAML that `load_manifest` reads back to the same value."""
    tree = manifest.model_dump(mode="json", exclude_unset=True)
    for container, index, _ in _walk(tree, ""):
        if isinstance(container[index], str):
            container[index] = VARIABLE.sub(r"$\g<0>", container[index])
    write_text(path, to_yaml(tree))


def to_yaml(tree: Any) -> str:
    """A tree as block YAML, keys in their own order."""
    stream = io.StringIO()
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(tree, stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Quotes what is not printable: of NEL and its like, plain style makes line breaks."""

    def represent_str(self, text: str) -> Any:
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def _parse(path: Path) -> dict[str, Any]:
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(path, None, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ManifestError(path, None, "is not UTF-8 text: save it as UTF-8") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        remedy = f"{' '.join(str(error.problem).split())}: mend the YAML"
        raise ManifestError(f"{path.name}:{line}", None, remedy) from None
    except YAMLError as error:
        remedy = f"{' '.join(str(error).split())}: mend the YAML"
        raise ManifestError(path.name, None, remedy) from None
    if not isinstance(tree, dict):
        raise ManifestError(path.name, tree, "a manifest is a mapping of sections")
    copied: dict[str, Any] = _unshared(tree, path.name, ())
    return copied


def _unshared(tree: Any, place: str, above: tuple[Any, ...]) -> Any:
    """A copy in which every YAML alias is a value of its own, to be overridden alone."""
    if not isinstance(tree, dict | list):
        return tree
    if any(tree is node for node in above):
        raise ManifestError(place, None, "an alias stands inside itself: write it out")
    if isinstance(tree, list):
        return [_unshared(value, place, (*above, tree)) for value in tree]
    if odd := next((key for key in tree if not isinstance(key, str)), None):
        raise ManifestError(place, odd, "keys are words: quote it")
    return {key: _unshared(value, place, (*above, tree)) for key, value in tree.items()}


def _walk(tree: Any, key: str) -> Iterator[tuple[Any, Any, str]]:
    """Every leaf of a tree as (container, index, dotted key)."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for index, value in list(pairs):
        dotted = f"{key}.{index}" if key else str(index)
        if isinstance(value, dict | list):
            yield from _walk(value, dotted)
        else:
            yield tree, index, dotted


def _expand_variables(tree: Any, place: str, root: str) -> None:
    for container, index, dotted in _walk(tree, root):
        if isinstance(container[index], str):
            container[index] = _expand(container[index], f"{place} {dotted}")


def _expand(text: str, place: str) -> str:
    def value(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped:
            return match[0][1:]
        if name not in os.environ:
            raise ManifestError(place, match[0], f"set the environment variable {name}")
        return os.environ[name]

    return VARIABLE.sub(value, text)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ManifestError("--set", override, "write it as section.key=value")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise ManifestError(f"--set {key}", text, "is not a YAML value: quote it") from None
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        node = _descend(node, parent, key)
    given: Any = {last: _unshared(value, f"--set {key}", ())}
    _expand_variables(given, "--set", ".".join(parents))
    for parent in reversed(parents):
        given = {parent: given}
    _make_absolute(given, Path.cwd(), _named_files(tree))
    for part in parents:
        given = given[part]
    node[_index(node, last, key)] = given[last]


def _descend(node: Any, part: str, key: str) -> Any:
    index = _index(node, part, key)
    child = node.get(index) if isinstance(node, dict) else node[index]
    if not isinstance(child, dict | list):
        child = node[index] = {}
    return child


def _index(node: Any, part: str, key: str) -> Any:
    if not isinstance(node, list):
        return part
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    raise ManifestError(f"--set {key}", part, f"the list has {len(node)} entries, from 0")


def _named_files(tree: dict[str, Any]) -> frozenset[str]:
    """Splits given as one file with columns: their `source` and `target` name no files."""
    data = tree.get("data")
    splits = data.items() if isinstance(data, dict) else ()
    return frozenset(k for k, v in splits if isinstance(v, dict) and v.get("path"))


def _make_absolute(tree: dict[str, Any], base: Path, columns: frozenset[str] = frozenset()) -> None:
    """Resolve every path of a tree: data against `data.root` where set, the rest against `base`."""
    if isinstance(data := tree.get("data"), dict):
        _make_data_absolute(data, base, columns)
    for make_absolute, keys in ((_absolute, FILE_KEYS), (_absolute_model, MODEL_KEYS)):
        for dotted in keys:
            parents, _, last = dotted.rpartition(".")
            if isinstance(node := _at(tree, parents), dict):
                make_absolute(node, last, base)
    _make_listed_absolute(tree, base)


def _make_listed_absolute(tree: dict[str, Any], base: Path) -> None:
    """Files of rules, and the folders that metrics' commands start in: by default, the base."""
    for container, index, _ in _walk({"rules": _at(tree, "judge.rules")}, ""):
        if index == "file":
            _absolute(container, index, base)
    for container, index, _ in _walk({"metrics": _at(tree, "evaluate.metrics")}, ""):
        if index == "command":
            container.setdefault("folder", ".")
            _absolute(container, "folder", base)


def _make_data_absolute(data: dict[str, Any], base: Path, columns: frozenset[str]) -> None:
    _absolute(data, "root", base)
    root = data["root"] if isinstance(data.get("root"), str) else base
    for name in SPLITS:
        split = data.get(name)
        if isinstance(split, dict):
            by_line = not split.get("path") and name not in columns
            for key in ("path", "source", "target") if by_line else ("path",):
                _absolute(split, key, root)


def _at(tree: Any, dotted: str) -> Any:
    """What stands at a key, or None."""
    for part in filter(None, dotted.split(".")):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _absolute(node: dict[str, Any], key: str, base: Path | str) -> None:
    value = node.get(key)
    if not isinstance(value, str) or "://" in value:
        return
    if "://" in str(base):
        node[key] = f"{str(base).rstrip('/')}/{value}"
    else:
        node[key] = os.path.normpath(base / Path(value).expanduser())


def _absolute_model(node: dict[str, Any], key: str, base: Path) -> None:
    """A folder that exists, or is written as one, is a path; anything else is a hub id."""
    value = node.get(key)
    if isinstance(value, str):
        written_as_path = value.startswith((".", "/", "~")) or value.count("/") > 1
        if written_as_path or (base / value).exists():
            _absolute(node, key, base)


def _first_mistake(error: ValidationError, place: str) -> ManifestError:
    errors = error.errors(include_url=False)
    first = min(errors, key=_distance)
    location = _location(first)
    where = f"{place} {'.'.join(map(str, location))}".strip()
    if first["type"] == "extra_forbidden":
        return ManifestError(where, None, f"unknown key: {_nearest_key(location)}")
    if first["type"] == "missing":
        return ManifestError(where, None, "is missing: add it")
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    shown = None if isinstance(first["input"], dict | BaseModel) else first["input"]
    beside = [other for other in errors if _location(other) == location]
    return ManifestError(where, shown, _every_value(beside) or message[0].lower() + message[1:])


def _location(detail: Any) -> list[Any]:
    return [part for part in detail["loc"] if not _is_union_tag(part)]


def _every_value(details: list[Any]) -> str | None:
    """Of `true`, `false` or a word, pydantic tells one kind at a time; a user wants them all."""
    words = [detail["ctx"]["expected"] for detail in details if detail["type"] == "literal_error"]
    if not words or not any(detail["type"].startswith("bool_") for detail in details):
        return None
    return f"input should be true, false or {' or '.join(words)}".replace("'", "")


def _distance(detail: Any) -> int:
    """How far a mistake is from what was meant: in a union, most kinds tried were not meant."""
    telling = ("extra_forbidden", "value_error", "missing")
    if detail["type"] in telling:
        return telling.index(detail["type"])
    return len(telling) + isinstance(detail["input"], dict)


def _is_union_tag(part: Any) -> bool:
    """Pydantic names the union member it tried (`int`, `Lengths`); the user has no such key."""
    tags = r"[A-Z]\w*|int|str|bool|float|constrained-\w+|literal\[.*|dict\[.*|function-.*"
    return isinstance(part, str) and bool(re.fullmatch(tags, part))


def _nearest_key(location: list[Any]) -> str:
    model: Any = Manifest
    for part in location[:-1]:
        if isinstance(part, int) or part not in model.model_fields:
            continue  # a place in a list, or a name of the user's own
        model = _model_of(model.model_fields[part].annotation)
        if model is None:
            return "remove it"
    return nearest(str(location[-1]), model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X`, `X | None`, `tuple[X, ...]` or `Annotated[X, …]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_model_of(inner) for inner in get_args(annotation))
    return next((model for model in found if model), None)
