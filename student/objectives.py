"""What a student is trained on: a value per target token for each term, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Float32 logits held at once; what lies beyond is computed again in the backward pass.
CHUNK_ELEMENTS = 1 << 26
# Keeps log(1 − mass) finite where the stored tokens hold all of the mass.
LEAST_TAIL = -1e-7


class Sparse(NamedTuple):
    """A teacher's distributions: the stored k tokens of each position and the mass beyond them.

    Attributes:
        ids: int64 [n, k].
        logprobs: float [n, k], natural log over the full vocabulary at T = 1; −inf is no mass.
        tail_logprob: float [n], log of the mass outside the k tokens; −inf is none.
    """

    ids: Tensor
    logprobs: Tensor
    tail_logprob: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each term counts, and the label smoothing of the cross-entropy."""

    terms: Mapping[str, float]
    label_smoothing: float = 0.0


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    smoothing: float = 0.0,
    normaliser: Tensor | None = None,
) -> Tensor:
    """−log q(target), mixed with the mean over the vocabulary by `smoothing`.

    Args:
        logits: [n, vocabulary], any float dtype; computed in float32 at least.
        targets: int64 [n].
        mask: bool [n]; where False the value is 0 and no gradient flows.
        smoothing: ε of label smoothing (Szegedy et al. 2016, section 7).
        normaliser: [n], logsumexp of the logits, where it is known already.

    Returns:
        [n], in nats.
    """
    wide = _wide(logits)
    known = _normaliser(wide) if normaliser is None else normaliser
    chosen = wide.gather(-1, torch.where(mask, targets, 0)[:, None])[:, 0]
    values = known - chosen
    if smoothing:
        values = (1 - smoothing) * values + smoothing * (known - wide.mean(-1))
    return torch.where(mask, values, 0.0)


def forward_kl(
    logits: Tensor, teacher: Sparse, mask: Tensor, normaliser: Tensor | None = None
) -> Tensor:
    """KL(p‖q) over the stored tokens K and one bucket for all the others.

    Σ_K p·log(p/q) + (1−a)·log((1−a)/(1−b)), a = Σ_K p, b = Σ_K q, in log space. The gradient at
    the stored tokens equals that of the full KL; without the bucket the optimum would be p/a on K
    and nothing elsewhere (arXiv 2503.16870; docs/methods).

    Args:
        logits: [n, vocabulary] of the student, any float dtype.
        teacher: its distributions at the same n positions.
        mask: bool [n]; where False the value is 0 and no gradient flows.
        normaliser: [n], logsumexp of the logits, where it is known already.

    Returns:
        [n], in nats.
    """
    wide = _wide(logits)
    known = _normaliser(wide) if normaliser is None else normaliser
    student = wide.gather(-1, teacher.ids) - known[:, None]
    held = student.logsumexp(-1).clamp(max=LEAST_TAIL)
    student_tail = torch.log(-torch.expm1(held))
    inside = _weighted(teacher.logprobs, student).sum(-1)
    return torch.where(mask, inside + _weighted(teacher.tail_logprob, student_tail), 0.0)


def per_token(
    logits: Tensor, targets: Tensor, teacher: Sparse | None, mask: Tensor, weights: Weights
) -> dict[str, Tensor]:
    """Every term that `weights` asks for, [n] each; float32 logits exist for a chunk at a time.

    Raises:
        ValueError: `forward_kl` is asked for and there is no teacher.
    """
    if weights.terms.get("forward_kl") and teacher is None:
        raise ValueError("forward_kl needs the teacher's distributions")
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    if len(logits) <= rows:
        return _values(logits, targets, teacher, mask, weights)
    parts = []
    for first in range(0, len(logits), rows):
        cut = slice(first, first + rows)
        sparse = Sparse(*(t[cut] for t in teacher)) if teacher else None
        arguments = (logits[cut], targets[cut], sparse, mask[cut], weights)
        parts.append(checkpoint(_values, *arguments, use_reentrant=False))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def combine(terms: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """The weighted sum of the terms, in the shape of each."""
    weighted = [weights.terms[name] * values for name, values in terms.items()]
    return torch.stack(weighted).sum(0)


def _values(
    logits: Tensor, targets: Tensor, teacher: Sparse | None, mask: Tensor, weights: Weights
) -> dict[str, Tensor]:
    wide = _wide(logits)
    known = _normaliser(wide)
    values = {}
    if weights.terms.get("ce"):
        values["ce"] = cross_entropy(wide, targets, mask, weights.label_smoothing, known)
    if weights.terms.get("forward_kl") and teacher is not None:
        values["forward_kl"] = forward_kl(wide, teacher, mask, known)
    return values


def _weighted(teacher: Tensor, student: Tensor) -> Tensor:
    """p·(log p − log q), and 0 where p is 0, in value and in gradient."""
    some = teacher > -torch.inf
    finite = torch.where(some, teacher, 0.0).to(student.dtype)
    return torch.where(some, finite.exp() * (finite - student), 0.0)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _normaliser(logits: Tensor) -> Tensor:
    return logits.logsumexp(-1)
