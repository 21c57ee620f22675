"""Sparse token distributions: the stored top, the mass beyond it, and the precision of both."""

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


def round_logprobs(logprobs: Floats, precision: str) -> Floats:
    """Bring log-probabilities to the stored precision; the result is float32 in any case.

    `exact` keeps float32. `half` rounds to the float16 grid: a relative error of at most 2^-11, so
    at most 4.9e-4 nats for a token of probability above 1/e, 3.9e-3 nats at −8.
    """
    if precision == "exact":
        return logprobs
    rounded: Floats = np.maximum(logprobs, -65504.0).astype(np.float16).astype(np.float32)
    return rounded
