"""What is decoded and scored in the end: every key of `evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from factory.sections import Section


class Evaluate(Section):
    """Which systems decode which splits, and what is computed from their text."""

    splits: tuple[Literal["validation", "test"], ...] = ("test",)
    systems: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")
    engine: Literal["vllm", "transformers"] | None = Field(None, description="default: teacher's")
    decoding: Literal["greedy"] = "greedy"
    metrics: tuple[Literal["bleu", "chrf"], ...] = ("bleu", "chrf")
    folds: Annotated[int, Field(ge=0)] = 5
