"""How a teacher decodes: every key of `generate`, and what is a function of one row alone."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from factory.sections import Count, Fraction, Positive, Section


class Lengths(Section):
    """min(cap, ceil(ratio · prompt tokens + plus)): a limit that depends on its own row alone."""

    ratio: Annotated[float, Field(ge=0)] = 0.0
    plus: Count = 0
    cap: Positive

    @model_validator(mode="after")
    def _allows_a_token(self) -> Self:
        if self.ratio == 0 and self.plus == 0:
            raise ValueError("allows no token: set ratio or plus above 0")
        return self


Text = Annotated[str, Field(min_length=1)]
DECODING_KEYS = {
    "greedy": frozenset[str](),
    "beam": frozenset({"beam_width", "num_return", "length_penalty", "early_stopping"}),
    "sample": frozenset({"num_return", "temperature", "top_p", "top_k", "min_p", "epsilon"}),
}


class Generate(Section):
    """How the teacher decodes, and in what portions the work is stored."""

    decoding: Literal["greedy", "beam", "sample"] = "greedy"
    beam_width: Positive = 4
    num_return: Positive = Field(1, description="hypotheses kept of each source")
    length_penalty: float = Field(1.0, description="score = sum_logprob / tokens^length_penalty")
    early_stopping: bool | Literal["never"] = Field(
        False, description="as Hugging Face: true, false, never"
    )
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = Field(0, description="0: all")
    min_p: Fraction = Field(0.0, description="least share of the most probable token's probability")
    epsilon: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="least probability")
    max_new_tokens: Positive | Lengths = 256
    min_new_tokens: Count = Field(0, description="tokens before the end token may come")
    stop: tuple[Text, ...] = Field((), description="strings that end a target; cut off its text")
    stop_token_ids: tuple[Count, ...] = Field((), description="more end tokens, by id")
    no_repeat_ngram_size: Count = Field(0, description="0: n-grams may repeat")
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    first_token: str | None = Field(
        None, description="forced as a target's first token, such as NLLB's fra_Latn"
    )
    reasoning: Literal["keep", "remove"] = Field(
        "keep", description="what becomes of the span before `reasoning_end`"
    )
    reasoning_end: Text = "</think>"
    check: Count = Field(32, description="candidates of each shard that are scored anew; 0: none")
    shard_size: Positive = Field(2048, description="sources in a shard, the unit of resuming")
    window: Positive = Field(512, description="requests the engine may hold at once")

    @model_validator(mode="after")
    def _no_idle_keys(self) -> Self:
        for key in sorted(frozenset().union(*DECODING_KEYS.values()) & self.model_fields_set):
            if key not in DECODING_KEYS[self.decoding]:
                users = [name for name, keys in DECODING_KEYS.items() if key in keys]
                raise ValueError(
                    f"decoding {self.decoding!r} ignores {key}: remove it, "
                    f"or set decoding to {' or '.join(users)}"
                )
        return self

    @model_validator(mode="after")
    def _reasoning_agrees(self) -> Self:
        if self.reasoning == "keep" and "reasoning_end" in self.model_fields_set:
            raise ValueError("reasoning 'keep' ignores reasoning_end: remove it, or the reasoning")
        return self

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.decoding == "beam" and self.num_return > self.beam_width:
            raise ValueError(
                f"num_return {self.num_return} is more than beam_width {self.beam_width}: "
                "a beam returns no more hypotheses than it is wide"
            )
        most = self.max_new_tokens
        cap = most if isinstance(most, int) else most.cap
        if self.min_new_tokens > cap:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {cap}: lower it"
            )
        return self

    @property
    def exponent(self) -> float:
        """What a hypothesis's length is raised to in its score; 1 gives the mean."""
        return self.length_penalty if self.decoding == "beam" else 1.0

    def greedily(self) -> Generate:
        """The same limits and stops, decoded greedily: how held-out sources are decoded."""
        return self.searching()

    def searching(self, **search: Any) -> Generate:
        """The same limits and stops with another search: `decoding`, and what belongs to it."""
        kept = self.model_fields_set - frozenset().union(*DECODING_KEYS.values()) - {"decoding"}
        return Generate(**{key: getattr(self, key) for key in kept}, **search)


def token_limit(spec: int | Lengths, n_prompt_tokens: int) -> int:
    """The most tokens a target may have: a function of its own row alone."""
    if isinstance(spec, int):
        return spec
    # Rounded first: 1.1 · 100 is a hair more than 110.
    wanted = math.ceil(round(spec.ratio * n_prompt_tokens + spec.plus, 6))
    return max(1, min(spec.cap, wanted))


def draw_seed(run_seed: int, sample_id: str, ordinal: int) -> int:
    """The seed of one draw, 63 bits: a function of the run's seed, the source and the ordinal."""
    drawn = hashlib.blake2b(f"{run_seed} {sample_id} {ordinal}".encode(), digest_size=8)
    return int.from_bytes(drawn.digest()) >> 1
