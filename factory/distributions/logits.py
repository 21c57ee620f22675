"""Sparse token distributions: what is held of them, and the mass beyond it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

# Float32 log-probabilities cannot tell whether less than this is left.
LEAST_TAIL = 1e-7


def tail_logprob(logprobs: Floats, widths: Ints | None = None) -> Floats:
    """Log of the probability mass outside the held tokens, position by position.

    Summed in float64 before any rounding; at least log 1e-7, so that it is finite even where the
    held tokens have all of the mass.

    Args:
        logprobs: float32 [n, k], natural-log probabilities over the full vocabulary at T = 1; or
            flat [m], position by position, where `widths` tells how many are whose.
        widths: int32 [n], each at least 1.

    Returns:
        float32 [n], in nats.
    """
    held = np.exp(logprobs, dtype=np.float64)
    if widths is None:
        mass = held.sum(axis=1)
    else:
        mass = np.add.reduceat(held, np.cumsum(widths, dtype=np.int64) - widths)
    tail: Floats = np.log1p(-np.minimum(mass, 1.0 - LEAST_TAIL)).astype(np.float32)
    return tail


def nucleus(ids: Ints, logprobs: Floats, p: float) -> tuple[Ints, Ints, Floats]:
    """Of each position's most probable tokens the fewest whose mass reaches `p`, or all of them.

    Args:
        ids: int32 [n, k], most probable first.
        logprobs: float32 [n, k], natural-log probabilities over the full vocabulary at T = 1.
        p: above 0; the sums are taken in float64.

    Returns:
        int32 [n], how many are kept of each position, at least 1; and flat what is kept of `ids`
        and `logprobs`.
    """
    mass = np.cumsum(np.exp(logprobs, dtype=np.float64), axis=1)
    kept = np.ones(ids.shape, np.bool_)
    kept[:, 1:] = mass[:, :-1] < p
    return kept.sum(axis=1, dtype=np.int32), ids[kept], logprobs[kept]
