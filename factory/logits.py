"""Sparse token distributions: what is held of them, and the mass beyond it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def tail_logprob(topk_logprobs: Floats) -> Floats:
    """Log of the probability mass outside the stored tokens, position by position.

    Computed in float64 before any rounding, as log(−expm1(min(logsumexp, −1e−7))), so that it is
    finite even where the stored tokens hold all of the mass.

    Args:
        topk_logprobs: float32 [n, k], natural-log probabilities over the full vocabulary at T = 1.

    Returns:
        float32 [n], in nats.
    """
    held = np.logaddexp.reduce(topk_logprobs.astype(np.float64), axis=1)
    tail: Floats = np.log(-np.expm1(np.minimum(held, -1e-7))).astype(np.float32)
    return tail
