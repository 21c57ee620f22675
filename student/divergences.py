"""How far a student's distribution is from its teacher's: pure functions of log-probabilities.

Every function takes `p`, the teacher's, and `q`, the student's natural log-probabilities of the
same m events at the same positions, float [..., m], each position's events together of mass 1, and
gives [...] in nats. The events may be a whole vocabulary, or the stored tokens of a position and
one bucket for all others (`student.objectives.events`): a divergence of the coarser distributions,
never above that of the finer ones. No event is −inf: one without mass on either side is `NOTHING`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Log-probability of an event without mass: its exponential is 0, and products with it are finite.
NOTHING = -1e4
# Keeps log(1 − mass) finite where the other events hold all of the mass.
LEAST_TAIL = -1e-7
LEAST = math.log(1e-7)


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p·log(p/q): word-level distillation (Hinton et al. 2015; arXiv 1606.07947)."""
    return (p.exp() * (p - q)).sum(-1)


def soft_ce(p: Tensor, q: Tensor) -> Tensor:
    """−Σ p·log q: `forward_kl` and the entropy of p, which no student can change.

    Together with cross-entropy in equal parts: AlexaTM (arXiv 2206.07808).
    """
    return -(p.exp() * q).sum(-1)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(q‖p) = Σ q·log(q/p): the offline part of MiniLLM (arXiv 2306.08543)."""
    return forward_kl(q, p)


def jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """β·KL(p‖M) + (1−β)·KL(q‖M), M = βp + (1−β)q: GKD (arXiv 2306.13649).

    Over β it tends to KL(p‖q) as β → 0, over 1−β to KL(q‖p) as β → 1; at both ends it is 0.
    """
    middle = mixed(p, q, beta)
    return beta * forward_kl(p, middle) + (1 - beta) * forward_kl(q, middle)


def skew_kl(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """KL(p‖αp + (1−α)q): DistiLLM (arXiv 2402.03898), where α = 0.1."""
    return forward_kl(p, mixed(p, q, alpha))


def skew_reverse_kl(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """KL(q‖(1−α)p + αq): DistiLLM (arXiv 2402.03898), where α = 0.1."""
    return forward_kl(q, mixed(q, p, alpha))


def tvd(p: Tensor, q: Tensor) -> Tensor:
    """½·Σ|p − q|, between 0 and 1: f-distill (Wen et al. 2023)."""
    return (p.exp() - q.exp()).abs().sum(-1) / 2


def mixed(p: Tensor, q: Tensor, share: float) -> Tensor:
    """log(share·p + (1−share)·q), event by event; `share` lies between 0 and 1, not at an end."""
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


def tempered(p: Tensor, temperature: float) -> Tensor:
    """p^(1/T), made to sum to 1: what softmax(z/T) is of logits z, where the events are tokens.

    A bucket is tempered as one token would be. So p and q stay equal exactly where they were, and
    what lies between them is no longer that of the tempered vocabularies.
    """
    return p if temperature == 1 else renormalised(p / temperature)


def rest(held: Tensor) -> Tensor:
    """log(1 − mass) of events that hold `held` = log mass, [...]; log 1e-7 at least."""
    return torch.log(-torch.expm1(held.clamp(max=LEAST_TAIL)))


def target_and_others(p_target: Tensor, q_target: Tensor) -> Tensor:
    """TKD of ATKD: binary KL of the target token, given its log-probabilities, [...]."""
    p, q = p_target.clamp(min=NOTHING), q_target.clamp(min=NOTHING)
    return forward_kl(torch.stack([p, rest(p)], -1), torch.stack([q, rest(q)], -1))


def among_others(p: Tensor, q: Tensor) -> Tensor:
    """DKD of ATKD: KL of the distributions without the target token, renormalised.

    KL(p‖q) = TKD + (1 − p_target)·DKD (decoupled distillation, arXiv 2203.08679).

    Args:
        p: [..., m], the target token's entry being `NOTHING`. Where the others have no mass, there
            is nothing to tell of them, and the value is 0.
        q: the same of the student.
    """
    some = p.logsumexp(-1) > LEAST
    values = forward_kl(renormalised(p), renormalised(q))
    return torch.where(some, values, 0.0)


def renormalised(p: Tensor) -> Tensor:
    """The same log-probabilities made to sum to 1."""
    return p.log_softmax(-1).clamp(min=NOTHING)
