"""Capture checks itself: candidates scored anew must have the log-probabilities stored of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from factory.engines.base import Hypothesis
from factory.errors import StepFailed

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two computations of a log-probability may lie apart, in nats.

    Attributes:
        mean: over all positions.
        largest: at any one position.
        tie: two tokens so near each other may change places.
        top1: least share of positions whose most probable token is the same, or tied.
    """

    mean: float
    largest: float
    tie: float
    top1: float


# Decoding and scoring add the same products in another order: a token a step over a cache, or all
# positions at once. What that costs is the dtype's rounding, gathered over the layers. Measured on
# a decoder of 5 million parameters, mean and largest of 1,000 positions, transformers' `generate`
# against one forward pass: float32 4e-7 and 6e-6, float16 5e-4 and 8e-3, bfloat16 3e-3 and 6e-2;
# vLLM on a CPU gave the same bits in all three. Deep models gather more, and one unlikely token
# more than the mean: so a hundredfold and more in float32, where nothing else is lost by it; some
# fifteenfold of the mean in the half precisions. A leaked temperature of 0.7, or a row or a
# position in the wrong place, shifts the mean by more. `int8` is weights and products in 8 bits
# scored in float32: CTranslate2's told sums differ by 4e-3 a token on average, 3e-2 at most.
TOLERANCES = {
    "float32": Tolerance(mean=1e-4, largest=1e-2, tie=1e-3, top1=0.99),
    "float16": Tolerance(mean=1e-2, largest=0.5, tie=0.1, top1=0.98),
    "bfloat16": Tolerance(mean=5e-2, largest=2.0, tie=0.5, top1=0.95),
    "int8": Tolerance(mean=0.1, largest=1.0, tie=0.5, top1=0.9),
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well candidates scored anew agree with what was stored; adds up over shards.

    Attributes:
        candidates: those compared.
        positions: target positions compared, end tokens included.
        largest: the largest absolute difference of a position, in nats. Of a candidate whose
            engine told its sum alone: the sums' difference, shared over its positions.
        total: absolute differences, summed over positions, in nats.
        top1_agreed: positions whose most probable token is the same, or tied with it.
        top1_positions: positions where both sides know the most probable token.
        skipped: candidates that could not be compared.
    """

    candidates: int = 0
    positions: int = 0
    largest: float = 0.0
    total: float = 0.0
    top1_agreed: int = 0
    top1_positions: int = 0
    skipped: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            candidates=self.candidates + other.candidates,
            positions=self.positions + other.positions,
            largest=max(self.largest, other.largest),
            total=self.total + other.total,
            top1_agreed=self.top1_agreed + other.top1_agreed,
            top1_positions=self.top1_positions + other.top1_positions,
            skipped=self.skipped + other.skipped,
        )

    @property
    def mean(self) -> float:
        """The mean absolute difference of a position, in nats."""
        return self.total / self.positions if self.positions else 0.0

    @property
    def top1_agreement(self) -> float | None:
        """Share of positions that agree on the most probable token; None where none is known."""
        return self.top1_agreed / self.top1_positions if self.top1_positions else None

    def as_record(self) -> dict[str, Any]:
        """The figures as `run.json` and shard records keep them."""
        return asdict(self) | {"mean": self.mean, "top1_agreement": self.top1_agreement}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The figures that `as_record` gave."""
        return cls(**{name: record[name] for name in cls.__slots__})


def chosen(sample_ids: Sequence[str], count: int, seed: int) -> list[int]:
    """The places of `count` sources that are scored anew, ascending.

    A seeded hash of the id decides: the same sources are chosen in whatever order they stand.
    """
    ordered = sorted(range(len(sample_ids)), key=lambda place: _hash(sample_ids[place], seed))
    return sorted(ordered[:count])


def agreement(kept: Hypothesis, scored: Hypothesis, dtype: str = "float32") -> Agreement:
    """Compare a candidate as it was decoded with the same candidate scored teacher-forced.

    Their top k may differ in width. `dtype` says how near two tokens are a tie: see `TOLERANCES`.

    Raises:
        StepFailed: they are not the same tokens, or a log-probability is not a number.
    """
    if kept.token_ids.tolist() != scored.token_ids.tolist():
        raise StepFailed("generate: a candidate was scored anew as other tokens than it has")
    if scored.token_logprobs is None:
        return Agreement(skipped=1)
    differences = _differences(kept, scored.token_logprobs)
    if differences is None:
        return Agreement(skipped=1)
    if not np.isfinite(differences).all():
        raise StepFailed("generate: a log-probability stored or scored anew is not a finite number")
    same = _same_top1(kept, scored, TOLERANCES[dtype].tie)
    return Agreement(
        candidates=1,
        positions=len(differences),
        largest=float(differences.max(initial=0.0)),
        total=math.fsum(differences),
        top1_agreed=int(same.sum()),
        top1_positions=len(same),
    )


def require_agreement(found: Agreement, dtype: str) -> None:
    """Stop where candidates scored anew differ by more than their arithmetic explains.

    `dtype` is the teacher's, or `int8` where what decodes is quantised and what scores is not.

    Raises:
        StepFailed: with the figures, what is allowed, and what it may mean.
    """
    allowed, share = TOLERANCES[dtype], found.top1_agreement
    within = found.mean <= allowed.mean and found.largest <= allowed.largest
    if within and (share is None or share >= allowed.top1):
        return
    told = "" if share is None else f", top-1 agreement {share:.1%} (least {allowed.top1:.0%})"
    raise StepFailed(
        f"generate.check: {found.candidates} candidates scored anew have other log-probabilities "
        f"than were stored: mean difference {found.mean:.2g} (at most {allowed.mean:g}), largest "
        f"{found.largest:.2g} (at most {allowed.largest:g}){told} in {dtype}: a temperature, "
        "filter or penalty in them, a wrong prompt, or rows mixed up; generate.check: 0 turns "
        "this off"
    )


def _hash(sample_id: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} check {sample_id}".encode(), digest_size=8).digest()


def _differences(kept: Hypothesis, scored: npt.NDArray[np.float32]) -> Floats | None:
    """float64 [n]: absolute differences, in nats; None where nothing is known of `kept`."""
    after = scored.astype(np.float64)
    if kept.token_logprobs is not None:
        before = kept.token_logprobs.astype(np.float64)
        with np.errstate(invalid="ignore"):
            found: Floats = np.where(before == after, 0.0, np.abs(before - after))
        return found
    if kept.told_sum is None:
        return None
    return np.full(len(after), abs(kept.told_sum - math.fsum(after)) / max(1, len(after)))


def _same_top1(kept: Hypothesis, scored: Hypothesis, tie: float) -> npt.NDArray[np.bool_]:
    """One truth a position, none where a side has no top k: the same token first, or tied."""
    before, after, logprobs = kept.topk_ids, scored.topk_ids, scored.topk_logprobs
    if before is None or after is None or logprobs is None:
        return np.zeros(0, np.bool_)
    near = logprobs >= logprobs[:, :1] - tie
    found: npt.NDArray[np.bool_] = ((after == before[:, :1]) & near).any(axis=1)
    return found
