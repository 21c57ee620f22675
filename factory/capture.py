"""Which token distributions are kept: every key of `logits`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from factory.sections import Positive, Section

CAPTURE_KEYS = {
    "none": frozenset[str](),
    "top_k": frozenset({"k", "precision"}),
    "top_p": frozenset({"k", "p", "precision"}),
    "sampled": frozenset({"draws", "precision"}),
}


class Logits(Section):
    """Which token distributions are kept, and how precisely."""

    capture: Literal["none", "top_k", "top_p", "sampled"] = "none"
    k: Positive = Field(16, description="entries a position; with top_p the most of them")
    p: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="mass that top_p keeps")
    draws: Positive = Field(50, description="draws a position, with replacement")
    precision: Literal["exact", "half", "compact"] = Field(
        "half", description="float32, float16 grid, or fixed point"
    )

    @model_validator(mode="after")
    def _no_idle_keys(self) -> Self:
        for key in sorted(self.model_fields_set - CAPTURE_KEYS[self.capture] - {"capture"}):
            users = " or ".join(name for name, keys in CAPTURE_KEYS.items() if key in keys)
            raise ValueError(
                f"capture {self.capture!r} ignores {key}: remove it, or set capture to {users}"
            )
        return self

    @property
    def width(self) -> int:
        """The most probable tokens asked of an engine at each position."""
        return self.k if self.capture in ("top_k", "top_p") else 0

    @property
    def nucleus(self) -> float | None:
        """The mass that is kept of those; None where all of them are."""
        return self.p if self.capture == "top_p" else None

    @property
    def drawn(self) -> int:
        """The draws asked of an engine at each position."""
        return self.draws if self.capture == "sampled" else 0
