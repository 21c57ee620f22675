"""What a student is trained on: a value per target token for each term, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from student.logprobs import chosen_logprobs

# Keeps log(1 − mass) finite where the stored tokens hold all of the mass.
LEAST_TAIL = -1e-7


class Sparse(NamedTuple):
    """A teacher's distributions: stored tokens of each position, and the mass beyond them.

    Attributes:
        ids: int64 [n, k].
        logprobs: float [n, k], natural log over the full vocabulary at T = 1; −inf is no mass, and
            fills a position that has fewer than k.
        tail_logprob: float [n], log of the mass outside the stored tokens; −inf is none.
    """

    ids: Tensor
    logprobs: Tensor
    tail_logprob: Tensor


class Drawn(NamedTuple):
    """Tokens drawn with replacement from a teacher's full distributions.

    Attributes:
        ids: int64 [n, m], the distinct ones.
        shares: float [n, m], draws of each over all draws of the position; 0 fills a position that
            has fewer than m.
    """

    ids: Tensor
    shares: Tensor


Teacher = Sparse | Drawn


class Predicted(NamedTuple):
    """Natural log-probabilities of the student, float32 at least.

    Attributes:
        target: [n], of the target token.
        stored: [n, m], of the tokens that the teacher's distributions hold; m is 0 without them.
        average: [n], mean over the vocabulary, or None where nobody asks for it.
    """

    target: Tensor
    stored: Tensor
    average: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each term counts, and the label smoothing of the cross-entropy."""

    terms: Mapping[str, float]
    label_smoothing: float = 0.0


def predicted(
    logits: Tensor, targets: Tensor, teacher: Teacher | None, average: bool = False
) -> Predicted:
    """What the student says of target and stored tokens; no tensor as wide as `logits` is made.

    Args:
        logits: [n, vocabulary], any float dtype.
        targets: int64 [n].
        teacher: its distributions at the same n positions, or None.
        average: whether the mean over the vocabulary is wanted.
    """
    stored = [teacher.ids] if teacher else []
    width = stored[0].shape[-1] if stored else 0
    found = chosen_logprobs(logits, torch.cat([targets[:, None], *stored], -1), average)
    return Predicted(found[:, 0], found[:, 1 : 1 + width], found[:, -1] if average else None)


def cross_entropy(student: Predicted, smoothing: float = 0.0) -> Tensor:
    """−log q(target), [n], in nats, mixed with the mean over the vocabulary by `smoothing`.

    Label smoothing as in Szegedy et al. 2016, section 7.

    Raises:
        ValueError: there is smoothing, and no mean over the vocabulary.
    """
    if not smoothing:
        return -student.target
    if student.average is None:
        raise ValueError("label smoothing needs the mean over the vocabulary")
    return -(1 - smoothing) * student.target - smoothing * student.average


def forward_kl(student: Predicted, teacher: Teacher) -> Tensor:
    """KL(p‖q) as far as a cache tells it, [n], in nats.

    Of stored tokens K: Σ_K p·log(p/q) + (1−a)·log((1−a)/(1−b)), a = Σ_K p, b = Σ_K q, in log space:
    all other tokens are one bucket. The gradient at the stored tokens equals that of the full KL;
    without the bucket the optimum would be p/a on K and nothing elsewhere (arXiv 2503.16870).

    Of draws: −Σ (c_i/N)·log q_i (random-sampling KD, the same paper), the part of the KL that
    depends on the student. Its expectation over the draws is the cross-entropy −Σ p·log q, so that
    its gradient's is the full KL's; the value lies above the KL by the teacher's entropy.
    """
    if isinstance(teacher, Drawn):
        return -torch.where(teacher.shares > 0, teacher.shares * student.stored, 0.0).sum(-1)
    some = teacher.logprobs > -torch.inf
    inside = _weighted(teacher.logprobs, student.stored).sum(-1)
    held = student.stored.masked_fill(~some, -torch.inf).logsumexp(-1).clamp(max=LEAST_TAIL)
    return inside + _weighted(teacher.tail_logprob, torch.log(-torch.expm1(held)))


def per_token(
    logits: Tensor, targets: Tensor, teacher: Teacher | None, mask: Tensor, weights: Weights
) -> dict[str, Tensor]:
    """Every term that `weights` gives a weight, [n] each, in nats.

    Args:
        logits: [n, vocabulary] of the student, any float dtype.
        targets: int64 [n].
        teacher: its distributions at the same n positions, or None.
        mask: bool [n]; where False the value is 0 and no gradient flows.
        weights: which terms there are.

    Raises:
        ValueError: `forward_kl` is asked for and there is no teacher.
    """
    asked = {name for name, weight in weights.terms.items() if weight}
    if "forward_kl" in asked and teacher is None:
        raise ValueError("forward_kl needs the teacher's distributions")
    stored = teacher if "forward_kl" in asked else None
    known = torch.where(mask, targets, 0)
    student = predicted(logits, known, stored, weights.label_smoothing > 0)
    values = {}
    if "ce" in asked:
        values["ce"] = cross_entropy(student, weights.label_smoothing)
    if stored is not None:
        values["forward_kl"] = forward_kl(student, stored)
    return {name: torch.where(mask, value, 0.0) for name, value in values.items()}


def combine(terms: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """The weighted sum of the terms, in the shape of each."""
    weighted = [weights.terms[name] * values for name, values in terms.items()]
    return torch.stack(weighted).sum(0)


def _weighted(teacher: Tensor, student: Tensor) -> Tensor:
    """p·(log p − log q), and 0 where p is 0, in value and in gradient."""
    some = teacher > -torch.inf
    finite = torch.where(some, teacher, 0.0).to(student.dtype)
    return torch.where(some, finite.exp() * (finite - student), 0.0)
