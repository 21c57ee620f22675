"""How candidates are judged: every key of `judge`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from factory.sections import Dtype, Positive, Section

Signals = Literal[
    "text",
    "repetition",
    "confidence",
    "duplicates",
    "language",
    "similarity",
    "agreement",
    "near",
    "protected",
    "reverse",
]


OFF = "off"  # of a rule of the preset


class Reverse(Section):
    """A model of the other direction, for log P(source | target)."""

    model: str = Field(description="folder in Hugging Face format, or hub id")
    revision: str | None = None
    template: str = Field("{source}", description="its prompt; {source} is the candidate's text")
    dtype: Dtype = "float32"


class OrderBy(Section):
    """Selection by a user's own order."""

    order_by: str = Field(description="SQL over the signals, such as chrf_gold DESC")


class Judge(Section):
    """What is measured of candidates, the rules they must pass, and which of them are taken."""

    preset: Literal["translation", "summarisation", "instruction"] | None = Field(
        None, description="rules to start from; `rules` changes or adds to them"
    )
    rules: tuple[str | dict[str, dict[str, Any] | Literal["off"] | None], ...] = Field(
        ("error", "truncated", "empty", "length_ratio", "copy", "duplicate"),
        description="names, or {name: parameters}, {name: {sql: …}}, {signal: {drop_worst: …}}",
    )
    select: Literal["best", "gold_chrf", "gold_bleu", "mbr"] | OrderBy = "best"
    per_source: Positive = Field(1, description="targets taken of each source, at most")
    signals: tuple[Signals, ...] | None = Field(None, description="families; default: all")
    glossary: str | None = Field(None, description="TSV of source and target terms to keep")
    protect: tuple[str, ...] = Field((), description="regular expressions of spans to keep")
    reverse: Reverse | None = None

    @model_validator(mode="after")
    def _families_are_measured(self) -> Self:
        for key, family in (("glossary", "protected"), ("protect", "protected"), ("reverse",) * 2):
            if getattr(self, key) and not self.measures(family):
                raise ValueError(f"signals leaves {family} out, which {key} is for: add it")
        return self

    def measures(self, family: str) -> bool:
        """Whether a family of signals is wanted."""
        return self.signals is None or family in self.signals

    def named_rules(self) -> dict[str, Any]:
        """Every rule's name and its parameters, or OFF, in manifest order.

        A preset stands in for the default list.
        """
        named: dict[str, Any] = {}
        for rule in () if self.preset and "rules" not in self.model_fields_set else self.rules:
            named |= {rule: {}} if isinstance(rule, str) else {k: v or {} for k, v in rule.items()}
        return named
