"""Sentence chrF of texts against each other, many at once.

The figures are sacreBLEU's, to the last bit: chrF2 of 1 to 6 characters without blanks, effective
order (Popović 2015). SacreBLEU counts the n-grams of both texts anew for every pair; here those of
a text are counted once, and pairs are compared as rows of counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.chrf import CHRF

AT_ONCE = 1 << 14  # characters, or one group: overhead is small, and counts fit a cache
CELLS = 1 << 20  # counts held at a time, at most, or one column

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Group = Sequence[str]


def chrf(groups: Iterable[Group], references: int | None = None) -> Iterator[Floats]:
    """Sentence chrF of each text of a group against the first `references` of it, or against all.

    Yields:
        scores 0…100, float64, (n, references) for a group of n: [h, r] is of the hypothesis h
        against the reference r.
    """
    for together in _chunks(groups):
        each = max([1, *map(len, together)])
        padded = [[*group, *[""] * (each - len(group))] for group in together]
        for group, matrix in zip(together, _scores(padded, references or each), strict=True):
            yield matrix[: len(group), : references or len(group)]


def _chunks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    chunk, characters = list[Group](), 0
    for group in groups:
        size = sum(map(len, group))
        if chunk and characters + size > AT_ONCE:
            yield chunk
            chunk, characters = [], 0
        chunk.append(group)
        characters += size
    yield from [chunk] if chunk else []


def _scores(groups: Sequence[Group], references: int) -> Floats:
    """(groups, n, references); all groups have n texts."""
    shape = (len(groups), len(groups[0]), references)
    precision, recall, orders = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for owner, columns in _ngrams(groups):
        matches = _matches(owner, columns, shape)
        total = np.bincount(owner, minlength=shape[0] * shape[1]).reshape(shape[:2])
        hypothesis, reference = total[:, :, None], total[:, None, :references]
        both = (hypothesis > 0) & (reference > 0)
        precision += np.where(both, matches / np.maximum(hypothesis, 1), 0)
        recall += np.where(both, matches / np.maximum(reference, 1), 0)
        orders += both
    return _f_scores(precision / np.maximum(orders, 1), recall / np.maximum(orders, 1))


def _matches(owner: Ints, columns: Ints, shape: tuple[int, int, int]) -> Ints:
    """How many n-grams two texts have in common, by portions of the columns."""
    groups, each, references = shape
    matches = np.zeros(shape, np.int64)
    end, most = int(columns.max(initial=-1)) + 1, max(1, CELLS // (groups * each))
    for first in range(0, end, most):
        width = min(most, end - first)
        here = (columns >= first) & (columns < first + width)
        cells = owner[here] * width + columns[here] - first
        counts = np.bincount(cells, minlength=groups * each * width).astype(np.int32)
        counts = counts.reshape(groups, each, width)
        for reference in range(references):
            matches[:, :, reference] += np.minimum(counts, counts[:, [reference]]).sum(2)
    return matches


def _f_scores(precision: Floats, recall: Floats) -> Floats:
    factor = CHRF.BETA**2
    weighted = factor * precision + recall
    score = (1 + factor) * precision * recall / np.where(weighted > 0, weighted, 1)
    return np.asarray(100 * score, dtype=np.float64)


def _ngrams(groups: Sequence[Group]) -> Iterator[tuple[Ints, Ints]]:
    """For every order: the text that each n-gram stands in, and its column among its group's.

    An n-gram is known by the number of its first n - 1 characters and by its last; numbers of a
    group stand together, so that its columns begin where the group begins.
    """
    each = len(groups[0])
    texts = ["".join(text.split()) for group in groups for text in group]
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    letters = np.unique(points, return_inverse=True)[1]
    starts, numbers = np.arange(len(owner)), owner // each
    after = np.append(owner, -1)
    for order in range(CHRF.CHAR_ORDER):
        inside = after[starts + order] == owner[starts]
        starts, numbers = starts[inside], numbers[inside]
        pairs = numbers * len(owner) + letters[starts + order]
        _, first, numbers = np.unique(pairs, return_index=True, return_inverse=True)
        group = owner[starts] // each
        begins = np.searchsorted(group[first], np.arange(len(groups)))
        yield owner[starts], numbers - begins[group]
