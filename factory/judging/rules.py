"""Rules: the named conditions over signals that a candidate must meet to be kept.

Those of a preset first, then those of the manifest: shipped ones by name, the user's own in SQL or
from a file, and quantile rules. Whatever their kind, a rule is SQL over the columns of `signals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from factory.errors import ManifestError, nearest
from factory.files import shipped
from factory.judgement import OFF, Judge
from factory.judging.expressions import check_condition
from factory.judging.quantiles import Quantile, quantile
from factory.judging.templates import read_rule, shipped_rules
from factory.manifest import Manifest
from factory.schemas import MEASURED

KINDS = {"sql", "file", "drop_worst"}  # what tells a rule that is not a shipped one
ALWAYS = "error"  # a candidate without text is never a target
FAMILY_OF = {column: family for family, columns in MEASURED.items() for column, _ in columns}
NEEDS = {"reverse_logprob": "reverse", "glossary_missing": "glossary"}  # signals, keys of `judge`


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with all parameters settled, but for a quantile's threshold."""

    name: str
    keeps: str | Quantile
    reads: frozenset[str]

    def condition(self, thresholds: dict[str, float | None]) -> str:
        """The condition to keep a candidate, as SQL over `signals`. NULL keeps it too."""
        if isinstance(self.keeps, str):
            return self.keeps
        return self.keeps.condition(thresholds[self.name])

    def told(self) -> list[Any]:
        """As JSON, for keys: two manifests that tell the same judge the same."""
        return [self.name, self.keeps if isinstance(self.keeps, str) else self.keeps.told()]


def rules_of(manifest: Manifest) -> tuple[Rule, ...]:
    """The rules that a manifest asks for, in the order in which reasons are told.

    Raises:
        ManifestError: a rule or parameter is unknown, stands twice, is of the wrong type, or is no
            condition; or it reads a signal that is not measured.
    """
    _check_own(manifest.judge)
    rules = tuple(_rule(name, given, manifest) for name, given in _named(manifest.judge).items())
    own = manifest.judge.named_rules()
    for rule in rules:
        check_measured(manifest.judge, rule.reads, f"judge.rules.{rule.name}", rule.name in own)
    return rules


def check_measured(judge: Judge, signals: frozenset[str], place: str, own: bool) -> None:
    """Refuse what reads signals of a family that is left out, or that nothing is there to measure.

    A preset's rule (`own` is false) may find nothing to measure, and then keeps every candidate.

    Raises:
        ManifestError: naming the signal, and what to add.
    """
    for signal in sorted(signals & FAMILY_OF.keys()):
        family = FAMILY_OF[signal]
        if not judge.measures(family):
            remedy = f"judge.signals leaves its family out: add {family}"
            raise ManifestError(place, signal, remedy)
        if own and signal in NEEDS and not getattr(judge, NEEDS[signal]):
            raise ManifestError(place, signal, f"goes by judge.{NEEDS[signal]}: add it")


def presets() -> dict[str, list[Any]]:
    """The lists of rules that are shipped, by name: see `sql/presets`."""
    yaml = YAML(typ="safe", pure=True)
    files = sorted(shipped("sql").glob("presets/*.yaml"))
    return {path.stem: yaml.load(path.read_text("utf-8")) for path in files}


def _check_own(judge: Judge) -> None:
    names = [name for rule in judge.rules for name in ([rule] if isinstance(rule, str) else rule)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ManifestError("judge.rules", twice, "stands twice: keep one")


def _named(judge: Judge) -> dict[str, dict[str, Any]]:
    """Every rule's parameters: the manifest's over the preset's, one by one, but of a new kind."""
    begun = Judge(rules=tuple(presets()[judge.preset])).named_rules() if judge.preset else {}
    named: dict[str, Any] = {ALWAYS: {}} | begun
    for name, given in judge.named_rules().items():
        if given != OFF:
            before = named.get(name, {})
            named[name] = given if given.keys() & KINDS - before.keys() else before | given
        elif name == ALWAYS or name not in begun:
            why = "always holds" if name == ALWAYS else "is not in the preset"
            raise ManifestError("judge.rules", f"{name}: {OFF}", f"{why}: remove this line")
        else:
            del named[name]
    return named


def _rule(name: str, given: dict[str, Any], manifest: Manifest) -> Rule:
    place = f"judge.rules.{name}"
    known = shipped_rules()
    if name in known and not given.keys() & KINDS:
        condition = known[name].filled(given, manifest, place)
        return Rule(name, condition, check_condition(condition, place))
    if "drop_worst" in given:
        worst = quantile(name, given, place)
        return Rule(name, worst, frozenset((worst.signal,)))
    if name in known:
        raise ManifestError("judge.rules", name, "is a shipped rule's name: choose another")
    if "file" in given:
        condition = _of_file(given, manifest, place)
    elif "sql" in given:
        condition = _of_sql(given, place)
    else:
        raise ManifestError("judge.rules", name, f"is no rule: {nearest(name, known)}")
    return Rule(name, condition, check_condition(condition, place))


def _of_file(given: dict[str, Any], manifest: Manifest, place: str) -> str:
    file = given["file"]
    if not isinstance(file, str):
        raise ManifestError(f"{place}.file", file, "must be the path of a file of SQL")
    parameters = {name: value for name, value in given.items() if name != "file"}
    return read_rule(file, f"{place}.file").filled(parameters, manifest, place)


def _of_sql(given: dict[str, Any], place: str) -> str:
    for name, value in given.items():
        if name != "sql":
            raise ManifestError(f"{place}.{name}", value, "sql takes no parameters: write it in")
    if not isinstance(given["sql"], str):
        raise ManifestError(f"{place}.sql", given["sql"], "must be SQL: quote it")
    return given["sql"]
