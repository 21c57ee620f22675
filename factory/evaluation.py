"""What is decoded and scored in the end: every key of `evaluate`."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from factory.decoding import Generate
from factory.sections import Positive, Section

Measure = Literal["bleu", "chrf", "ter", "rouge1", "rouge2", "rougeL", "exact_match"]
MEASURES: tuple[str, ...] = get_args(Measure)
BEAM = ("beam_width", "length_penalty", "early_stopping")
NAME = re.compile(r"[A-Za-z0-9._-]+")


class Program(Section):
    """A user's own metric: reads predictions as JSON lines, and ends by printing a number."""

    command: str = Field(description="a program and its arguments: it runs as you, unfenced")
    folder: str | None = Field(None, description="where it starts; default: the manifest's")
    shell: bool = Field(False, description="hand the command to `sh -c`, for pipes and the like")
    timeout: Annotated[float, Field(gt=0)] = Field(
        600.0, description="seconds that one call may take"
    )


class Evaluate(Section):
    """Which systems decode which splits, and what is computed from their text."""

    splits: tuple[Literal["validation", "test"], ...] = ("test",)
    systems: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")
    engine: Literal["auto", "vllm", "ctranslate2", "transformers"] | None = Field(
        None, description="default: auto"
    )
    decoding: Literal["greedy", "beam"] = "greedy"
    beam_width: Positive = 4
    length_penalty: float = Field(1.0, description="as in `generate`")
    early_stopping: bool | Literal["never"] = Field(False, description="as in `generate`")
    metrics: tuple[Measure | dict[str, Program], ...] = Field(
        ("bleu", "chrf"), description="names, or {name: {command: …}}"
    )
    folds: Annotated[int, Field(ge=0)] = 5

    @model_validator(mode="after")
    def _no_idle_keys(self) -> Self:
        if self.decoding != "beam" and (idle := sorted(self.model_fields_set & set(BEAM))):
            raise ValueError(
                f"decoding 'greedy' ignores {idle[0]}: remove it, or set decoding to beam"
            )
        return self

    @model_validator(mode="after")
    def _metrics_have_names(self) -> Self:
        names = [
            name
            for metric in self.metrics
            for name in ([metric] if isinstance(metric, str) else metric)
        ]
        if again := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"metrics holds {again} twice: remove one")
        for name in self.programs():
            if name in MEASURES:
                raise ValueError(f"metrics.{name} is a metric of our own: name the command else")
            if not NAME.fullmatch(name):
                raise ValueError(f"metrics: {name!r} is no name: take letters, digits, . _ -")
        return self

    def searched(self, generate: Generate) -> Generate:
        """How held-out sources are decoded: with the limits and stops of `generate`."""
        if self.decoding == "greedy":
            return generate.greedily()
        return generate.searching(decoding="beam", **{key: getattr(self, key) for key in BEAM})

    def programs(self) -> dict[str, Program]:
        """The metrics that are commands, by name."""
        return {k: v for m in self.metrics if not isinstance(m, str) for k, v in m.items()}

    def named_metrics(self) -> dict[str, Program | None]:
        """Every metric in manifest order: its command, or None for one of our own."""
        named: dict[str, Program | None] = {}
        for metric in self.metrics:
            named |= {metric: None} if isinstance(metric, str) else metric
        return named
