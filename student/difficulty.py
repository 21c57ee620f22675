"""How sure the teacher was of what a step trains on: which tokens are hard, and which rows.

Both are told over an optimiser step, of all processes, from stored log-probabilities alone: each
process finds the same, however the step is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from student.dataset import StageRows

Floats = npt.NDArray[np.float32]
Known = dict[int, Floats]  # of the rows of a step


def realised_of(rows: StageRows, step: Iterable[int], progress: float | None) -> Known:
    """What `student.objectives.Realised` holds, of each row of an optimiser step.

    Args:
        rows: prepared with distributions.
        step: the rows of the step, of all processes.
        progress: share of the stage that is done, above 0, where easy rows come first; None gives
            every row the weight 1.

    Returns:
        By row, float32 [4, target tokens]: log-probability, easy, hard, weight.
    """
    found = [(int(i), rows.row(int(i))["token_logprobs"]) for i in step]
    easy, hard = halves(np.concatenate([told for _, told in found]))
    ends = np.cumsum([len(told) for _, told in found])[:-1]
    parts = zip(found, np.split(easy, ends), np.split(hard, ends), strict=True)
    made = {}
    for (i, told), simple, difficult in parts:
        weight = 1.0 if progress is None else row_weight(told, progress)
        made[i] = np.stack([told, simple, difficult, np.full_like(told, weight)])
    return made


def halves(logprobs: npt.NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    """Weights of easy and hard tokens of a step, each of mean 1 over it: ATKD's split.

    Hard is the half of greatest UNC = 1 − p (arXiv 2402.11890), with the odd token, ties as they
    stand; UNC itself is no weight. A single token is hard, and no token easy: all its weights 0.

    Args:
        logprobs: [n], the teacher's, of the step's target tokens.

    Returns:
        Two of float32 [n], easy and hard: n over the size of the half, and 0 outside it.
    """
    n = len(logprobs)
    hard = np.zeros(n, dtype=bool)
    hard[np.argsort(logprobs, kind="stable")[: n - n // 2]] = True
    sizes = (max(n // 2, 1), max(n - n // 2, 1))
    easy_scale, hard_scale = (np.float32(n / size) for size in sizes)
    return ~hard * easy_scale, hard * hard_scale


def row_weight(logprobs: npt.NDArray[np.floating[Any]], progress: float) -> float:
    """exp(−1/√d), d = t/L: the weight of a row's terms over distributions, in (0, 1].

    L is the teacher's own loss on the row, the mean of −log p over its target tokens, in nats, and
    t in (0, 1] the share of the stage that is done: rows on which the teacher is sure count from
    the beginning, the others more and more. The factor exp(−1/√d) of a difficulty d told by the
    teacher's loss is AdaKD's (arXiv 2405.08019, from its summary); its d was not to be had, and
    t/L is our choice.
    """
    loss = max(0.0, -float(np.mean(logprobs)))
    return float(np.exp(-np.sqrt(loss / progress)))
