"""What a student is trained on: a value per target token for each term, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from factory.training import OF_DRAWS, TEMPERED
from student import divergences
from student.divergences import (
    LEAST,
    LEAST_TAIL,
    NOTHING,
    among_others,
    rest,
    target_and_others,
    tempered,
)
from student.logprobs import chosen_logprobs

EASY_SHARE, HARD_SHARE = 0.2, 0.8  # of ATKD, arXiv 2402.11890


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


class Realised(NamedTuple):
    """What the teacher makes of the target tokens themselves, float [n] each.

    Attributes:
        logprob: natural log of the probability it gives them, at T = 1.
        easy: 0 at the half of an optimiser step's target tokens it is least sure of; at the others
            one value that makes the mean over the step 1.
        hard: the other way round.
        weight: of the terms over distributions, by the row that a token is of.
    """

    logprob: Tensor
    easy: Tensor
    hard: Tensor
    weight: Tensor


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
    """How much each term counts, and what the terms take besides."""

    terms: Mapping[str, float]
    label_smoothing: float = 0.0
    jsd_beta: float = 0.5
    skew_alpha: float = 0.1
    temperature: float = 1.0


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

    Of draws: `drawn_ce`.
    """
    if isinstance(teacher, Drawn):
        return drawn_ce(student, teacher)
    return divergences.forward_kl(*events(student, teacher))


def drawn_ce(student: Predicted, teacher: Drawn) -> Tensor:
    """−Σ (c_i/N)·log q_i, [n], in nats: random-sampling KD (arXiv 2503.16870).

    The part of the KL that depends on the student. Its expectation over the draws is −Σ p·log q,
    so that its gradient's is the full KL's; the value lies above the KL by the teacher's entropy.
    """
    return -torch.where(teacher.shares > 0, teacher.shares * student.stored, 0.0).sum(-1)


def events(student: Predicted, teacher: Sparse) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student at the stored tokens and in one bucket for the rest.

    A whole distribution is the special case of all tokens stored, whose bucket is empty.

    Returns:
        Two of [n, k + 1]. What fills a narrow position, or has no mass, is `NOTHING` in both, and
        so is a bucket where neither leaves 1e-7 outside. Any other counts as 1e-7 at least in both,
        which keeps a logarithm of nothing out of those divergences that the student's mass weighs,
        and adds less than 2e-6 nats to the others.
    """
    p, q = _stored(student, teacher)
    held, tail = q.logsumexp(-1), teacher.tail_logprob.to(q.dtype)
    empty = (tail <= LEAST) & (held >= LEAST_TAIL)
    buckets = (tail.clamp(min=LEAST), rest(held))
    p_bucket, q_bucket = (torch.where(empty, NOTHING, bucket) for bucket in buckets)
    return _with(p, p_bucket), _with(q, q_bucket)


def atkd(student: Predicted, teacher: Sparse, targets: Tensor, realised: Realised) -> Tensor:
    """ATKD, [n], in nats: 0.2·mean_easy(DKD) + 0.8·mean_hard(TKD + DKD) over an optimiser step.

    TKD is the binary KL of the target token, DKD the KL among all others, renormalised; hard is the
    half of the step's target tokens of the greatest 1 − p(target) (arXiv 2402.11890). The step's,
    not the micro-batch's, so that how a step is cut changes nothing. A group without tokens adds 0.
    """
    sure = realised.logprob.to(student.target.dtype).clamp(min=NOTHING, max=0.0)
    tkd = target_and_others(sure, student.target)
    dkd = among_others(*other_events(student, teacher, targets, sure))
    return EASY_SHARE * realised.easy * dkd + HARD_SHARE * realised.hard * (tkd + dkd)


def other_events(
    student: Predicted, teacher: Sparse, targets: Tensor, target_logprob: Tensor
) -> tuple[Tensor, Tensor]:
    """As `events`, [n, k + 1] each, without the target token: it is `NOTHING` in both.

    Where it is none of the stored ones, its mass is taken out of both buckets.
    """
    p, q = _stored(student, teacher)
    target = (teacher.ids == targets[:, None]) & (p > NOTHING)
    outside = ~target.any(-1)
    tail = teacher.tail_logprob.to(q.dtype).clamp(min=NOTHING)
    p_bucket = torch.where(outside, tail + rest(target_logprob - tail), tail)
    also = torch.where(outside, student.target.clamp(min=NOTHING), NOTHING)
    q_bucket = rest(_with(q, also).logsumexp(-1))
    p, q = p.masked_fill(target, NOTHING), q.masked_fill(target, NOTHING)
    return _with(p, p_bucket), _with(q, q_bucket)


def per_token(
    logits: Tensor,
    targets: Tensor,
    teacher: Teacher | None,
    mask: Tensor,
    weights: Weights,
    realised: Realised | None = None,
) -> dict[str, Tensor]:
    """Every term of logits that `weights` gives a weight, [n] each, in nats.

    `hidden` is none: `student.states.hidden_mse` tells it.

    Args:
        logits: [n, vocabulary] of the student, any float dtype.
        targets: int64 [n].
        teacher: its distributions at the same n positions, or None.
        mask: bool [n]; where False the value is 0 and no gradient flows.
        weights: which terms there are.
        realised: what the teacher makes of the targets; its `weight` is in the terms over
            distributions already.

    Raises:
        ValueError: a term over distributions is asked for and there are none, one that draws do not
            tell and there are draws, or `atkd` and `realised` is None.
    """
    asked = [name for name, weight in weights.terms.items() if weight and name != "hidden"]
    over = [name for name in asked if name != "ce"]
    if over and teacher is None:
        raise ValueError(f"{over[0]} needs the teacher's distributions")
    known = torch.where(mask, targets, 0)
    student = predicted(logits, known, teacher if over else None, weights.label_smoothing > 0)
    values = {"ce": cross_entropy(student, weights.label_smoothing)} if "ce" in asked else {}
    if over and teacher is not None:
        values |= _over_distributions(over, student, teacher, known, weights, realised)
    return {name: torch.where(mask, values[name], 0.0) for name in asked}


def combine(terms: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """The weighted sum of the terms, in the shape of each."""
    weighted = [weights.terms[name] * values for name, values in terms.items()]
    return torch.stack(weighted).sum(0)


def _over_distributions(
    names: list[str],
    student: Predicted,
    teacher: Teacher,
    targets: Tensor,
    weights: Weights,
    realised: Realised | None,
) -> dict[str, Tensor]:
    if isinstance(teacher, Drawn):
        if unfit := [name for name in names if name not in OF_DRAWS]:
            raise ValueError(f"draws do not tell {unfit[0]}")
        values = dict.fromkeys(names, drawn_ce(student, teacher))
    else:
        p, q = events(student, teacher)
        values = {name: _divergence(name, p, q, weights) for name in names if name != "atkd"}
        if "atkd" in names:
            if realised is None:
                raise ValueError("atkd needs what the teacher makes of the target tokens")
            values["atkd"] = atkd(student, teacher, targets, realised)
    scale = 1.0 if realised is None else realised.weight
    return {name: scale * value for name, value in values.items()}


def _divergence(name: str, p: Tensor, q: Tensor, weights: Weights) -> Tensor:
    """One term of the events, times T² where they are tempered (Hinton et al. 2015, section 2)."""
    heat = weights.temperature if name in TEMPERED else 1.0
    p, q = tempered(p, heat), tempered(q, heat)
    if name == "jsd":
        return heat**2 * divergences.jsd(p, q, weights.jsd_beta)
    if name in ("skew_kl", "skew_reverse_kl"):
        return heat**2 * SKEWED[name](p, q, weights.skew_alpha)
    return heat**2 * PLAIN[name](p, q)


PLAIN = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "tvd": divergences.tvd,
    "soft_ce": divergences.soft_ce,
}
SKEWED = {"skew_kl": divergences.skew_kl, "skew_reverse_kl": divergences.skew_reverse_kl}


def _stored(student: Predicted, teacher: Sparse) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the stored tokens; fillers and tokens without mass are `NOTHING`."""
    some = teacher.logprobs > -torch.inf
    p = torch.where(some, teacher.logprobs, NOTHING).to(student.stored.dtype)
    return p, torch.where(some, student.stored, NOTHING).clamp(min=NOTHING)


def _with(values: Tensor, last: Tensor) -> Tensor:
    return torch.cat([values, last[..., None]], -1)
