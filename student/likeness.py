"""Whether a model that was loaded back is the one that was trained: its logits, and what it writes.

Log-probabilities are natural. Where weights or arithmetic are rounded, two tokens that lie nearer
together than `TIE` times the tolerance may take each other's place; where they are not, the logits
are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from factory.errors import StepFailed
from student.entry import stop_if_abandoned
from student.writers import TransformersWriter, Writer

# Nats by which log-probabilities of targets may differ on average: of weights or arithmetic in
# float32, in half precisions, in integers. Some ten times what two real models were measured at.
TOLERANCES = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
OF_INTEGERS = 0.2
TIE = 5
REMEDY = "nothing is delivered: seqkd verify says whether the run's files are whole"

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What must be written after a prompt; `cut` where it had to end before its end token."""

    sample_id: str
    prompt: list[int]
    target: list[int]
    cut: bool


@dataclass(slots=True)
class Likeness:
    """What was compared: targets, and what was decoded.

    `largest` and `mean` are differences of log-probabilities at `positions`, in nats; `tolerance` 0
    asks for equal logits. Of `decoded` rows `same` are equal, and the others part at a tie.
    """

    tolerance: float
    positions: int = 0
    largest: float = 0.0
    mean: float = 0.0
    decoded: int = 0
    same: int = 0

    def as_record(self) -> dict[str, Any]:
        """The figures as `seqkd.json` keeps them."""
        return asdict(self)


def tolerance_of(*kinds: str) -> float:
    """The tolerance of the coarsest of some ways to store weights or to compute."""
    return max(TOLERANCES.get(kind, OF_INTEGERS) for kind in kinds)


def compare_logits(
    original: TransformersWriter, copy: TransformersWriter, pairs: Sequence[Pair], place: object
) -> None:
    """Refuse a copy any of whose logits over the targets differ at all.

    Raises:
        StepFailed: naming the first row.
    """
    for row, (prompt, target) in enumerate(pairs):
        stop_if_abandoned()
        told, wanted = copy.logits(prompt, target), original.logits(prompt, target)
        if not torch.equal(told, wanted):
            difference = float((told - wanted).abs().max())
            what = f"row {row + 1}: its logits differ by {difference:.3g} from the trained model's"
            raise StepFailed(f"{place}: {what}, which must be equal: {REMEDY}")


def compare_logprobs(
    original: Writer, copy: Writer, pairs: Sequence[Pair], tolerance: float, place: object
) -> Likeness:
    """Compare log-probabilities of targets; `tolerance`, in nats, is of their mean difference.

    Raises:
        StepFailed: they differ by more, or are no numbers.
    """
    differences = []
    for prompt, target in pairs:
        stop_if_abandoned()
        told, wanted = copy.logprobs(prompt, target), original.logprobs(prompt, target)
        differences.append((told.double() - wanted.double()).abs())
    every = torch.cat(differences)
    mean, largest = float(every.mean()), float(every.max())
    if not mean <= tolerance:
        what = f"its log-probabilities differ by {mean:.3g} on average from the trained model's"
        raise StepFailed(f"{place}: {what}, and {tolerance:g} is allowed: {REMEDY}")
    return Likeness(tolerance, len(every), largest, mean)


def compare_decoded(
    original: TransformersWriter,
    copy: Writer,
    rows: Iterable[Decoded],
    gap: float,
    place: object,
) -> tuple[int, int]:
    """Have a copy write again what was decoded; returns how many rows it wrote, and how many alike.

    Raises:
        StepFailed: a row differs at a token that the original prefers by more than `gap` nats.
    """
    written = same = 0
    for row in rows:
        stop_if_abandoned()
        told = copy.write(row.prompt)
        at = _parting(row, told)
        written, same = written + 1, same + (at is None)
        if at is not None and not _tied(original, row, told, at, gap):
            what = f"sample {row.sample_id}: it decodes other tokens than the run, from token {at}"
            raise StepFailed(f"{place}: {what}: {REMEDY}")
    return written, same


def _parting(row: Decoded, told: Sequence[int]) -> int | None:
    """The first place at which two targets differ; None where they do not."""
    told = told[: len(row.target)] if row.cut else told
    if list(told) == row.target:
        return None
    pairs = zip(told, row.target, strict=False)
    shorter = min(len(told), len(row.target))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def _tied(
    original: TransformersWriter, row: Decoded, told: Sequence[int], at: int, gap: float
) -> bool:
    """Whether the original finds two targets nearly as good: of beams by their scores.

    Decoded greedily they are as good as the two tokens at which they part.
    """
    config = original.model.generation_config
    if config.num_beams > 1:
        both = [original.logprobs(row.prompt, target) for target in (told, row.target)]
        first, second = (float(one.sum()) / len(one) ** config.length_penalty for one in both)
        return row.cut or abs(first - second) <= gap  # a beam's limit decides between hypotheses
    if at >= min(len(told), len(row.target)):
        return False
    logits = original.logits(row.prompt, row.target[: at + 1])[-1]
    return abs(float(logits[told[at]] - logits[row.target[at]])) <= gap
