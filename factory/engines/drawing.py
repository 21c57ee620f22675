"""Tokens drawn with replacement from full distributions, as random-sampling KD stores them.

Sparse Logit Sampling, arXiv 2503.16870: of N draws the distinct tokens with their counts; c / N is
an unbiased estimate of every token's probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from factory.engines.base import Drawn

# The most values of distributions held at once in float64: 32 MiB.
DRAWN_VALUES = 1 << 22


def uniforms(seed: Sequence[int], length: int, draws: int) -> npt.NDArray[np.float64]:
    """float64 [length, draws] in [0, 1): a function of the seed alone, whatever stands beside it.

    Those of a position are the same whatever the length.
    """
    return np.random.default_rng(list(seed)).random((length, draws))


def draw(logprobs: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens at some points of distributions whose tokens are laid end to end by their ids.

    A token of probability 0 takes no room there, so it is never drawn. Sums are in float64, of so
    many distributions at once as `DRAWN_VALUES` allows.

    Args:
        logprobs: float32 [n, vocabulary], natural log.
        points: float64 [n, draws] in [0, 1); below 0 where nothing is to be drawn of a row.

    Returns:
        int32 [n, draws], ids; float32 [n, draws], their log-probabilities.
    """
    ids = torch.zeros(points.shape, dtype=torch.int64, device=points.device)
    wanted = (points[:, 0] >= 0).nonzero()[:, 0]
    for rows in torch.split(wanted, max(1, DRAWN_VALUES // logprobs.shape[-1])):
        ids[rows] = _inverse(logprobs[rows], points[rows])
    return ids.int(), logprobs.gather(-1, ids)


def _inverse(logprobs: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    below = logprobs.exp().cumsum(-1, dtype=torch.float64)
    whole = below[:, -1:].contiguous()
    found = torch.searchsorted(below, points * whole, right=True)
    # A point may round up to the whole: it belongs to the last token that has any room.
    return torch.minimum(found, torch.searchsorted(below, whole))


def distinct(ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32]) -> Drawn:
    """Gather the draws of n positions by token, most probable first, equals by id.

    Args:
        ids: int32 [n, draws].
        logprobs: float32 [n, draws], the same for the same token of a position.
    """
    order = np.lexsort((ids, -logprobs), axis=1)
    ids = np.take_along_axis(ids, order, axis=1)
    first = np.ones(ids.shape, np.bool_)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    # A row begins with a first one, so that no count reaches into the next.
    counts = np.diff(np.flatnonzero(first), append=ids.size)
    return Drawn(
        widths=first.sum(axis=1, dtype=np.int32),
        ids=ids[first],
        counts=counts.astype(np.int32),
        logprobs=np.take_along_axis(logprobs, order, axis=1)[first],
    )
